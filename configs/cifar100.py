"""CIFAR-100 with the settings of the published CIFAR-10 run."""

from configs import default


def get_config():
  config = default.get_config()
  config.data.name = 'cifar100'
  config.model.num_res_blocks = 8
  config.train.batch_size = 256
  return config
