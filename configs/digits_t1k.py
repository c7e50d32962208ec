"""Handwritten digits with a thousand levels: densities and long chains on a laptop's CPU."""

from configs import digits_drl


def get_config():
  config = digits_drl.get_config()
  config.data.dequantize = True
  config.model.name = 'mlp'
  config.model.act = 'swish'
  config.model.ch = 256
  config.model.num_frequencies = 4
  config.model.quadratic = 1.0
  config.model.level_embedding = 'log_snr'
  config.model.spectral_norm = False
  config.diffusion.num_levels = 1000
  config.diffusion.temperature = 'one'
  config.sampling.num_steps = 0
  config.sampling.generation_steps = 0
  config.sampling.step_size = 0.2
  config.sampling.step_size_rule = 'conditional'
  config.sampling.noise_scale = 1.0
  config.train.level_weight = 'balanced'
  config.train.time_score = 1.0
  config.train.batch_size = 128
  config.train.num_steps = 10_000
  config.train.learning_rate = 1e-3
  config.train.cosine_decay = True
  config.train.ema_decay = 0.999
  config.train.grad_clip = 0.0
  config.train.log_every = 200
  config.train.sample_every = 5000
  config.train.checkpoint_every = 1000
  return config
