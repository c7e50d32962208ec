"""The density job: log Z of a checkpoint's levels from both ends, log density and bits per dimension of data."""

import logging
import os
import time

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_ebm import config as config_lib
from diffusion_ebm import data, generate, langevin, noise_levels, parallel, pictures, sampling, train_step, trained
from diffusion_ebm import workdir as workdir_lib
from diffusion_ebm.density import ais, baselines, bound, ladder, log_prob, results
from diffusion_ebm.errors import DivergedError, UserError
from diffusion_ebm.progress import Progress

_log = logging.getLogger(__name__)

# Rungs that are run at once: what is compiled has this length.
_CHUNK = 64
# Streams of random numbers.
_PILOT, _FORWARD, _REVERSE, _DATA, _MIX, _BOUND = 0xA150, 0xA151, 0xA152, 0xA153, 0xA154, 0xA155
_FIRST_STEP_SIZE = 0.3
_NUM_BOUNDED = 1000  # examples, at most, for which the sampler's bound takes a gradient at each level
_FEW = 2.0  # effective samples below which an estimate says nothing
_CROSSED = 3.0  # standard errors, of both ends, by which they may cross


def normalised_density(config, workdir: str, seed: int, step: int | None = None) -> dict:
  """Estimates log Z by annealed importance sampling from both ends, and the log density of a split.

  Writes to `density/` in the workdir: `results.json`, `ladder.npz` (rungs, step sizes, log weights), `log_z.png` and
  `log_prob.png`.

  Args:
    config: the configuration; the `density` section says how.
    workdir: of a training job.
    seed: of all random numbers.
    step: the checkpoint's, or None for the newest.

  Returns:
    What is in `results.json`; docs/density.md describes it.

  Raises:
    UserError: something that the user can mend.
    DivergedError: the chains reached values that are not finite.
  """
  trained.check_seed(seed)
  trained.check_own_density(config, 'normalise')
  config, model, state = trained.restore(config, workdir, step)
  source = data.load_source(config.data, config.density.split)
  folder = workdir_lib.make(workdir, 'density')
  began = time.monotonic()

  estimator = _Estimator(config, model, state, seed)
  bounds = None  # of the sampler, where that draws from normal densities
  if generate.generation_steps(config) == 0 and config.sampling.noise_scale == 1 and not config.sampling.denoise:
    bounds = _bounds(config, estimator.bounds(source), int(np.prod(model.shape)))
  rungs, step_sizes = estimator.choose_rungs()
  reached = {int(rungs.level[k]): k for k in np.flatnonzero(rungs.fraction == 1)}
  forward, acceptance = estimator.forward(rungs, step_sizes)
  low = np.flatnonzero(acceptance < config.density.min_acceptance)
  if low.size:
    raise UserError(
        f'the acceptance of the chains collapsed to {acceptance[low[0]]:.3f} at level {rungs.level[low[0]]}: try a '
        f'larger --config.density.rung_ess, a smaller --config.density.num_leapfrog or --config.density.kernel=mala')
  reverse = {}
  for level in sorted({0, *(config.density.levels or sampling.shown_levels(model.levels.num_models)[:-1])}):
    reverse[level] = estimator.reverse(rungs, step_sizes, reached[level], source)
  _save_ladder(folder, rungs, step_sizes, forward, reverse, acceptance)

  dim = int(np.prod(model.shape))
  log_z = []
  for level, weights in reverse.items():
    # From x_t to y_t = a_{t+1} x_t.
    shift = dim * float(np.log(model.levels.noise.a_y[level + 1]))
    up, down = (end._replace(log_z=end.log_z + shift)
                for end in (ais.estimate(forward[reached[level]]), ais.reverse_estimate(weights)))
    lower, upper = ais.bracket(up, down)
    log_z.append({'level': level, 'log_z': 0.5 * (up.log_z + down.log_z), 'lower': lower, 'upper': upper,
                  'forward': up._asdict(), 'reverse': down._asdict()})
    _warn(log_z[-1], config.density.num_chains)

  _log.info('log density of the %s split', config.density.split)
  values = estimator.log_densities(source, log_z[0]['log_z'])
  record = _record(config, model, state, seed, source, log_z, values, len(rungs.level), time.monotonic() - began)
  if bounds:
    record['sampler_bound'] = bounds
  if config.density.baselines:
    record['baselines'] = _baselines(config, source, dim, seed)
  results.write(folder, record)
  train = estimator.log_densities(data.load_source(config.data, 'train'), log_z[0]['log_z'], len(values['clean']))
  pictures.save_png(os.path.join(folder, 'log_z.png'), pictures.log_z_ladder(log_z))
  pictures.save_png(os.path.join(folder, 'log_prob.png'), pictures.histograms(
      {'train': train['clean'], config.density.split: values['clean'], 'noise': values['white']},
      f'log density in nats (log Z {log_z[0]["lower"]:.2f} .. {log_z[0]["upper"]:.2f})'))
  _say(record, folder)
  return record


def _bounds(config, values, dim):
  """What is reported of the density that one gradient a level samples."""
  clean, noisy = values
  record = {'num_examples': len(clean), 'log_prob': float(clean.mean()), 'log_prob_with_noise': float(noisy.mean()),
            'log_prob_standard_error': float(clean.std() / np.sqrt(len(clean)))}
  said = f'at least {record["log_prob"]:.3f} nats'
  if not config_lib.is_vector(config):
    for name, each in (('bits_per_dim', clean), ('bits_per_dim_with_noise', noisy)):
      record[name] = float(log_prob.bits_per_dim(each.mean(), dim, config_lib.grey_width(config)))
    record['bits_per_dim_standard_error'] = record['log_prob_standard_error'] / dim / float(np.log(2))
    said = f'at most {record["bits_per_dim"]:.3f} bits per dimension'
  _log.info('log density of the %s split under the sampler of one gradient a level: %s', config.density.split, said)
  return record


def _warn(entry, num_chains):
  for end in ('forward', 'reverse'):
    if entry[end]['ess'] < _FEW:
      _log.warning(
          'level %d: %.1f effective of %d samples in the %s pass: the bracket may miss log Z; use more rungs '
          '(a larger --config.density.rung_ess) or more steps (--config.density.num_steps)',
          entry['level'], entry[end]['ess'], num_chains, end)
  forward, reverse = entry['forward'], entry['reverse']
  if forward['log_z'] - reverse['log_z'] > _CROSSED * (forward['standard_error'] + reverse['standard_error']):
    _log.warning(
        'level %d: the reverse pass ends below the forward one: the data-side chains have not reached all of the model '
        '(more --config.density.data_steps), or it holds mass where there are no data', entry['level'])


def _record(config, model, state, seed, source, log_z, values, num_rungs, seconds):
  dim = int(np.prod(model.shape))
  clean = values['clean']
  record = {
      'split': config.density.split, 'num_images': len(source), 'step': int(state.step), 'seed': seed,
      'bits_per_dim': None, 'bits_per_dim_lower': None, 'bits_per_dim_upper': None,
      'log_prob': float(clean.mean()), 'log_prob_standard_error': float(clean.std() / np.sqrt(len(clean)))}
  if not config_lib.is_vector(config):
    def bits(log_prob_of_x, shift=0.0):
      return float(log_prob.bits_per_dim(log_prob_of_x.mean() - shift, dim, config_lib.grey_width(config)))
    middle = log_z[0]['log_z']
    record |= {
        'bits_per_dim': bits(clean), 'bits_per_dim_lower': bits(clean, log_z[0]['lower'] - middle),
        'bits_per_dim_upper': bits(clean, log_z[0]['upper'] - middle),
        'bits_per_dim_standard_error': record['log_prob_standard_error'] / dim / float(np.log(2)),
        'bits_per_dim_with_noise': bits(values['noisy']), 'grey_levels': config.data.grey_levels}
  return record | {
      'log_z': log_z, 'num_rungs': num_rungs, 'seconds': seconds, 'jax': jax.__version__,
      'platform': jax.default_backend(), 'config': config.to_dict()}


def _say(record, folder):
  first = record['log_z'][0]
  said = f'log Z of level 0 in {first["lower"]:.3f} .. {first["upper"]:.3f} nats'
  if record['bits_per_dim'] is None:
    said += f'; log density of the {record["split"]} split {record["log_prob"]:.3f} nats'
  else:
    said += (f'; bits per dimension of the {record["split"]} split {record["bits_per_dim"]:.3f} '
             f'({record["bits_per_dim_lower"]:.3f} .. {record["bits_per_dim_upper"]:.3f})')
  _log.info('%s; %s', said, os.path.join(folder, 'results.json'))


def _baselines(config, source, dim, seed):
  """Bits per dimension of simple densities on the same images, dequantised alike."""
  def images(source):
    return np.asarray(train_step.to_unit_range(source.read(np.arange(len(source)))))

  train, width, found = data.load_source(config.data, 'train'), config_lib.grey_width(config), {}
  for name in baselines.BASELINES:
    _log.info('baseline: %s, its settings by cross-validation', name.replace('_', ' '))
    values, settings = baselines.log_densities(
        name, images(train), images(source), width, config.density.num_draws, seed)
    bits = log_prob.bits_per_dim(values, dim, width)
    found[name] = {'bits_per_dim': float(bits.mean()), 'standard_error': float(bits.std() / np.sqrt(len(bits))),
                   'settings': settings}
    _log.info('%s: %.3f bits per dimension', name.replace('_', ' '), found[name]['bits_per_dim'])
  return found


def _save_ladder(folder, rungs, step_sizes, forward, reverse, acceptance):
  workdir_lib.save_npz(
      os.path.join(folder, 'ladder.npz'), level=rungs.level, fraction=rungs.fraction, step_size=step_sizes,
      forward=forward.astype(np.float32), acceptance=acceptance,
      **{f'reverse_{level}': weights for level, weights in reverse.items()})


class _Estimator:
  """The passes over the ladder, on all devices."""

  def __init__(self, config, model, state, seed):
    self._settings, self._config, self._model, self._seed = config.density, config, model, seed
    self._kernel = langevin.make_kernel(config.density.kernel, config.density.num_leapfrog)
    self._acceptance = config.density.acceptance or langevin.TARGET_ACCEPTANCE[config.density.kernel]
    self._weights = parallel.replicate(jax.jit(generate.ema_weights)(state))
    self._network = generate.single_device(model.network)
    self._compiled = {}
    self._index = np.arange(parallel.up_to_devices(config.density.num_chains), dtype=np.int32)

  def choose_rungs(self):
    settings, model = self._settings, self._model
    progress = Progress('choosing rungs', model.levels.num_models, unit='level')

    def on_level(level):
      progress.update(1)
      progress.line(always=False)

    keys = generate.sample_keys(self._seed, np.arange(settings.pilot_chains), _PILOT)
    try:
      rungs, step_sizes = ladder.choose(
          model.levels, self._network, self._weights, keys, model.shape, self._kernel, settings.num_steps,
          settings.rung_ess, self._acceptance, _FIRST_STEP_SIZE, on_level)
    except FloatingPointError as error:
      raise DivergedError(f'the energies of level {error.args[0]} are not finite where the chains went: choose another '
                          f'--step, or train with --config.model.quadratic=1') from error
    progress.close()
    _log.info('%d rungs, step sizes from %.3g to %.3g', len(step_sizes), step_sizes.min(), step_sizes.max())
    return rungs, step_sizes

  def forward(self, rungs, step_sizes):
    """Log weights at each rung (R + 1, N), and the mean acceptance at each."""
    keys = generate.sample_keys(self._seed, self._index, _FORWARD)
    x = np.asarray(langevin.normal_noise(keys, self._model.shape)(self._model.levels.num_models))
    return self._pass('forward', rungs, step_sizes, x, _FORWARD)

  def reverse(self, rungs, step_sizes, last, source):
    """Log weights (N,) of the way from the model of a level, the rung number `last`, back to the first rung."""
    level = int(rungs.level[last])
    x = self._from_data(level, rungs, step_sizes, last, source)
    back = ladder.Rungs(rungs.level[last::-1], rungs.fraction[last::-1])
    weights, _ = self._pass(f'reverse, level {level}', back, step_sizes[last::-1], x, _REVERSE + 256 * level)
    return weights[-1]

  def _pass(self, name, rungs, step_sizes, x, stream):
    num_moves = len(step_sizes) - 1
    progress = Progress(name, num_moves, unit='rung')
    x, gains, acceptance = parallel.split(x), [np.zeros((1, len(self._index)))], [np.ones(1)]
    for first in range(0, num_moves, _CHUNK):
      index = np.minimum(first + np.arange(_CHUNK + 1), num_moves)  # beyond the last rung: no move, no gain
      part = ladder.Rungs(rungs.level[index], rungs.fraction[index])
      args = (self._weights, part, step_sizes[index], x, parallel.split(self._index), np.uint32(self._seed),
              np.uint32(stream), np.int32(first))
      x, gain, accepted = self._call('anneal', self._anneal, args, (3, 4), (0, 1, 1))
      count = min(_CHUNK, num_moves - first)
      gains.append(_joined(gain)[:count])
      acceptance.append(_joined(accepted)[:count].mean(1))
      progress.update(count)
      progress.line(always=False)
    progress.close()
    weights = np.cumsum(np.concatenate(gains, dtype=np.float64), axis=0)
    if not np.all(np.isfinite(weights)):
      level = int(rungs.level[np.flatnonzero(~np.all(np.isfinite(weights), axis=1))[0]])
      raise DivergedError(f'the energies of level {level} are not finite where the chains went: choose another --step, '
                          f'or train with --config.model.quadratic=1')
    return weights, np.concatenate(acceptance)

  def _anneal(self, weights, rungs, step_sizes, x, index, seed, stream, first):
    keys = generate.sample_keys(seed, index, stream)
    return ais.anneal(
        lambda rung: ladder.rung_log_density(self._model.levels, self._network, weights, rung), self._kernel, rungs,
        step_sizes, x, keys, self._settings.num_steps, first)

  def _from_data(self, level, rungs, step_sizes, rung, source):
    """Samples of a level's model, approximately: diffused data, moved by many steps that leave the model as it is."""
    examples = source.read(np.random.default_rng(self._seed).permutation(len(source))[self._index % len(source)])
    keys = generate.sample_keys(self._seed, self._index, _DATA + 256 * level)
    x = self._continuous(jnp.asarray(examples), keys)
    x = np.asarray(noise_levels.diffuse(
        self._model.levels.noise, x, jnp.full(len(x), level), langevin.normal_noise(keys, x.shape[1:])(1)))
    progress = Progress(f'data-side samples of level {level}', self._settings.data_steps)
    x = parallel.split(x)
    for first in range(0, self._settings.data_steps, _CHUNK):
      args = (self._weights, ladder.Rungs(rungs.level[rung], rungs.fraction[rung]), step_sizes[rung], x,
              parallel.split(self._index), np.uint32(self._seed), np.uint32(_MIX + 256 * level), np.int32(first))
      x, = self._call('mix', self._mix, args, (3, 4), (0,))
      progress.update(min(_CHUNK, self._settings.data_steps - first))
      progress.line(always=False)
    progress.close()
    return _joined(np.asarray(x), 0)

  def _mix(self, weights, rung, step_size, x, index, seed, stream, first):
    target = ladder.rung_log_density(self._model.levels, self._network, weights, rung)
    keys = generate.sample_keys(seed, index, stream)
    return (langevin.run(self._kernel, target, langevin.init(target, x), keys, step_size, _CHUNK, first)[0].y,)

  def _continuous(self, examples, keys):
    x = train_step.to_unit_range(examples)
    if config_lib.is_vector(self._config):
      return x
    return train_step.dequantize(keys, x, config_lib.grey_width(self._config))

  def log_densities(self, source, log_z, limit=None):
    """Log densities in nats of the examples of a source, and of white noise, averaged over the draws of noise.

    Returns:
      `clean`, the density of the dequantised data, `noisy`, that at data with the noise of level 0, `white`, that at
      standard normal noise: each (N,).
    """
    clean, noisy, white = self._over(source, 'log density', self._log_prob, 3, limit or len(source), np.float32(log_z))
    return {'clean': clean, 'noisy': noisy, 'white': white}

  def bounds(self, source):
    """Lower bounds of the log density, in nats, of what one gradient a level samples.

    Returns:
      Those at the first of the dequantised data and at the same with the noise of level 0, each (N,).
    """
    return self._over(source, 'bound of the sampler', self._bound, 2, _NUM_BOUNDED)

  def _over(self, source, name, function, num_values, limit, *extra):
    """What `function` gives for the first `limit` examples of a source: a tuple of (N,) float64."""
    count, parts = min(len(source), limit), []
    progress = Progress(name, count, unit='example')
    for first in range(0, count, len(self._index)):
      index = np.minimum(first + self._index, count - 1)
      args = (self._weights, parallel.split(source.read(index)), parallel.split(index.astype(np.int32)),
              np.uint32(self._seed), *extra)
      values = self._call(name, function, args, (1, 2), (0,) * num_values)
      parts.append([_joined(np.asarray(value), 0)[:count - first] for value in values])
      progress.update(len(parts[-1][0]))
      progress.line(always=False)
    progress.close()
    return tuple(np.concatenate(each).astype(np.float64) for each in zip(*parts, strict=True))

  def _bound(self, weights, examples, index, seed):
    levels = self._model.levels
    a, volume = float(levels.noise.a[0]), examples[0].size * float(np.log(levels.noise.a[0]))
    keys = generate.sample_keys(seed, index, _BOUND)

    dequantize_keys, noise_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
    x = a * self._continuous(examples, dequantize_keys)
    noise = float(levels.noise.sigma[0]) * langevin.normal_noise(noise_keys, x.shape[1:])(levels.num_models)
    return tuple(bound.variational_bound(levels, self._network, weights, point, noise_keys) + volume
                 for point in (x, x + noise))

  def _log_prob(self, weights, examples, index, seed, log_z):
    levels = self._model.levels
    keys = generate.sample_keys(seed, index, _DATA)

    def draw(number):
      dequantize_keys, noise_keys = jnp.moveaxis(
          jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, number)))(keys), 1, 0)
      x = self._continuous(examples, dequantize_keys)
      eps = langevin.normal_noise(noise_keys, x.shape[1:])(0)
      noise = float(levels.noise.sigma[0] / levels.noise.a[0])
      return tuple(log_prob.log_prob(levels, self._network, weights, point, log_z)
                   for point in (x, x + noise * eps, eps))

    draws = jax.lax.map(draw, jnp.arange(self._settings.num_draws))
    return tuple(jnp.mean(values, 0) for values in draws)

  def _call(self, name, function, args, split, out_axes):
    if name not in self._compiled:
      replicated = tuple(i for i in range(len(args)) if i not in split)
      self._compiled[name] = parallel.compile_for(function, *args, replicated=replicated, out_axes=out_axes)
    return self._compiled[name](*args)


def _joined(array, axis: int = 1):
  """The parts of the devices, (..., devices, N / devices, ...), along one axis."""
  array = np.asarray(array)
  return array.reshape(*array.shape[:axis], -1, *array.shape[axis + 2:])
