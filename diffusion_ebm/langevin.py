"""Markov chains: the unadjusted Langevin algorithm, MALA and HMC; the target is an argument, nothing here knows levels.

Dynamics, target and loop are apart. `unadjusted_chain` is the chain of training and generation, driven by a score.
Long chains and densities use kernels on a state that holds what the next step needs,
`(state, info) = kernel(target, state, keys, step_size)`. Each of the B chains has its own key and acceptance, and
depends neither on its batch nor on the devices. `adapt_step_size` tunes a step size to an acceptance.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from diffusion_ebm import random_keys


def unadjusted_step(y, score, step_size, noise):
  """One step of the unadjusted Langevin algorithm: `y + (s^2 / 2) score(y) + s noise`.

  Args:
    y: state, (B, ...).
    score: gradient of the log density at `y`, like `y`.
    step_size: s, broadcastable against `y`.
    noise: standard normal noise, like `y`, or shrunk to sample at a lower temperature.

  Returns:
    The next state.

  Source: Gao et al. 2021, equation 16.
  """
  return y + 0.5 * step_size**2 * score + step_size * noise


def unadjusted_chain(score_fn, y, step_size, noise_fn, num_steps: int):
  """`num_steps` steps from `y`, each of which evaluates the score once.

  Args:
    score_fn: from (B, ...) to the score, like it.
    y: start, (B, ...).
    step_size: s, broadcastable against `y`.
    noise_fn: from the index of the step to its noise, like `y`: `normal_noise(...)`, or `lambda k: given[k]`.
    num_steps: K.

  Returns:
    The state after the last step, like `y`.
  """

  def body(y, k):
    return unadjusted_step(y, score_fn(y), step_size, noise_fn(k)), None

  return lax.scan(body, y, jnp.arange(num_steps))[0]


def normal_noise(keys, shape, scale=1.0):
  """Standard normal noise for each step that depends on each chain's own key alone.

  Args:
    keys: one key for each chain, (B,).
    shape: of one chain's state, without the batch axis.
    scale: factor of the noise, () or one for each chain, (B,).

  Returns:
    A function from the index of the step to noise (B, *shape), float32.
  """

  def noise(k):
    eps = random_keys.draw(jax.random.normal, random_keys.fold_in(keys, k), shape)
    return _per_chain(scale, eps) * eps

  return noise


class State(NamedTuple):
  """What the next step of B chains needs.

  Attributes:
    y: positions, (B, ...).
    log_density: of the target at `y`, unnormalised, (B,), in nats.
    score: its gradient, like `y`.
  """

  y: Any
  log_density: Any
  score: Any


class Info(NamedTuple):
  """What a step reports.

  Attributes:
    acceptance: probability with which each chain's proposal is accepted, (B,) in [0, 1].
    accepted: whether it was, bool (B,).
  """

  acceptance: Any
  accepted: Any


def init(target, y) -> State:
  """The state of chains at `y`.

  Args:
    target: from (B, ...) to the unnormalised log density (B,); each chain's depends on its own position alone.
    y: positions, (B, ...).

  Returns:
    The state.
  """

  def total(y):
    value = target(y)
    return jnp.sum(value), value

  score, log_density = jax.grad(total, has_aux=True)(y)
  return State(y, log_density, score)


def _per_chain(values, like):
  """(B,) or () to what broadcasts against (B, ...)."""
  values = jnp.asarray(values, like.dtype)
  return values.reshape(values.shape + (1,) * (like.ndim - 1)) if values.ndim else values


def _sum(x):
  return jnp.sum(x, axis=tuple(range(1, x.ndim)))


def _normal(keys, y):
  return random_keys.draw(lambda key, shape: jax.random.normal(key, shape, y.dtype), keys, y.shape[1:])


def unadjusted(target, state: State, keys, step_size) -> tuple[State, Info]:
  """A step of the unadjusted Langevin algorithm: `y + (s^2 / 2) score + s eps`, always accepted.

  Args:
    target: as of `init`.
    state: before the step.
    keys: one for each chain, (B,).
    step_size: s, () or (B,).

  Returns:
    `(state, info)`.

  Source: Roberts and Tweedie 1996, section 1.4.1.
  """
  y = unadjusted_step(state.y, state.score, _per_chain(step_size, state.y), _normal(keys, state.y))
  ones = jnp.ones_like(state.log_density)
  return init(target, y), Info(ones, ones > 0)


def hmc(target, state: State, keys, step_size, num_leapfrog: int) -> tuple[State, Info]:
  """A step of Hamiltonian Monte Carlo with a unit mass: momentum drawn, leapfrog, accepted or refused.

  A proposal whose log density is not finite is refused. The kernel is reversible.

  Args:
    target: as of `init`.
    state: before the step.
    keys: one for each chain, (B,).
    step_size: of the leapfrog, () or (B,).
    num_leapfrog: L, evaluations of the gradient.

  Returns:
    `(state, info)`.

  Source: Neal 2011, MCMC using Hamiltonian dynamics, section 3.
  """
  momentum_keys, accept_keys = random_keys.split(keys)
  s = _per_chain(step_size, state.y)
  momentum = _normal(momentum_keys, state.y)

  def leapfrog(carry, _):
    at, p = carry
    p = p + 0.5 * s * at.score
    at = init(target, at.y + s * p)
    return (at, p + 0.5 * s * at.score), None

  (proposal, p), _ = lax.scan(leapfrog, (state, momentum), length=num_leapfrog)
  log_ratio = proposal.log_density - state.log_density - 0.5 * (_sum(p**2) - _sum(momentum**2))
  acceptance = jnp.where(jnp.isfinite(log_ratio), jnp.exp(jnp.minimum(log_ratio, 0.0)), 0.0)
  accepted = jax.vmap(jax.random.uniform)(accept_keys) < acceptance

  def choose(new, old):
    return jnp.where(accepted.reshape(accepted.shape + (1,) * (old.ndim - 1)), new, old)

  return jax.tree.map(choose, proposal, state), Info(acceptance, accepted)


def mala(target, state: State, keys, step_size) -> tuple[State, Info]:
  """A step of the Metropolis-adjusted Langevin algorithm: HMC with one leapfrog step.

  The proposal is `y + (s^2 / 2) score + s eps`, as of `unadjusted`.

  Args and Returns: as of `unadjusted`.

  Source: Roberts and Tweedie 1996, section 1.4.2; Neal 2011, section 5.2, for the equivalence.
  """
  return hmc(target, state, keys, step_size, 1)


KERNELS = ('ula', 'mala', 'hmc')
# Optimal acceptance in many dimensions: Roberts and Rosenthal 1998 (MALA); Beskos et al. 2013 (HMC, where 0.651 is best
# and more costs little).
TARGET_ACCEPTANCE = {'mala': 0.574, 'hmc': 0.8}


def make_kernel(name: str, num_leapfrog: int = 1) -> Callable:
  """The kernel `(target, state, keys, step_size) -> (state, info)` of a name in `KERNELS`."""
  if name == 'hmc':
    return lambda *args: hmc(*args, num_leapfrog)
  return {'ula': unadjusted, 'mala': mala}[name]


def run(kernel, target, state: State, keys, step_size, num_steps: int, first: int = 0) -> tuple[State, Info]:
  """Steps number `first` to `first + num_steps - 1` of chains; step k uses each chain's key with k folded in.

  Args:
    kernel: of `make_kernel`.
    target: as of `init`.
    state: before the first of the steps.
    keys: one for each chain, (B,).
    step_size: () or (B,).
    num_steps: steps.
    first: number of the first step.

  Returns:
    `(state, info)` after the steps; `info.acceptance` is the mean over them, `info.accepted` the share, each (B,).
  """

  def body(carry, k):
    state, acceptance, accepted = carry
    state, info = kernel(target, state, random_keys.fold_in(keys, k), step_size)
    return (state, acceptance + info.acceptance, accepted + info.accepted), None

  zeros = jnp.zeros_like(state.log_density)
  (state, acceptance, accepted), _ = lax.scan(body, (state, zeros, zeros), first + jnp.arange(num_steps))
  return state, Info(acceptance / max(num_steps, 1), accepted / max(num_steps, 1))


class StepSize(NamedTuple):
  """State of dual averaging.

  Attributes:
    log_step: logarithm of the step size to try next.
    log_average: of the average, the result.
    log_anchor: towards which the iterates shrink.
    error: average of what is missing in acceptance.
    count: updates done.
  """

  log_step: Any
  log_average: Any
  log_anchor: Any
  error: Any
  count: Any


def init_step_size(step_size) -> StepSize:
  """Dual averaging that starts at a step size (and looks first at ten times that)."""
  log_step = jnp.log(jnp.asarray(step_size, jnp.float32))
  zero = jnp.zeros_like(log_step)
  return StepSize(log_step, log_step, log_step + jnp.log(10.0), zero, zero)


def update_step_size(state: StepSize, acceptance, target: float) -> StepSize:
  """One update of dual averaging.

  Args:
    state: before it.
    acceptance: of the step that was tried, averaged over the chains, in [0, 1].
    target: the acceptance aimed at.

  Returns:
    The state after it; the step size to use in the end is `exp(log_average)`.

  Source: Hoffman and Gelman 2014, algorithm 5, with gamma 0.05, t_0 10 and kappa 0.75.
  """
  count = state.count + 1
  error = state.error + (target - acceptance - state.error) / (count + 10)
  log_step = state.log_anchor - jnp.sqrt(count) / 0.05 * error
  weight = count**-0.75
  return StepSize(log_step, weight * log_step + (1 - weight) * state.log_average, state.log_anchor, error, count)


def adapt_step_size(kernel, target, state: State, keys, step_size, num_steps: int, acceptance: float):
  """Steps of chains that tune their common step size to an acceptance.

  Args:
    kernel: of `make_kernel`, not 'ula'.
    target: as of `init`.
    state: before the steps.
    keys: one for each chain, (B,).
    step_size: where to start, ().
    num_steps: steps.
    acceptance: aimed at, averaged over the chains.

  Returns:
    `(state, step_size)`: the chains after these steps, which are not to be used as samples, and the result.
  """

  def body(carry, k):
    state, tuning = carry
    step_keys = random_keys.fold_in(keys, k)
    state, info = kernel(target, state, step_keys, jnp.exp(tuning.log_step))
    return (state, update_step_size(tuning, jnp.mean(info.acceptance), acceptance)), None

  (state, tuning), _ = lax.scan(body, (state, init_step_size(step_size)), jnp.arange(num_steps))
  return state, jnp.exp(tuning.log_average)
