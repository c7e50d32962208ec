"""Two-dimensional distributions with the exact density of their diffused samples."""

from collections.abc import Callable
import functools
from typing import NamedTuple

import numpy as np
from scipy import special

from diffusion_ebm.data.source import ArraySource
from diffusion_ebm.run.errors import UserError

_NUM_SAMPLES = {'train': 2**20, 'test': 2**14}
_SEEDS = {'train': 0, 'test': 1}


class Distribution(NamedTuple):
  """A distribution over the plane, of roughly [-1, 1] x [-1, 1].

  Attributes:
    sample: (rng: np.random.Generator, n) -> float32 (n, 2).
    log_density: (points float64 (n, 2), a=1.0, sigma=0.0) -> float64 (n,), the log density (nats)
      of `a * x + sigma * eps`, where x is a sample and eps ~ N(0, I); a > 0.
  """

  sample: Callable
  log_density: Callable


# Eight Gaussians on the unit circle.
_CENTRES = np.stack([np.cos(np.arange(8) * np.pi / 4), np.sin(np.arange(8) * np.pi / 4)], axis=1)
_CENTRE_STD = 0.1


def _sample_eight_gaussians(rng, n):
  centres = _CENTRES[rng.integers(8, size=n)]
  return (centres + _CENTRE_STD * rng.standard_normal((n, 2))).astype(np.float32)


def _log_density_eight_gaussians(points, a=1.0, sigma=0.0):
  """A mixture of Gaussians stays one."""
  variance = (a * _CENTRE_STD) ** 2 + sigma**2
  squares = np.sum((np.asarray(points)[:, None] - a * _CENTRES) ** 2, axis=-1)
  return special.logsumexp(-squares / (2 * variance), axis=1) - np.log(16 * np.pi * variance)


# The eight dark fields of a 4x4 board on [-1, 1] x [-1, 1]; the density on them is 1/2.
_FIELD = 0.5
_CORNERS = np.array([(i, j) for i in range(4) for j in range(4) if (i + j) % 2 == 0]) * _FIELD - 1


def _sample_checkerboard(rng, n):
  corners = _CORNERS[rng.integers(len(_CORNERS), size=n)]
  return (corners + _FIELD * rng.random((n, 2))).astype(np.float32)


def _log_density_checkerboard(points, a=1.0, sigma=0.0):
  """Along each axis of each field: the probability that the noise reaches the point from it."""
  points = np.asarray(points, np.float64)[:, None]
  low, high = a * _CORNERS, a * (_CORNERS + _FIELD)
  if sigma == 0:
    inside = np.any(np.all((low <= points) & (points < high), axis=-1), axis=1)
    return np.where(inside, np.log(0.5) - 2 * np.log(a), -np.inf)
  logs = _log_normal_interval((points - high) / sigma, (points - low) / sigma)
  return special.logsumexp(np.sum(logs, axis=-1), axis=1) + np.log(0.5) - 2 * np.log(a)


def _log_normal_interval(low, high):
  """log P(low < eps < high) for eps ~ N(0, 1), accurate in both tails."""
  # In the upper half, mirror the interval: near 1 the distribution function has no digits left.
  flip = low > 0
  low, high = np.where(flip, -high, low), np.where(flip, -low, high)
  log_high = special.log_ndtr(high)
  return log_high + np.log(-np.expm1(special.log_ndtr(low) - log_high))


# Four concentric circles, equally likely, with Gaussian noise.
_RADII = np.array([0.25, 0.5, 0.75, 1.0])
_RING_STD = 0.02


def _sample_rings(rng, n):
  radii = _RADII[rng.integers(len(_RADII), size=n)]
  angles = 2 * np.pi * rng.random(n)
  circle = radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
  return (circle + _RING_STD * rng.standard_normal((n, 2))).astype(np.float32)


def _log_density_rings(points, a=1.0, sigma=0.0):
  """The integral of a Gaussian over a circle is a Bessel function, I0."""
  variance = (a * _RING_STD) ** 2 + sigma**2
  norms = np.linalg.norm(np.asarray(points, np.float64), axis=1)[:, None]
  radii = a * _RADII
  # ive(0, z) = exp(-z) I0(z): what is taken out of I0 completes the square.
  logs = -((norms - radii) ** 2) / (2 * variance) + np.log(special.ive(0, norms * radii / variance))
  return special.logsumexp(logs, axis=1) - np.log(2 * np.pi * variance * len(_RADII))


# Two half circles, each around an end of the other, with Gaussian noise.
_MOON_STD = 0.05
_MOON_NODES = 512


def _moons(angles):
  """The points of the upper and of the lower moon at angles in [0, pi]: (2, n, 2)."""
  x, y = np.cos(angles), np.sin(angles)
  moons = np.stack([np.stack([x, y], axis=-1), np.stack([1 - x, 0.5 - y], axis=-1)])
  return (moons - [0.5, 0.25]) / 1.5


def _sample_two_moons(rng, n):
  moons = _moons(np.pi * rng.random(n))
  points = moons[rng.integers(2, size=n), np.arange(n)]
  return (points + _MOON_STD * rng.standard_normal((n, 2))).astype(np.float32)


@functools.cache
def _quadrature():
  """Nodes in (-1, 1) and weights, (n,) each."""
  return np.polynomial.legendre.leggauss(_MOON_NODES)


def _log_density_two_moons(points, a=1.0, sigma=0.0):
  """Gauss-Legendre quadrature along the arcs.

  Along an arc the Gaussian has, seen from a point at distance d from the arc's centre, a width of
  std / sqrt(d * 2 / 3) radians: with 512 nodes the log density is exact to 1e-6 wherever
  |point| <= 10 a, for the narrowest noise there is (sigma = 0).
  """
  variance = (a * _MOON_STD) ** 2 + sigma**2
  nodes, weights = _quadrature()
  arcs = a * _moons((nodes + 1) * (np.pi / 2)).reshape(-1, 2)
  # The weights of both moons together sum to 1.
  weights = np.tile(weights / 4, 2)
  points = np.asarray(points, np.float64)
  result = np.empty(len(points))
  for start in range(0, len(points), 256):  # stays in the cache
    part = points[start : start + 256, :, None]
    logs = ((part[:, 0] - arcs[:, 0]) ** 2 + (part[:, 1] - arcs[:, 1]) ** 2) / (-2 * variance)
    largest = np.max(logs, axis=1)
    result[start : start + 256] = largest + np.log(np.exp(logs - largest[:, None]) @ weights)
  return result - np.log(2 * np.pi * variance)


DISTRIBUTIONS = {
  'checkerboard': Distribution(_sample_checkerboard, _log_density_checkerboard),
  'eight_gaussians': Distribution(_sample_eight_gaussians, _log_density_eight_gaussians),
  'rings': Distribution(_sample_rings, _log_density_rings),
  'two_moons': Distribution(_sample_two_moons, _log_density_two_moons),
}


def distribution(name):
  """Looks up one of `DISTRIBUTIONS`.

  Raises:
    UserError: there is none of that name.
  """
  if name not in DISTRIBUTIONS:
    raise UserError(
      f'toy2d knows no distribution {name!r}: set --config.data.distribution to one of {", ".join(DISTRIBUTIONS)}'
    )
  return DISTRIBUTIONS[name]


def load(data, split):
  """Draws a fixed set of samples, the same on every run.

  Args:
    data: the `data` section of a configuration.
    split: 'train' (2**20 samples) or 'test' (2**14 others).

  Returns:
    A source of shape (2,).

  Raises:
    UserError: the distribution is unknown.
  """
  rng = np.random.default_rng(_SEEDS[split])
  return ArraySource(distribution(data.distribution).sample(rng, _NUM_SAMPLES[split]))
