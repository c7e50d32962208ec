"""Training metrics: from the sums of each step to scalars, their files, and the signs of a run gone wrong."""

import collections
import contextlib
import json
import os
import resource
import sys

import numpy as np

from diffusion_ebm.errors import DivergedError

# More scalars than these for each statistic would drown TensorBoard: with more levels, neighbours are averaged.
_MAX_GROUPS = 10
# The published implementation stops at the first and reports the second.
_EXPLODED_LOSS = 1e6
NEGATIVE_LOSSES_REPORTED = 2000
# Root mean square, in units of the data's range of [-1, 1]; a sound chain moves by less than 2.
_DIVERGED_DISPLACEMENT = 100.0
# What waits for a full disk to be cleared, in bytes.
_MAX_PENDING = 16 * 2**20
_SAFE = 'safe:'


def summarise(steps: list[dict]) -> dict[str, float]:
  """Averages the metrics of some steps.

  Args:
    steps: what `train_step` returned for each, as NumPy arrays.

  Returns:
    Name to value: `skipped_steps` (updates left out for a gradient that was not finite) and, of the others, `loss`,
    `grad_norm`, `grad_max` (of the steps' largest) and, for each level or group of neighbouring levels,
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
      'grad_max': float(np.max([m['grad_max'] for m in steps]))}
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
        f'a smaller --config.train.learning_rate or --config.model.spectral_norm=True')
  for level in np.flatnonzero(~(metrics['level_loss'] / counts < _EXPLODED_LOSS)):
    return (
        f'the loss of level {level} exploded at step {step}: try a smaller --config.train.learning_rate, '
        f'--config.train.grad_clip=1.0 or --config.model.spectral_norm=True')
  if not np.isfinite(metrics['loss'] + metrics['grad_norm']):
    worst = int(np.argmax(metrics['level_loss'] / counts))
    return (
        f'the gradient is not finite at step {step} (largest loss at level {worst}): try a smaller '
        f'--config.train.learning_rate, --config.train.grad_clip=1.0 or --config.model.dtype=float32')
  return None


class NegativeLosses:
  """Counts consecutive negative losses; a loss that stays negative means that the chain no longer mixes."""

  def __init__(self):
    self._count = 0

  def reported(self, loss: float) -> bool:
    """Takes the loss of a step; true once when `NEGATIVE_LOSSES_REPORTED` in a row have been negative."""
    self._count = self._count + 1 if loss < 0 else 0
    return self._count == NEGATIVE_LOSSES_REPORTED


def peak_memory_gb() -> float:
  """The most main memory that this process has held at once, in units of 2**30 bytes."""
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak / 2**30 if sys.platform == 'darwin' else peak / 2**20


class _Appended:
  """A file to which bytes are added: all that has been given up to a flush, or nothing, which waits for the next."""

  def __init__(self, path):
    self._file = open(path, 'ab', buffering=0)  # noqa: SIM115 (closed by `close`)
    self._pending = b''

  def write(self, data: bytes):
    self._pending = (self._pending + data)[-_MAX_PENDING:]

  def flush(self):
    """Writes what is pending; raises an `OSError` where the disk is full."""
    size = self._file.seek(0, os.SEEK_END)
    try:
      rest = memoryview(self._pending)
      while rest:
        rest = rest[self._file.write(rest):]
    except OSError:
      self._file.truncate(size)
      raise
    self._pending = b''

  def close(self):
    try:
      self.flush()
    finally:
      self._file.close()


class _BoardFile(_Appended):
  """TensorBoard's events. On a full disk, tensorboardX' own file would end its thread, and then the run would hang."""

  def flush(self):
    with contextlib.suppress(OSError):
      super().flush()


class _BoardFiles:
  """How tensorboardX opens files in folders whose name begins with `_SAFE`."""
  exists = staticmethod(lambda path: os.path.exists(path.removeprefix(_SAFE)))
  directory_check = staticmethod(lambda path: os.makedirs(path.removeprefix(_SAFE), exist_ok=True))
  open = staticmethod(lambda path: _BoardFile(path.removeprefix(_SAFE)))


class Writer:
  """Writes scalars to `metrics.jsonl` and TensorBoard, and pictures to TensorBoard."""

  def __init__(self, workdir, step: int):
    """Opens the files of `workdir`; records beyond `step`, of a run that was interrupted, are dropped."""
    import tensorboardX

    path = os.path.join(workdir, 'metrics.jsonl')
    _drop_after(path, step)
    self._file = _Appended(path)
    tensorboardX.record_writer.register_writer_factory(_SAFE.rstrip(':'), _BoardFiles)
    self._board = tensorboardX.SummaryWriter(
        _SAFE + os.path.join(workdir, 'tensorboard'), purge_step=step + 1 if step else None)

  def scalars(self, step: int, values: dict[str, float]):
    """Writes a record; on a full disk it raises an `OSError`, and the record waits for the next."""
    for name, value in values.items():
      self._board.add_scalar(name, value, step)
    self._file.write((json.dumps({'step': step, **values}) + '\n').encode())
    self._file.flush()

  def picture(self, step: int, name: str, picture: np.ndarray):
    """A picture, uint8 (H, W, 3)."""
    self._board.add_image(name, picture, step, dataformats='HWC')

  def close(self):
    """Closes the files; on a full disk it raises an `OSError`."""
    self._board.close()
    self._file.close()


class NoWriter:
  """Writes nothing: for the processes that leave it to the first."""

  def scalars(self, step: int, values: dict[str, float]):
    pass

  def picture(self, step: int, name: str, picture: np.ndarray):
    pass

  def close(self):
    pass


def _drop_after(path, step):
  """Keeps the whole lines of the file whose step is at most `step`."""
  if not os.path.exists(path):
    return
  kept = []
  with open(path, encoding='utf-8') as file:
    for line in file:
      try:
        if json.loads(line)['step'] <= step:
          kept.append(line)
      except ValueError:  # the last line of a killed run
        continue
  with open(path + '.tmp', 'w', encoding='utf-8') as file:
    file.writelines(kept)
  os.replace(path + '.tmp', path)


class Lagged:
  """A queue that hands out each entry `lag` entries later, so that reading it does not hold up the devices."""

  def __init__(self, lag: int = 2):
    self._lag = lag
    self._queue = collections.deque()

  def push(self, entry):
    """Takes an entry; yields those that are due."""
    self._queue.append(entry)
    while len(self._queue) > self._lag:
      yield self._queue.popleft()

  def flush(self):
    """Yields all the others."""
    while self._queue:
      yield self._queue.popleft()
