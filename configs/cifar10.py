"""CIFAR-10, the published run (FID 9.58, inception score 8.30): 8 residual blocks, batch 256."""

from configs import default


def get_config():
  config = default.get_config()
  config.data.name = 'cifar10'
  config.model.num_res_blocks = 8
  config.train.batch_size = 256
  return config
