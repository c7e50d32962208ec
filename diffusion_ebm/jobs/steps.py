"""The steps job: how good samples are for how many gradients, from the proposal and without it."""

import contextlib
import logging
from typing import NamedTuple

import numpy as np

from diffusion_ebm import scoring, trained
from diffusion_ebm.run import files, interrupts, pictures, table
from diffusion_ebm.run import workdir as workdir_lib
from diffusion_ebm.run.errors import UserError
from diffusion_ebm.run.progress import Progress

_log = logging.getLogger(__name__)

# Keys of the `sampling` section that each row has its own value for.
_OF_ROWS = ('num_steps', 'generation_steps')


class Row(NamedTuple):
  """Scores of samples drawn in one way; None where there is none.

  Attributes:
    proposal: whether the chains start at the proposal, or at the sample of the level above.
    num_steps: K, Langevin steps at each level; 0 for the proposal's samples as they are or, without one, the normal
      approximation.
    gradients: energy gradients an image.
    proposal_evaluations: evaluations of the proposal an image.
    frechet_distance: from the data; None where the chains diverged.
    precision: likewise, and None of few examples.
    recall: likewise.
    samples_per_s: without the first batch, which compiles; None where it was all.
  """

  proposal: bool
  num_steps: int
  gradients: int
  proposal_evaluations: int
  frechet_distance: float | None = None
  precision: float | None = None
  recall: float | None = None
  samples_per_s: float | None = None

  @property
  def curve(self) -> str:
    if self.proposal:
      return 'from the proposal'
    return 'from the noisier sample' if self.num_steps else 'normal approximation'


def run(config, workdir: str, seed: int = 0, step: int | None = None) -> list[Row]:
  """Scores samples drawn with each number of Langevin steps, with the proposal, where the run has one, and without it.

  Writes to `steps/` in the workdir: `steps_STEP.csv`, a line for each `Row`; `steps_STEP.png`, the Frechet distance
  over gradients an image; `steps_STEP.json`, what they depend on. A number follows these names where there are results
  of other inputs. The job may be stopped at any moment; the same command goes on, and with other
  `config.steps.num_steps` adds rows.

  Args:
    config: the configuration; the `eval` section says how many samples are drawn, from which seed, and how they are
      scored. The `train` section and how samples are drawn need not be the workdir's.
    workdir: of a training job.
    seed: of no use; the `eval` section has its own.
    step: the checkpoint's, or None for the newest.

  Returns:
    What is in the `.csv`: first the rows with the proposal, each by the number of steps.

  Raises:
    UserError: something that the user can mend.
    InterruptedRun: Ctrl-C or SIGTERM; finished rows are kept.
  """
  del seed
  if not config.steps.num_steps:
    raise UserError('--config.steps.num_steps names no number of steps: set it, as --config.steps.num_steps="(0,5,30)"')
  if config.sampling.corrected or config.sampling.flow_steps:
    raise UserError(
      '--mode=steps counts gradients of plain chains: leave --config.sampling.corrected and flow_steps out'
    )
  model = trained.load(config, workdir, step)
  config, step = model.config, model.step
  config.eval.baselines = False
  folder = workdir_lib.make(workdir, 'steps')
  with interrupts.checked('stopped; finished rows are kept: run the same command again to go on') as check_stop:
    compared = scoring.load_reference(config, workdir, check_stop)
    inputs = {'step': step, **scoring.inputs(config, compared, _OF_ROWS)}
    base = workdir_lib.claim(folder, f'steps_{step}', inputs, ('.csv', '.png'))
    rows = _measure(model, compared, base + '.csv', check_stop)
  title = f'step {step}: {config.eval.num_samples} samples, {compared.split} split, {compared.extractor.name} features'
  files.write_png(base + '.png', pictures.distance_curves(_curves(rows), title))
  _log.info('results in %s.csv, picture in %s.png', base, base)
  return rows


def _measure(model, compared, path, check_stop) -> list[Row]:
  """All rows, in their order: those of the file, and those that it lacks, each in the file once it is done."""
  rows, asked = {row[:2]: row for row in table.read(path, Row)}, _asked(model)
  missing = [row for row in asked if row[:2] not in rows]
  work, left = (sum(row.gradients for row in each) for each in (asked, missing))
  with contextlib.closing(Progress('steps', work, work - left, shown=False)) as progress:
    for row in missing:
      rows[row[:2]] = _score(model, compared, row, check_stop)
      table.write(path, _in_order(rows))
      progress.update(row.gradients)
      progress.line('gradients an image')
  return _in_order(rows)


def _in_order(rows) -> list[Row]:
  return sorted(rows.values(), key=lambda row: (not row.proposal, row.num_steps))


def _asked(model) -> list[Row]:
  """The rows that the configuration asks for, without scores."""
  num_levels, denoised = model.ebm.levels.num_models, int(model.config.sampling.denoise)
  rows = []
  for proposal in (True, False) if model.proposal else (False,):
    for num_steps in sorted(set(model.config.steps.num_steps)):
      each_level = num_steps if proposal else max(num_steps, 1)  # the normal approximation takes one gradient
      rows.append(Row(proposal, num_steps, each_level * num_levels + denoised, num_levels if proposal else 0))
  return rows


def _score(model, compared, row, check_stop) -> Row:
  """The row with its scores; without them where the chains diverge."""
  config = model.config.copy_and_resolve_references()
  config.sampling.generation_steps = row.num_steps or -1
  what = f'K {row.num_steps}, {row.curve}'
  if not row.proposal:
    model = model._replace(proposal=None)
  found = scoring.score(model._replace(config=config), compared, what, 0, check_stop)
  if found is None:
    return row
  drawn, scores = found
  _log.info('%s: Frechet distance %.4g for %d gradients an image', what, scores['fid'], row.gradients)
  return row._replace(
    frechet_distance=scores['fid'],
    precision=scores['precision'],
    recall=scores['recall'],
    samples_per_s=drawn.rates['samples_per_s'],
  )


def _curves(rows) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Curve to gradients and distances."""
  curves = {}
  for row in rows:
    curves.setdefault(row.curve, []).append((row.gradients, row.frechet_distance))
  return {name: tuple(np.array(points, float).T) for name, points in curves.items()}
