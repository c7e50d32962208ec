"""The guidance job: how sure, how good and how varied samples of asked-for classes are, over the weight of guidance."""

import contextlib
import logging
from typing import NamedTuple

import numpy as np

from diffusion_ebm import level_pictures, scoring, trained
from diffusion_ebm.run import files, interrupts, pictures, table
from diffusion_ebm.run import workdir as workdir_lib
from diffusion_ebm.run.errors import UserError
from diffusion_ebm.run.progress import Progress

_log = logging.getLogger(__name__)

# Keys of the `sampling` section that each row has its own value for.
_OF_ROWS = ('label', 'guidance')
_ROWS_OF_PICTURE = 8  # samples of each class


class Row(NamedTuple):
  """Scores of samples drawn with one weight; None where there is none.

  Attributes:
    guidance: w; None for samples for which no class is asked.
    accuracy: share of the samples that the classifier of the `eval` section finds to be of the class asked for; None
      with another extractor.
    frechet_distance: from the data; None where the chains diverged.
    precision: likewise, and None of few examples.
    recall: likewise.
  """

  guidance: float | None
  accuracy: float | None = None
  frechet_distance: float | None = None
  precision: float | None = None
  recall: float | None = None


def run(config, workdir: str, seed: int = 0, step: int | None = None) -> list[Row]:
  """Scores samples of all classes in turn, drawn with each weight of guidance, and samples without a class.

  Writes to `guidance/` in the workdir: `guidance_STEP.csv`, a line for each `Row`; `guidance_STEP.png`, its curves;
  `guidance_STEP_W.png`, samples with weight W, a column for each class; `guidance_STEP.json`, what they depend on. A
  number follows these names where there are results of other inputs. The job may be stopped at any moment; the same
  command goes on, and with other `config.guidance.weights` adds rows.

  Args:
    config: the configuration; the `eval` section says how many samples are drawn, from which seed, and how they are
      scored. The `train` section and how samples are drawn need not be the workdir's.
    workdir: of a training job of a model that is told classes.
    seed: of no use; the `eval` section has its own.
    step: the checkpoint's, or None for the newest.

  Returns:
    What is in the `.csv`: by weight, samples without a class first.

  Raises:
    UserError: something that the user can mend.
    InterruptedRun: Ctrl-C or SIGTERM; finished rows are kept.
  """
  del seed
  if not config.model.num_classes:
    raise UserError(f'--mode=guidance needs a model that knows classes, and {workdir} has model.num_classes 0')
  if not config.guidance.weights:
    raise UserError('--config.guidance.weights names no weight: set it, as --config.guidance.weights="(0.0,1.0)"')
  config = config.copy_and_resolve_references()
  config.sampling.update({'label': 'all', 'guidance': 0.0, 'compose': ()})
  model = trained.load(config, workdir, step)
  config, step = model.config, model.step
  config.eval.baselines = False
  folder = workdir_lib.make(workdir, 'guidance')
  with interrupts.checked('stopped; finished rows are kept: run the same command again to go on') as check_stop:
    compared = scoring.load_reference(config, workdir, check_stop)
    inputs = {'step': step, **scoring.inputs(config, compared, _OF_ROWS)}
    base = workdir_lib.claim(folder, f'guidance_{step}', inputs, ('.csv', '.png'))
    rows = _measure(model, compared, base, check_stop)
  files.write_png(base + '.png', pictures.guidance_curves(*_curves(rows)))
  _log.info('results in %s.csv, pictures beside it', base)
  return rows


def _measure(model, compared, base, check_stop) -> list[Row]:
  """All rows, in their order: those of the file, and those that it lacks, each in the file once it is done."""
  path = f'{base}.csv'
  rows = {row.guidance: row for row in table.read(path, Row)}
  asked = [None, *sorted(set(map(float, model.config.guidance.weights)))]
  missing = [weight for weight in asked if weight not in rows]
  with contextlib.closing(Progress('guidance', len(asked), len(asked) - len(missing), shown=False)) as progress:
    for weight in missing:
      rows[weight] = _score(model, compared, weight, base, check_stop)
      table.write(path, _in_order(rows))
      progress.update(1)
      progress.line('weights')
  return _in_order(rows)


def _in_order(rows) -> list[Row]:
  return sorted(rows.values(), key=lambda row: (row.guidance is not None, row.guidance))


def _score(model, compared, weight, base, check_stop) -> Row:
  """The row with its scores, without them where the chains diverge; writes a picture of the first samples."""
  config = model.config.copy_and_resolve_references()
  config.sampling.update({'label': '', 'guidance': 0.0} if weight is None else {'guidance': weight})
  what, count = 'no class' if weight is None else f'guidance {weight:g}', config.model.num_classes
  found = scoring.score(model._replace(config=config), compared, what, _ROWS_OF_PICTURE * count, check_stop)
  if found is None:
    return Row(weight)
  drawn, scores = found
  name = 'no_class' if weight is None else f'{weight:g}'
  files.write_png(f'{base}_{name}.png', level_pictures.samples(drawn.samples[: _ROWS_OF_PICTURE * count], count))
  accuracy = None
  if weight is not None and compared.extractor.name == 'classifier':
    accuracy = float(np.mean(np.argmax(drawn.logits, axis=1) == np.arange(len(drawn.logits)) % count))
  _log.info('%s: Frechet distance %.4g, accuracy %s', what, scores['fid'], accuracy and f'{accuracy:.4g}')
  return Row(weight, accuracy, scores['fid'], scores['precision'], scores['recall'])


def _curves(rows):
  """Arguments of `pictures.guidance_curves`."""
  plain, told = [row for row in rows if row.guidance is None], [row for row in rows if row.guidance is not None]
  columns = {name: np.array([getattr(row, name) for row in told], float) for name in Row._fields}
  shares = {name: columns[name] for name in ('accuracy', 'precision', 'recall') if not np.all(np.isnan(columns[name]))}
  return columns['guidance'], shares, columns['frechet_distance'], plain[0].frechet_distance if plain else None
