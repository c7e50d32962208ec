"""Handwritten digits by diffusion recovery likelihood alone, as in the paper: long chains, no initialiser."""

from configs import default


def get_config():
  config = default.get_config()
  config.data.name = 'digits'
  config.data.image_size = 8
  config.data.num_channels = 1
  config.data.random_flip = False
  config.data.grey_levels = 17
  config.model.ch = 16
  config.model.ch_mult = (1, 4)
  config.model.num_res_blocks = 1
  config.model.shortcut = 'nin'
  config.model.resample_with_conv = True
  config.sampling.num_steps = 20
  config.sampling.generation_steps = 30
  config.sampling.step_size = 0.3
  config.sampling.step_size_rule = 'posterior'
  config.train.batch_size = 64
  config.train.num_steps = 8000
  config.train.learning_rate = 2e-3
  config.train.warmup_steps = 200
  config.train.grad_clip = 1.0
  config.train.ema_decay = 0.995
  config.train.log_every = 50
  config.train.sample_every = 2000
  config.train.checkpoint_every = 500
  config.train.keep_every = 0
  config.density.baselines = True
  config.eval.num_samples = 5_000
  config.eval.batch_size = 1000
  return config
