"""CIFAR-10 by cooperative diffusion recovery likelihood, the published run (FID 4.31); ch 256 is its large network."""

from configs import cifar10


def get_config():
  config = cifar10.get_config()
  config.diffusion.schedule = 'cosine'
  config.model.level_embedding = 'angle'
  config.model.level_act = True
  config.model.zero_init = False
  config.model.raw_singular_vectors = True
  config.proposal.name = 'unet'
  config.sampling.num_steps = 15
  config.sampling.step_size = 4e-4
  config.sampling.noise_scale = 1.0
  config.sampling.denoise = True
  config.train.num_steps = 500_000
  config.train.shared_noise = True
  config.train.warmup_steps = 10_000
  config.train.grad_clip = 1.0
  config.train.ema_decay = 0.9999
  config.train.ema_warmup = True
  return config
