"""Generation on all devices: samples of a model, a batch at a time, as a configuration asks for them."""

import jax.numpy as jnp
import numpy as np

from diffusion_ebm import older_versions, random_keys, sampling
from diffusion_ebm.run import parallel


def settings(config) -> sampling.Settings:
  """How samples are drawn."""
  s = config.sampling
  num_steps = max(s.generation_steps or s.num_steps, 0)
  return sampling.Settings(num_steps, s.noise_scale, s.full_noise_levels, s.denoise, s.denoise_factor)


def inputs(config) -> dict:
  """What samples depend on beside the checkpoint and the seed, for the records of results."""
  return older_versions.without_later('sampling', settings(config)._asdict())


def make_sampler(config, shape, batch_size: int, keep: tuple[int, ...] = ()):
  """A function that draws samples; sample number i is the same whatever the batch and the devices.

  Args:
    config: the configuration.
    shape: of one sample.
    batch_size: samples at once; rounded up to a multiple of the devices.
    keep: levels whose samples are returned too.

  Returns:
    A function `(ebm, proposal, seed, first, count)` to samples number `first` to `first + count - 1` and their path,
    float32 (count, ...) and (len(keep), count, ...), as of `sampling.sample`; the weights of the model, and of its
    proposal if there is one, are on all devices. It is compiled on the first call.
  """

  def draw(shared, index):
    ebm, proposal, seed = shared
    x, path = sampling.sample(ebm, random_keys.sample_keys(seed, index), shape, settings(config), keep, proposal)
    return x, jnp.moveaxis(path, 0, 1)

  run = parallel.map_examples(draw, batch_size)

  def sampler(ebm, proposal, seed: int, first: int, count: int):
    x, path = run((ebm, proposal, np.uint32(seed)), np.arange(first, first + count, dtype=np.int32))
    return x, np.moveaxis(path, 1, 0)

  return sampler
