"""LSUN church_outdoor at 64x64: the published run."""

from configs import default


def get_config():
  config = default.get_config()
  config.data.name = 'lsun/church_outdoor'
  config.data.test_split = 'validation'
  config.data.image_size = 64
  config.train.batch_size = 128
  return config
