"""Interpolation between samples, in the noise of the whole trajectory.

A sample is a deterministic map (`sampling.descend`) of white noise and of the noise of every Langevin step. Both are
mixed on the sphere with the same weights, `cos(pi u / 2)` and `sin(pi u / 2)`: independent standard normal noise stays
standard normal, so each image in between is distributed as a sample.

The map is continuous but steep where a chain goes over from one mode to another: frames at equal fractions jump there.
`halfway` and `even_fractions` find fractions whose images are equally far apart.

Source: Gao et al. 2021, section 4 (interpolation).
"""

import jax.numpy as jnp
import numpy as np

from diffusion_ebm import recovery, sampling


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
    levels: recovery.Levels, network, weights, keys_a, keys_b, fraction, shape, num_steps: int, noise_scale: float,
    denoised: bool = False):
  """One image for each pair of keys and fraction of the way between their samples.

  Args:
    levels: the levels.
    network: the energy network.
    weights: its normalised parameters.
    keys_a: keys of `sampling.sample`, (B,).
    keys_b: likewise.
    fraction: u, (B,) in [0, 1]: 0 gives the samples of `keys_a`, 1 those of `keys_b`.
    shape: of one sample.
    num_steps: K, Langevin steps at each level.
    noise_scale: eta, factor of the Langevin noise.
    denoised: as of `sampling.sample`.

  Returns:
    (B, *shape), float32, unclipped.
  """
  white_a, noise_a = sampling.trajectory_noise(levels, keys_a, shape, noise_scale)
  white_b, noise_b = sampling.trajectory_noise(levels, keys_b, shape, noise_scale)

  def noise(t):
    of_a, of_b = noise_a(t), noise_b(t)
    return lambda k: mix(of_a(k), of_b(k), fraction)

  white = mix(white_a, white_b, fraction)
  return sampling.descend(levels, network, weights, white, noise, num_steps, denoised=denoised)[0]


def path_lengths(images: np.ndarray) -> np.ndarray:
  """Root mean square differences of neighbours: (S, F, ...) to (S, F - 1), in the images' units."""
  difference = np.diff(images.astype(np.float64), axis=1)
  return np.sqrt(np.mean(difference**2, axis=tuple(range(2, images.ndim))))


def halfway(fractions: np.ndarray, lengths: np.ndarray, n: int) -> np.ndarray:
  """The middles of the n longest pieces of each path.

  Args:
    fractions: (S, F), rising.
    lengths: of `path_lengths` there, (S, F - 1).
    n: at most F - 1.

  Returns:
    (S, n).
  """
  longest = np.argsort(-lengths, axis=1, kind='stable')[:, :n]
  middles = 0.5 * (fractions[:, 1:] + fractions[:, :-1])
  return np.take_along_axis(middles, longest, axis=1)


def even_fractions(fractions: np.ndarray, lengths: np.ndarray, n: int) -> np.ndarray:
  """Fractions at equal distances along each path.

  Args:
    fractions: (S, F), rising.
    lengths: of `path_lengths` there, (S, F - 1).
    n: how many, with both ends.

  Returns:
    (S, n), the first and the last those of `fractions`.
  """
  # Paths that stand still for a while would have no inverse.
  along = np.cumsum(np.pad(lengths + 1e-9, ((0, 0), (1, 0))), axis=1)
  return np.stack([np.interp(np.linspace(0, a[-1], n), a, f) for a, f in zip(along, fractions, strict=True)])
