"""Generation on all devices, from the moving average of the parameters."""

import jax
import numpy as np

from diffusion_ebm import parallel, pictures, sampling, train_step
from diffusion_ebm.data import toy
from diffusion_ebm.density import grid
from diffusion_ebm.energy import spectral_norm

# Keep the random numbers of generation, and of the data beside it, apart from those of training.
_STREAM, _DATA_STREAM = 0x5A3D, 0xDA7A
# The parameters' average has no power iteration of its own: enough steps for it to converge again.
_POWER_ITERATIONS = 30


def ema_weights(state: train_step.TrainState):
  """The averaged parameters, normalised, as the network takes them."""
  return normalised(state.ema_params, state.spectral)


def normalised(params, u):
  """Parameters as the network takes them, from raw ones and vectors `u` that belong to similar ones."""
  return spectral_norm.normalise(params, spectral_norm.iterate(params, u, _POWER_ITERATIONS))


def single_device(network):
  """The network for use outside `pmap`, or where no example depends on the others."""
  return network.clone(axis_name=None) if hasattr(network, 'axis_name') else network


def generation_steps(config) -> int:
  """K in generation: Langevin steps at each level, 0 for the normal approximation."""
  return max(config.sampling.generation_steps or config.sampling.num_steps, 0)


def sample_keys(seed: int, index, stream: int = _STREAM):
  """The key of each sample: of the seed and the sample's number, int (B,), alone."""
  return fold_in_each(stream_key(seed, stream), index)


def stream_key(seed: int, stream: int = _STREAM):
  """The key of all samples of a seed; the samples of `--mode=sample` are those of `DiffusionEBM.sample` with it."""
  return jax.random.fold_in(jax.random.key(seed), stream)


def fold_in_each(key, index):
  """A key for each number of `index`, int (B,)."""
  return jax.vmap(lambda i: jax.random.fold_in(key, i))(index)


class Sampler:
  """Draws samples, `batch_size` at a time; sample number i is the same whatever the batch and the devices."""

  def __init__(self, model, config, batch_size: int, keep: tuple[int, ...] = ()):
    """Prepares; compilation waits for the first call.

    Args:
      model: of `diffusion_ebm.model.build`.
      config: the configuration.
      batch_size: samples at once; rounded up to a multiple of the devices.
      keep: levels whose samples are returned too.
    """
    self.batch_size = parallel.up_to_devices(batch_size)
    self._compiled = None

    def draw(state, index, seed):
      return sampling.sample(
          model.levels, model.network, ema_weights(state), sample_keys(seed, index), model.shape,
          generation_steps(config), config.sampling.noise_scale, keep, config.sampling.denoise)

    self._draw = draw

  def __call__(self, state, seed: int, first: int, count: int):
    """Samples number `first` to `first + count - 1`; `count` is at most `batch_size`.

    Returns:
      `(x, path)`: float32 (count, ...) and (len(keep), count, ...), as of `sampling.sample`.
    """
    index = parallel.split(parallel.own_rows(first + np.arange(self.batch_size, dtype=np.int32)))
    args = state, index, np.uint32(seed)
    if self._compiled is None:
      self._compiled = parallel.compile_for(self._draw, *args, replicated=(0, 2), out_axes=(0, 1))
    x, path = map(parallel.gather, self._compiled(*args))
    x = x.reshape(-1, *x.shape[2:])
    return x[:count], path.reshape(len(path), *x.shape)[:, :count]


class Mapped:
  """Runs a function over examples, `batch_size` at a time on all devices.

  What it gives for an example must depend on that example alone: then batch size and devices do not matter.
  """

  def __init__(self, function, batch_size: int):
    """Prepares; compilation waits for the first call.

    Args:
      function: `(weights, *parts) -> array`, where parts and array have an axis of examples first.
      batch_size: examples at once; rounded up to a multiple of the devices.
    """
    self._batch_size = parallel.up_to_devices(batch_size)
    self._function, self._compiled = function, None

  def __call__(self, weights, *arrays, progress=None) -> np.ndarray:
    """Applies the function.

    Args:
      weights: a tree of arrays, on all devices.
      *arrays: each with an axis of N examples first.
      progress: a `Progress` that counts examples.

    Returns:
      (N, ...).
    """
    results = []
    for first in range(0, len(arrays[0]), self._batch_size):
      parts = [np.asarray(array[first:first + self._batch_size]) for array in arrays]
      count = len(parts[0])
      filled = np.arange(self._batch_size) % count
      parts = [parallel.split(part[filled]) for part in parts]
      if self._compiled is None:
        self._compiled = parallel.compile_for(self._function, weights, *parts, replicated=(0,), out_axes=0)
      result = np.asarray(self._compiled(weights, *parts))
      results.append(result.reshape(-1, *result.shape[2:])[:count])
      if progress is not None:
        progress.update(count)
        progress.line(always=first == 0)
    return np.concatenate(results)


def finished(x: np.ndarray) -> np.ndarray:
  """Samples as they are stored: uint8 images, float32 vectors."""
  return np.asarray(sampling.to_uint8(x)) if x.ndim > 2 else x


def picture_of_samples(samples: np.ndarray) -> np.ndarray:
  """A picture of stored samples (at most 256 images of them)."""
  return pictures.image_grid(samples[:256]) if samples.ndim > 2 else pictures.point_cloud(samples)


def grid_densities(model, config, size: int = 250):
  """A function from the state to the densities of a two-dimensional run on a grid of `size` x `size` points.

  It returns `(learned, exact, kl)` as of `diffusion_ebm.density.grid`, of the levels shown below white noise.
  """
  points, area = grid.make_grid(size)
  chosen = sampling.shown_levels(model.levels.num_models)[:-1]
  exact = grid.exact_log_densities(model.levels, toy.distribution(config.data.distribution), points, chosen)

  def densities(state):
    learned = grid.model_log_densities(model.levels, model.network, ema_weights(state), points, area, chosen)
    return learned, exact, grid.kl(exact, learned, area)

  return densities


def picture_of_levels(model, path, data, keep, densities=None) -> np.ndarray:
  """Samples level by level above diffused data and, where given, learned and exact densities.

  Args:
    model: of `diffusion_ebm.model.build`.
    path: samples at the levels `keep`, (L, N, ...), of `Sampler`.
    data: as many examples, (N, ...), of the source.
    keep: the levels.
    densities: of `grid_densities`.

  Returns:
    uint8 (H, W, 3).
  """
  x = np.asarray(train_step.to_unit_range(data))
  keys = sample_keys(0, np.arange(len(x)), _DATA_STREAM)
  diffused = np.asarray(sampling.diffused(model.levels, x, keys, keep))
  if x.ndim > 2:
    return pictures.image_levels(np.asarray(sampling.to_uint8(path)), np.asarray(sampling.to_uint8(diffused)), keep)
  if densities is None:
    return pictures.point_levels(path, diffused, keep)
  return pictures.point_levels(path, diffused, keep, *densities, model.levels.noise.a_y[1:])
