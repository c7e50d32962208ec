"""What a run writes as it goes: scalars to `metrics.jsonl` and TensorBoard, pictures to TensorBoard."""

import collections
import contextlib
import json
import os
import resource
import sys

import numpy as np

from diffusion_ebm.run import files

# What waits for a full disk to be cleared, in bytes.
_MAX_PENDING = 16 * 2**20
_SAFE = 'safe:'


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
    files.append(self._file, self._pending)
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


def open_board(folder, purge_step: int | None = None):
  """tensorboardX' writer of events in a folder, whose events wait for space on a full disk; close it."""
  import tensorboardX

  tensorboardX.record_writer.register_writer_factory(_SAFE.rstrip(':'), _BoardFiles)
  return tensorboardX.SummaryWriter(_SAFE + folder, purge_step=purge_step)


class Writer:
  """Writes scalars to `metrics.jsonl` and TensorBoard, and pictures to TensorBoard."""

  def __init__(self, workdir, step: int):
    """Opens the files of `workdir`; records beyond `step`, of a run that was interrupted, are dropped."""
    path = os.path.join(workdir, 'metrics.jsonl')
    _drop_after(path, step)
    self._file = _Appended(path)
    self._board = open_board(os.path.join(workdir, 'tensorboard'), step + 1 if step else None)

  def scalars(self, step: int, values: dict[str, float]):
    """Writes a record; on a full disk it raises an `OSError`, and the record waits for the next."""
    for name, value in values.items():
      self._board.add_scalar(name, value, step)
    self._file.write((files.to_json({'step': step, **values}) + '\n').encode())
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
  files.write_text(path, ''.join(kept))


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
