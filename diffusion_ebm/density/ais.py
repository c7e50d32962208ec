"""Annealed importance sampling: the normaliser of a density, from both ends of a ladder.

A ladder is a sequence of unnormalised densities, described by the arrays of `rungs`, of which slice k is rung k. Rung 0
is normalised. The forward pass starts with exact samples of rung 0: the mean of its weights is an unbiased estimate of
Z, and its logarithm is, in expectation, below log Z. The reverse pass starts with samples of the last rung:
where these are exact, what it gives is in expectation above log Z.

Source: Neal 2001, Annealed importance sampling; Grosse et al. 2015, Sandwiching the marginal likelihood using
bidirectional Monte Carlo.
"""

from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
from scipy import special

from diffusion_ebm import langevin, random_keys


class Estimate(NamedTuple):
  """A log normaliser.

  Attributes:
    log_z: in nats.
    standard_error: of `log_z`, from the spread of the weights; not to be trusted where `ess` is near one.
    ess: effective sample size of the weights, in 1..N.
  """

  log_z: float
  standard_error: float
  ess: float


def anneal(make_target, kernel, rungs, step_sizes, x, keys, num_steps: int, first: int = 0):
  """Moves chains from rung to rung, in either direction, and weighs them.

  For each k the weights gain `log p_{k+1}(x) - log p_k(x)`, then the chains take steps that leave `p_{k+1}` as it is.
  The reverse pass is the same with the rungs in reverse order.

  Args:
    make_target: from a rung to its unnormalised log density, a function from (B, ...) to (B,).
    kernel: a reversible kernel of `langevin.make_kernel`, not 'ula'.
    rungs: a tree of arrays (R + 1, ...): the rungs from the chains' own to the last, R >= 1.
    step_sizes: of the kernel at each rung, (R + 1,).
    x: the chains, (B, ...), at rung 0 of these.
    keys: one for each chain, (B,).
    num_steps: steps at each rung.
    first: the number of rung 0 of these, from which the random numbers follow.

  Returns:
    `(x, log_weights, acceptance)`: the chains at the last rung; what each weight has gained on the way to each rung,
    (R, B); the mean acceptance of each chain at each rung, (R, B).
  """
  at = lambda k: jax.tree.map(lambda a: a[k], rungs)  # noqa: E731

  def body(carry, k):
    x, before = carry
    target = make_target(at(k))
    state = langevin.init(target, x)
    gain = state.log_density - before
    state, info = langevin.run(kernel, target, state, random_keys.fold_in(keys, first + k), step_sizes[k], num_steps)
    return (state.y, state.log_density), (gain, info.acceptance)

  num_rungs = len(jax.tree.leaves(rungs)[0])
  (x, _), (gains, acceptance) = lax.scan(body, (x, make_target(at(0))(x)), jnp.arange(1, num_rungs))
  return x, gains, acceptance


def estimate(log_weights) -> Estimate:
  """The normaliser whose estimate is the mean of the weights, (N,), by float64.

  The standard error is that of the mean, relative to it.
  """
  log_weights = np.asarray(log_weights, np.float64)
  n = len(log_weights)
  total = special.logsumexp(log_weights)
  share = np.exp(log_weights - total)
  ess = 1 / np.sum(share**2)
  return Estimate(float(total - np.log(n)), float(np.sqrt(max(1 / ess - 1 / n, 0.0) * n / max(n - 1, 1))), float(ess))


def reverse_estimate(log_weights) -> Estimate:
  """Likewise from a reverse pass, whose weights average to 1 / Z."""
  forward = estimate(log_weights)
  return forward._replace(log_z=-forward.log_z)


def bracket(forward: Estimate, reverse: Estimate) -> tuple[float, float]:
  """`(lower, upper)` bounds of log Z: all that lies within two standard errors of either end or between them.

  Args:
    forward: whose expectation is below log Z.
    reverse: whose expectation is above it, if it started with exact samples.
  """
  ends = [end.log_z + sign * 2 * end.standard_error for end in (forward, reverse) for sign in (-1, 1)]
  return min(ends), max(ends)


def increment_ess(differences, fraction: float) -> float:
  """The share of effective samples, in (0, 1], after a move by `fraction` of the way between two log densities.

  Args:
    differences: of the two log densities at samples of the first, (N,).
    fraction: in (0, 1].

  Source: Zhou, Johansen and Aston 2016, conditional effective sample size, equation 3.
  """
  scaled = fraction * np.asarray(differences, np.float64)
  return float(np.exp(2 * special.logsumexp(scaled) - special.logsumexp(2 * scaled) - np.log(len(scaled))))


def next_fraction(differences, ess: float) -> float:
  """The longest move, in (0, 1], after which the share of effective samples is still `ess`, by bisection."""
  if increment_ess(differences, 1.0) >= ess:
    return 1.0
  low, high = 0.0, 1.0
  for _ in range(40):
    middle = 0.5 * (low + high)
    low, high = (middle, high) if increment_ess(differences, middle) >= ess else (low, middle)
  return max(low, 1e-6)
