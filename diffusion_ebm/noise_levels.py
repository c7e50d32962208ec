"""Noise levels: the forward process, its constants, and the Langevin step size of each level.

The forward process is `x_{t+1} = a_{t+1} x_t + sigma_{t+1} eps` with `a = sqrt(1 - sigma^2)`, and the model at
level t sees `y_t = a_{t+1} x_t`, so that `x_{t+1} = y_t + sigma_{t+1} eps`.

Source: Gao et al. 2021, section 3.2 and appendix; the constants of the published implementation.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

MAX_LEVELS = 1000
STEP_SIZE_RULES = ('cumulative', 'conditional', 'posterior')
TEMPERATURES = ('step_size', 'one', 'noise')
LEVEL_WEIGHTS = ('published', 'balanced')
SCHEDULES = ('linear', 'cosine')


@dataclasses.dataclass(frozen=True, eq=False)  # arrays: hashed by identity, so that jit takes it as a constant
class NoiseLevels:
  """Constants of a diffusion with T energy-based models, t = 0 .. T-1.

  Every array is float64. Those of shape (T + 1,) are indexed by the level of the noisy variable: index 0 is the data
  with a little noise (sigma 0.01), index T is nearly white noise. Those of shape (T,) are indexed by the model.

  Attributes:
    sigma: noise added on the way to this level, (T + 1,).
    a: `sqrt(1 - sigma^2)`, the shrinkage on the way to this level, (T + 1,).
    a_cum: product of `a` up to this level; `x_t = a_cum x + sigma_cum eps`, (T + 1,).
    sigma_cum: `sqrt(1 - a_cum^2)`, (T + 1,).
    a_y: `y_t = a_y x_t`, (T,): `a` of the next level, but 1 for the last model.
    sigma_y: `x_{t+1} = y_t + sigma_y eps`, (T,): sigma of the next level.
    is_recovery: 1, but 0 for the last model, which is a marginal one and has no quadratic term, (T,).
  """

  sigma: np.ndarray
  a: np.ndarray
  a_cum: np.ndarray
  sigma_cum: np.ndarray
  a_y: np.ndarray
  sigma_y: np.ndarray
  is_recovery: np.ndarray

  @property
  def num_models(self) -> int:
    """T, the number of energy-based models."""
    return len(self.a_y)

  @property
  def log_snr(self) -> np.ndarray:
    """`log(a_cum / sigma_cum)`, half the logarithm of the signal-to-noise ratio, (T + 1,) float64."""
    return np.log(self.a_cum / self.sigma_cum)

  @property
  def angle(self) -> np.ndarray:
    """`arctan(sigma_cum / a_cum)` in right angles, (T + 1,) float64: from 0, data without noise, to 1, white noise."""
    return np.arctan2(self.sigma_cum, self.a_cum) / (np.pi / 2)

  @property
  def posterior_sigma(self) -> np.ndarray:
    """Standard deviation of `y_t` given `x_{t+1}` and the data, (T,) float64.

    Source: Ho et al. 2020, equation 7.
    """
    return self.a_y * self.sigma[1:] * self.sigma_cum[:-1] / self.sigma_cum[1:]

  def to_y(self, x, t):
    """`y_t = a_y x_t`, what the model of a level sees, of `x_t` (B, ...) at levels (B,), integers or real numbers."""
    return at(self.a_y, t, x) * x

  def to_x(self, y, t):
    """`x_t` of `y_t`: the inverse of `to_y`."""
    return y / at(self.a_y, t, y)

  def log_volume(self, t, size: int):
    """What a log density of `y_t` gains when it becomes one of `x_t`: `size * log a_y`, (B,), for `size` numbers."""
    return size * jnp.log(at(self.a_y, t, t))


@dataclasses.dataclass(frozen=True, eq=False)
class Levels(NoiseLevels):
  """Noise levels with what the models at them need to be trained and sampled.

  Attributes:
    step_variance: s_t^2, (T,) float64: the squared Langevin step size.
    temperature: what the network's output is divided by to give a log density, (T,) float64.
    weight: of each level's recovery likelihood, in nats, in the loss, (T,) float64.
  """

  step_variance: np.ndarray
  temperature: np.ndarray
  weight: np.ndarray


def from_retention(a) -> NoiseLevels:
  """Noise levels from the shrinkage `a` of each step, shape (T + 1,), in (0, 1)."""
  a = np.asarray(a, np.float64)
  sigma, a_cum = np.sqrt(1 - a**2), np.cumprod(a)
  return NoiseLevels(
    sigma=sigma,
    a=a,
    a_cum=a_cum,
    sigma_cum=np.sqrt(1 - a_cum**2),
    a_y=np.append(a[1:-1], 1.0),
    sigma_y=sigma[1:],
    is_recovery=np.append(np.ones(len(a) - 2), 0.0),
  )


def make_noise_levels(num_levels: int) -> NoiseLevels:
  """The paper's T6 (`num_levels` 6: six models), T1k (1000: every step of the base, 999 models), or another number.

  Any other number T gives T models: their noise runs from that of T6's first model to that of its last in equal steps
  of `log_snr`, and white noise follows.

  Args:
    num_levels: from 2 to 1000.

  Returns:
    The constants, for T models.

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


def make_cosine_levels(num_levels: int, log_snr_max: float, log_snr_min: float) -> NoiseLevels:
  """Noise levels at equal steps of `angle`, of which signal and noise are cosine and sine.

  Args:
    num_levels: T, from 2 to 1000.
    log_snr_max: `log(a_cum^2 / sigma_cum^2)` of level 0, nearly clean.
    log_snr_min: that of level T, nearly white noise.

  Returns:
    The constants, for T models.

  Raises:
    ValueError: for another number, or a range that does not fall.

  Source: Zhu et al. 2024 (9.8 to -5.1); Nichol and Dhariwal 2021, equation 17, in the form of Salimans and Ho 2022.
  """
  if not 2 <= num_levels <= MAX_LEVELS:
    raise ValueError(f'num_levels is {num_levels}, not in 2 .. {MAX_LEVELS}')
  if log_snr_min >= log_snr_max:
    raise ValueError(f'log_snr_min is {log_snr_min}, not below log_snr_max, {log_snr_max}')
  ends = np.arctan(np.exp(-0.5 * np.array([log_snr_max, log_snr_min])))
  cum = np.cos(np.linspace(*ends, num_levels + 1))
  return from_retention(cum / np.append(1.0, cum[:-1]))


def num_models(num_levels: int, schedule: str = 'linear') -> int:
  """T, the number of models that a number of levels means."""
  return 999 if schedule == 'linear' and num_levels == 1000 else num_levels


def with_steps(noise: NoiseLevels, step_variance, temperature=None, weight=None) -> Levels:
  """Levels with Langevin steps.

  Args:
    noise: the forward process.
    step_variance: s_t^2, (T,).
    temperature: (T,), or None for the published one, s_t^2.
    weight: (T,), or None for the published one, `sigma_1 / sigma_{t+1}` for f itself where the temperature is s_t^2;
      with another temperature it has a factor `s_t^2 / s_0^2`, which keeps what each level counts for.
  """
  s2 = np.asarray(step_variance, np.float64)
  temperature = s2 if temperature is None else np.asarray(temperature, np.float64)
  if weight is None:
    weight = noise.sigma_y[0] / noise.sigma_y * s2 * (temperature[0] / s2[0])
  return Levels(**vars(noise), step_variance=s2, temperature=temperature, weight=np.asarray(weight, np.float64))


def make_levels(
  num_levels: int,
  step_size: float,
  step_size_rule: str = 'cumulative',
  temperature: str = 'step_size',
  level_weight: str = 'published',
  schedule: str = 'linear',
  log_snr_range: tuple[float, float] = (9.8, -5.1),
) -> Levels:
  """Levels with one of three rules for the step size.

  Args:
    num_levels: of `make_noise_levels` or `make_cosine_levels`.
    step_size: b^2.
    step_size_rule: 'cumulative', the published `s_t^2 = b^2 sigma_{t+1}^2 sbar_t / sbar_0`; 'conditional',
      `s_t^2 = b^2 sigma_{t+1}^2`: the same fraction of the conditional's width where data are spread out; or
      'posterior', `s_t^2 = b^2 var(y_t | x_{t+1}, x)` (of each coordinate): the same fraction of its width where data
      are a single point x.
    temperature: 'step_size', the published one: the log density is `f / s_t^2`; 'one': it is f itself, in nats; or
      'noise': f over the standard deviation of the noise in `y_t`, so that the gradient of f is minus that noise in
      units of its own width, at every level as large.
    level_weight: 'published', as of `with_steps`; or 'balanced', `(sbar_{t+1} / sigma_{t+1})^2` for the difference of
      log densities: for little noise it makes every level's loss half the squared error of its score in units of its
      noise, `sbar_{t+1}^2 |error|^2 / 2`.
    schedule: 'linear', the paper's, of `make_noise_levels`; or 'cosine', that of `make_cosine_levels`.
    log_snr_range: of 'cosine': its `log_snr_max` and `log_snr_min`.

  Returns:
    The levels.

  Raises:
    ValueError: for another number of levels, schedule, rule, temperature or weight.

  Source: Gao et al. 2021, section 3.4; the variance of 'posterior' is that of Ho et al. 2020, equation 7.
  """
  for name, value, choices in (
    ('step_size_rule', step_size_rule, STEP_SIZE_RULES),
    ('temperature', temperature, TEMPERATURES),
    ('level_weight', level_weight, LEVEL_WEIGHTS),
    ('schedule', schedule, SCHEDULES),
  ):
    if value not in choices:
      raise ValueError(f'{name} is {value!r}, not one of {choices}')
  noise = make_noise_levels(num_levels) if schedule == 'linear' else make_cosine_levels(num_levels, *log_snr_range)
  s2 = step_size * noise.sigma_y**2
  if step_size_rule == 'cumulative':
    s2 = s2 * noise.sigma_cum[:-1] / noise.sigma_cum[0]
  elif step_size_rule == 'posterior':
    s2 = step_size / (noise.is_recovery / noise.sigma_y**2 + 1 / (noise.a_y * noise.sigma_cum[:-1]) ** 2)
  of_temperature = {'step_size': None, 'one': np.ones_like(s2), 'noise': noise.a_y * noise.sigma_cum[:-1]}
  return with_steps(
    noise,
    s2,
    of_temperature[temperature],
    None if level_weight == 'published' else (noise.sigma_cum[1:] / noise.sigma_y) ** 2,
  )


def at(values, t, like):
  """`values[t]` as float32, shaped to broadcast against `like`: (B,) levels to (B, 1, ..., 1).

  At real levels, `between`.
  """
  t = jnp.asarray(t)
  if jnp.issubdtype(t.dtype, jnp.floating):
    return between(values, t, like)
  return _broadcastable(jnp.asarray(values, jnp.float32)[t], like)


def between(values, t, like):
  """Likewise at real levels (B,), in [0, len(values) - 1]: on the straight lines between the values."""
  values = jnp.asarray(values, jnp.float32)
  return _broadcastable(jnp.interp(t, jnp.arange(len(values), dtype=jnp.float32), values), like)


def powers_between(log_snr, t, like):
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


def diffuse_next(levels: NoiseLevels, x_t, t, eps):
  """One step of the forward process, `x_{t+1} = a_{t+1} x_t + sigma_{t+1} eps`; arguments as of `diffuse`."""
  return at(levels.a, t + 1, x_t) * x_t + at(levels.sigma, t + 1, x_t) * eps


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
  return x_t, diffuse_next(levels, x_t, t, eps_next)


def diffuse_together(levels: NoiseLevels, x, t, eps):
  """Data at levels t and t + 1 with the same noise.

  Each of the two has its own distribution right, but they are no neighbours of one trajectory. The recovery
  likelihood's gradient is a difference of one mean over `x_t` and one over `x_{t+1}`, so that it is the same in the
  mean, and varies less.

  Args:
    levels: the noise levels.
    x: data, (B, ...).
    t: levels, int (B,) in 0..T-1.
    eps: standard normal noise like `x`.

  Returns:
    `(x_t, x_{t+1})`, each like `x`.

  Source: Zhu et al. 2024, section 3.3 (noise variance reduction).
  """
  return diffuse(levels, x, t, eps), diffuse(levels, x, t + 1, eps)


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
  step, now, after = levels.sigma[1:] ** 2, levels.sigma_cum[:-1] ** 2, levels.sigma_cum[1:] ** 2
  return (
    at(a * now / after, t, x) * x_next
    + at(a_cum * step / after, t, x) * x
    + at(np.sqrt(step * now / after), t, x) * eps
  )
