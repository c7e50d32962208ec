"""The evaluation job: scores of each checkpoint of a run, beside its training or after it."""

import dataclasses
import functools
import json
import logging
import os
import time
from typing import Any

import numpy as np
from sklearn import neighbors

from diffusion_ebm import checkpoints, data, generate, interrupts, pictures
from diffusion_ebm import config as config_lib
from diffusion_ebm import model as model_lib
from diffusion_ebm import workdir as workdir_lib
from diffusion_ebm.errors import InterruptedRun, UserError
from diffusion_ebm.evaluate import MIN_SAMPLES, baselines, features, report, results, scores, statistics
from diffusion_ebm.progress import Progress

_log = logging.getLogger(__name__)

_NUM_IN_GRID, _NUM_QUERIES, _NUM_NEIGHBOURS = 100, 8, 7
# A checkpoint that is being deleted is gone after a moment.
_READ_ATTEMPTS, _READ_PAUSE = 3, 1.0
# What the features do not depend on.
_NOT_OF_DATA = ('random_flip', 'strict', 'max_memory_gb', 'num_workers')
_NOT_OF_SCORES = ('batch_size', 'save_samples', 'poll_seconds', 'max_wait_minutes', 'baselines')


@dataclasses.dataclass(frozen=True)
class _Yardstick:
  """What every checkpoint is measured with.

  Attributes:
    extractor: of the features.
    extract: it, compiled.
    split: the data to compare with.
    real: their statistics; mean and covariance may be given ones.
    train_source: the training split.
    train: its statistics.
    baselines: name to scores.
  """
  extractor: features.Extractor
  extract: Any
  split: str
  real: statistics.Statistics
  train_source: Any
  train: statistics.Statistics
  baselines: dict[str, dict]


def evaluate(config, workdir: str, step: int | None = None):
  """Scores the checkpoints of a workdir, each once, until training has ended and all are done.

  Writes to `eval/` in the workdir: `results.jsonl`, a record for each checkpoint; `samples_STEP.png` and
  `neighbours_STEP.png`; `samples_STEP.npz` if `config.eval.save_samples`; `tensorboard/`; `report.html`. What is known
  of the data is kept in `cache/`. The job may be stopped at any moment, and several may share a workdir.

  Args:
    config: the configuration; the `train` section, the number of Langevin steps and eta need not be the workdir's.
    workdir: of a training job, which may be running.
    step: the one checkpoint to score, or None for all.

  Raises:
    UserError: something that the user can mend.
    InterruptedRun: Ctrl-C or SIGTERM.
  """
  config = config_lib.resolve(config)
  config_lib.check(config, 1)
  if config_lib.load(workdir) is None:
    raise UserError(f'{workdir} holds no run: train first, with --mode=train and the same --workdir')
  config_lib.check_same_run(config, workdir, free=('seed', 'train', 'sampling.num_steps'))
  if step is not None and step not in checkpoints.steps(workdir):
    there = ', '.join(map(str, checkpoints.steps(workdir))) or 'none'
    raise UserError(f'no checkpoint of step {step} in {checkpoints.directory(workdir)}; there are {there}')
  folder = workdir_lib.make(workdir, 'eval')
  workdir_lib.make(workdir, os.path.join('eval', 'cache'))

  with interrupts.requested() as stop_requested:
    def check_stop():
      if number := stop_requested():
        raise interrupts.stopped(number, 'stopped; what is scored is kept: run the same command again to go on')

    yardstick = _make_yardstick(config, os.path.join(folder, 'cache'), check_stop)
    settings = _settings(config, yardstick)
    scorer = _Scorer(config, workdir, folder, yardstick, settings, check_stop)
    _write_report(config, workdir, folder, settings)
    for step_to_score in _steps_to_score(config, workdir, folder, settings, step, check_stop):
      scorer(step_to_score, raise_errors=step is not None)
      _write_report(config, workdir, folder, settings)
  _log.info('results in %s, report in %s', os.path.join(folder, 'results.jsonl'), os.path.join(folder, 'report.html'))


# What to score.


def _settings(config, yardstick):
  """A name for all that the scores depend on beside the checkpoint."""
  drawn = {key: value for key, value in config.sampling.items() if key != 'batch_size'}
  return statistics.key(_measure(config), drawn, yardstick.extractor.key, _data_key(config))


def _measure(config):
  return {key: value for key, value in config.eval.items() if key not in _NOT_OF_SCORES}


def _data_key(config):
  return {key: value for key, value in config.data.items() if key not in _NOT_OF_DATA}


def _records(folder, settings):
  """The records of these settings, one for each step, by step."""
  records = {record['step']: record for record in results.read(os.path.join(folder, 'results.jsonl'))
             if record.get('settings') == settings}
  return [records[step] for step in sorted(records)]


def _steps_to_score(config, workdir, folder, settings, only, check_stop):
  """Yields each step that nobody has scored, claimed for this job; waits for more while training goes on."""
  passed = set()  # scored here, or deleted
  last_new, known = time.monotonic(), None
  while True:
    there = checkpoints.steps(workdir) if only is None else [only]
    done = {record['step'] for record in _records(folder, settings)} | passed
    if only in done and not passed:
      _log.info('step %d has been scored already, with the same settings', only)
    for step in there:
      if step in done:
        continue
      with results.claim(os.path.join(folder, 'claims'), step) as mine:
        # Another job may have finished it since it was looked up.
        if mine and step not in {record['step'] for record in _records(folder, settings)}:
          yield step
          passed.add(step)
          last_new = time.monotonic()
          break
    else:
      left = [step for step in there if step not in done]  # those of another job
      ended = only is not None or bool(there) and there[-1] >= config_lib.load(workdir).train.num_steps
      if ended and not left:
        return
      if there != known:
        last_new, known = time.monotonic(), there
        if config.eval.max_wait_minutes:
          _log.info('waiting for %s', f'another job, at step {left[0]}' if left else 'the next checkpoint')
      if time.monotonic() - last_new >= 60 * config.eval.max_wait_minutes:
        _log.info('all that is there is scored; training has not ended: run the same command again for more')
        return
      _sleep(config.eval.poll_seconds, check_stop)
    check_stop()


def _sleep(seconds, check_stop):
  until = time.monotonic() + seconds
  while (left := until - time.monotonic()) > 0:
    check_stop()
    time.sleep(min(left, 0.2))


# What to score it with.


def _make_yardstick(config, cache, check_stop):
  """The feature extractor, the data's statistics and the baselines' scores; computed once, then read."""
  evaluation, vector = config.eval, config_lib.is_vector(config)
  name = evaluation.extractor or ('pixels' if vector else 'classifier' if config.data.name in ('digits', 'mnist')
                                  else 'inception')
  split = evaluation.split or ('train' if name == 'inception' else 'test')
  sources = _load_sources(config, split)
  data_key = [_data_key(config), {key: len(source) for key, source in sources.items() if source is not None}]
  shape = sources['train'].shape

  if name == 'inception':
    extractor = features.inception_v3(evaluation.inception_weights)
  elif name == 'classifier':
    weights = os.path.join(cache, f'classifier_{statistics.key(features.CLASSIFIER_VERSION, data_key)}.npz')
    extractor = features.small_classifier(sources['train'], sources['test'], weights)
  else:
    extractor = features.pixels(shape)
  given = evaluation.statistics and statistics.load_given(evaluation.statistics, extractor.dim)
  _log.info('compiling the %s features', name)
  compiled = features.compile_extractor(extractor, shape, vector, evaluation.batch_size)

  def extract(examples):
    check_stop()
    return compiled(examples)

  def of_split(key):
    only_kept = bool(given) and key == split
    path = os.path.join(cache, f'{key}_{statistics.key(data_key, extractor.key, key, only_kept)}.npz')
    found = statistics.load(path)
    if found is None:
      found = statistics.of_source(
          sources[key], extract, extractor.dim, f'the {key} split', evaluation.batch_size, only_kept)
      statistics.save(found, path)
    return found

  of = {key: of_split(key) for key, source in sources.items() if source is not None}
  real = of[split]
  if given:
    real = dataclasses.replace(real, mean=given[0], covariance=given[1], count=None)
  if evaluation.num_samples <= extractor.dim:
    _log.warning('%d samples for %d features: the covariance is singular, and the Frechet distance comparable only '
                 'with others of as many samples', evaluation.num_samples, extractor.dim)
  yardstick = _Yardstick(extractor, extract, split, real, sources['train'], of['train'], {})
  if not evaluation.baselines:
    return yardstick
  path = os.path.join(
      cache, f'baselines_{statistics.key(baselines.VERSION, _measure(config), extractor.key, data_key)}.json')
  return dataclasses.replace(yardstick, baselines=_baselines(config, yardstick, of, path))


def _load_sources(config, split):
  """Both splits; None for one that is neither there nor needed."""
  sources = {}
  for key in ('train', 'test'):
    try:
      sources[key] = data.load_source(config.data, key)
    except UserError as error:
      if key in ('train', split):
        raise
      _log.info('no baseline of real data: %s', error)
      sources[key] = None
  return sources


def _baselines(config, yardstick, of, path):
  """Scores of other real data and of the simple generators, from the file if it is there."""
  try:
    with open(path, encoding='utf-8') as file:
      return json.load(file)
  except (FileNotFoundError, ValueError):
    pass
  count, source = config.eval.num_samples, yardstick.train_source
  others = [of[key] for key in of if key != yardstick.split]
  named = {}
  if others and len(others[0].features) >= MIN_SAMPLES:
    other = others[0]
    named['real'] = _score(other.features[:count], None if other.logits is None else other.logits[:count], yardstick)
  index = np.random.default_rng(0).permutation(len(source))[:baselines.MAX_EXAMPLES]
  examples = source.read(np.sort(index))
  _log.info('choosing the size of a mixture of Gaussians by cross-validation')
  size = baselines.cross_validated_size(examples)
  generators = {
      'gaussian': baselines.gaussian, 'gaussian_mixture': baselines.gaussian_mixture,
      'cross_validated_mixture': functools.partial(baselines.gaussian_mixture, num_components=size)}
  for name, generator in generators.items():
    _log.info('baseline: %s', name.replace('_', ' '))
    progress = Progress(f'features of the {name.replace("_", " ")}', count, unit='sample')
    parts, drawn = [], generator(examples, count, config.eval.seed)
    for first in range(0, count, config.eval.batch_size):
      parts.append(yardstick.extract(drawn[first:first + config.eval.batch_size]))
      progress.update(len(parts[-1][0]))
      progress.line(always=False)
    progress.close()
    named[name] = _score(*_joined(parts), yardstick)
  named['gaussian_mixture']['num_components'] = min(baselines.COMPONENTS, len(examples))
  named['cross_validated_mixture']['num_components'] = size
  with open(f'{path}.{os.getpid()}.tmp', 'w', encoding='utf-8') as file:
    json.dump(named, file)
  os.replace(f'{path}.{os.getpid()}.tmp', path)
  return named


def _joined(parts):
  """Of the pairs that `extract` gave."""
  rows, logits = zip(*parts, strict=True)
  return np.concatenate(rows), None if logits[0] is None else np.concatenate(logits)


def _score(rows, logits, yardstick):
  real = yardstick.real
  return {'num_samples': len(rows), **scores.score(rows, logits, real.mean, real.covariance, real.features)}


# Scoring a checkpoint.


class _Scorer:
  """Scores checkpoints; network and sampler are built and compiled once."""

  def __init__(self, config, workdir, folder, yardstick, settings, check_stop):
    self._config, self._workdir, self._folder, self._yardstick = config, workdir, folder, yardstick
    self._settings, self._check_stop = settings, check_stop
    self._model = model_lib.build(config)
    self._sampler = generate.Sampler(
        self._model, config, min(config.eval.num_samples, config.sampling.batch_size))

  def __call__(self, step: int, raise_errors: bool):
    """Scores one and adds its record; a deleted one is skipped, one whose samples are no numbers recorded as such."""
    state = self._read(step)
    if state is None:
      if raise_errors:
        raise UserError(f'the checkpoint of step {step} was deleted or cannot be read: choose another --step')
      return
    record = {'step': step, 'settings': self._settings}
    try:
      record |= self._scores(step, state)
    except UserError as error:
      if isinstance(error, InterruptedRun):
        raise
      results.append(os.path.join(self._folder, 'results.jsonl'), record | {'error': str(error)})
      if raise_errors:
        raise
      _log.warning('step %d: %s', step, error)
      return
    self._write_board(record)  # before the record, which says that all is done
    results.append(os.path.join(self._folder, 'results.jsonl'), record)
    _log.info('step %d: Frechet distance %.4g (%s features, %d samples, %s split)', step, record['fid'],
              record['extractor'], record['num_samples'], record['split'])

  def _read(self, step):
    for attempt in range(_READ_ATTEMPTS):
      try:
        manager = checkpoints.open_for_reading(self._workdir)
        try:
          return checkpoints.restore(manager, self._model.state, step)[0]
        finally:
          manager.close()
      except Exception as error:  # Orbax raises whatever the missing file leads to
        if step not in checkpoints.steps(self._workdir):
          _log.warning('the checkpoint of step %d was deleted before it was read: skipped', step)
          return None
        if attempt == _READ_ATTEMPTS - 1:
          _log.warning('the checkpoint of step %d cannot be read (%s): skipped', step, ' '.join(str(error).split()))
          return None
      _sleep(_READ_PAUSE, self._check_stop)
    return None

  def _scores(self, step, state):
    """Draws the samples, writes their pictures, and returns the rest of the record."""
    count, yardstick = self._config.eval.num_samples, self._yardstick
    progress = Progress(f'sampling at step {step}', count, unit='sample')
    parts, samples, seconds = [], [], [0.0, 0.0]
    for first in range(0, count, self._sampler.batch_size):
      self._check_stop()
      began = time.monotonic()
      x, _ = self._sampler(state, self._config.eval.seed, first, min(self._sampler.batch_size, count - first))
      features.check_finite(x)
      finished = generate.finished(x)
      drawn = time.monotonic()
      parts.append(yardstick.extract(finished))
      if first:  # the first batch pays for the compilation
        seconds[0] += drawn - began
        seconds[1] += time.monotonic() - drawn
      if self._config.eval.save_samples or sum(map(len, samples)) < _NUM_IN_GRID or finished.ndim == 2:
        samples.append(finished)
      progress.update(len(x))
      progress.line(always=first == 0)
    progress.close()
    rows, logits = _joined(parts)
    self._write_samples(step, np.concatenate(samples), rows)
    timed = max(count - self._sampler.batch_size, 0)
    rates = {name: timed / spent if timed else None
             for name, spent in zip(('samples_per_s', 'features_per_s'), seconds, strict=True)}
    _log.info('scores of %d samples', count)
    return {
        'num_data': yardstick.real.count, 'num_features': yardstick.extractor.dim,
        'num_neighbour_samples': min(count, scores.MAX_NEIGHBOURS),
        'num_neighbour_data': min(len(yardstick.real.features), scores.MAX_NEIGHBOURS),
        'extractor': yardstick.extractor.name, 'split': yardstick.split, **yardstick.extractor.notes,
        **_score(rows, logits, yardstick), **rates, 'baselines': yardstick.baselines}

  def _write_samples(self, step, samples, rows):
    base = os.path.join(self._folder, 'samples_')
    if self._config.eval.save_samples:
      partial = f'{base}{step}.npz.{os.getpid()}.tmp'
      with open(partial, 'wb') as file:
        np.savez_compressed(file, samples=samples)
      os.replace(partial, f'{base}{step}.npz')
    shown = samples[:_NUM_IN_GRID] if samples.ndim > 2 else samples
    pictures.save_png(f'{base}{step}.png', generate.picture_of_samples(shown))
    if samples.ndim > 2:
      pictures.save_png(
          os.path.join(self._folder, f'neighbours_{step}.png'), self._picture_of_neighbours(samples, rows))

  def _picture_of_neighbours(self, samples, rows):
    """A sample in each row, with its nearest training examples in the space of the features to its right."""
    train = self._yardstick.train
    near = neighbors.NearestNeighbors(n_neighbors=min(_NUM_NEIGHBOURS, len(train.features)), algorithm='brute')
    found = near.fit(train.features).kneighbors(rows[:_NUM_QUERIES], return_distance=False)
    lines = [np.concatenate([samples[i:i + 1], self._yardstick.train_source.read(train.index[each])])
             for i, each in enumerate(found)]
    return pictures.image_grid(np.concatenate(lines), 1 + found.shape[1])

  def _write_board(self, record):
    from PIL import Image
    from tensorboardX import SummaryWriter

    step = record['step']
    with SummaryWriter(os.path.join(self._folder, 'tensorboard')) as board:
      for name in ('fid', 'inception_score', 'kid', 'precision', 'recall', 'density', 'coverage'):
        if record[name] is not None:
          board.add_scalar(f'eval/{name}', record[name], step)
      for name in ('samples', 'neighbours'):
        path = os.path.join(self._folder, f'{name}_{step}.png')
        if os.path.exists(path):
          with Image.open(path) as picture:
            board.add_image(f'eval/{name}', np.asarray(picture), step, dataformats='HWC')


def _write_report(config, workdir, folder, settings):
  records = _records(folder, settings)
  if not records:
    return
  steps = [record['step'] for record in records if 'error' not in record][::-1]
  report.write(
      os.path.join(folder, 'report.html'), f'Evaluation of {os.path.basename(os.path.abspath(workdir))}', records, {
          'Samples, the first of each checkpoint': [
              (f'step {step}', os.path.join(folder, f'samples_{step}.png')) for step in steps],
          'Samples (left) and their nearest training examples': [
              (f'step {step}', os.path.join(folder, f'neighbours_{step}.png')) for step in steps[:1]]},
      config.to_dict())
