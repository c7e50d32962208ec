"""LSUN church_outdoor at 128x128: the published run."""

from configs import default


def get_config():
  config = default.get_config()
  config.data.name = 'lsun/church_outdoor'
  config.data.test_split = 'validation'
  config.data.image_size = 128
  config.train.beta_1 = 0.5
  return config
