"""CelebA, the centre cropped and resized to 64x64: the published run."""

from configs import default


def get_config():
  config = default.get_config()
  config.data.name = 'celeb_a'
  config.data.image_size = 64
  config.model.num_res_blocks = 6
  config.train.batch_size = 128
  config.train.beta_1 = 0.5
  return config
