"""CelebA-HQ at 256x256."""

from configs import default


def get_config():
  config = default.get_config()
  config.data.name = 'celeb_a_hq/256'
  config.data.train_split = 'train[:27000]'  # the set has no test split; 27,000 and 3,000 are the customary shares
  config.data.test_split = 'train[27000:]'
  config.data.image_size = 256
  config.train.beta_1 = 0.5
  return config
