"""Handwritten digits, 8x8, the set that comes with scikit-learn: minutes on a laptop's CPU.

With two ideas of CDRL, docs/cdrl.md: shared noise, and an initialiser where chains start, which makes do with half of
the steps. `digits_drl` has neither.
"""

from configs import digits_drl


def get_config():
  config = digits_drl.get_config()
  config.model.level_embedding = 'angle'
  config.proposal.name = 'mlp'
  config.proposal.ch = 128
  config.proposal.num_layers = 2
  config.proposal.dropout = 0.0
  config.proposal.learning_rate = 1e-3
  config.proposal.warmup_steps = 200
  config.proposal.warmup_head_start = 0
  config.sampling.num_steps = 10
  config.sampling.generation_steps = 20
  config.sampling.noise_scale = 0.6
  config.sampling.full_noise_levels = 3
  config.train.shared_noise = True
  config.train.batch_size = 16
  config.train.num_steps = 13_500
  config.train.learning_rate = 1.8e-3
  config.train.cosine_decay = True
  config.train.ema_decay = 0.999
  config.train.log_every = 200
  config.train.sample_every = 4500
  config.train.checkpoint_every = 1500
  return config
