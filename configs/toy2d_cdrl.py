"""The checkerboard of CDRL's toy: its schedule, steps, initialiser and shared noise, with our own network."""

from configs import toy2d


def get_config():
  config = toy2d.get_config()
  config.data.distribution = 'checkerboard'
  config.diffusion.schedule = 'cosine'
  config.model.level_embedding = 'angle'
  config.proposal.name = 'mlp'
  config.proposal.num_frequencies = 4
  config.proposal.dropout = 0.0
  config.proposal.learning_rate = 1e-3
  config.proposal.warmup_steps = 200
  config.proposal.warmup_head_start = 0
  config.sampling.num_steps = 15
  config.sampling.step_size = 0.06  # with the toy's own, 0.2686, the chains diverge at this learning rate
  config.train.shared_noise = True
  return config
