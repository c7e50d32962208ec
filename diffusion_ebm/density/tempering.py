"""Replica exchange along a model's ladder on all devices, and the normalisers of all levels from it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_ebm import langevin, noise_levels, random_keys
from diffusion_ebm.density import bridge, replica_exchange
from diffusion_ebm.density.annealing import Ladder, not_finite
from diffusion_ebm.ebm import Ebm
from diffusion_ebm.run import parallel
from diffusion_ebm.run.progress import Progress
from diffusion_ebm.run.unfinished import Unfinished

_CHUNK = 8  # rounds that are run at once
# Streams of random numbers.
_START, _FILL, _ROUNDS = 0xA156, 0xA157, 0xA158


class Tempered(NamedTuple):
  """What the rounds after the warm-up gave, for B ladders of R + 1 rungs.

  Attributes:
    ladder: the rungs.
    log_z: of the densities of `x_t` at each rung, from 0 at the first, (R + 1,) float64, in nats.
    standard_error: of each, (R + 1,).
    log_density: unnormalised, along the chains of each rung, (B, M, R + 1).
    swapped: share of swaps between each pair of neighbours, (R,).
    acceptance: of the kernel at each rung, (R + 1,).
    samples: level to the states at its rung, those of the last round of each chunk, (K, B, ...).
  """

  ladder: Ladder
  log_z: np.ndarray
  standard_error: np.ndarray
  log_density: np.ndarray
  swapped: np.ndarray
  acceptance: np.ndarray
  samples: dict[int, np.ndarray]


def run(
  ebm: Ebm,
  kernel,
  steps: Ladder,
  starts,
  num_steps: int,
  num_rounds: int,
  levels,
  acceptance: float,
  seed: int,
  unfinished: Unfinished | None = None,
) -> Tempered:
  """Runs ladders, and drops the first third of the rounds as warm-up, in which the step sizes settle.

  Every other ladder starts at the data, diffused to the level of each rung, the others at noise, moved down the ladder:
  what is then alike in both no longer depends on where it began.

  Args:
    ebm: the model, its weights on all devices.
    kernel: of `langevin.make_kernel`, not 'ula'.
    steps: a ladder whose neighbours overlap.
    starts: data, (B, ...), one for each ladder; B is rounded up to a multiple of twice the devices.
    num_steps: of the kernel in a round.
    num_rounds: rounds, warm-up included; rounded up to a multiple of 8, and at least 24.
    levels: whose states are kept.
    acceptance: that the step size of each rung is tuned to.
    seed: of all random numbers.
    unfinished: where to keep what has been done; None for nowhere.

  Raises:
    DivergedError: values that are not finite.
  """
  unfinished = unfinished or Unfinished()
  count = 2 * parallel.up_to_devices(-(-len(starts) // 2))
  index = np.arange(count, dtype=np.int32)
  starts = np.asarray(starts, np.float32)[index % len(starts)]

  def begin(shared, starts, index):
    ebm, steps, seed = shared
    keys = random_keys.sample_keys(seed, index, _START)
    noise = langevin.normal_noise(keys, starts.shape[1:])
    at_level = lambda t: noise_levels.diffuse(ebm.levels, starts, jnp.full(len(starts), t), noise(t))  # noqa: E731
    below = jax.vmap(at_level, out_axes=1)(steps.rungs.level[1:])
    data = jnp.concatenate([noise(ebm.levels.num_models)[:, None], below], axis=1)
    filled = replica_exchange.fill(
      ebm, kernel, steps.rungs, steps.step_sizes, data[:, 0], random_keys.sample_keys(seed, index, _FILL), num_steps
    )
    return jnp.where((index % 2 == 0).reshape(-1, *[1] * (data.ndim - 1)), data, filled)

  def rounds(shared, x, index):
    ebm, steps, seed, first = shared
    keys = random_keys.sample_keys(seed, index, _ROUNDS)
    x, found = replica_exchange.run(ebm, kernel, steps.rungs, steps.step_sizes, x, keys, num_steps, _CHUNK, first)
    return x, replica_exchange.Round(*(jnp.moveaxis(each, 0, 1) for each in found))

  seed, chosen = np.uint32(seed), [steps.reached(level) for level in levels]
  chunks, progress = max(3, -(-num_rounds // _CHUNK)), Progress('replica exchange', num_rounds, unit='round')
  warm_up = chunks // 3
  state = unfinished.read('exchange')
  if not state:
    state = {'x': parallel.map_examples(begin, count)((ebm, steps, seed), starts, index)}
    state |= {'step_sizes': steps.step_sizes, 'done': np.array(0)}
  on_chunk = parallel.map_examples(rounds, count)
  progress.update(int(state['done']) * _CHUNK)
  for chunk in range(int(state['done']), chunks):
    tuned = steps._replace(step_sizes=state['step_sizes'])
    x, found = on_chunk((ebm, tuned, seed, np.int32(chunk * _CHUNK)), state['x'], index)
    if not np.all(np.isfinite(found.log_density)):
      bad = ~np.all(np.isfinite(found.log_density), axis=(0, 1))
      raise not_finite(int(steps.rungs.level[np.flatnonzero(bad)[0]]))
    state |= {'x': x, 'done': np.array(chunk + 1)}
    if chunk < warm_up:
      missing = (found.acceptance.mean((0, 1)) - acceptance).astype(np.float32)
      state['step_sizes'] = tuned.step_sizes * np.exp(missing)
    else:
      new = {**found._asdict(), 'samples': x[:, None, chosen]}
      state |= {name: np.concatenate([state[name], each], 1) if name in state else each for name, each in new.items()}
    unfinished.write('exchange', state, chunk == chunks - 1)
    progress.update(min(_CHUNK, num_rounds - chunk * _CHUNK))
    progress.line(f'rounds, swaps {2 * found.swapped.mean():.2f}', always=False)
  progress.close()
  ratios = bridge.log_ratios(state['forward'], state['reverse'])
  return Tempered(
    steps._replace(step_sizes=state['step_sizes']),
    np.append(0.0, ratios.log_z),
    np.append(0.0, ratios.standard_error),
    state['log_density'],
    2 * state['swapped'].mean((0, 1)),
    state['acceptance'].mean((0, 1)),
    {level: np.moveaxis(state['samples'][:, :, i], 0, 1) for i, level in enumerate(levels)},
  )
