"""The density of `x_t` that each level's energy stands for.

The network models `y_t = a_{t+1} x_t`, `p(y) ~ exp(f(y, t) / s_t^2)`; a change of variables gives that of `x_t`, the
data with the noise of level t: `log p(x_t) = f(a_{t+1} x_t, t) / s_t^2 + D log a_{t+1} - log Z_t`, with D numbers in an
example and `Z_t` the normaliser of `y_t`. At the last level `a_{t+1}` counts as one.
"""

import jax
from jax import lax
import jax.numpy as jnp

from diffusion_ebm import noise_levels
from diffusion_ebm.ebm import Ebm


def log_density(ebm: Ebm, x, t):
  """`log p(x_t) + log Z_t`, the unnormalised log density of `x_t`: minus its energy.

  Args:
    ebm: the model.
    x: data with the noise of level t, (B, ...).
    t: levels, (B,): integers in 0..T-1, or real numbers between two of them.

  Returns:
    (B,), in nats.

  Source: Gao et al. 2021, section 3.2.
  """
  value = ebm.at(t).log_density(ebm.levels.to_y(x, t)) + ebm.levels.log_volume(t, x[0].size)
  # Activations have finite gradients at NaN; where the value is NaN, its gradient shall be, too.
  return value * lax.stop_gradient(jnp.where(jnp.isnan(value), value, 1.0))


def score(ebm: Ebm, x, t):
  """The gradient of `log p(x_t)` in `x_t`, like `x`; arguments as of `log_density`."""
  return jax.grad(lambda x: jnp.sum(log_density(ebm, x, t)))(x)


def diffused_log_density(ebm: Ebm, x, chosen, eps):
  """`log_density` of data diffused to some levels, averaged over given noise: a statistic of the data themselves.

  The same noise for all data: what tells two of them apart is not the luck of the draw.

  Args:
    ebm: the model.
    x: data, (B, ...).
    chosen: the levels, int (L,) in 0..T-1.
    eps: standard normal noise, (R, ...), R of the shape of an example.

  Returns:
    (B, L), in nats.
  """

  def at_level(t):
    level = jnp.full(len(x), t)

    def add(total, eps):
      diffused = noise_levels.diffuse(ebm.levels, x, level, jnp.broadcast_to(eps, x.shape))
      return total + log_density(ebm, diffused, level), None

    return lax.scan(add, jnp.zeros(len(x)), eps)[0] / len(eps)

  return lax.map(at_level, jnp.asarray(chosen)).T


def diffused_statistics(ebm: Ebm, x, chosen, eps):
  """`log_density` of data diffused to some levels, and the norm of its gradient, in one pass for both.

  Args:
    ebm: the model.
    x: data, (B, ...).
    chosen: the levels, int (L,) in 0..T-1.
    eps: the noise, (R, ...), R of the shape of an example; zeros for data that are scaled to a level but not noised.

  Returns:
    `(log_density, norm)`, each (B, L, R): in nats, and the Euclidean norm of the score of `x_t` times `sigma_cum_t`.
    The score of noised data is about `-eps / sigma_cum_t`, so that norms are of the order of the noise's, `sqrt(D)`.
  """

  def at_level(t):
    level = jnp.full(len(x), t)

    def of_noise(eps):
      diffused = noise_levels.diffuse(ebm.levels, x, level, jnp.broadcast_to(eps, x.shape))
      value, pull_back = jax.vjp(lambda x_t: log_density(ebm, x_t, level), diffused)
      (gradient,) = pull_back(jnp.ones_like(value))
      squares = jnp.sum(gradient**2, axis=tuple(range(1, x.ndim)))
      return value, jnp.sqrt(squares) * noise_levels.at(ebm.levels.sigma_cum, level, squares)

    return lax.map(of_noise, eps)

  return tuple(jnp.transpose(part, (2, 0, 1)) for part in lax.map(at_level, jnp.asarray(chosen)))
