"""Handwritten digits with twelve levels, whose energies are one normalised density; docs/density.md."""

from configs import digits_t1k


def get_config():
  config = digits_t1k.get_config()
  config.model.normal_factor = 5
  config.model.num_frequencies = 7
  config.model.quadratic = 0.0
  config.model.dropout = 0.3
  config.diffusion.num_levels = 12
  config.sampling.num_steps = 20
  config.sampling.step_size = 0.25
  config.train.score_matching = 1.0
  config.train.batch_size = 64
  config.train.num_steps = 1280
  config.train.warmup_steps = 200
  config.train.grad_clip = 10.0
  config.train.sample_every = 500
  config.density.levels = (0, 4, 8)
  config.density.rung_ess = 0.998
  config.density.num_leapfrog = 3
  config.density.num_steps = 4
  config.density.num_chains = 1024
  config.density.checks = ('exchange', 'flow')
  config.density.num_ladders = 16
  config.density.num_rounds = 3600
  config.density.reverse_from = 'exchange'
  return config
