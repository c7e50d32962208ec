"""Street View House Numbers, 32x32; not mirrored, since digits are not symmetric."""

from configs import default


def get_config():
  config = default.get_config()
  config.data.name = 'svhn_cropped'
  config.data.random_flip = False
  return config
