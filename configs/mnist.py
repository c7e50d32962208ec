"""MNIST, padded to 32x32."""

from configs import default


def get_config():
  config = default.get_config()
  config.data.name = 'mnist'
  config.data.num_channels = 1
  config.data.random_flip = False
  config.eval.num_samples = 10_000
  config.eval.batch_size = 1000
  return config
