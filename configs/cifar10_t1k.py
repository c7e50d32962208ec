"""CIFAR-10 with a thousand levels: the normal approximation, one gradient a level in training and in generation."""

from configs import cifar10


def get_config():
  config = cifar10.get_config()
  config.data.dequantize = True
  config.diffusion.num_levels = 1000
  config.diffusion.temperature = 'one'
  config.model.quadratic = 1.0
  config.model.level_embedding = 'log_snr'
  config.sampling.num_steps = 0
  config.sampling.step_size = 0.2
  config.sampling.step_size_rule = 'conditional'
  config.sampling.noise_scale = 1.0
  config.train.level_weight = 'balanced'
  config.train.time_score = 1.0
  return config
