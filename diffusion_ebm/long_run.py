"""The long-run job: chains of a hundred thousand steps and more on one level, and whether they stay near the data."""

import json
import logging
import os

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_ebm import config as config_lib
from diffusion_ebm import (
  data,
  energy,
  generate,
  interrupts,
  langevin,
  noise_levels,
  parallel,
  pictures,
  recovery,
  train_step,
  trained,
)
from diffusion_ebm import workdir as workdir_lib
from diffusion_ebm.errors import DivergedError, InterruptedRun, UserError
from diffusion_ebm.evaluate import diagnostics, features, scores
from diffusion_ebm.progress import Progress

_log = logging.getLogger(__name__)

_CHAIN, _TUNE, _DATA = 0x10F0, 0x10F1, 0x10F2
_SHOWN_CHAINS, _SHOWN_TIMES = 10, 12
_BATCH = 500


def long_run(config, workdir: str, seed: int, step: int | None = None) -> dict:
  """Runs chains on `p(y_t | x_{t+1})` or on the marginal of a level, from generated samples.

  Writes to `long_run/NAME/` in the workdir, where NAME says kernel, target, level, seed and step: `states.bin`, the
  thinned states `y_t = a_{t+1} x_t`, plain float32 (K + 1, N, ...), the first of which is the start; `log_density.bin`
  and `acceptance.bin`, likewise (K + 1, N); `results.json`; `strip.png` and `curves.png`. The job may be stopped at any
  moment; the same command goes on, also to a larger `num_steps`.

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
  trained.check_own_density(config, 'follow')
  config, model, state = trained.restore(config, workdir, step)
  settings = config.long_run
  if settings.level >= model.levels.num_models:
    raise UserError(f'--config.long_run.level is {settings.level}, not in 0 .. {model.levels.num_models - 1}')

  kind = 'conditional' if settings.conditional else 'marginal'
  name = f'{settings.kernel}_{kind}_level{settings.level}_seed{seed}_step{int(state.step)}'
  folder = workdir_lib.make(workdir, os.path.join('long_run', name))
  chains = _Chains(config, model, state, seed)
  with interrupts.requested() as stop_requested:
    record = _run(chains, folder, stop_requested)
  result = _summarise(config, model, folder, chains, record, int(state.step), seed)
  _log.info('%s: precision %s at the start, %s at the end; Frechet distance %s, then %s; %s', name,
            *(f'{result[when][score]:.3g}' for score in ('precision', 'frechet_distance') for when in ('start', 'end')),
            os.path.join(folder, 'results.json'))
  return result


class _Chains:
  """The chains of one level on all devices."""

  def __init__(self, config, model, state, seed):
    self._config, self._model, self._state, self._seed = config, model, state, seed
    self.settings = settings = config.long_run
    self._kernel = langevin.make_kernel(settings.kernel, settings.num_leapfrog)
    self._network = generate.single_device(model.network)
    self._weights = parallel.replicate(jax.jit(generate.ema_weights)(state))
    self._step = None
    self._index = np.arange(parallel.up_to_devices(settings.num_chains), dtype=np.int32)
    self._a = float(model.levels.noise.a_y[settings.level + 1])

  def start(self):
    """`(y, x_next)` of generated samples, float32 (N, ...)."""
    level = self.settings.level
    sampler = generate.Sampler(self._model, self._config, len(self._index), (level, level + 1))
    _, path = sampler(self._state, self._seed, 0, len(self._index))
    if not np.all(np.isfinite(path)):
      raise DivergedError('the samples from which the chains would start are not finite: try another --step or a '
                          'smaller --config.sampling.step_size')
    return self._a * path[0], path[1]

  def _target(self, weights, x_next):
    level = jnp.full(1, self.settings.level)
    f = energy.at_level(self._network, weights, level)
    if self.settings.conditional:
      return lambda y: recovery.conditional_log_density(self._model.levels, f, y, x_next, level)
    return lambda y: recovery.log_density(self._model.levels, f(y), level)

  def tune(self, y, x_next) -> float:
    """The step size, from chains that are thrown away."""
    s = self.settings
    published = float(np.sqrt(self._model.levels.step_variance[s.level]))
    if s.kernel == 'ula' or s.step_size:
      return s.step_size or published
    _log.info('tuning the step size in %d steps', s.warmup_steps)
    acceptance = s.acceptance or langevin.TARGET_ACCEPTANCE[s.kernel]

    @jax.jit
    def tune(weights, y, x_next):
      keys = generate.sample_keys(self._seed, self._index, _TUNE)
      target = self._target(weights, x_next)
      return langevin.adapt_step_size(
          self._kernel, target, langevin.init(target, y), keys, published, s.warmup_steps, acceptance)[1]

    return float(tune(self._weights, y, x_next))

  def run(self, y, x_next, step_size: float, first: int):
    """`thin` steps from number `first`: `(y, log density, acceptance)`."""
    args = (self._weights, parallel.split(y), parallel.split(x_next), parallel.split(self._index),
            np.float32(step_size), np.int32(first), np.uint32(self._seed))
    if self._step is None:
      self._step = parallel.compile_for(self._run, *args, replicated=(0, 4, 5, 6), out_axes=(0, 0, 0))
    return (a.reshape(-1, *a.shape[2:]) for a in map(np.asarray, self._step(*args)))

  def _run(self, weights, y, x_next, index, step_size, first, seed):
    target = self._target(weights, x_next)
    keys = generate.sample_keys(seed, index, _CHAIN)
    state, info = langevin.run(
        self._kernel, target, langevin.init(target, y), keys, step_size, self.settings.thin, first)
    return state.y, state.log_density, info.acceptance

  def log_density(self, y, x_next):
    return np.asarray(jax.jit(lambda weights, y, x_next: self._target(weights, x_next)(y))(self._weights, y, x_next))

  def to_x(self, y):
    return y / self._a


def _run(chains, folder, stop_requested):
  """Runs, or goes on with, what the folder holds; returns its record: `step_size`, `done`, `settings`."""
  settings = {key: list(value) if isinstance(value, tuple) else value for key, value in chains.settings.items()
              if key not in ('num_steps', 'min_acceptance', 'extractor', 'split')}
  path = os.path.join(folder, 'progress.json')
  record = _read(path)
  if record is None:
    y, x_next = chains.start()
    record = {'settings': settings, 'step_size': chains.tune(y, x_next), 'done': 0}
    np.save(os.path.join(folder, 'x_next.npy'), x_next)
    for name, first in (('states', y), ('log_density', chains.log_density(y, x_next)),
                        ('acceptance', np.ones(len(y)))):
      _append(os.path.join(folder, f'{name}.bin'), np.asarray(first, np.float32), 0)
    _write(path, record)
  elif record['settings'] != settings:
    changed = ', '.join(key for key in settings if record['settings'].get(key) != settings[key])
    raise UserError(f'{folder} holds chains of other settings ({changed}): delete it, or use another --seed')
  x_next = np.load(os.path.join(folder, 'x_next.npy'))
  thin, total = chains.settings.thin, chains.settings.num_steps
  y = np.asarray(_open(folder, 'states', record['done'] // thin + 1, x_next.shape)[-1])
  _log.info('step size %.4g%s', record['step_size'], f'; going on from step {record["done"]}' if record['done'] else '')
  progress = Progress('long run', total, record['done'])
  while record['done'] < total:
    if stop_requested():
      progress.close()
      raise InterruptedRun(f'stopped at step {record["done"]} of the chains: run the same command again to go on')
    y, log_density, acceptance = chains.run(y, x_next, record['step_size'], record['done'])
    if not np.all(np.isfinite(log_density)) or not np.all(np.isfinite(y)):
      raise DivergedError(f'the chains diverged before step {record["done"] + thin}: use '
                          f'--config.long_run.kernel=mala, or a smaller --config.long_run.step_size')
    if acceptance.mean() < chains.settings.min_acceptance:
      raise UserError(f'the acceptance collapsed to {acceptance.mean():.4f} before step {record["done"] + thin}: set a '
                      f'smaller --config.long_run.step_size than {record["step_size"]:.3g}, or raise '
                      f'--config.long_run.warmup_steps')
    count = record['done'] // thin + 1
    for name, values in (('states', y), ('log_density', log_density), ('acceptance', acceptance)):
      _append(os.path.join(folder, f'{name}.bin'), values.astype(np.float32), count)
    record['done'] += thin
    _write(path, record)
    progress.update(thin)
    progress.line(f'acceptance {acceptance.mean():.3f}, log density {log_density.mean():.4g}', always=False)
  progress.close()
  return record


def _append(path, values, count):
  """Puts `values` behind the first `count` entries of a file; what an interrupted write left there is overwritten."""
  with open(path, 'r+b' if count else 'wb') as file:
    file.seek(count * values.nbytes)
    file.write(np.ascontiguousarray(values).tobytes())


def _open(folder, name, count, shape):
  return np.memmap(os.path.join(folder, f'{name}.bin'), np.float32, 'r', shape=(count, *shape))


def _read(path):
  try:
    with open(path, encoding='utf-8') as file:
      return json.load(file)
  except FileNotFoundError:
    return None
  except ValueError as error:
    raise UserError(f'{path} cannot be read ({error}): delete its folder to start again') from error


def _write(path, record):
  with open(path + '.tmp', 'w', encoding='utf-8') as file:
    json.dump(record, file, indent=2)
    file.write('\n')
  os.replace(path + '.tmp', path)


def _summarise(config, model, folder, chains, record, step, seed):
  """Measures what has been run; writes the pictures and `results.json`, and returns it."""
  settings = config.long_run
  x_next_shape = np.load(os.path.join(folder, 'x_next.npy'), mmap_mode='r').shape
  count = settings.num_steps // settings.thin + 1
  states = _open(folder, 'states', count, x_next_shape)
  log_density, acceptance = (_open(folder, name, count, x_next_shape[:1]) for name in ('log_density', 'acceptance'))
  distance = _Distance(config, model, os.path.dirname(folder))
  frechet, precision = np.array([distance(chains.to_x(np.asarray(each))) for each in states]).T
  steps = np.arange(count) * settings.thin

  result = {
      'step': step, 'seed': seed, 'num_chains': x_next_shape[0], 'num_steps': int(steps[-1]),
      'step_size': record['step_size'], 'acceptance': float(np.mean(acceptance[1:])),
      'features': distance.name, 'split': settings.split,
      'real': {'frechet_distance': distance.real[0], 'precision': distance.real[1]},
      'start': {'frechet_distance': frechet[0], 'precision': precision[0], 'energy': float(-log_density[0].mean())},
      'end': {'frechet_distance': frechet[-1], 'precision': precision[-1], 'energy': float(-log_density[-1].mean())},
      'energy': diagnostics.summarise(-np.asarray(log_density[1:], np.float64).T, pooled=not settings.conditional),
      'frechet_distance': frechet.tolist(), 'precision': precision.tolist(), 'config': config.to_dict()}
  _write(os.path.join(folder, 'results.json'), result)
  curves = {'energy (nats)': -np.asarray(log_density).mean(1), 'acceptance': np.asarray(acceptance[1:]).mean(1),
            f'Frechet distance ({distance.name})': frechet, 'precision (k = 5)': precision}
  pictures.save_png(os.path.join(folder, 'curves.png'), pictures.curves(steps, curves, 'step'))
  times = np.unique(np.linspace(0, count - 1, _SHOWN_TIMES).astype(int))
  shown = chains.to_x(np.asarray(states[times]))
  if shown.ndim > 3:
    strip = distance.finished(shown[:, :_SHOWN_CHAINS].swapaxes(0, 1).reshape(-1, *shown.shape[2:]))
    picture = pictures.image_grid(strip, len(times))
  else:
    picture = pictures.point_row(shown, [f'step {steps[k]}' for k in times])
  pictures.save_png(os.path.join(folder, 'strip.png'), picture)
  return result


class _Distance:
  """How far states are from diffused data of the level: Frechet distance and precision (k = 5) of their features."""

  def __init__(self, config, model, cache):
    self._config, self._levels, level = config, model.levels, config.long_run.level
    vector = config_lib.is_vector(config)
    self.name = config.long_run.extractor or (
        'classifier' if config.data.name in ('digits', 'mnist') and not level else 'pixels')
    source = data.load_source(config.data, config.long_run.split)
    if self.name == 'classifier':
      extractor = _classifier(config, cache)
    elif self.name == 'inception':
      extractor = features.inception_v3(config.eval.inception_weights)
    else:
      extractor = features.pixels(model.shape)
    self._extract = features.compile_extractor(extractor, model.shape, vector, min(_BATCH, config.long_run.num_chains))
    self._data = self._features(self._diffused(source, config.long_run.split))
    moments = scores.Moments(self._data.shape[1])
    moments.add(self._data)
    self._moments = moments.mean, moments.covariance
    other = 'train' if config.long_run.split == 'test' else 'test'
    try:  # as many real examples, to say what the numbers mean
      self.real = self(self._diffused(data.load_source(config.data, other), other, config.long_run.num_chains))
    except UserError:
      self.real = None, None

  def _diffused(self, source, split, count=None):
    index = np.random.default_rng(0).permutation(len(source))[:min(count or 10_000, len(source))]
    x = np.asarray(train_step.to_unit_range(source.read(index)))
    keys = generate.sample_keys(0, index + (split == 'train') * len(source), _DATA)
    level = jnp.full(len(x), self._config.long_run.level)
    return np.asarray(noise_levels.diffuse(
        self._levels.noise, x, level, langevin.normal_noise(keys, x.shape[1:])(0)))

  def finished(self, x):
    """States as the features take them; those of the cleanest level on the grey levels that there are."""
    if x.ndim > 2 and self._config.data.dequantize and not self._config.long_run.level:
      width = config_lib.grey_width(self._config)
      x = np.round((np.clip(x, -1, 1) + 1) / width) * width - 1
    return generate.finished(x)

  def _features(self, x):
    return self._extract(self.finished(x))[0]

  def __call__(self, x) -> tuple[float, float]:
    """`(frechet_distance, precision)` of states (N, ...)."""
    rows = self._features(x)
    moments = scores.Moments(rows.shape[1])
    moments.add(rows)
    return (scores.frechet_distance(moments.mean, moments.covariance, *self._moments),
            scores.precision(rows, self._data, 5))


def _classifier(config, cache):
  """The classifier of the evaluation job, trained once for each workdir; its weights are kept beside the chains."""
  sources = {split: data.load_source(config.data, split) for split in ('train', 'test')}
  path = os.path.join(cache, f'classifier_{features.CLASSIFIER_VERSION}.npz')
  return features.small_classifier(sources['train'], sources['test'], path)
