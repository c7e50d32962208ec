"""Your own images at 16x16, in minutes on a CPU: a first try, given by --config.data.path."""

from configs import images


def get_config():
  config = images.get_config()
  config.data.image_size = 16
  config.model.ch = 16
  config.model.ch_mult = (1, 2)
  config.model.num_res_blocks = 1
  config.model.resample_with_conv = True
  config.sampling.num_steps = 20
  config.sampling.generation_steps = 40
  config.sampling.step_size = 6e-4
  config.train.batch_size = 32
  config.train.num_steps = 1500
  config.train.learning_rate = 7e-4
  config.train.warmup_steps = 200
  config.train.cosine_decay = True
  config.train.grad_clip = 1.0
  config.train.ema_decay = 0.995
  config.train.log_every = 50
  config.train.sample_every = 500
  config.train.checkpoint_every = 500
  config.train.keep_every = 0
  return config
