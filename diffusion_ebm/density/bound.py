"""A bound of the log density of what the normal approximation samples, one gradient a level: no normaliser is needed.

The sampler draws `x_T` from the standard normal density and `x_t` from a normal density around a step along the score
of level t (`recovery.normal_approximation`). What it draws has the density p(x_0), of which the forward process from
x_0 gives a lower bound:

  log p(x_0) >= E log p(x_0 | x_1) - KL(q(x_T | x_0) || p(x_T))
                - sum_{t >= 1} E KL(q(x_t | x_{t+1}, x_0) || p(x_t | x_{t+1})).

All of these densities are normal, so the divergences are closed; the expectations are over x_{t+1} given x_0.

Source: Sohl-Dickstein et al. 2015, section 2.4; Ho et al. 2020, equation 5.
"""

from jax import lax
import jax.numpy as jnp
import numpy as np

from diffusion_ebm import langevin, noise_levels, recovery
from diffusion_ebm.ebm import Ebm
from diffusion_ebm.noise_levels import at


def variational_bound(ebm: Ebm, x, keys):
  """An unbiased estimate of the lower bound of `log p(x_0)`, with one draw of noise at each level.

  Args:
    ebm: the model.
    x: x_0, (B, ...).
    keys: one for each example, (B,).

  Returns:
    (B,), in nats.
  """
  levels = ebm.levels
  after = noise_levels.from_retention(levels.a[1:])  # the forward process from x_0: its index t - 1 is level t
  dim, noise = x[0].size, langevin.normal_noise(keys, x.shape[1:])
  # Standard deviations of p(x_t | x_{t+1}) and of q(x_t | x_{t+1}, x_0); at level 0, q is x_0 itself.
  std_p = levels.sigma_y / levels.a_y
  std_q = np.append(0.0, after.sigma[1:] * after.sigma_cum[:-1] / after.sigma_cum[1:])

  def squares(x):
    return jnp.sum(x**2, axis=tuple(range(1, x.ndim)))

  def divergence(total, t):
    level = jnp.full(len(x), t)
    x_next = noise_levels.diffuse(after, x, level, noise(t))
    mean = recovery.normal_approximation(ebm.at(level), x_next, jnp.zeros_like(x))
    known = jnp.where(t == 0, x, noise_levels.posterior(after, x, x_next, jnp.maximum(level - 1, 0), jnp.zeros_like(x)))
    error = squares(known - mean) / at(std_p, t, total) ** 2
    ratio = at((std_q / std_p) ** 2, t, total)
    # At level 0 the negative log density of x_0, elsewhere the divergence of two normal densities.
    closed = jnp.where(
      t == 0, jnp.log(2 * np.pi * at(std_p, t, total) ** 2), ratio - 1 - jnp.log(jnp.where(t == 0, 1.0, ratio))
    )
    return total + 0.5 * (error + dim * closed), None

  total, _ = lax.scan(divergence, jnp.zeros(len(x)), jnp.arange(levels.num_models))
  a, s2 = after.a_cum[-1], after.sigma_cum[-1] ** 2
  return -total - 0.5 * (a**2 * squares(x) + dim * (s2 - 1 - np.log(s2)))
