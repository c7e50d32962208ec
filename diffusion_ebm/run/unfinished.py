"""Arrays of long work that has not ended, on disk, so that a job that was killed goes on where it was."""

import hashlib
import json
import os
import shutil
import time

import numpy as np

from diffusion_ebm.run import files

_SECONDS = 20.0  # between two times that the same arrays are written


class Unfinished:
  """The folder of a job's unfinished work; jobs of other inputs have others."""

  def __init__(self, folder: str | None = None, inputs: dict | None = None):
    """Names the folder.

    Args:
      folder: of the job's results; None to keep nothing.
      inputs: all that the work depends on, as JSON can hold it.
    """
    key = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:12]
    self._folder = None if folder is None else os.path.join(folder, f'unfinished_{key}')
    self._written = {}

  def read(self, name: str) -> dict[str, np.ndarray]:
    """The arrays of a name; {} if there are none, or none that can be read."""
    try:
      return files.read_npz(os.path.join(self._folder, f'{name}.npz')) if self._folder else {}
    except (OSError, ValueError):
      return {}

  def write(self, name: str, arrays: dict[str, np.ndarray], done: bool):
    """Writes the arrays of a name in the place of those before, unless that was a moment ago and not all is `done`."""
    now = time.monotonic()
    if self._folder is None or not done and now - self._written.setdefault(name, now) < _SECONDS:
      return
    os.makedirs(self._folder, exist_ok=True)
    files.write_npz(os.path.join(self._folder, f'{name}.npz'), arrays, compress=False)
    self._written[name] = time.monotonic()

  def remove(self):
    """Removes all, once the results are written."""
    if self._folder is not None:
      shutil.rmtree(self._folder, ignore_errors=True)
