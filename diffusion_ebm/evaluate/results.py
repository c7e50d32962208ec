"""The records of evaluated checkpoints in a file of lines, which several jobs may share and any may leave at once."""

import contextlib
import fcntl
import json
import os

from diffusion_ebm.run import files


def read(path: str) -> list[dict]:
  """The whole records in a file, in their order; [] if there is none."""
  records = []
  with contextlib.suppress(FileNotFoundError), open(path, encoding='utf-8') as file:
    for line in file:
      with contextlib.suppress(ValueError):  # a line that a full disk has cut short
        records.append(json.loads(line))
  return records


def append(path: str, record: dict):
  """Adds a record: a whole line at once, on the disk when this returns."""
  line = (files.to_json(record) + '\n').encode()
  with files.naming(path), open(path, 'ab+', buffering=0) as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    size = file.seek(0, os.SEEK_END)
    if size:
      file.seek(size - 1)
      if file.read(1) != b'\n':
        line = b'\n' + line
    files.append(file, line)
    os.fsync(file.fileno())


@contextlib.contextmanager
def claim(folder: str, step: int):
  """Yields whether the step is this job's alone; the claim ends with the context, or with the process."""
  os.makedirs(folder, exist_ok=True)
  with open(os.path.join(folder, f'{step}.lock'), 'w', encoding='utf-8') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      yield False
      return
    yield True
