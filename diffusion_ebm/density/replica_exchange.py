"""Replica exchange along a ladder of densities: chains at all rungs at once, which neighbours swap.

Rung 0 is the standard normal density, of which each round draws anew. What a chain finds there comes down to the data
by swaps, so that the chains at each rung visit all modes without having to cross from one to the other.

Source: Geyer 1991, Markov chain Monte Carlo maximum likelihood; the order of swaps (even pairs, then odd ones, in turn)
of Syed et al. 2022, Non-reversible parallel tempering.
"""

from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from diffusion_ebm import langevin, random_keys
from diffusion_ebm.density import ladder
from diffusion_ebm.ebm import Ebm


class Round(NamedTuple):
  """What one round gives, of B ladders with R + 1 rungs.

  Attributes:
    forward: `log q_{k+1} - log q_k` of the states at rung k, (B, R), in nats.
    reverse: the same difference of those at rung k + 1, (B, R).
    swapped: the probability of swapping them, (B, R); 0 for pairs that have to wait for the next round.
    acceptance: of the kernel at each rung, (B, R + 1); 1 at the first.
    log_density: unnormalised, of the states at each rung, before the swaps, (B, R + 1).
  """

  forward: Any
  reverse: Any
  swapped: Any
  acceptance: Any
  log_density: Any


def run(ebm: Ebm, kernel, rungs: ladder.Rungs, step_sizes, x, keys, num_steps: int, num_rounds: int, first: int = 0):
  """Rounds of `num_steps` steps of the kernel at each rung, then swaps.

  Args:
    ebm: the model.
    kernel: of `langevin.make_kernel`, not 'ula'.
    rungs: (R + 1,), the first of which is the standard normal density.
    step_sizes: of the kernel at each rung, (R + 1,).
    x: the states, (B, R + 1, ...).
    keys: one for each ladder, (B,).
    num_steps: of the kernel in a round.
    num_rounds: M.
    first: number of the first round.

  Returns:
    `(x, rounds)`: the states after the rounds, and a `Round` of arrays (M, B, ...).
  """
  b, num_rungs = x.shape[:2]
  flat = lambda a: a.reshape(b * num_rungs, *a.shape[2:])  # noqa: E731
  spread = lambda a: jnp.tile(jnp.asarray(a), b)  # noqa: E731
  of_rungs = lambda index: jax.tree.map(lambda a: spread(jnp.asarray(a)[index]), rungs)  # noqa: E731
  number = jnp.arange(num_rungs)
  own = ladder.rungs_log_density(ebm, of_rungs(number))
  # A neighbour's density at one's own state; at the ends, one's own.
  up, down = (ladder.rungs_log_density(ebm, of_rungs(jnp.clip(number + shift, 0, num_rungs - 1))) for shift in (1, -1))
  sizes, axes = spread(step_sizes), tuple(range(2, x.ndim))

  def body(x, m):
    of_round = random_keys.fold_in(keys, m)
    of_rung = flat(jax.vmap(lambda k: random_keys.fold_in(of_round, k), out_axes=1)(number))
    state, info = langevin.run(kernel, own, langevin.init(own, flat(x)), of_rung, sizes, num_steps)
    x = state.y.reshape(x.shape)
    x = x.at[:, 0].set(langevin.normal_noise(of_round, x.shape[2:])(num_rungs))

    here, above, below = (density(flat(x)).reshape(b, num_rungs) for density in (own, up, down))
    forward, reverse = (above - here)[:, :-1], (here - below)[:, 1:]
    log_ratio = forward - reverse
    turn = (number[:-1] + m) % 2 == 0
    probability = jnp.where(turn & jnp.isfinite(log_ratio), jnp.exp(jnp.minimum(log_ratio, 0.0)), 0.0)
    uniform = jax.vmap(lambda key: jax.random.uniform(key, (num_rungs - 1,)))(
      random_keys.fold_in(of_round, num_rungs + 1)
    )
    swap = uniform < probability
    none = jnp.zeros((b, 1), bool)
    source = number + jnp.concatenate([swap, none], 1) - jnp.concatenate([none, swap], 1)
    x = jnp.take_along_axis(x, jnp.expand_dims(source, axes), axis=1)
    acceptance = info.acceptance.reshape(b, num_rungs).at[:, 0].set(1.0)
    return x, Round(forward, reverse, probability, acceptance, here)

  return lax.scan(body, x, first + jnp.arange(num_rounds))


def fill(ebm: Ebm, kernel, rungs: ladder.Rungs, step_sizes, x, keys, num_steps: int):
  """States at all rungs: chains that go down the ladder leave one at each.

  Args: as of `run`, but
    x: standard normal noise, (B, ...).
    num_steps: of the kernel at each rung.

  Returns:
    (B, R + 1, ...).
  """

  def body(x, k):
    target = ladder.rung_log_density(ebm, jax.tree.map(lambda a: jnp.asarray(a)[k], rungs))
    of_rung = random_keys.fold_in(keys, k)
    x = langevin.run(kernel, target, langevin.init(target, x), of_rung, jnp.asarray(step_sizes)[k], num_steps)[0].y
    return x, x

  _, below = lax.scan(body, x, jnp.arange(1, len(step_sizes)))
  return jnp.concatenate([x[:, None], jnp.moveaxis(below, 0, 1)], axis=1)
