"""Two-dimensional distributions with six levels: densities to a few hundredths of a nat in two minutes on a CPU."""

from configs import toy2d


def get_config():
  config = toy2d.get_config()
  config.model.ch = 64
  config.model.num_frequencies = 6
  config.model.output_scale = 1.0
  config.model.quadratic = 1.0
  config.model.level_embedding = 'log_snr'
  config.diffusion.temperature = 'one'
  config.train.objective = 'contrastive'
  config.train.level_weight = 'balanced'
  config.train.time_score = 1.0
  config.train.num_steps = 4000
  config.train.learning_rate = 2e-3
  config.train.ema_decay = 0.998
  config.train.sample_every = 4000
  config.train.checkpoint_every = 1000
  return config
