"""Handwritten digits by cooperative diffusion recovery likelihood: as `digits`, with CDRL's noise levels and U-Net."""

from configs import digits


def get_config():
  config = digits.get_config()
  config.diffusion.schedule = 'cosine'
  config.proposal.name = 'unet'
  config.proposal.ch = 16
  config.proposal.ch_mult = (1, 2)
  config.proposal.num_res_blocks = 1
  config.proposal.attention_resolutions = ()
  return config
