"""The metrics of training steps: their averages, and the signs of a run gone wrong."""

import numpy as np

from diffusion_ebm.run.errors import DivergedError

# More scalars than these for each statistic would drown TensorBoard: with more levels, neighbours are averaged.
_MAX_GROUPS = 10
# The published implementation stops at the first and reports the second.
_EXPLODED_LOSS = 1e6
NEGATIVE_LOSSES_REPORTED = 2000
# Root mean square, in units of the data's range of [-1, 1]; a sound chain moves by less than 2.
_DIVERGED_DISPLACEMENT = 100.0


def summarise(steps: list[dict]) -> dict[str, float]:
  """Averages the metrics of some steps.

  Args:
    steps: what `train_step` returned for each, as NumPy arrays.

  Returns:
    Name to value: `skipped_steps` (updates left out for a gradient that was not finite) and, of the others, `loss`,
    `grad_norm`, `grad_max` (of the steps' largest), with a proposal `proposal_loss` and `proposal_grad_norm`, and, for
    each level or group of neighbouring levels,
    `level_loss/t`, `level_f/t`, `level_displacement/t` and (where they are trained) `level_time_score/t` and
    `level_score_matching/t`, averaged over its examples.
  """
  skipped = sum(int(m['bad_steps'] > 0) for m in steps)
  steps = [m for m in steps if not m['bad_steps']]
  if not steps:
    return {'skipped_steps': skipped}
  scalars = {
    'skipped_steps': skipped,
    'loss': float(np.mean([m['loss'] for m in steps])),
    'grad_norm': float(np.mean([m['grad_norm'] for m in steps])),
    'grad_max': float(np.max([m['grad_max'] for m in steps])),
  }
  for name in ('proposal_loss', 'proposal_grad_norm'):
    if name in steps[0]:
      scalars[name] = float(np.mean([m[name] for m in steps]))
  counts = np.sum([m['level_count'] for m in steps], 0)
  groups = np.array_split(np.arange(len(counts)), min(len(counts), _MAX_GROUPS))
  for name in ('level_loss', 'level_f', 'level_displacement', 'level_time_score', 'level_score_matching'):
    if name not in steps[0]:
      continue
    sums = np.sum([m[name] for m in steps], 0)
    for group in groups:
      if counts[group].sum():
        scalars[f'{name}/{group[0]}'] = float(sums[group].sum() / counts[group].sum())
  return scalars


def check(step: int, metrics: dict, dimension: int, max_bad_steps: int = 1):
  """Raises a `DivergedError` that names the level if a step's numbers say that the run has gone wrong.

  Args:
    step: the step's number.
    metrics: of `train_step`, as NumPy arrays.
    dimension: numbers in one example.
    max_bad_steps: with a gradient that is not finite, the update has been skipped; so many in a row go too far.
  """
  trouble = _trouble(step, metrics, dimension)
  skipped = int(metrics['bad_steps'])
  if trouble and not skipped:
    raise DivergedError(trouble)
  if skipped >= max_bad_steps:
    raise DivergedError(f'{skipped} updates in a row were skipped, as their gradients were not finite: {trouble}')


def _trouble(step, metrics, dimension):
  counts = np.maximum(metrics['level_count'], 1)
  moved = metrics['level_displacement'] / counts / np.sqrt(dimension)
  for level in np.flatnonzero(~(moved < _DIVERGED_DISPLACEMENT)):
    return (
      f'the Langevin chain of level {level} diverged at step {step}: try a smaller --config.sampling.step_size, '
      f'a smaller --config.train.learning_rate or --config.model.spectral_norm=True'
    )
  for level in np.flatnonzero(~(metrics['level_loss'] / counts < _EXPLODED_LOSS)):
    return (
      f'the loss of level {level} exploded at step {step}: try a smaller --config.train.learning_rate, '
      f'--config.train.grad_clip=1.0 or --config.model.spectral_norm=True'
    )
  if not np.isfinite(metrics.get('proposal_loss', 0.0) + metrics.get('proposal_grad_norm', 0.0)):
    return (
      f'the gradient of the proposal is not finite at step {step}: try a smaller --config.proposal.learning_rate or '
      f'--config.proposal.grad_clip=1.0'
    )
  if not np.isfinite(metrics['loss'] + metrics['grad_norm']):
    worst = int(np.argmax(metrics['level_loss'] / counts))
    return (
      f'the gradient is not finite at step {step} (largest loss at level {worst}): try a smaller '
      f'--config.train.learning_rate, --config.train.grad_clip=1.0 or --config.model.dtype=float32'
    )
  return None


class NegativeLosses:
  """Counts consecutive negative losses; a loss that stays negative means that the chain no longer mixes."""

  def __init__(self):
    self._count = 0

  def reported(self, loss: float) -> bool:
    """Takes the loss of a step; true once when `NEGATIVE_LOSSES_REPORTED` in a row have been negative."""
    self._count = self._count + 1 if loss < 0 else 0
    return self._count == NEGATIVE_LOSSES_REPORTED
