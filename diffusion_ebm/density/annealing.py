"""Annealed importance sampling of a model along its ladder, in both directions, on all devices."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from diffusion_ebm import langevin, noise_levels, preprocessing, random_keys
from diffusion_ebm.density import ais, ladder
from diffusion_ebm.density.dataset_log_prob import DATA
from diffusion_ebm.ebm import Ebm
from diffusion_ebm.run import parallel
from diffusion_ebm.run.errors import DivergedError
from diffusion_ebm.run.progress import Progress
from diffusion_ebm.run.unfinished import Unfinished

# Rungs, or steps, that are run at once: what is compiled has this length.
_CHUNK = 64
# Streams of random numbers.
_PILOT, _FORWARD, _REVERSE, _MIX = 0xA150, 0xA151, 0xA152, 0xA154


class Ladder(NamedTuple):
  """Rungs from white noise to the data, (R + 1,), and the kernel's step size at each."""

  rungs: ladder.Rungs
  step_sizes: np.ndarray

  def reached(self, level: int) -> int:
    """The number of the rung that is the model of a level."""
    return int(np.flatnonzero((self.rungs.fraction == 1) & (self.rungs.level == level))[0])

  def back_from(self, last: int) -> 'Ladder':
    """The way back from rung number `last` to the first."""
    return self._at(np.arange(last, -1, -1))

  def part(self, first: int, count: int) -> 'Ladder':
    """Rungs `first` to `first + count`; beyond the last one, it again: a move between equals gains nothing."""
    index = np.minimum(first + np.arange(count + 1), len(self.step_sizes) - 1)
    return self._at(index)

  def thinned(self, every: int) -> 'Ladder':
    """Every so many rungs, the first one, and those that are the model of a level."""
    number = np.arange(len(self.step_sizes))
    return self._at(number[(number % every == 0) | (self.rungs.fraction == 1)])

  def _at(self, index):
    return Ladder(ladder.Rungs(*(each[index] for each in self.rungs)), self.step_sizes[index])


def not_finite(level: int) -> DivergedError:
  """The exception for chains that left the numbers at a level."""
  return DivergedError(
    f'the energies of level {level} are not finite where the chains went: choose another --step, or '
    f'train with --config.model.quadratic=1'
  )


def choose_ladder(
  ebm: Ebm, shape, kernel, pilot: ladder.Pilot, num_chains: int, seed: int, unfinished: Unfinished | None = None, last=0
) -> Ladder:
  """The ladder that a pilot run chooses; arguments as of `ladder.choose` and `Annealing`.

  Raises:
    DivergedError: the chains reached values that are not finite.
  """
  unfinished = unfinished or Unfinished()
  if known := unfinished.read('ladder'):
    return Ladder(ladder.Rungs(known['level'], known['fraction']), known['step_sizes'])
  progress = Progress('choosing rungs', ebm.levels.num_models - last, unit='level')

  def on_rung(done, count):
    progress.update(int(done) - progress.done, rungs=str(count))
    progress.line(f'levels, {count} rungs', always=count % 50 == 0)

  keys = random_keys.sample_keys(seed, np.arange(num_chains), _PILOT)
  try:
    found = Ladder(*ladder.choose(ebm, keys, shape, kernel, pilot, on_rung, last))
  except FloatingPointError as error:
    raise not_finite(error.args[0]) from error
  progress.close()
  unfinished.write('ladder', found.rungs._asdict() | {'step_sizes': found.step_sizes}, True)
  return found


class Annealing:
  """Chains on the ladder of a model, in both directions; each of the two kinds of pass is compiled once."""

  def __init__(
    self, ebm: Ebm, shape, kernel, num_steps: int, num_chains: int, seed: int, unfinished: Unfinished | None = None
  ):
    """Prepares.

    Args:
      ebm: the model, its weights on all devices.
      shape: of one example.
      kernel: of `langevin.make_kernel`, not 'ula'.
      num_steps: of the kernel at each rung.
      num_chains: N, rounded up to a multiple of the devices.
      seed: of all random numbers.
      unfinished: where to keep what has been done, so that it goes on there; None for nowhere.
    """
    self._ebm, self._shape, self._seed = ebm, shape, np.uint32(seed)
    self._unfinished = unfinished or Unfinished()
    self._index = np.arange(parallel.up_to_devices(num_chains), dtype=np.int32)

    def anneal(shared, x, index):
      ebm, steps, seed, stream, first = shared
      x, gains, acceptance = ais.anneal(
        lambda rung: ladder.rung_log_density(ebm, rung),
        kernel,
        steps.rungs,
        steps.step_sizes,
        x,
        random_keys.sample_keys(seed, index, stream),
        num_steps,
        first,
      )
      return x, gains.T, acceptance.T

    def mix(shared, x, index):
      ebm, rung, step_size, seed, stream, first = shared
      target = ladder.rung_log_density(ebm, rung)
      keys = random_keys.sample_keys(seed, index, stream)
      return langevin.run(kernel, target, langevin.init(target, x), keys, step_size, _CHUNK, first)[0].y

    self._anneal, self._mix = (parallel.map_examples(function, len(self._index)) for function in (anneal, mix))

  def forward(self, steps: Ladder):
    """`(log_weights, acceptance)`: at each rung, (R + 1, N), and the mean over the chains, (R + 1,)."""
    keys = random_keys.sample_keys(int(self._seed), self._index, _FORWARD)
    x = np.asarray(langevin.normal_noise(keys, self._shape)(self._ebm.levels.num_models))
    return self._pass('forward', steps, x, _FORWARD)

  def reverse(self, steps: Ladder, level: int, x):
    """Log weights (N,) of the way from the model of a level back to the first rung.

    Args:
      steps: the ladder.
      level: in 0..T-1.
      x: samples of the level's model, (N, ...), as of `near_data` or of replica exchange.
    """
    back = steps.back_from(steps.reached(level))
    weights, _ = self._pass(f'reverse, level {level}', back, x, _REVERSE + 256 * level)
    return weights[-1]

  def _pass(self, name, steps, x, stream):
    num_moves, part = len(steps.step_sizes) - 1, name.replace(', ', '_').replace(' ', '_')
    progress = Progress(name, num_moves, unit='rung')
    kept = self._unfinished.read(part) or {'x': x, 'gains': np.zeros((1, len(self._index))), 'acceptance': np.ones(1)}
    x, gains, acceptance = kept['x'], [kept['gains']], [kept['acceptance']]
    progress.update(done := len(kept['gains']) - 1)
    for first in range(done, num_moves, _CHUNK):
      shared = self._ebm, steps.part(first, _CHUNK), self._seed, np.uint32(stream), np.int32(first)
      x, *gained = self._anneal(shared, x, self._index)
      gain, accepted = (np.ascontiguousarray(each.T) for each in gained)
      count = min(_CHUNK, num_moves - first)
      gains.append(gain[:count])
      acceptance.append(accepted[:count].mean(1))
      so_far = {'x': x, 'gains': np.concatenate(gains), 'acceptance': np.concatenate(acceptance)}
      self._unfinished.write(part, so_far, first + count == num_moves)
      progress.update(count)
      progress.line(always=False)
    progress.close()
    weights = np.cumsum(np.concatenate(gains, dtype=np.float64), axis=0)
    if not np.all(np.isfinite(weights)):
      raise not_finite(int(steps.rungs.level[np.flatnonzero(~np.all(np.isfinite(weights), axis=1))[0]]))
    return weights, np.concatenate(acceptance)

  def near_data(self, steps: Ladder, level: int, source, grey_width: float, data_steps: int):
    """Samples of a level's model, approximately: diffused data, moved by many steps that leave the model as it is.

    Args:
      steps: the ladder.
      level: in 0..T-1.
      source: of the data.
      grey_width: over which images are dequantised, 0 for vectors.
      data_steps: of the kernel.

    Returns:
      (N, ...).
    """
    part = f'near_data_{level}'
    if known := self._unfinished.read(part):
      return known['x']
    seed, last = int(self._seed), steps.reached(level)
    examples = source.read(np.random.default_rng(seed).permutation(len(source))[self._index % len(source)])
    keys = random_keys.sample_keys(seed, self._index, DATA + 256 * level)
    x = preprocessing.to_continuous(keys, jnp.asarray(examples), grey_width)
    eps = langevin.normal_noise(keys, x.shape[1:])(1)
    x = np.asarray(noise_levels.diffuse(self._ebm.levels, x, jnp.full(len(x), level), eps))
    progress = Progress(f'data-side samples of level {level}', data_steps)
    rung, step_size = ladder.Rungs(*(each[last] for each in steps.rungs)), steps.step_sizes[last]
    for first in range(0, data_steps, _CHUNK):
      shared = self._ebm, rung, step_size, self._seed, np.uint32(_MIX + 256 * level), np.int32(first)
      x = self._mix(shared, x, self._index)
      progress.update(min(_CHUNK, data_steps - first))
      progress.line(always=False)
    progress.close()
    self._unfinished.write(part, {'x': x}, True)
    return x
