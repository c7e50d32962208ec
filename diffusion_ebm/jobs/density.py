"""The density job: log Z of a checkpoint's levels from both ends, log density and bits per dimension of data."""

import functools
import logging
import os
import time

import jax
import numpy as np

from diffusion_ebm import config as config_lib
from diffusion_ebm import data, generate, langevin, preprocessing, random_keys, sampling, trained
from diffusion_ebm.data.source import ArraySource
from diffusion_ebm.density import (
  agreement,
  ais,
  annealing,
  baseline_densities,
  bridge,
  dataset_log_prob,
  ladder,
  log_prob,
  tempering,
)
from diffusion_ebm.evaluate import chain_diagnostics, features
from diffusion_ebm.run import files, pictures
from diffusion_ebm.run import workdir as workdir_lib
from diffusion_ebm.run.errors import UserError
from diffusion_ebm.run.unfinished import Unfinished

_log = logging.getLogger(__name__)

_NUM_BOUNDED = 1000  # examples, at most, for which the sampler's bound takes a gradient at each level
_MIN_ACCEPTANCE = 0.1  # below it chains stand still
_FEW = 2.0  # effective samples below which an estimate says nothing
_CROSSED = 3.0  # standard errors, of both ends, by which they may cross
_MAX_R_HAT = 1.05
_START = 0xA15A  # stream of random numbers


def run(config, workdir: str, seed: int = 0, step: int | None = None) -> dict:
  """Estimates log Z by annealed importance sampling from both ends, and the log density of a split; checks both.

  Writes to `density/` in the workdir: `results.json`, `routes.md` (a table of the estimates), `ladder.npz` (rungs, step
  sizes, log weights), `log_probs.npz` (of each example), `log_z.png` and `log_prob.png`, with a number behind each name
  where there are results of other inputs. A job that was killed goes on where it was.

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
  config, ebm, _, shape, step = trained.load(config, workdir, step)
  whole = data.load_source(config.data, config.density.split)
  source = _some(whole, config.density.num_images, seed)
  folder, began = workdir_lib.make(workdir, 'density'), time.monotonic()
  drawn, size = generate.settings(config), config.density.num_chains
  record = {}
  # One normal density a level.
  if drawn.num_steps == 0 and drawn.noise_scale == 1 and not drawn.denoised and not drawn.flow_steps:
    values = dataset_log_prob.bounds(ebm, source, _grey_width(config), _NUM_BOUNDED, size, seed)
    record['sampler_bound'] = _bounds(config, values)
  inputs = _inputs(config, whole, step, seed)
  unfinished = Unfinished(folder, inputs)
  log_z, weights = _log_z(config, ebm, shape, source, seed, unfinished)
  record |= {'split': config.density.split, 'num_images': len(source), 'step': step, 'seed': seed, 'inputs': inputs}
  record |= {'log_z': log_z, 'num_rungs': len(weights['step_size']), 'config': config.to_dict()}
  record |= {'jax': jax.__version__, 'platform': jax.default_backend()}
  if of := generate.asked(config):
    record['of'] = of
  if not config.density.bracket:
    each, routes = _routes(config, ebm, shape, source, None, log_z, seed, unfinished)
    record |= routes | {'seconds': time.monotonic() - began}
    plots = {'log_prob': pictures.histograms({config.density.split: each['flow']}, 'log density of the flow in nats')}
    return _finish(folder, record, {'ladder': weights, 'log_probs': each}, plots, unfinished)

  _log.info('log density of the %s split', config.density.split)
  log_densities = dataset_log_prob.make_log_densities(_grey_width(config), config.density.num_draws, size, seed)
  values = log_densities(ebm, source, log_z[0]['log_z'])
  record |= _log_probs(config, values, log_z[0])
  each, routes = _routes(config, ebm, shape, source, values['clean'], log_z, seed, unfinished)
  record |= routes | {'seconds': time.monotonic() - began}
  if config.density.baselines:
    record['baselines'] = _baselines(config, source, seed)
  _log.info('%s', _in_words(record))  # before it is written: on a full disk it would be lost
  train = log_densities(ebm, data.load_source(config.data, 'train'), log_z[0]['log_z'], len(values['clean']))
  shown = {'train': train['clean'], config.density.split: values['clean'], 'noise': values['white']}
  title = f'log density in nats (log Z {log_z[0]["lower"]:.2f} .. {log_z[0]["upper"]:.2f})'
  plots = {'log_z': pictures.log_z_ladder(log_z), 'log_prob': pictures.histograms(shown, title)}
  return _finish(folder, record, {'ladder': weights, 'log_probs': each}, plots, unfinished)


def _some(source, limit, seed):
  """At most `limit` examples, any of them; 0 for all."""
  if not limit or limit >= len(source):
    return source
  return ArraySource(source.read(np.sort(np.random.default_rng(seed).permutation(len(source))[:limit])))


def _inputs(config, source, step, seed):
  """What the results depend on."""
  of_data = features.data_key(config.data, {config.density.split: source})
  drawn = generate.inputs(config)
  return {'step': step, 'seed': seed, 'density': config.density.to_dict(), 'data': of_data, 'sampling': drawn}


def _finish(folder, record, arrays, plots, unfinished):
  path = _write(folder, record, arrays, plots)
  unfinished.remove()
  _log.info('results in %s, pictures beside it', path)
  return record


def _write(folder, record, arrays, plots):
  """The numbers, the arrays behind them and the pictures; returns the path of the first."""
  number = workdir_lib.claim_number(folder, trained.DENSITY_RESULTS, record['inputs'])
  path = os.path.join(folder, f'{trained.DENSITY_RESULTS}{number}.json')
  files.write_json(path, record)
  files.write_text(os.path.join(folder, f'routes{number}.md'), record['table'])
  for name, each in arrays.items():
    files.write_npz(os.path.join(folder, f'{name}{number}.npz'), each)
  for name, picture in plots.items():
    files.write_png(os.path.join(folder, f'{name}{number}.png'), picture)
  return path


def _grey_width(config) -> float:
  """Over which images are dequantised; 0 for vectors."""
  return 0.0 if config_lib.is_vector(config) else config_lib.grey_width(config)


# Log Z.


def _log_z(config, ebm, shape, source, seed, unfinished):
  """`(log_z, weights)`: a record for each level whose log Z is bracketed, from level 0 on, and arrays behind them."""
  density = config.density
  kernel = langevin.make_kernel(density.kernel, density.num_leapfrog)
  acceptance = density.acceptance or langevin.TARGET_ACCEPTANCE[density.kernel]
  pilot = ladder.Pilot(density.num_steps, density.rung_ess, acceptance)
  top = ebm.levels.num_models - 1
  last = 0 if density.bracket else top
  steps = annealing.choose_ladder(ebm, shape, kernel, pilot, density.pilot_chains, seed, unfinished, last)
  _log.info(
    '%d rungs, step sizes from %.3g to %.3g', len(steps.step_sizes), steps.step_sizes.min(), steps.step_sizes.max()
  )
  shown = density.levels or sampling.shown_levels(ebm.levels.num_models)[:-1]
  levels = sorted({0, *shown, *([top] if 'flow' in density.checks else [])}) if density.bracket else [top]
  exchanged = None
  if 'exchange' in density.checks:
    exchanged = _exchange(config, ebm, kernel, steps, levels, acceptance, seed, unfinished)

  chains = annealing.Annealing(ebm, shape, kernel, density.num_steps, density.num_chains, seed, unfinished)
  forward, acceptance = chains.forward(steps)
  low = np.flatnonzero(acceptance < _MIN_ACCEPTANCE)
  if low.size:
    raise UserError(
      f'the acceptance of the chains collapsed to {acceptance[low[0]]:.3f} at level {steps.rungs.level[low[0]]}: try '
      f'a larger --config.density.rung_ess, a smaller --config.density.num_leapfrog or --config.density.kernel=mala'
    )
  reverse = {}
  for level in levels:
    if density.reverse_from == 'exchange':
      samples = exchanged.samples[level].reshape(-1, *shape)
      x = samples[np.random.default_rng(seed).permutation(len(samples))[np.arange(forward.shape[1]) % len(samples)]]
    else:
      x = chains.near_data(steps, level, source, _grey_width(config), density.data_steps)
    reverse[level] = chains.reverse(steps, level, x)
  arrays = {
    'level': steps.rungs.level,
    'fraction': steps.rungs.fraction,
    'step_size': steps.step_sizes,
    'forward': forward.astype(np.float32),
    'acceptance': acceptance,
    **{f'reverse_{level}': weights for level, weights in reverse.items()},
  }
  dim, records = int(np.prod(shape)), []
  for level, weights in reverse.items():
    shift = dim * float(np.log(ebm.levels.a_y[level]))  # from the normaliser of x_t to that of y_t
    records.append(_bracket(level, forward[steps.reached(level)], weights, shift))
    if exchanged:
      records[-1]['exchange'] = _of_exchange(density, exchanged, level, shift)
    _warn(records[-1], density.num_chains)
  return records, arrays


def _exchange(config, ebm, kernel, steps, levels, acceptance, seed, unfinished):
  """Replica exchange on every so many rungs, as `tempering.Tempered`."""
  density, source = config.density, data.load_source(config.data, 'train')
  coarse = steps.thinned(max(1, int(np.sqrt(np.log(density.overlap) / np.log(density.rung_ess)))))
  _log.info('replica exchange: %d ladders of %d rungs', density.num_ladders, len(coarse.step_sizes))
  index = np.random.default_rng(seed).permutation(len(source))[np.arange(density.num_ladders) % len(source)]
  keys = random_keys.sample_keys(seed, index, _START)
  starts = np.asarray(preprocessing.to_continuous(keys, source.read(index), _grey_width(config)))
  return tempering.run(
    *(ebm, kernel, coarse, starts, density.exchange_steps, density.num_rounds, levels, acceptance, seed, unfinished)
  )


def _of_exchange(density, exchanged, level, shift):
  """What replica exchange found of a level: log Z, how well the chains of its rung mixed, and at what cost."""
  rung = exchanged.ladder.reached(level)
  # Of the kernel, and one at the start of a round; each is of two levels. All rungs count, the warm-up does not.
  gradients = 2 * (density.exchange_steps * (density.num_leapfrog if density.kernel == 'hmc' else 1) + 1)
  mixing = chain_diagnostics.summarise(exchanged.log_density[:, :, rung].astype(np.float64), pooled=True)
  log_z, error = float(exchanged.log_z[rung]) + shift, float(exchanged.standard_error[rung])
  r_hat = np.nan if mixing['r_hat'] is None else mixing['r_hat']
  _log.info('level %d: log Z %.3f +- %.3f by replica exchange, R-hat %.3f', level, log_z, error, r_hat)
  if not r_hat <= _MAX_R_HAT:
    _log.warning('level %d: replica exchange has not mixed: take more --config.density.num_rounds', level)
  return {
    'log_z': log_z,
    'standard_error': error,
    'ess': mixing['ess'],
    'r_hat': mixing['r_hat'],
    'gradients': exchanged.log_density.size * gradients,
  }


def _bracket(level, forward, reverse, shift):
  """Log Z of a level from the log weights of both ends."""
  up, down = (end._replace(log_z=end.log_z + shift) for end in (ais.estimate(forward), ais.reverse_estimate(reverse)))
  lower, upper = ais.bracket(up, down)
  both, error = bridge.from_both_ends(forward, reverse)
  return {
    'level': level,
    'log_z': 0.5 * (up.log_z + down.log_z),
    'lower': lower,
    'upper': upper,
    'forward': up._asdict(),
    'reverse': down._asdict(),
    'both': {'log_z': both + shift, 'standard_error': error},
  }


def _warn(entry, num_chains):
  for end in ('forward', 'reverse'):
    if entry[end]['ess'] < _FEW:
      _log.warning(
        'level %d: %.1f effective of %d samples in the %s pass: the bracket may miss log Z; use more rungs '
        '(a larger --config.density.rung_ess) or more steps (--config.density.num_steps)',
        entry['level'],
        entry[end]['ess'],
        num_chains,
        end,
      )
  forward, reverse = entry['forward'], entry['reverse']
  if forward['log_z'] - reverse['log_z'] > _CROSSED * (forward['standard_error'] + reverse['standard_error']):
    _log.warning(
      'level %d: the reverse pass ends below the forward one: the data-side chains have not reached all of the model '
      '(more --config.density.data_steps), or it holds mass where there are no data',
      entry['level'],
    )


# What is reported.


def _mean(name, values):
  return {name: float(values.mean()), f'{name}_standard_error': float(values.std() / np.sqrt(len(values)))}


def _bits(config, log_density):
  """Bits per dimension of images whose log density, or its mean, is given, in nats."""
  dim = config.data.image_size**2 * config.data.num_channels
  return log_prob.bits_per_dim(log_density, dim, config_lib.grey_width(config))


def _bits_per_dim(config, clean, noisy) -> dict:
  """Bits per dimension of images from their log densities (N,), without and with the noise of level 0."""
  dim = config.data.image_size**2 * config.data.num_channels
  return {
    'bits_per_dim': _bits(config, clean.mean()),
    'bits_per_dim_with_noise': _bits(config, noisy.mean()),
    'bits_per_dim_standard_error': _mean('log_prob', clean)['log_prob_standard_error'] / dim / float(np.log(2)),
  }


def _bounds(config, values):
  """What is reported of the density that one gradient a level samples."""
  clean, noisy = values
  record = {'num_examples': len(clean), **_mean('log_prob', clean), 'log_prob_with_noise': float(noisy.mean())}
  bound = f'at least {record["log_prob"]:.3f} nats'
  if not config_lib.is_vector(config):
    record |= _bits_per_dim(config, clean, noisy)
    bound = f'at most {record["bits_per_dim"]:.3f} bits per dimension'
  _log.info('log density of the %s split under the sampler of one gradient a level: %s', config.density.split, bound)
  return record


def _log_probs(config, values, first):
  """Log density and bits per dimension of the split, with the bracket of log Z of level 0, `first`."""
  clean, noisy = values['clean'], values['noisy']
  record = {'bits_per_dim': None, 'bits_per_dim_lower': None, 'bits_per_dim_upper': None, **_mean('log_prob', clean)}
  if config_lib.is_vector(config):
    return record
  for end in ('lower', 'upper'):
    record[f'bits_per_dim_{end}'] = _bits(config, clean.mean() - (first[end] - first['log_z']))
  return record | _bits_per_dim(config, clean, noisy) | {'grey_levels': config.data.grey_levels}


_NAMES = {
  'forward': 'annealed importance sampling, forward',
  'reverse': 'annealed importance sampling, reverse',
  'both': 'annealed importance sampling, both ends',
  'exchange': 'replica exchange',
}
_ASSUMES = {
  'forward': 'its few largest weights stand for all of the model',
  'reverse': 'the chains near the data have reached all of the model',
  'both': 'the reverse chains start at samples of the model',
  'exchange': 'its chains have mixed',
  'flow': 'the scores of all noise levels are those of one diffused density, which energies of levels need not be',
}


def _routes(config, ebm, shape, source, energy, log_z, seed, unfinished):
  """`(arrays, record)`: log densities of each example, and the mean by each route with what they disagree about.

  `energy` (N,) is None where the flow is alone.
  """
  density, first = config.density, log_z[0]
  arrays, record, routes = {}, {}, []
  if energy is not None:
    arrays['energy'] = energy
    for end in [end for end in _NAMES if end in first]:
      value = float(energy.mean()) + first['log_z'] - first[end]['log_z']
      routes.append(
        agreement.Route(_NAMES[end], value, first[end]['standard_error'], first[end]['log_z'], _ASSUMES[end])
      )
  if 'flow' in density.checks:
    top = log_z[-1].get('exchange', log_z[-1]['forward'])
    log_z_top = top['log_z'] - int(np.prod(shape)) * float(np.log(ebm.levels.a_y[-1]))
    flow, beside, evaluations = dataset_log_prob.of_flow(
      *(ebm, source, _grey_width(config), log_z_top, first['log_z'], density.rtol, density.num_probes),
      *(density.num_chains, seed, unfinished),
    )
    arrays['flow'] = flow
    solved = np.isfinite(flow)
    if not solved.all():
      _log.warning('the ODE of %d of %d examples is not solved: they are left out', (~solved).sum(), len(flow))
    value, error = float(flow[solved].mean()), top['standard_error']
    if energy is not None:  # the same points and noise: what differs is the density alone
      arrays['energy_beside_flow'] = beside
      beyond = (flow - beside)[solved]
      value, error = float(energy.mean() + beyond.mean()), float(np.hypot(error, _mean('', beyond)['_standard_error']))
      record['rank_correlation'] = agreement.rank_correlation(flow[solved], beside[solved])
    routes.append(agreement.Route('probability-flow ODE', value, error, None, _ASSUMES['flow']))
    record['flow'] = {'evaluations': float(evaluations.mean()), 'unsolved': int((~solved).sum())}
  to_bits = None
  if not config_lib.is_vector(config):
    to_bits = functools.partial(_bits, config)
    arrays |= {f'{name}_bits_per_dim': to_bits(each) for name, each in list(arrays.items())}
  record |= {'table': agreement.table(routes, to_bits), 'routes': [route._asdict() for route in routes]}
  record['disagreements'] = agreement.disagreements(routes)
  _log.info('log density of the %s split by each route:\n%s', density.split, record['table'])
  for sentence in record['disagreements']:
    _log.warning('%s', sentence)
  return arrays, record


def _in_words(record):
  first, split = record['log_z'][0], record['split']
  log_z = f'log Z of level 0 in {first["lower"]:.3f} .. {first["upper"]:.3f} nats'
  if record['bits_per_dim'] is None:
    return f'{log_z}; log density of the {split} split {record["log_prob"]:.3f} nats'
  return (
    f'{log_z}; bits per dimension of the {split} split {record["bits_per_dim"]:.3f} '
    f'({record["bits_per_dim_lower"]:.3f} .. {record["bits_per_dim_upper"]:.3f})'
  )


def _baselines(config, source, seed):
  """Bits per dimension of simple densities on the same images, dequantised alike."""

  def images(source):
    return np.asarray(preprocessing.to_unit_range(source.read(np.arange(len(source)))))

  train, test, width = images(data.load_source(config.data, 'train')), images(source), config_lib.grey_width(config)
  found = {}
  for name in baseline_densities.BASELINES:
    words = name.replace('_', ' ')
    _log.info('baseline: %s, its settings by cross-validation', words)
    values, settings = baseline_densities.log_densities(name, train, test, width, config.density.num_draws, seed)
    bits = log_prob.bits_per_dim(values, test[0].size, width)
    found[name] = {
      'bits_per_dim': float(bits.mean()),
      'standard_error': float(bits.std() / np.sqrt(len(bits))),
      'settings': settings,
    }
    _log.info('%s: %.3f bits per dimension', words, found[name]['bits_per_dim'])
  return found
