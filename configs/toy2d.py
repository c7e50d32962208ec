"""Two-dimensional distributions with known densities: two minutes on a laptop's CPU."""

from configs import default


def get_config():
  config = default.get_config()
  config.data.name = 'toy2d'
  config.data.random_flip = False
  config.model.name = 'mlp'
  config.model.act = 'swish'
  config.model.spectral_norm = False
  config.model.num_frequencies = 4
  config.model.output_scale = 0.02
  config.sampling.num_steps = 20
  config.sampling.step_size = 0.06
  config.sampling.step_size_rule = 'conditional'
  config.sampling.noise_scale = 1.0
  config.sampling.batch_size = 4096
  config.train.batch_size = 256
  config.train.num_steps = 1500
  config.train.learning_rate = 1e-3
  config.train.warmup_steps = 200
  config.train.cosine_decay = True
  config.train.sample_every = 1500
  config.train.checkpoint_every = 500
  config.train.keep_every = 0
  config.eval.num_samples = 5_000
  config.eval.batch_size = 1000
  return config
