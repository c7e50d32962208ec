"""Your own images: a folder or a .zip, given by --config.data.path."""

from configs import default


def get_config():
  config = default.get_config()
  config.data.name = 'images'
  config.model.ch = 64
  config.sampling.batch_size = 64
  config.train.sample_every = 1000
  config.train.checkpoint_every = 1000
  return config
