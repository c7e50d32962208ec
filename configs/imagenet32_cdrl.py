"""ImageNet at 32x32 without labels, by cooperative diffusion recovery likelihood, the published run (FID 9.35)."""

from configs import cifar10_cdrl


def get_config():
  config = cifar10_cdrl.get_config()
  config.data.name = 'downsampled_imagenet/32x32'
  config.data.test_split = 'validation'
  config.proposal.num_res_blocks = 2
  config.train.num_steps = 1_000_000
  return config
