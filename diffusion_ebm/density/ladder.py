"""The ladder from white noise down the levels: level by level, with geometric averages of neighbours between them.

Everything is in terms of `x_t = y_t / a_{t+1}`, of about the same scale at every level. The model of level t gives the
unnormalised density `exp(F(a_{t+1} x, t))`; above the last level is the standard normal density, normalised.
"""

from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from diffusion_ebm import langevin, random_keys
from diffusion_ebm.density import ais
from diffusion_ebm.ebm import Ebm

# The pilot tunes the step size again every so many rungs, by so many steps.
_TUNE_EVERY, _TUNE_STEPS = 20, 20


class Rungs(NamedTuple):
  """`exp(F)^fraction` of a level times `exp(F)^(1 - fraction)` of the one above it.

  Attributes:
    level: int (R + 1,), in 0..T-1.
    fraction: float32 (R + 1,), in [0, 1].
  """

  level: np.ndarray
  fraction: np.ndarray


def level_log_density(ebm: Ebm, t):
  """The unnormalised log density of `x_t`, standard normal for t = T.

  Args:
    ebm: the model.
    t: a level, or one for each example, int () or (B,) in 0..T.

  Returns:
    A function from (B, ...) to (B,), in nats.
  """
  levels, top = ebm.levels, ebm.levels.num_models
  level = jnp.minimum(jnp.atleast_1d(t), top - 1)
  model = ebm.at(level)

  def log_density(x):
    squares = jnp.sum(x**2, axis=tuple(range(1, x.ndim)))
    normal = -0.5 * squares - 0.5 * np.log(2 * np.pi) * (x.size // len(x))
    return jnp.where(t == top, normal, model.log_density(levels.to_y(x, level)))

  return log_density


def rung_log_density(ebm: Ebm, rung: Rungs):
  """The unnormalised log density of one rung: a function from (B, ...) to (B,), in nats."""
  below, above = level_log_density(ebm, rung.level), level_log_density(ebm, rung.level + 1)

  def both(x):
    return rung.fraction * below(x) + (1 - rung.fraction) * above(x)

  return lambda x: lax.cond(rung.fraction == 1, below, both, x)


def rungs_log_density(ebm: Ebm, rungs: Rungs):
  """Likewise where each example is at a rung of its own, `rungs` of shape (B,): one evaluation of two examples each."""
  both = level_log_density(ebm, jnp.concatenate([rungs.level, rungs.level + 1]))

  def log_density(x):
    below, above = jnp.split(both(jnp.concatenate([x, x])), 2)
    # Where the level above is left out, it may be infinite.
    return rungs.fraction * below + (1 - rungs.fraction) * jnp.where(rungs.fraction == 1, 0.0, above)

  return log_density


class Pilot(NamedTuple):
  """What the pilot run aims at.

  Attributes:
    num_steps: steps of the kernel at each rung.
    ess: share of effective samples from one rung to the next, in (0, 1).
    acceptance: that the step size is tuned to.
    step_size: to begin with.
  """

  num_steps: int
  ess: float
  acceptance: float
  step_size: float = 0.3


def choose(ebm: Ebm, keys, shape, kernel, pilot: Pilot, on_rung=lambda done, count: None, last: int = 0):
  """Chooses rungs and step sizes by a pilot run, which is not used otherwise.

  The next rung is as far as the share of effective samples among the pilot's chains stays at `pilot.ess`, and at most
  at the next level; the step size follows the acceptance.

  Args:
    ebm: the model.
    keys: one for each of the pilot's chains, (B,).
    shape: of one example.
    kernel: of `langevin.make_kernel`.
    pilot: what it aims at.
    on_rung: called at each rung with how many levels lie behind it, a real number, and how many rungs.
    last: the level where the ladder ends.

  Returns:
    `(rungs, step_sizes)` as NumPy arrays of length R + 1.

  Raises:
    FloatingPointError: the chains reached values that are not finite; its argument is the level.
  """
  differences, move, tune = _pilot_steps(ebm, kernel, pilot)
  x = langevin.normal_noise(keys, shape)(ebm.levels.num_models)
  level, fraction, step_size = ebm.levels.num_models - 1, 0.0, pilot.step_size
  chosen, tuned = [(level, fraction, step_size)], -_TUNE_EVERY
  while level > last or fraction < 1:
    if fraction == 1:
      level, fraction = level - 1, 0.0
    difference = np.asarray(differences(level, x))
    if not np.all(np.isfinite(difference)):
      raise FloatingPointError(level)
    left = 1 - fraction
    move_by = ais.next_fraction(left * difference, pilot.ess) * left
    fraction = 1.0 if move_by > left - 1e-6 else fraction + move_by
    rung = Rungs(np.int32(level), np.float32(fraction))
    if len(chosen) - tuned >= _TUNE_EVERY:
      x, tuned_step = tune(rung, x, keys, np.float32(step_size), 2 * len(chosen))
      step_size, tuned = float(tuned_step), len(chosen)
    x, acceptance = move(rung, x, keys, np.float32(step_size), 2 * len(chosen) + 1)
    step_size *= float(np.exp(acceptance - pilot.acceptance))  # between two times that it is tuned
    chosen.append((level, fraction, step_size))
    on_rung(ebm.levels.num_models - 1 - level + fraction, len(chosen) - 1)
  level, fraction, step_sizes = zip(*chosen, strict=True)
  return Rungs(np.asarray(level, np.int32), np.asarray(fraction, np.float32)), np.asarray(step_sizes, np.float32)


def _pilot_steps(ebm, kernel, pilot):
  """The compiled parts of `choose`: the difference between levels, steps of the chains, and steps that tune."""

  @jax.jit
  @jax.default_matmul_precision('highest')
  def differences(level, x):
    lower, upper = (level_log_density(ebm, t)(x) for t in (level, level + 1))
    return lower - upper

  @jax.jit
  @jax.default_matmul_precision('highest')
  def move(rung, x, keys, step_size, number):
    target = rung_log_density(ebm, rung)
    state, keys = langevin.init(target, x), random_keys.fold_in(keys, number)
    state, info = langevin.run(kernel, target, state, keys, step_size, pilot.num_steps)
    return state.y, jnp.mean(info.acceptance)

  @jax.jit
  @jax.default_matmul_precision('highest')
  def tune(rung, x, keys, step_size, number):
    target = rung_log_density(ebm, rung)
    state, keys = langevin.init(target, x), random_keys.fold_in(keys, number)
    state, step_size = langevin.adapt_step_size(kernel, target, state, keys, step_size, _TUNE_STEPS, pilot.acceptance)
    return state.y, step_size

  return differences, move, tune
