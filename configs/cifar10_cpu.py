"""CIFAR-10 at 16x16 for a CPU, told classes: an energy of the form <y, s(y)> / 2 by score matching; docs/cpu.md."""

from configs import default


def get_config():
  config = default.get_config()
  config.data.name = 'cifar10'
  config.data.image_size = 16
  config.diffusion.num_levels = 100
  config.diffusion.schedule = 'cosine'
  config.diffusion.temperature = 'noise'
  config.model.name = 'unet'
  config.model.ch = 32
  config.model.ch_mult = (1, 2, 2)
  config.model.num_res_blocks = 1
  config.model.act = 'swish'
  config.model.num_classes = 10
  config.model.spectral_norm = False
  config.model.level_embedding = 'angle'
  config.sampling.num_steps = 0
  config.sampling.step_size = 0.2
  config.sampling.step_size_rule = 'posterior'
  config.sampling.noise_scale = 1.0
  config.sampling.denoise = True
  config.sampling.flow_steps = 20
  config.sampling.label = 'all'
  config.sampling.guidance = 1.0
  config.train.objective = 'dsm'
  config.train.level_weight = 'balanced'
  config.train.batch_size = 64
  config.train.learning_rate = 1e-3
  config.train.warmup_steps = 200
  config.train.cosine_decay = True
  config.train.grad_clip = 1.0
  config.train.ema_decay = 0.999
  config.train.ema_warmup = True
  config.train.num_steps = 5000
  config.train.log_every = 50
  config.train.sample_every = 2500
  config.train.checkpoint_every = 500
  config.train.keep_every = 0
  return config
