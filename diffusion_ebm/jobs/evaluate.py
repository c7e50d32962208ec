"""The evaluation job: scores of each checkpoint of a run, beside its training or after it."""

from collections.abc import Callable
import contextlib
import logging
import os
import time
from typing import Any, NamedTuple

import numpy as np
from sklearn import neighbors

from diffusion_ebm import class_accuracy, generate, level_pictures, scoring, trained
from diffusion_ebm import config as config_lib
from diffusion_ebm import model as model_lib
from diffusion_ebm.evaluate import feature_statistics, reference, report, results, scores
from diffusion_ebm.run import checkpoints, files, interrupts, pictures, writers
from diffusion_ebm.run import workdir as workdir_lib
from diffusion_ebm.run.errors import InterruptedRun, UserError
from diffusion_ebm.run.progress import doing

_log = logging.getLogger(__name__)

_NUM_IN_GRID, _NUM_QUERIES, _NUM_NEIGHBOURS = 100, 8, 7
# A checkpoint that is being deleted is gone after a moment.
_READ_ATTEMPTS, _READ_PAUSE = 3, 1.0
_POLL_SECONDS = 5.0  # between two looks for new checkpoints


class _Evaluation(NamedTuple):
  """What the parts of the job share.

  Attributes:
    config: the configuration.
    workdir: of the run.
    folder: gets the results.
    reference: what each checkpoint is compared with.
    settings: a name for all that the scores depend on beside the checkpoint.
    number: behind the names of the report and the pictures, where those of other settings have them: '' or '_2'.
    check_stop: raises an exception once a stop has been asked for.
  """

  config: Any
  workdir: str
  folder: str
  reference: reference.Reference
  settings: str
  number: str
  check_stop: Callable

  @property
  def results(self) -> str:
    return os.path.join(self.folder, 'results.jsonl')

  def path(self, name: str, suffix: str) -> str:
    """Of the report or a picture."""
    return os.path.join(self.folder, f'{name}{self.number}{suffix}')

  def records(self) -> list[dict]:
    """The records of these settings, one for each step, by step."""
    records = {
      record['step']: record for record in results.read(self.results) if record.get('settings') == self.settings
    }
    return [records[step] for step in sorted(records)]


def run(config, workdir: str, seed: int = 0, step: int | None = None):
  """Scores the checkpoints of a workdir, each once, until training has ended and all are done.

  Writes to `eval/` in the workdir: `results.jsonl`, a record for each checkpoint; `samples_STEP.png` and
  `neighbours_STEP.png`; `samples_STEP.npz` if `config.eval.save_samples`; `tensorboard/`; `report.html`; `report.json`:
  what it depends on. For other settings, a number follows the names of report and pictures. What is known of the data
  is kept in `cache/`. The job may be stopped at any moment, and several may share a workdir.

  Args:
    config: the configuration; the `train` section, the number of Langevin steps and eta need not be the workdir's.
    workdir: of a training job, which may be running.
    seed: of no use; the `eval` section has its own.
    step: the one checkpoint to score, or None for all.

  Raises:
    UserError: something that the user can mend.
    InterruptedRun: Ctrl-C or SIGTERM.
  """
  del seed
  if config_lib.load(workdir) is None:
    raise UserError(f'{workdir} holds no run: train first, with --mode=train and the same --workdir')
  if config.sampling.compose:
    raise UserError('--mode=eval scores one model: leave --config.sampling.compose out')
  config = trained.check(config, workdir)
  if step is not None:
    checkpoints.check_any(workdir, step)
  folder = workdir_lib.make(workdir, 'eval')

  with interrupts.checked('stopped; what is scored is kept: run the same command again to go on') as check_stop:
    compared = scoring.load_reference(config, workdir, check_stop)
    inputs = scoring.inputs(config, compared)
    number = workdir_lib.claim_number(folder, 'report', inputs)
    settings = feature_statistics.key(*inputs.values())
    evaluation = _Evaluation(config, workdir, folder, compared, settings, number, check_stop)
    doing('building the network')
    model = model_lib.build(config)
    sampler = generate.make_sampler(config, model.shape, scoring.batch_size(config))
    _write_report(evaluation)
    for step_to_score in _steps_to_score(evaluation, step):
      _score(evaluation, model, sampler, step_to_score, raise_errors=step is not None)
      _write_report(evaluation)
  _log.info('results in %s, report in %s', evaluation.results, evaluation.path('report', '.html'))


# What to score.


def _steps_to_score(evaluation, only):
  """Yields each step that nobody has scored, claimed for this job; waits for more while training goes on."""
  passed = set()  # scored here, or deleted
  last_new, known = time.monotonic(), None
  minutes = evaluation.config.eval.max_wait_minutes
  while True:
    steps = checkpoints.steps(evaluation.workdir) if only is None else [only]
    done = {record['step'] for record in evaluation.records()} | passed
    if only in done and not passed:
      _log.info('step %d has been scored already, with the same settings', only)
    left = [step for step in steps if step not in done]
    for step in left:
      with results.claim(os.path.join(evaluation.folder, 'claims'), step) as mine:
        # Another job may have finished it since it was looked up.
        if mine and step not in {record['step'] for record in evaluation.records()}:
          yield step
          passed.add(step)
          last_new = time.monotonic()
          break
    else:  # what is left is another job's
      if not left and (only is not None or _has_ended(evaluation.workdir, steps)):
        return
      if steps != known:
        last_new, known = time.monotonic(), steps
        if minutes:
          _log.info('waiting for %s', f'another job, at step {left[0]}' if left else 'the next checkpoint')
      if time.monotonic() - last_new >= 60 * minutes:
        _log.info('all that is there is scored; training has not ended: run the same command again for more')
        return
      _sleep(_POLL_SECONDS, evaluation.check_stop)
    evaluation.check_stop()


def _has_ended(workdir, steps):
  return bool(steps) and steps[-1] >= config_lib.load(workdir).train.num_steps


def _sleep(seconds, check_stop):
  until = time.monotonic() + seconds
  while (left := until - time.monotonic()) > 0:
    check_stop()
    time.sleep(min(left, 0.2))


# Scoring a checkpoint.


def _score(evaluation, model, sampler, step: int, raise_errors: bool):
  """Scores one and adds its record; a deleted one is skipped, one whose samples are no numbers recorded as such."""
  generator = _read(evaluation, model, step)
  if generator is None:
    if raise_errors:
      raise UserError(f'the checkpoint of step {step} was deleted or cannot be read: choose another --step')
    return
  record = {'step': step, 'settings': evaluation.settings}
  try:
    record |= _scores(evaluation, generator, sampler, step)
  except UserError as error:
    if isinstance(error, InterruptedRun):
      raise
    results.append(evaluation.results, record | {'error': str(error)})
    if raise_errors:
      raise
    _log.warning('step %d: %s', step, error)
    return
  _write_board(evaluation, record)  # before the record, which says that all is done
  results.append(evaluation.results, record)
  _log.info(
    'step %d: Frechet distance %.4g (%s features, %d samples, %s split)',
    step,
    record['fid'],
    record['extractor'],
    record['num_samples'],
    record['split'],
  )


def _read(evaluation, model, step):
  """The model of a checkpoint and its proposal; None, with a warning, if it is gone or cannot be read."""
  for attempt in range(_READ_ATTEMPTS):
    try:
      return trained.read(model, evaluation.workdir, step)[:2]
    except Exception as error:  # Orbax raises whatever the missing file leads to
      if step not in checkpoints.steps(evaluation.workdir):
        _log.warning('the checkpoint of step %d was deleted before it was read: skipped', step)
        return None
      if attempt == _READ_ATTEMPTS - 1:
        _log.warning('the checkpoint of step %d cannot be read (%s): skipped', step, ' '.join(str(error).split()))
        return None
    _sleep(_READ_PAUSE, evaluation.check_stop)
  return None


def _scores(evaluation, generator, sampler, step):
  """Draws the samples, writes their pictures, and returns the rest of the record."""
  config, compared = evaluation.config.eval, evaluation.reference
  count = config.num_samples
  drawn = scoring.draw(
    evaluation.config,
    compared,
    sampler,
    generator,
    f'sampling at step {step}',
    count if config.save_samples or config_lib.is_vector(evaluation.config) else _NUM_IN_GRID,
    evaluation.check_stop,
  )
  _write_samples(evaluation, step, drawn.samples, drawn.features)
  found = _classes(evaluation, generator[0])
  _log.info('scores of %d samples', count)
  return found | {
    'num_data': compared.real.count,
    'num_features': compared.extractor.dim,
    'num_neighbour_samples': min(count, scores.MAX_NEIGHBOURS),
    'num_neighbour_data': min(len(compared.real.features), scores.MAX_NEIGHBOURS),
    'extractor': compared.extractor.name,
    'split': compared.split,
    **compared.extractor.notes,
    **compared.score(drawn.features, drawn.logits),
    **drawn.rates,
    'baselines': compared.baselines,
  }


def _classes(evaluation, ebm):
  """How well a model that is told classes tells them apart, where there are labelled test data."""
  compared, count = evaluation.reference, evaluation.config.model.num_classes
  if not count or compared.test_source is None or compared.test_source.labels is None:
    return {}
  size = evaluation.config.eval.batch_size
  return {'classes': class_accuracy.measure(ebm, compared.train_source, compared.test_source, count, size)}


def _write_samples(evaluation, step, samples, rows):
  name = f'samples_{step}'
  if evaluation.config.eval.save_samples:
    files.write_npz(evaluation.path(name, '.npz'), {'samples': samples})
  shown = samples[:_NUM_IN_GRID] if samples.ndim > 2 else samples
  files.write_png(evaluation.path(name, '.png'), level_pictures.samples(shown, generate.columns(evaluation.config)))
  if samples.ndim > 2:
    files.write_png(
      evaluation.path(f'neighbours_{step}', '.png'), _picture_of_neighbours(evaluation.reference, samples, rows)
    )


def _picture_of_neighbours(compared, samples, rows):
  """A sample in each row, with its nearest training examples in the space of the features to its right."""
  train = compared.train
  near = neighbors.NearestNeighbors(n_neighbors=min(_NUM_NEIGHBOURS, len(train.features)), algorithm='brute')
  found = near.fit(train.features).kneighbors(rows[:_NUM_QUERIES], return_distance=False)
  lines = [
    np.concatenate([samples[i : i + 1], compared.train_source.read(train.index[each])]) for i, each in enumerate(found)
  ]
  return pictures.image_grid(np.concatenate(lines), 1 + found.shape[1])


def _write_board(evaluation, record):
  from PIL import Image

  step = record['step']
  with contextlib.closing(writers.open_board(os.path.join(evaluation.folder, 'tensorboard'))) as board:
    for name in ('fid', 'inception_score', 'kid', 'precision', 'recall', 'density', 'coverage'):
      if record[name] is not None:
        board.add_scalar(f'eval/{name}', record[name], step)
    for name in ('samples', 'neighbours'):
      path = evaluation.path(f'{name}_{step}', '.png')
      if os.path.exists(path):
        with Image.open(path) as picture:
          board.add_image(f'eval/{name}', np.asarray(picture), step, dataformats='HWC')


def _write_report(evaluation):
  records = evaluation.records()
  if not records:
    return
  steps = [record['step'] for record in records if 'error' not in record][::-1]
  shown = {
    'Samples, the first of each checkpoint': [
      (f'step {step}', evaluation.path(f'samples_{step}', '.png')) for step in steps
    ],
    'Samples (left) and their nearest training examples': [
      (f'step {step}', evaluation.path(f'neighbours_{step}', '.png')) for step in steps[:1]
    ],
  }
  title = f'Evaluation of {os.path.basename(os.path.abspath(evaluation.workdir))}'
  files.write_text(evaluation.path('report', '.html'), report.page(title, records, shown, evaluation.config.to_dict()))
