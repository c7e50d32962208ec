"""Densities of two-dimensional models, normalised by quadrature on a grid, beside the exact ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from diffusion_ebm.ebm import Ebm
from diffusion_ebm.noise_levels import NoiseLevels

# At the noisiest level the data have a standard deviation of one.
HALF_WIDTH = 5.0


def make_grid(size: int = 250) -> tuple[np.ndarray, float]:
  """Midpoints of `size` x `size` cells of the square [-5, 5]^2.

  Returns:
    `(points, area)`: (size * size, 2) float64, the second coordinate running fastest, and the area of a cell.
  """
  width = 2 * HALF_WIDTH / size
  axis = (np.arange(size) + 0.5) * width - HALF_WIDTH
  return np.stack(np.meshgrid(axis, axis, indexing='ij'), -1).reshape(-1, 2), width**2


@functools.partial(jax.jit, static_argnums=1)
@jax.default_matmul_precision('highest')
def _unnormalised(ebm, chosen, points):
  return jax.lax.map(lambda t: ebm.log_density(points, jnp.full(len(points), t)), jnp.asarray(chosen))


def model_log_densities(ebm: Ebm, points, area: float, chosen: tuple[int, ...]) -> np.ndarray:
  """Log density of the model of `y_t` at some levels, normalised over the grid.

  Args:
    ebm: the model.
    points: of `make_grid`, (N, 2).
    area: of a cell.
    chosen: the levels, L of them, in 0..T-1.

  Returns:
    (L, N) float64, in nats.
  """
  log_density = np.asarray(_unnormalised(ebm, tuple(chosen), jnp.asarray(points, jnp.float32)), np.float64)
  return log_density - special.logsumexp(log_density, axis=1, keepdims=True) - np.log(area)


def exact_log_densities(levels: NoiseLevels, distribution, points, chosen: tuple[int, ...]) -> np.ndarray:
  """Log density of `y_t = a_{t+1} x_t` for diffused data.

  Args:
    levels: the levels.
    distribution: with `log_density(points, a, sigma)`, that of `a x + sigma eps` for data x.
    points: (N, 2).
    chosen: the levels, L of them, in 0..T-1.

  Returns:
    (L, N) float64, in nats.
  """
  return np.stack(
    [
      distribution.log_density(points, levels.a_y[t] * levels.a_cum[t], levels.a_y[t] * levels.sigma_cum[t])
      for t in chosen
    ]
  )


def kl(exact, model, area: float) -> np.ndarray:
  """KL(exact || model) of log densities (L, N) on a grid: (L,), in nats."""
  return np.sum(np.exp(exact) * (np.maximum(exact, -1e30) - model), axis=1) * area
