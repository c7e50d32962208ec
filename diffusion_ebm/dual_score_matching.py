"""The dual score: how the log density of `x_t` changes with `x_t` and with the level of noise, between the levels.

Recovery likelihood compares neighbours within one level: it fixes the slopes of each log density, but hardly its
differences between distant modes, and not at all its normaliser beside those of the other levels. The derivative of
the log density with respect to the noise, the time score, ties the levels together. Down the levels, modes part with
the weights that they had as one, and all levels have, but for a change of variables, a single normaliser. The
derivative with respect to x, matched at the same places, steadies the slopes where few levels and short chains leave
them noisy.

Noise is measured by `lam = log(abar / sbar)`, half the logarithm of the signal-to-noise ratio. Between two levels lam
and `a` of `y = a x` run straight in the level t, which is a real number here.

Source: Guth, Kadkhodaie and Simoncelli 2025, Learning normalized image densities via dual score matching; Choi et al.
2022, Density ratio estimation via infinitesimal classification.
"""

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_ebm import marginal_density
from diffusion_ebm.ebm import Ebm
from diffusion_ebm.noise_levels import Levels, powers_between


def diffuse(levels: Levels, x, t, eps):
  """`x_t = abar x + sbar eps` at a level between two.

  Args:
    levels: the levels.
    x: data, (B, ...).
    t: real levels in [0, T-1], (B,).
    eps: standard normal noise, like `x`.

  Returns:
    `(x_t, a_cum, sigma_cum)`: like `x`, and what broadcasts against it.
  """
  a_cum, sigma_cum = map(jnp.sqrt, powers_between(levels.log_snr[:-1], t, x))
  return a_cum * x + sigma_cum * eps, a_cum, sigma_cum


def time_score(ebm: Ebm, x_t, t):
  """The derivative of the model's log density of `x_t` with respect to lam, x_t held.

  Args:
    ebm: the model.
    x_t: (B, ...).
    t: real levels in [0, T-1], (B,).

  Returns:
    (B,), in nats.
  """
  log_snr = ebm.levels.log_snr[:-1]
  slope = jnp.asarray(np.diff(log_snr), jnp.float32)[jnp.clip(t.astype(int), 0, len(log_snr) - 2)]
  # In reverse: through the convolution of images there is no other derivative.
  return jax.grad(lambda t: jnp.sum(marginal_density.log_density(ebm, x_t, t)))(t) / slope


def time_score_loss(ebm: Ebm, x, t, eps):
  """Conditional time score matching; its least value is at the true time score.

  What is regressed on is the derivative of `log N(x_t; abar x, sbar^2 I)`, whose mean given `x_t` is the time score.

  Args:
    ebm: the model.
    x: data, (B, ...).
    t: real levels in [0, T-1], (B,).
    eps: standard normal noise, like `x`.

  Returns:
    (B,): the squared error over 4 D, with D numbers in an example; at the truth it is about `abar^4 / 2`.

  Source: Yu et al. 2025, Density ratio estimation with conditional probability paths, equation 11.
  """
  x_t, a_cum, sigma_cum = diffuse(ebm.levels, x, t, eps)
  target = jnp.sum(a_cum**2 * (1 - eps**2) + a_cum * sigma_cum * eps * x, tuple(range(1, x.ndim)))
  return (time_score(ebm, x_t, t) - target) ** 2 / (4 * x[0].size)


def score_loss(ebm: Ebm, x, t, eps):
  """Denoising score matching; its least value is at the true score.

  Args: as of `time_score_loss`.

  Returns:
    (B,): `|sbar score(x_t) + eps|^2 / 2`, the weight of `level_weight='balanced'`.

  Source: Vincent 2011, equation 11.
  """
  x_t, _, sigma_cum = diffuse(ebm.levels, x, t, eps)
  score = marginal_density.score(ebm, x_t, t)
  return 0.5 * jnp.sum((sigma_cum * score + eps) ** 2, axis=tuple(range(1, x.ndim)))
