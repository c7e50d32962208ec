"""Pictures of samples on their way from white noise, level by level, beside diffused data."""

import numpy as np

from diffusion_ebm import preprocessing, random_keys, sampling
from diffusion_ebm.data import toy
from diffusion_ebm.density import quadrature
from diffusion_ebm.run import pictures


def samples(stored: np.ndarray, num_classes: int = 0) -> np.ndarray:
  """A picture of stored samples (at most 256 images of them).

  Args:
    stored: uint8 (N, H, W, C), or float32 (N, D).
    num_classes: a column for each class, of samples that go through the classes in turn; 0 for a square.
  """
  return pictures.image_grid(stored[:256], num_classes) if stored.ndim > 2 else pictures.point_cloud(stored)


def grid_densities(ebm, distribution: str, size: int = 250) -> pictures.Densities:
  """Learned and exact densities of a two-dimensional run on a grid, at the levels shown below white noise.

  Args:
    ebm: the model.
    distribution: name of the data's.
    size: points on an axis of the grid.
  """
  points, area = quadrature.make_grid(size)
  chosen = sampling.shown_levels(ebm.levels.num_models)[:-1]
  exact = quadrature.exact_log_densities(ebm.levels, toy.distribution(distribution), points, chosen)
  learned = quadrature.model_log_densities(ebm, points, area, chosen)
  # The densities are those of y_t = a_y x_t, and are drawn where x_t is.
  half_width = quadrature.HALF_WIDTH / ebm.levels.a_y[list(chosen)]
  return pictures.Densities(learned, exact, quadrature.kl(exact, learned, area), half_width)


def levels(noise_levels, path, data, keep, densities: pictures.Densities | None = None) -> np.ndarray:
  """Samples level by level above diffused data and, where given, learned and exact densities.

  Args:
    noise_levels: of the model.
    path: samples at the levels `keep`, (L, N, ...), of `generate.make_sampler`.
    data: as many examples, (N, ...), of the source.
    keep: the levels.
    densities: of `grid_densities`.

  Returns:
    uint8 (H, W, 3).
  """
  x = np.asarray(preprocessing.to_unit_range(data))
  keys = random_keys.sample_keys(0, np.arange(len(x)), random_keys.SHOWN_DATA)
  diffused = np.asarray(sampling.diffused(noise_levels, x, keys, keep))
  if x.ndim == 2:
    return pictures.point_levels(path, diffused, keep, densities)
  return pictures.image_levels(
    np.asarray(preprocessing.to_uint8(path)), np.asarray(preprocessing.to_uint8(diffused)), keep
  )
