"""Noise levels: the forward process and its constants.

The forward process is `x_{t+1} = a_{t+1} x_t + sigma_{t+1} eps` with `a = sqrt(1 - sigma^2)`, and the model at
level t sees `y_t = a_{t+1} x_t`, so that `x_{t+1} = y_t + sigma_{t+1} eps`.

Source: Gao et al. 2021, section 3.2 and appendix; the constants of the published implementation.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

MAX_LEVELS = 1000


@dataclasses.dataclass(frozen=True, eq=False)  # arrays: hashed by identity, so that jit takes it as a constant
class NoiseLevels:
  """Constants of a diffusion with T energy-based models, t = 0 .. T-1.

  Every array is float64 of shape (T + 1,), indexed by the level of the noisy variable: index 0 is the data with a
  little noise (sigma 0.01), index T is nearly white noise.

  Attributes:
    sigma: noise added on the way to this level.
    a: `sqrt(1 - sigma^2)`, the shrinkage on the way to this level.
    a_cum: product of `a` up to this level; `x_t = a_cum x + sigma_cum eps`.
    sigma_cum: `sqrt(1 - a_cum^2)`.
    a_y: what turns `x_t` into `y_t = a_y[t + 1] x_t`: `a`, but 1 at the last level.
    is_recovery: 1, but 0 at the last level, where the model is a marginal one and has no quadratic term.
  """
  sigma: np.ndarray
  a: np.ndarray
  a_cum: np.ndarray
  sigma_cum: np.ndarray
  a_y: np.ndarray
  is_recovery: np.ndarray

  @property
  def num_models(self) -> int:
    """T, the number of energy-based models."""
    return len(self.sigma) - 1

  @property
  def log_snr(self) -> np.ndarray:
    """`log(a_cum / sigma_cum)`, half the logarithm of the signal-to-noise ratio, (T + 1,) float64."""
    return np.log(self.a_cum / self.sigma_cum)


def from_retention(a) -> NoiseLevels:
  """Noise levels from the shrinkage `a` of each step, shape (T + 1,), in (0, 1)."""
  a = np.asarray(a, np.float64)
  a_cum = np.cumprod(a)
  return NoiseLevels(
      sigma=np.sqrt(1 - a**2), a=a, a_cum=a_cum, sigma_cum=np.sqrt(1 - a_cum**2),
      a_y=np.append(a[:-1], 1.0), is_recovery=np.append(np.ones(len(a) - 1), 0.0))


def make_noise_levels(num_levels: int) -> NoiseLevels:
  """The paper's T6 (`num_levels` 6: six models), T1k (1000: every step of the base, 999 models), or another number.

  Any other number T gives T models: their noise runs from that of T6's first model to that of its last in equal steps
  of `log_snr`, and white noise follows.

  Args:
    num_levels: from 2 to 1000.

  Returns:
    The constants, of length T + 1.

  Raises:
    ValueError: for any other number.

  Source: Gao et al. 2021, appendix; base of 1000 betas, linear from 1e-4 to 0.02 (Ho et al. 2020).
  """
  if not 2 <= num_levels <= MAX_LEVELS:
    raise ValueError(f'num_levels is {num_levels}, not in 2 .. {MAX_LEVELS}')
  retention = np.sqrt(1 - np.linspace(1e-4, 0.02, 1000))
  if num_levels == 1000:
    return from_retention(retention)
  cum = np.cumprod(retention)[[0, 100, 200, 300, 400, 500, 999]]
  if num_levels != 6:
    log_snr = np.log(cum / np.sqrt(1 - cum**2))
    log_snr = np.append(np.linspace(log_snr[0], log_snr[5], num_levels), log_snr[6])
    cum = 1 / np.sqrt(1 + np.exp(-2 * log_snr))
  return from_retention(cum / np.append(1.0, cum[:-1]))


def at(values: np.ndarray, t, like):
  """`values[t]` as float32, shaped to broadcast against `like`: (B,) levels to (B, 1, ..., 1)."""
  return _broadcastable(jnp.asarray(values, jnp.float32)[t], like)


def between(values: np.ndarray, t, like):
  """Likewise at real levels (B,), in [0, len(values) - 1]: on the straight lines between the values."""
  values = jnp.asarray(values, jnp.float32)
  return _broadcastable(jnp.interp(t, jnp.arange(len(values), dtype=jnp.float32), values), like)


def powers_between(log_snr: np.ndarray, t, like):
  """`(a_cum^2, sigma_cum^2)` at real levels, likewise, from `log_snr` of the levels."""
  twice = 2 * between(log_snr, t, like)
  return jax.nn.sigmoid(twice), jax.nn.sigmoid(-twice)


def _broadcastable(values, like):
  return values.reshape(values.shape + (1,) * (like.ndim - values.ndim))


def diffuse(levels: NoiseLevels, x, t, eps):
  """`x_t = a_cum_t x + sigma_cum_t eps`: data at level t.

  Args:
    levels: the noise levels.
    x: data, (B, ...), in [-1, 1] for images.
    t: levels, int (B,) in 0..T.
    eps: standard normal noise like `x`.

  Returns:
    `x_t`, like `x`.
  """
  return at(levels.a_cum, t, x) * x + at(levels.sigma_cum, t, x) * eps


def diffuse_pair(levels: NoiseLevels, x, t, eps_t, eps_next):
  """The neighbours `(x_t, x_{t+1})` that recovery likelihood learns from.

  Args:
    levels: the noise levels.
    x: data, (B, ...).
    t: levels, int (B,) in 0..T-1.
    eps_t: standard normal noise of `x_t`, like `x`.
    eps_next: standard normal noise of the step from `x_t` to `x_{t+1}`, like `x`.

  Returns:
    `(x_t, x_{t+1})`, each like `x`.

  Source: Gao et al. 2021, equation 12.
  """
  x_t = diffuse(levels, x, t, eps_t)
  return x_t, at(levels.a, t + 1, x) * x_t + at(levels.sigma, t + 1, x) * eps_next


def posterior(levels: NoiseLevels, x, x_next, t, eps):
  """A draw from `q(x_t | x_{t+1}, x)`: the way of known data, from the noise down.

  Args:
    levels: the noise levels.
    x: data, (B, ...).
    x_next: `x_{t+1}`, like `x`.
    t: levels, int (B,) in 0..T-1.
    eps: standard normal noise like `x`.

  Returns:
    `x_t`, like `x`.

  Source: Ho et al. 2020, Denoising diffusion probabilistic models, equations 6 and 7.
  """
  a, a_cum = levels.a[1:], levels.a_cum[:-1]
  step, now, after = levels.sigma[1:]**2, levels.sigma_cum[:-1]**2, levels.sigma_cum[1:]**2
  return (at(a * now / after, t, x) * x_next + at(a_cum * step / after, t, x) * x
          + at(np.sqrt(step * now / after), t, x) * eps)
