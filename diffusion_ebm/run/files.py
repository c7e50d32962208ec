"""Files: written whole or not at all, and read without executing what is in them or filling the memory."""

import contextlib
import hashlib
import io
import json
import math
import os
import re
import zipfile

import numpy as np

# The largest that this project writes for itself, features of 50,000 examples, are a sixth of it.
MAX_BYTES = 4 * 2**30

PICKLE = 'it is a pickle, which is not read, since it could run any code'
# How files begin that are often taken for others.
_SIGNS = {
  rb'\Z': 'it is empty',
  rb'(?i)\s*<(!doctype|html|head|\?xml)': 'it is a web page, as servers send in place of a file',
  rb'version https://git-lfs': 'it is a pointer of Git LFS: `git lfs pull` fetches the file itself',
  rb'(?s).{6}\0\0\{"': 'it is a file of safetensors',
  rb'(?s)\n.{1,3}\n.[\w/]+\x12': 'it is a graph of TensorFlow',
  rb'\x1f\x8b': 'it is compressed by gzip',
  rb'\x89HDF': 'it is a file of HDF5',
  rb'\x93NUMPY': 'it is a single array (.npy)',
  rb'\x89PNG|\xff\xd8\xff|GIF8': 'it is an image',
  rb'\x80[\2-\5]': PICKLE,
}


@contextlib.contextmanager
def replacing(path):
  """Opens a file for bytes that takes the place of `path` when the context ends without an exception."""
  partial = f'{path}.{os.getpid()}.tmp'
  try:
    with naming(path):
      with open(partial, 'wb') as file:
        yield file
      os.replace(partial, path)
  except BaseException:
    with contextlib.suppress(OSError):
      os.remove(partial)
    raise


@contextlib.contextmanager
def naming(path):
  """Gives the path to an `OSError` of the context that has none: those of writing to an open file have not."""
  try:
    yield
  except OSError as error:
    error.filename = error.filename or str(path)
    raise


def append(file, data: bytes):
  """Adds bytes to the end of an unbuffered file: all, or none and an `OSError`."""
  size, rest = file.seek(0, os.SEEK_END), memoryview(data)
  try:
    while rest:
      rest = rest[file.write(rest) :]
  except OSError:
    file.truncate(size)
    raise


def digest(array: np.ndarray) -> str:
  """A short name for an array's type, shape and numbers: equal for equal ones, and no others."""
  array = np.ascontiguousarray(array)
  return hashlib.sha256(f'{array.dtype}{array.shape}'.encode() + array.tobytes()).hexdigest()[:16]


def sha256(path) -> str:
  """The SHA-256 of a file, in hexadecimal."""
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def write_text(path, text: str):
  """Writes text as UTF-8."""
  with replacing(path) as file:
    file.write(text.encode())


def to_json(value, indent: int | None = None) -> str:
  """What JSON can hold, as text; NaN and infinity, for which JSON has no words, as `null`."""

  def finite(value):
    if isinstance(value, dict):
      return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
      return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

  return json.dumps(finite(value), indent=indent, allow_nan=False)


def write_json(path, value):
  """Writes what JSON can hold, indented, as of `to_json`."""
  write_text(path, to_json(value, indent=2) + '\n')


def write_npz(path, arrays: dict[str, np.ndarray], compress: bool = True):
  """Writes named arrays as `.npz`."""
  with replacing(path) as file:
    (np.savez_compressed if compress else np.savez)(file, **arrays)


def write_npy(path, array: np.ndarray):
  """Writes an array as `.npy`."""
  content = io.BytesIO()  # straight into a file, NumPy does not notice that the disk is full
  np.save(content, array)
  with replacing(path) as file:
    file.write(content.getbuffer())


def write_png(path, picture: np.ndarray):
  """Writes a picture, uint8 (H, W, 3)."""
  from PIL import Image

  with replacing(path) as file:
    Image.fromarray(picture).save(file, format='PNG')


def read_json(path):
  """What a JSON file holds; None if there is no such file.

  Raises:
    OSError: it cannot be opened.
    ValueError: it is damaged.
  """
  try:
    with open(path, encoding='utf-8') as file:
      return json.load(file)
  except (FileNotFoundError, NotADirectoryError):
    return None
  except RecursionError as error:
    raise ValueError('nested too deeply') from error


def mistaken_for(path) -> str:
  """What kind of file this is, by its first bytes, where one of arrays or weights should be; '' if unknown."""
  try:
    with open(path, 'rb') as file:
      head = file.read(256)
  except OSError:
    return ''
  return next((kind for sign, kind in _SIGNS.items() if re.match(sign, head)), '')


def read_npz(path, max_bytes: int = MAX_BYTES, names=None) -> dict[str, np.ndarray]:
  """Reads arrays of a `.npz` file.

  Args:
    path: the file.
    max_bytes: unpacked, of all that are read together.
    names: read only those of these that there are; None for all.

  Raises:
    OSError: the file cannot be opened.
    ValueError: it is damaged, no such file, too large once unpacked, or holds objects, which would have to be executed.
  """
  try:
    with zipfile.ZipFile(path) as archive:
      sizes = [(info.filename.removesuffix('.npy'), info.file_size) for info in archive.infolist()]
    size = sum(size for name, size in sizes if names is None or name in names)
    if size > max_bytes:
      raise ValueError(f'it unpacks to {size} bytes, more than {max_bytes}')
    with np.load(path, allow_pickle=False) as file:
      return {name: np.asarray(file[name]) for name in file.files if names is None or name in names}
  except OSError:
    raise
  except Exception as error:  # a damaged file may lead to anything
    raise ValueError(mistaken_for(path) or ' '.join(f'{error}'.split()) or type(error).__name__) from error
