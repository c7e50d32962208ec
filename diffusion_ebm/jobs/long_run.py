"""The long-run job: chains of a hundred thousand steps and more on one level, and whether they stay near the data."""

import logging
import os
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_ebm import config as config_lib
from diffusion_ebm import data, generate, langevin, noise_levels, preprocessing, random_keys, trained
from diffusion_ebm.evaluate import MIN_SAMPLES, chain_diagnostics, features, scores
from diffusion_ebm.run import files, interrupts, parallel, pictures
from diffusion_ebm.run import workdir as workdir_lib
from diffusion_ebm.run.errors import DivergedError, UserError
from diffusion_ebm.run.progress import Progress

_log = logging.getLogger(__name__)

# Streams of random numbers.
_CHAIN, _TUNE, _DATA = 0x10F0, 0x10F1, 0x10F2
_MIN_ACCEPTANCE = 0.05  # below it chains stand still, and the job stops
_SHOWN_CHAINS, _SHOWN_TIMES = 10, 12
_BATCH = 500
_MAX_DATA = 10_000
# Keys that do not change what the chains do.
_FREE = ('num_steps', 'extractor', 'split')


def run(config, workdir: str, seed: int = 0, step: int | None = None) -> dict:
  """Runs chains on `p(y_t | x_{t+1})` or on the marginal of a level, from generated samples.

  Writes to `long_run/NAME/` in the workdir, where NAME says kernel, target, level, seed and step: `states.bin`, the
  thinned states `y_t = a_{t+1} x_t`, plain float32 (K + 1, N, ...), the first of which is the start; `log_density.bin`
  and `acceptance.bin`, likewise (K + 1, N); `results.json`; `strip.png` and `curves.png`, with a number behind these
  names where there are results of other inputs. The job may be stopped at any moment; the same command goes on, also to
  a larger `num_steps`.

  Args:
    config: the configuration; the `long_run` section says how.
    workdir: of a training job.
    seed: of all random numbers.
    step: the checkpoint's, or None for the newest.

  Returns:
    What is in `results.json`; docs/density.md describes it.

  Raises:
    UserError: something that the user can mend; chains whose acceptance collapsed.
    DivergedError: the chains reached values that are not finite.
    InterruptedRun: Ctrl-C or SIGTERM; what has been run is kept.
  """
  trained.check_seed(seed)
  config, ebm, proposal, shape, step = trained.load(config, workdir, step)
  settings = config.long_run
  if settings.level >= ebm.levels.num_models:
    raise UserError(f'--config.long_run.level is {settings.level}, not in 0 .. {ebm.levels.num_models - 1}')

  kind = 'conditional' if settings.conditional else 'marginal'
  name = f'{settings.kernel}_{kind}_level{settings.level}_seed{seed}_step{step}'
  folder = workdir_lib.make(workdir, os.path.join('long_run', name))
  compared = _reference(config, ebm.levels, workdir_lib.make_cache(workdir))
  with interrupts.requested() as stop_requested:
    step_size = _start(config, ebm, proposal, shape, folder, seed)
    _go_on(settings, ebm, folder, seed, stop_requested)
  states = _states(folder, settings.num_steps // settings.thin + 1)
  record, drawn = _measure(config, ebm.levels, states, compared)
  result = {'step': step, 'seed': seed, 'num_chains': states.y.shape[1], 'num_steps': settings.num_steps}
  result |= {'step_size': step_size} | record
  path = _write(config, folder, result, drawn)
  _log.info(
    '%s: precision %s at the start, %s at the end; Frechet distance %s, then %s; %s',
    name,
    *(f'{result[when][score]:.3g}' for score in ('precision', 'frechet_distance') for when in ('start', 'end')),
    path,
  )
  return result


def _write(config, folder, result, drawn):
  """The numbers, with what they depend on beside the chains, and the pictures; returns the path of the first."""
  result['inputs'] = {key: config.long_run[key] for key in _FREE} | {'data': features.data_key(config.data, {})[0]}
  number = workdir_lib.claim_number(folder, 'results', result['inputs'])
  path = os.path.join(folder, f'results{number}.json')
  files.write_json(path, result)
  for name, picture in drawn.items():
    files.write_png(os.path.join(folder, f'{name}{number}.png'), picture)
  return path


# The chains.


def _target(ebm, settings, x_next):
  model = ebm.at(jnp.full(1, settings.level))
  if settings.conditional:
    return lambda y: model.conditional_log_density(y, x_next)
  return model.log_density


def _start(config, ebm, proposal, shape, folder, seed) -> float:
  """Draws the samples from which chains start, tunes the step size, and writes both, unless they are there."""
  settings = config.long_run
  described = {
    key: list(value) if isinstance(value, tuple) else value for key, value in settings.items() if key not in _FREE
  }
  described['sampling'] = generate.inputs(config)
  path = os.path.join(folder, 'progress.json')
  record = _read_progress(path)
  if record is not None:
    # What older versions did not note counts as equal.
    known = described | {key: value for key, value in record['settings'].items() if key in described}
    if known != described:
      changed = ', '.join(key for key in described if known.get(key) != described[key])
      raise UserError(f'{folder} holds chains of other settings ({changed}): delete it, or use another --seed')
    return record['step_size']
  index = np.arange(parallel.up_to_devices(settings.num_chains), dtype=np.int32)
  sampler = generate.make_sampler(config, shape, len(index), (settings.level, settings.level + 1))
  _, (x, x_next) = sampler(ebm, proposal, seed, 0, len(index))
  if not np.all(np.isfinite(x)):
    raise DivergedError(
      'the samples from which the chains would start are not finite: try another --step or a '
      'smaller --config.sampling.step_size'
    )
  y = float(ebm.levels.a_y[settings.level]) * x
  step_size = settings.step_size or _tune(settings, ebm, y, x_next, index, seed)
  with jax.default_matmul_precision('highest'):
    log_density = jax.jit(lambda ebm, y, x_next: _target(ebm, settings, x_next)(y))(ebm, y, x_next)
  files.write_npy(os.path.join(folder, 'x_next.npy'), x_next)
  _append(folder, _States(y, np.asarray(log_density), np.ones(len(y))), 0)
  files.write_json(path, {'settings': described, 'step_size': step_size, 'done': 0})
  return step_size


def _tune(settings, ebm, y, x_next, index, seed) -> float:
  """The step size, from chains that are thrown away; for ULA the one of training."""
  published = float(np.sqrt(ebm.levels.step_variance[settings.level]))
  if settings.kernel == 'ula':
    return published
  _log.info('tuning the step size in %d steps', settings.warmup_steps)
  kernel = langevin.make_kernel(settings.kernel, settings.num_leapfrog)
  acceptance = settings.acceptance or langevin.TARGET_ACCEPTANCE[settings.kernel]

  @jax.jit
  @jax.default_matmul_precision('highest')
  def tune(ebm, y, x_next):
    target = _target(ebm, settings, x_next)
    return langevin.adapt_step_size(
      kernel,
      target,
      langevin.init(target, y),
      random_keys.sample_keys(seed, index, _TUNE),
      published,
      settings.warmup_steps,
      acceptance,
    )[1]

  return float(tune(ebm, y, x_next))


def _go_on(settings, ebm, folder, seed, stop_requested):
  """Runs the chains from where the folder says that they are, and keeps every `thin`-th state."""
  kernel = langevin.make_kernel(settings.kernel, settings.num_leapfrog)

  def steps(shared, y, x_next, index):
    ebm, step_size, first, seed = shared
    target = _target(ebm, settings, x_next)
    state, info = langevin.run(
      kernel,
      target,
      langevin.init(target, y),
      random_keys.sample_keys(seed, index, _CHAIN),
      step_size,
      settings.thin,
      first,
    )
    return _States(state.y, state.log_density, info.acceptance)

  path, x_next = os.path.join(folder, 'progress.json'), np.load(os.path.join(folder, 'x_next.npy'))
  record, thin = _read_progress(path), settings.thin
  run_steps, index = parallel.map_examples(steps, len(x_next)), np.arange(len(x_next), dtype=np.int32)
  y = np.asarray(_states(folder, record['done'] // thin + 1).y[-1])
  _log.info('step size %.4g%s', record['step_size'], f'; going on from step {record["done"]}' if record['done'] else '')
  progress = Progress('long run', settings.num_steps, record['done'])
  while record['done'] < settings.num_steps:
    if number := stop_requested():
      progress.close()
      raise interrupts.stopped(
        number, f'stopped at step {record["done"]} of the chains: run the same command again to go on'
      )
    shared = ebm, np.float32(record['step_size']), np.int32(record['done']), np.uint32(seed)
    states = run_steps(shared, y, x_next, index)
    _check(states, record['done'] + thin, record['step_size'])
    _append(folder, states, record['done'] // thin + 1)
    y, record['done'] = states.y, record['done'] + thin
    files.write_json(path, record)
    progress.update(thin)
    progress.line(
      f'acceptance {states.acceptance.mean():.3f}, log density {states.log_density.mean():.4g}', always=False
    )
  progress.close()


def _check(states, step, step_size):
  """Raises an exception for chains that have left the numbers, or stand still."""
  if not np.all(np.isfinite(states.log_density)) or not np.all(np.isfinite(states.y)):
    raise DivergedError(
      f'the chains diverged before step {step}: use --config.long_run.kernel=mala, or a smaller '
      f'--config.long_run.step_size'
    )
  if states.acceptance.mean() < _MIN_ACCEPTANCE:
    raise UserError(
      f'the acceptance collapsed to {states.acceptance.mean():.4f} before step {step}: set a smaller '
      f'--config.long_run.step_size than {step_size:.3g}, or raise --config.long_run.warmup_steps'
    )


# What is kept of them.


class _States(NamedTuple):
  """States of N chains, or K of each: y (..., N, *shape), log density and acceptance (..., N)."""

  y: np.ndarray
  log_density: np.ndarray
  acceptance: np.ndarray


_FILES = _States('states.bin', 'log_density.bin', 'acceptance.bin')


def _append(folder, states, count):
  """Puts states behind the first `count` of each file; what an interrupted write left there is overwritten."""
  for name, values in zip(_FILES, states, strict=True):
    values = np.ascontiguousarray(values, np.float32)
    path = os.path.join(folder, name)
    with files.naming(path), open(path, 'r+b' if count else 'wb') as file:
      file.seek(count * values.nbytes)
      file.write(values.tobytes())


def _states(folder, count) -> _States:
  """The first `count` states, on the disk."""
  shape = np.load(os.path.join(folder, 'x_next.npy'), mmap_mode='r').shape
  shapes = _States(shape, shape[:1], shape[:1])
  return _States(
    *(
      np.memmap(os.path.join(folder, name), np.float32, 'r', shape=(count, *each))
      for name, each in zip(_FILES, shapes, strict=True)
    )
  )


def _read_progress(path):
  try:
    return files.read_json(path)
  except ValueError as error:
    raise UserError(f'{path} cannot be read ({error}): delete its folder to start again') from error


# What is measured of them.


def _measure(config, levels, states, compared):
  """`(measures, pictures)`: how far the states are from the data, as of `_reference`, and how well the chains mix."""
  settings = config.long_run
  a = float(levels.a_y[settings.level])  # from y_t = a x_t
  name, extract, reference, real = compared
  frechet, precision = np.array([_distance(extract(_stored(config, np.asarray(y) / a)), reference) for y in states.y]).T
  steps, log_density = np.arange(len(states.y)) * settings.thin, states.log_density
  curves = {
    'energy (nats)': -np.asarray(log_density).mean(1),
    'acceptance': np.asarray(states.acceptance[1:]).mean(1),
    f'Frechet distance ({name})': frechet,
    'precision (k = 5)': precision,
  }
  drawn = {'curves': pictures.curves(steps, curves, 'step'), 'strip': _strip(config, states.y, a, steps)}
  start, end = (
    {'frechet_distance': frechet[k], 'precision': precision[k], 'energy': float(-log_density[k].mean())}
    for k in (0, -1)
  )
  measures = {
    'acceptance': float(np.mean(states.acceptance[1:])),
    'features': name,
    'split': settings.split,
    'real': {'frechet_distance': real[0], 'precision': real[1]},
    'start': start,
    'end': end,
    'energy': chain_diagnostics.summarise(-np.asarray(log_density[1:], np.float64).T, pooled=not settings.conditional),
    'frechet_distance': frechet.tolist(),
    'precision': precision.tolist(),
    'config': config.to_dict(),
  }
  return measures, drawn


def _strip(config, y, a, steps):
  """Some chains at some times, side by side."""
  times = np.unique(np.linspace(0, len(y) - 1, _SHOWN_TIMES).astype(int))
  shown = np.asarray(y[times]) / a
  if shown.ndim == 3:
    return pictures.point_row(shown, [f'step {steps[k]}' for k in times])
  images = shown[:, :_SHOWN_CHAINS].swapaxes(0, 1).reshape(-1, *shown.shape[2:])
  return pictures.image_grid(_stored(config, images), len(times))


def _stored(config, x):
  """States as the features take them; those of the cleanest level on the grey levels that there are."""
  if x.ndim > 2 and config.data.dequantize and not config.long_run.level:
    x = preprocessing.to_grey_levels(x, config_lib.grey_width(config))
  return preprocessing.to_stored(x)


class _Reference(NamedTuple):
  """Features (M, D) of diffused data, their mean (D,) and covariance (D, D)."""

  features: np.ndarray
  mean: np.ndarray
  covariance: np.ndarray


def _reference(config, levels, cache):
  """`(name, extract, reference, real)` of the features; `real` is the distance of other real data, for comparison."""
  settings = config.long_run
  name = settings.extractor or (
    'classifier' if features.is_classified(config.data) and not settings.level else 'pixels'
  )
  other = 'train' if settings.split == 'test' else 'test'
  sources = {settings.split: data.load_source(config.data, settings.split)}
  if (count := len(sources[settings.split])) < MIN_SAMPLES:
    raise UserError(
      f'the {settings.split} split has too few examples to compare chains with ({count}, not {MIN_SAMPLES}): '
      f'set --config.long_run.split={other}'
    )
  try:
    sources[other] = data.load_source(config.data, other)
  except UserError:
    if other == 'train':
      raise
    sources[other] = None
  extractor = features.make(name, config.data, sources, cache, config.eval.inception_weights)
  run_extractor = features.compile_extractor(extractor, sources['train'].shape, min(_BATCH, settings.num_chains))

  def extract(examples):
    return run_extractor(examples)[0]

  def diffused(split, count):
    source = sources[split]
    index = np.random.default_rng(0).permutation(len(source))[: min(count, len(source))]
    x = np.asarray(preprocessing.to_unit_range(source.read(index)))
    keys = random_keys.sample_keys(0, index + (split == 'train') * len(source), _DATA)
    eps = langevin.normal_noise(keys, x.shape[1:])(0)
    return np.asarray(noise_levels.diffuse(levels, x, jnp.full(len(x), settings.level), eps))

  rows = extract(_stored(config, diffused(settings.split, _MAX_DATA)))
  reference = _Reference(rows, *_moments(rows))
  real = None, None
  if sources[other] is not None and len(sources[other]) > 1:
    real = _distance(extract(_stored(config, diffused(other, settings.num_chains))), reference)
  return name, extract, reference, real


def _moments(rows):
  moments = scores.Moments(rows.shape[1])
  moments.add(rows)
  return moments.mean, moments.covariance


def _distance(rows, reference) -> tuple[float, float]:
  """`(frechet_distance, precision)`, the latter with k = 5, of features (N, D)."""
  return (
    scores.frechet_distance(*_moments(rows), reference.mean, reference.covariance),
    scores.precision(rows, reference.features, 5),
  )
