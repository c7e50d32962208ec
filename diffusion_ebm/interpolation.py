"""Interpolation between samples, in the noise of the whole trajectory.

A sample is a deterministic map (`sampling.descend`) of white noise and of the noise of every Langevin step. Both are
mixed on the sphere with the same weights, `cos(pi u / 2)` and `sin(pi u / 2)`: independent standard normal noise stays
standard normal, so each image in between is distributed as a sample.

The map is continuous but steep where a chain goes over from one mode to another: frames at equal fractions jump there.
`halfway` and `even_steps` find images that are equally far apart.

Source: Gao et al. 2021, section 4 (interpolation).
"""

import jax.numpy as jnp
import numpy as np

from diffusion_ebm import sampling
from diffusion_ebm.ebm import Ebm
from diffusion_ebm.proposal import NormalProposal


def mix(a, b, fraction):
  """`cos(pi u / 2) a + sin(pi u / 2) b`; exactly a at u = 0 and b at u = 1.

  Args:
    a: (B, ...).
    b: like `a`.
    fraction: u, (B,) in [0, 1].
  """
  # cos(pi / 2) is not zero in float32, sin(0) is.
  weights = [jnp.sin(jnp.pi / 2 * u).reshape(-1, *(1,) * (a.ndim - 1)) for u in (1 - fraction, fraction)]
  return weights[0] * a + weights[1] * b


def interpolate(
  ebm: Ebm, keys_a, keys_b, fraction, shape, settings: sampling.Settings, proposal: NormalProposal | None = None
):
  """One image for each pair of keys and fraction of the way between their samples.

  Args:
    ebm: the model.
    keys_a: keys of `sampling.sample`, (B,).
    keys_b: likewise.
    fraction: u, (B,) in [0, 1]: 0 gives the samples of `keys_a`, 1 those of `keys_b`.
    shape: of one sample.
    settings: how samples are drawn.
    proposal: of `sampling.sample`.

  Returns:
    (B, *shape), float32, unclipped.
  """
  white_a, noise_a = sampling.trajectory_noise(ebm.levels, keys_a, shape, settings)
  white_b, noise_b = sampling.trajectory_noise(ebm.levels, keys_b, shape, settings)

  def noise(t):
    steps_a, steps_b = noise_a(t), noise_b(t)
    return lambda k: mix(steps_a(k), steps_b(k), fraction)

  return sampling.descend(ebm, mix(white_a, white_b, fraction), noise, settings, proposal=proposal)[0]


def path_lengths(images: np.ndarray) -> np.ndarray:
  """Root mean square differences of neighbours: (S, F, ...) to (S, F - 1), in the images' units."""
  difference = np.diff(images.astype(np.float64), axis=1)
  return np.sqrt(np.mean(difference**2, axis=tuple(range(2, images.ndim))))


def halfway(fractions: np.ndarray, lengths: np.ndarray, n: int) -> np.ndarray:
  """The middles of the n longest pieces of each path; of those too narrow for float32 only where there are no others.

  Args:
    fractions: (S, F), rising.
    lengths: of `path_lengths` there, (S, F - 1).
    n: at most F - 1.

  Returns:
    (S, n).
  """
  narrow = np.diff(fractions) < 2 * np.finfo(np.float32).eps
  longest = np.argsort(-np.where(narrow, -1, lengths), axis=1, kind='stable')[:, :n]
  middles = 0.5 * (fractions[:, 1:] + fractions[:, :-1])
  return np.take_along_axis(middles, longest, axis=1)


def even_steps(images: np.ndarray, n: int) -> np.ndarray:
  """Chooses images of a path, in its order, whose steps are even.

  The longest step is as short as it can be, and the others come as near to it as they can, in the sense of least
  squares. A detour, there and back again, is left out.

  Args:
    images: (F, ...).
    n: how many, with both ends; 2 to F.

  Returns:
    Their indices, rising, (n,).
  """
  flat = images.reshape(len(images), -1).astype(np.float64)
  distance = np.stack([np.sqrt(np.mean((flat - image) ** 2, axis=1)) for image in flat])
  distance[np.tril_indices(len(flat))] = np.inf
  longest, _ = _cheapest(distance, n, np.maximum)
  return _cheapest(np.where(distance > longest, np.inf, (distance - longest) ** 2), n, np.add)[1]


def _cheapest(cost, n, together):
  """The path of n indices from the first to the last whose costs, (F, F) from one to the next, are together least.

  Returns:
    `(total, indices)`.
  """
  total, before = np.full(len(cost), np.inf), []
  total[0] = 0
  for _ in range(n - 1):
    by_last = together(total[:, None], cost)
    before.append(np.argmin(by_last, axis=0))
    total = np.min(by_last, axis=0)
  indices = [len(cost) - 1]
  for last in reversed(before):
    indices.append(last[indices[-1]])
  return total[-1], np.array(indices[::-1])
