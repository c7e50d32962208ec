"""Handwritten digits, 8x8, the set that comes with scikit-learn: minutes on a laptop's CPU."""

from configs import default


def get_config():
  config = default.get_config()
  config.data.name = 'digits'
  config.data.image_size = 8
  config.data.num_channels = 1
  config.data.random_flip = False
  config.model.ch = 32
  config.model.ch_mult = (1, 2)
  config.model.num_res_blocks = 1
  config.sampling.num_steps = 10
  config.sampling.step_size = 6e-4
  config.train.batch_size = 64
  config.train.num_steps = 4000
  config.train.learning_rate = 2e-3
  config.train.warmup_steps = 200
  config.train.cosine_decay = True
  config.train.sample_every = 1000
  config.train.checkpoint_every = 500
  config.train.keep_every = 0
  return config
