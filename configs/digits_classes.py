"""Handwritten digits, each of which can be asked for: as `digits`, and both networks are told the class."""

from configs import digits


def get_config():
  config = digits.get_config()
  config.model.num_classes = 10
  config.sampling.label = 'all'
  return config
