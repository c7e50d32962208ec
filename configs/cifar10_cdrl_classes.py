"""CIFAR-10 with its ten classes, by cooperative diffusion recovery likelihood."""

from configs import cifar10_cdrl


def get_config():
  config = cifar10_cdrl.get_config()
  config.model.num_classes = 10
  config.sampling.label = 'all'
  return config
