"""The density of `x_t` that each level's energy stands for.

The network models `y_t = a_{t+1} x_t`, `p(y) ~ exp(f(y, t) / s_t^2)`; a change of variables gives that of `x_t`, the
data with the noise of level t: `log p(x_t) = f(a_{t+1} x_t, t) / s_t^2 + D log a_{t+1} - log Z_t`, with D numbers in an
example and `Z_t` the normaliser of `y_t`. At the last level `a_{t+1}` counts as one.
"""

import jax
from jax import lax
import jax.numpy as jnp

from diffusion_ebm import energy, noise_levels, recovery
from diffusion_ebm.noise_levels import at


def log_density(levels: recovery.Levels, network, weights, x, t):
  """`log p(x_t) + log Z_t`, the unnormalised log density of `x_t`: minus its energy.

  Args:
    levels: the levels.
    network: the energy network.
    weights: its normalised parameters.
    x: data with the noise of level t, (B, ...).
    t: levels, int (B,) in 0..T-1.

  Returns:
    (B,), in nats.

  Source: Gao et al. 2021, section 3.2.
  """
  f = energy.at_level(network, weights, t)
  a = at(levels.noise.a_y[1:], t, x)
  volume = x[0].size * jnp.log(at(levels.noise.a_y[1:], t, t))
  return recovery.log_density(levels, f(a * x), t) + volume


def score(levels: recovery.Levels, network, weights, x, t):
  """The gradient of `log p(x_t)` in `x_t`, like `x`; arguments as of `log_density`."""
  return jax.grad(lambda x: jnp.sum(log_density(levels, network, weights, x, t)))(x)


def diffused_log_density(levels: recovery.Levels, network, weights, x, chosen, eps):
  """`log_density` of data diffused to some levels, averaged over given noise: a statistic of the data themselves.

  The same noise for all data: what tells two of them apart is not the luck of the draw.

  Args:
    levels: the levels.
    network: the energy network.
    weights: its normalised parameters.
    x: data, (B, ...).
    chosen: the levels, int (L,) in 0..T-1.
    eps: standard normal noise, (R, ...), R of the shape of an example.

  Returns:
    (B, L), in nats.
  """
  def at_level(t):
    level = jnp.full(len(x), t)

    def add(total, eps):
      diffused = noise_levels.diffuse(levels.noise, x, level, jnp.broadcast_to(eps, x.shape))
      return total + log_density(levels, network, weights, diffused, level), None

    return lax.scan(add, jnp.zeros(len(x)), eps)[0] / len(eps)

  return lax.map(at_level, jnp.asarray(chosen)).T
