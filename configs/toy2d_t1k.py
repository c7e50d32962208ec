"""Two-dimensional distributions with a thousand levels: densities, exact to a few hundredths of a nat."""

from configs import toy2d


def get_config():
  config = toy2d.get_config()
  config.model.output_scale = 1.0
  config.model.quadratic = 1.0
  config.model.level_embedding = 'log_snr'
  config.diffusion.num_levels = 1000
  config.diffusion.temperature = 'one'
  config.sampling.num_steps = 0
  config.sampling.step_size = 0.2
  config.train.level_weight = 'balanced'
  config.train.time_score = 1.0
  config.train.batch_size = 512
  config.train.num_steps = 4000
  config.train.ema_decay = 0.998
  config.train.sample_every = 4000
  config.train.checkpoint_every = 1000
  return config
