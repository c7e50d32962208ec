"""Handwritten digits by cooperative diffusion recovery likelihood: an initialiser, shared noise, shorter chains."""

from configs import digits


def get_config():
  config = digits.get_config()
  config.diffusion.schedule = 'cosine'
  config.model.level_embedding = 'angle'
  config.proposal.name = 'unet'
  config.proposal.ch = 16
  config.proposal.ch_mult = (1, 2)
  config.proposal.num_res_blocks = 1
  config.proposal.attention_resolutions = ()
  config.proposal.dropout = 0.0
  config.proposal.learning_rate = 1e-3
  config.proposal.warmup_steps = 200
  config.proposal.warmup_head_start = 0
  config.sampling.num_steps = 10
  config.sampling.generation_steps = 15
  config.train.shared_noise = True
  return config
