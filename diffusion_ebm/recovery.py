"""Recovery likelihood: the conditional log density, the negatives and the loss.

At level t the network f gives the density `p(y) ~ exp(f(y, t) / s_t^2)` of `y_t = a_{t+1} x_t`, and the recovery
likelihood is that of `y_t` given `x_{t+1} = y_t + sigma_{t+1} eps`. `Levels` holds the constants of both, and
`log_density` is the one place where the network's output gets its scale.

Source: Gao et al. 2021, section 3 and algorithm 1.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_ebm import langevin, noise_levels
from diffusion_ebm.noise_levels import at

STEP_SIZE_RULES = ('cumulative', 'conditional', 'posterior')
TEMPERATURES = ('step_size', 'one')
LEVEL_WEIGHTS = ('published', 'balanced')


@dataclasses.dataclass(frozen=True, eq=False)
class Levels:
  """The noise levels and the Langevin step size of each.

  Attributes:
    noise: the forward process.
    step_variance: s_t^2, (T,) float64: the squared step size.
    temperature: what the network's output is divided by to give a log density, (T,) float64; s_t^2 unless it is given.
    weight: of each level's recovery likelihood, in nats, in the loss, (T,) float64; the published one unless given.
  """
  noise: noise_levels.NoiseLevels
  step_variance: np.ndarray
  temperature: np.ndarray | None = None
  weight: np.ndarray | None = None

  def __post_init__(self):
    if self.temperature is None:
      object.__setattr__(self, 'temperature', self.step_variance)
    if self.weight is None:
      # `sigma_1 / sigma_{t+1}` for f itself, as published, where the temperature is s_t^2.
      sigma, s2 = self.noise.sigma[1:], self.step_variance
      object.__setattr__(self, 'weight', sigma[0] / sigma * s2 * (self.temperature[0] / s2[0]))

  @property
  def num_models(self) -> int:
    return self.noise.num_models


def make_levels(num_levels: int, step_size: float, step_size_rule: str = 'cumulative',
                temperature: str = 'step_size', level_weight: str = 'published') -> Levels:
  """Levels of the paper with one of three rules for the step size.

  Args:
    num_levels: of `noise_levels.make_noise_levels`.
    step_size: b^2.
    step_size_rule: 'cumulative', the published `s_t^2 = b^2 sigma_{t+1}^2 sbar_t / sbar_0`; 'conditional',
      `s_t^2 = b^2 sigma_{t+1}^2`: the same fraction of the conditional's width where data are spread out; or
      'posterior', `s_t^2 = b^2 var(y_t | x_{t+1}, x)` (of each coordinate): the same fraction of its width where data
      are a single point x.
    temperature: 'step_size', the published one: the log density is `f / s_t^2`; or 'one': it is f itself, in nats.
    level_weight: 'published', `sigma_1 / sigma_{t+1}` for the difference of f; or 'balanced', `(sbar_{t+1} /
      sigma_{t+1})^2` for that of log densities: for little noise it makes every level's loss half the squared error of
      its score in units of its noise, `sbar_{t+1}^2 |error|^2 / 2`.

  Returns:
    The levels.

  Raises:
    ValueError: for another number of levels, another rule, temperature or weight.

  Source: Gao et al. 2021, section 3.4; the variance of 'posterior' is that of Ho et al. 2020, equation 7.
  """
  noise = noise_levels.make_noise_levels(num_levels)
  s2 = step_size * noise.sigma[1:]**2
  if step_size_rule == 'cumulative':
    s2 = s2 * noise.sigma_cum[:-1] / noise.sigma_cum[0]
  elif step_size_rule == 'posterior':
    s2 = step_size / (noise.is_recovery[1:] / noise.sigma[1:]**2 + 1 / (noise.a_y[1:] * noise.sigma_cum[:-1])**2)
  elif step_size_rule != 'conditional':
    raise ValueError(f'step_size_rule is {step_size_rule!r}, not one of {STEP_SIZE_RULES}')
  if temperature not in TEMPERATURES:
    raise ValueError(f'temperature is {temperature!r}, not one of {TEMPERATURES}')
  if level_weight not in LEVEL_WEIGHTS:
    raise ValueError(f'level_weight is {level_weight!r}, not one of {LEVEL_WEIGHTS}')
  return Levels(
      noise, s2, s2 if temperature == 'step_size' else np.ones_like(s2),
      None if level_weight == 'published' else (noise.sigma_cum[1:] / noise.sigma[1:])**2)


def log_density(levels: Levels, f, t):
  """The unnormalised log density `f / s_t^2` (nats) of the network's output f (B,) at levels t (B,)."""
  return f / at(levels.temperature, t, f)


def conditional_log_density(levels: Levels, f, y, x_next, t):
  """Unnormalised `log p(y_t | x_{t+1})`; at the last level, which has no quadratic term, `log p(y_t)`.

  Args:
    levels: the levels.
    f: the network at these levels, from (B, ...) to (B,).
    y: (B, ...).
    x_next: the noisier variable, like `y`.
    t: levels, int (B,) in 0..T-1.

  Returns:
    (B,), in nats.

  Source: Gao et al. 2021, equation 9.
  """
  noise = levels.noise
  squares = jnp.sum((y - x_next)**2, axis=tuple(range(1, y.ndim)))
  precision = at(noise.is_recovery[1:] / noise.sigma[1:]**2, t, squares)
  return log_density(levels, f(y), t) - 0.5 * precision * squares


def sample_conditional(levels: Levels, f, x_next, t, noise_fn, num_steps: int):
  """Langevin chains on `p(y_t | x_{t+1})` that start at `x_{t+1}`, or its normal approximation where K = 0.

  Args:
    levels: the levels.
    f: the network at these levels, from (B, ...) to (B,).
    x_next: the noisier variable, (B, ...).
    t: levels, int (B,) in 0..T-1.
    noise_fn: the noise of each step, as in `langevin.unadjusted_chain`.
    num_steps: K; 0 for `normal_approximation`.

  Returns:
    Samples of `x_t = y_t / a_{t+1}`, like `x_next`.

  Source: Gao et al. 2021, algorithm 1, lines 4-6.
  """
  if num_steps == 0:
    return normal_approximation(levels, f, x_next, t, noise_fn(0))

  def score(y):
    return jax.grad(lambda y: jnp.sum(conditional_log_density(levels, f, y, x_next, t)))(y)

  step_size = at(np.sqrt(levels.step_variance), t, x_next)
  y = langevin.unadjusted_chain(score, x_next, step_size, noise_fn, num_steps)
  return y / at(levels.noise.a_y[1:], t, x_next)


def coupled_pair(levels: Levels, x, t, eps, noise):
  """`(x_t, x_{t+1})` of data whose `x_t` shares the noise of a negative of `normal_approximation`.

  Neighbours have the distribution of `noise_levels.diffuse_pair`, drawn in the other order: `x_{t+1}` first, then `x_t`
  given it and the data. Each positive lies beside its negative, and the loss is left without the noise of both: its
  gradient has the same mean, and about the variance of score matching's.

  Args:
    levels: the levels.
    x: data, (B, ...).
    t: levels, int (B,) in 0..T-1.
    eps: standard normal noise of `x_{t+1}`, like `x`.
    noise: that of the negative, like `x`.

  Returns:
    `(x_t, x_{t+1})`, each like `x`.
  """
  x_next = noise_levels.diffuse(levels.noise, x, t + 1, eps)
  return noise_levels.posterior(levels.noise, x, x_next, t, noise), x_next


def normal_approximation(levels: Levels, f, x_next, t, noise):
  """Samples of the normal approximation of `p(y_t | x_{t+1})` for little noise: one gradient.

  `y_t ~ N(x_{t+1} + sigma_{t+1}^2 score(x_{t+1}), sigma_{t+1}^2 I)`. At the last level, whose model is a marginal one,
  a Langevin step of size sigma_T from `x_T`, which leaves the marginal as it is up to the order of sigma_T^4.

  Args:
    levels: the levels.
    f: the network at these levels, from (B, ...) to (B,).
    x_next: the noisier variable, (B, ...).
    t: levels, int (B,) in 0..T-1.
    noise: standard normal noise, like `x_next`.

  Returns:
    Samples of `x_t = y_t / a_{t+1}`, like `x_next`.

  Source: Gao et al. 2021, section 3.3, equation 10 and what follows.
  """
  score = jax.grad(lambda y: jnp.sum(log_density(levels, f(y), t)))(x_next)
  constants = levels.noise
  drift = at(0.5 * (1 + constants.is_recovery[1:]) * constants.sigma[1:]**2, t, x_next)
  y = x_next + drift * score + at(constants.sigma[1:], t, x_next) * noise
  return y / at(constants.a_y[1:], t, x_next)


def recovery_loss(levels: Levels, f, x_pos, x_neg, t):
  """The loss of each example, whose gradient is that of the negative recovery log likelihood, weighted by level.

  Args:
    levels: the levels.
    f: the network for a batch of positives followed by negatives: from (2B, ...) to (2B,).
    x_pos: diffused data `x_t`, (B, ...).
    x_neg: samples of `sample_conditional`, held constant, like `x_pos`.
    t: levels, int (B,) in 0..T-1.

  Returns:
    `(loss, f_pos)`, each (B,): `w_t (log p(a_{t+1} x_neg) - log p(a_{t+1} x_pos))` with the level's weight, which is
    `(sigma_1 / sigma_{t+1}) (f(a_{t+1} x_neg) - f(a_{t+1} x_pos))` as published, and f of the data. Where the
    temperature is not s_t^2, the published weights have a factor `s_t^2 / s_0^2` that keeps what each level counts for.

  Source: Gao et al. 2021, algorithm 1, line 7.
  """
  a = at(levels.noise.a_y[1:], t, x_pos)
  f_pos, f_neg = jnp.split(f(jnp.concatenate([a * x_pos, a * x_neg])), 2)
  return at(levels.weight, t, f_pos) * log_density(levels, f_neg - f_pos, t), f_pos


def score_matching_loss(levels: Levels, f, x_pos, eps, t):
  """Denoising score matching, which the recovery likelihood's gradient tends to as sigma_{t+1} vanishes.

  Args:
    levels: the levels.
    f: the network at these levels, from (B, ...) to (B,).
    x_pos: diffused data `x_t = abar_t x + sbar_t eps`, (B, ...).
    eps: their noise, like `x_pos`.
    t: levels, int (B,) in 0..T-1.

  Returns:
    `(loss, f_pos)`, each (B,): `sigma_{t+1}^2 / 2 |score(y_t) + eps / (a_{t+1} sbar_t)|^2` with the weight of
    `recovery_loss`, and f of the data.

  Source: Vincent 2011, equation 11; Gao et al. 2021, section 3.3.
  """
  noise = levels.noise

  def total(y):
    value = f(y)
    return jnp.sum(log_density(levels, value, t)), value

  a = at(noise.a_y[1:], t, x_pos)
  score, f_pos = jax.grad(total, has_aux=True)(a * x_pos)
  error = score + eps / (a * at(noise.sigma_cum, t, eps))
  squares = jnp.sum(error**2, axis=tuple(range(1, error.ndim)))
  return at(levels.weight, t, squares) * 0.5 * at(noise.sigma[1:]**2, t, squares) * squares, f_pos
