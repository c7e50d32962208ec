"""CIFAR-10 at 16x16, told classes: minutes on a GPU, many hours on a CPU; the model `cifar10_16` that comes along."""

from configs import default


def get_config():
  config = default.get_config()
  config.data.name = 'cifar10'
  config.data.image_size = 16
  config.model.ch = 64
  config.model.ch_mult = (1, 2, 2)
  config.model.num_classes = 10
  config.sampling.num_steps = 20
  config.sampling.step_size = 0.3
  config.sampling.step_size_rule = 'posterior'
  config.sampling.label = 'all'
  config.sampling.guidance = 1.0
  config.train.shared_noise = True
  config.train.batch_size = 256
  config.train.num_steps = 4500
  config.train.learning_rate = 4e-4
  config.train.warmup_steps = 300
  config.train.grad_clip = 1.0
  config.train.log_every = 50
  config.train.checkpoint_every = 500
  config.train.keep_every = 0
  return config
