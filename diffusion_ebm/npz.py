"""Files of named arrays from anywhere: nothing in them is executed, and they cannot fill the memory."""

import zipfile

import numpy as np

# The largest that this project writes for itself, features of 50,000 examples, are a sixth of it.
MAX_BYTES = 4 * 2**30


def read(path, max_bytes: int = MAX_BYTES) -> dict[str, np.ndarray]:
  """Reads all arrays of a `.npz` file.

  Args:
    path: the file.
    max_bytes: unpacked, of all arrays together.

  Raises:
    OSError: the file cannot be opened.
    ValueError: it is damaged, no such file, too large once unpacked, or holds objects, which would have to be executed.
  """
  try:
    with zipfile.ZipFile(path) as archive:
      size = sum(info.file_size for info in archive.infolist())
    if size > max_bytes:
      raise ValueError(f'it unpacks to {size} bytes, more than {max_bytes}')
    with np.load(path, allow_pickle=False) as file:
      return {name: np.asarray(file[name]) for name in file.files}
  except OSError:
    raise
  except Exception as error:  # a damaged file may lead to anything
    raise ValueError(' '.join(f'{error}'.split()) or type(error).__name__) from error
