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


@dataclasses.dataclass(frozen=True)
class Levels:
  """The noise levels and the Langevin step size of each.

  Attributes:
    noise: the forward process.
    step_variance: s_t^2, (T,) float64: the squared step size, and the temperature of the network's output.
  """
  noise: noise_levels.NoiseLevels
  step_variance: np.ndarray

  @property
  def num_models(self) -> int:
    return self.noise.num_models


def make_levels(num_levels: int, step_size: float, step_size_rule: str = 'cumulative') -> Levels:
  """Levels of the paper with one of three rules for the step size.

  Args:
    num_levels: 6 or 1000.
    step_size: b^2.
    step_size_rule: 'cumulative', the published `s_t^2 = b^2 sigma_{t+1}^2 sbar_t / sbar_0`; 'conditional',
      `s_t^2 = b^2 sigma_{t+1}^2`: the same fraction of the conditional's width where data are spread out; or
      'posterior', `s_t^2 = b^2 var(y_t | x_{t+1}, x)` (of each coordinate): the same fraction of its width where data
      are a single point x.

  Returns:
    The levels.

  Raises:
    ValueError: for another number of levels or another rule.

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
  return Levels(noise, s2)


def log_density(levels: Levels, f, t):
  """The unnormalised log density `f / s_t^2` (nats) of the network's output f (B,) at levels t (B,)."""
  return f / at(levels.step_variance, t, f)


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
  """Langevin chains on `p(y_t | x_{t+1})` that start at `x_{t+1}`.

  Args:
    levels: the levels.
    f: the network at these levels, from (B, ...) to (B,).
    x_next: the noisier variable, (B, ...).
    t: levels, int (B,) in 0..T-1.
    noise_fn: the noise of each step, as in `langevin.unadjusted_chain`.
    num_steps: K.

  Returns:
    Samples of `x_t = y_t / a_{t+1}`, like `x_next`.

  Source: Gao et al. 2021, algorithm 1, lines 4-6.
  """
  def score(y):
    return jax.grad(lambda y: jnp.sum(conditional_log_density(levels, f, y, x_next, t)))(y)

  step_size = at(np.sqrt(levels.step_variance), t, x_next)
  y = langevin.unadjusted_chain(score, x_next, step_size, noise_fn, num_steps)
  return y / at(levels.noise.a_y[1:], t, x_next)


def recovery_loss(levels: Levels, f, x_pos, x_neg, t):
  """The loss of each example, whose gradient is that of the negative recovery log likelihood, weighted by level.

  Args:
    levels: the levels.
    f: the network for a batch of positives followed by negatives: from (2B, ...) to (2B,).
    x_pos: diffused data `x_t`, (B, ...).
    x_neg: samples of `sample_conditional`, held constant, like `x_pos`.
    t: levels, int (B,) in 0..T-1.

  Returns:
    `(loss, f_pos)`, each (B,): `(sigma_1 / sigma_{t+1}) (f(a_{t+1} x_neg) - f(a_{t+1} x_pos))` and f of the data.

  Source: Gao et al. 2021, algorithm 1, line 7.
  """
  noise = levels.noise
  a = at(noise.a_y[1:], t, x_pos)
  f_pos, f_neg = jnp.split(f(jnp.concatenate([a * x_pos, a * x_neg])), 2)
  weight = at(noise.sigma[1] / noise.sigma[1:], t, f_pos)
  return weight * (f_neg - f_pos), f_pos
