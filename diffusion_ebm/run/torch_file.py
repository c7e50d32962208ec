"""Files of `torch.save`, read without PyTorch and without executing what is in them."""

import collections
from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import functools
import io
import math
import os
import pickle
from typing import Any
import zipfile

import numpy as np

from diffusion_ebm.run import files

# The first object in a file of PyTorch before 1.6.
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_ZIP = b'PK\3\4'
_MAX_PICKLE_BYTES = 64 * 2**20  # without the tensors' numbers
_DTYPES = {
  'FloatStorage': '<f4',
  'DoubleStorage': '<f8',
  'HalfStorage': '<f2',
  'LongStorage': '<i8',
  'IntStorage': '<i4',
  'ShortStorage': '<i2',
  'ByteStorage': 'u1',
  'CharStorage': 'i1',
  'BoolStorage': '?',
}
# Of values that stand beside the tensors, in the states of optimisers; they are not made.
_IGNORED = {
  ('__builtin__', 'set'),
  ('_codecs', 'encode'),
  ('builtins', 'set'),
  ('numpy', 'dtype'),
  ('numpy._core.multiarray', 'scalar'),
  ('numpy.core.multiarray', 'scalar'),
  ('torch', 'Size'),
  ('torch', 'device'),
}


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A tensor in an open file.

  Attributes:
    storage: key of the numbers that it is a part of.
    dtype: of the numbers, by NumPy's name.
    offset: of its first number.
    shape: its shape.
    strides: from one index to the next along each axis, in numbers.
    load: from the key of a storage to its bytes.
  """

  storage: str
  dtype: str
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]
  load: Callable[[str], bytes] = dataclasses.field(repr=False)

  @property
  def nbytes(self) -> int:
    return math.prod(self.shape) * np.dtype(self.dtype).itemsize

  def read(self) -> np.ndarray:
    """Its numbers.

    Raises:
      ValueError: it reaches beyond what is there.
      Exception: of any kind, where the file is damaged.
    """
    values = np.frombuffer(self.load(self.storage), self.dtype)
    if math.prod(self.shape) > len(values):  # with strides of 0 it would fill the memory
      raise ValueError('it is larger than its storage')
    end = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True)) + 1
    if any(n < 0 for n in (self.offset, *self.shape, *self.strides)) or end > len(values):
      raise ValueError('it reaches beyond its storage')
    strides = [s * values.itemsize for s in self.strides]
    return np.lib.stride_tricks.as_strided(values[self.offset :], self.shape, strides).copy()


@contextlib.contextmanager
def opened(path: str, max_bytes: int) -> Iterator[Any]:
  """What was saved: dictionaries, lists and plain values, and a `Tensor` for each tensor, to be read in this context.

  Nothing in the file is executed: the only names that its pickle may call are those that rebuild a tensor.

  Args:
    path: a file of either format.
    max_bytes: of the file, unpacked.

  Raises:
    pickle.UnpicklingError: the pickle calls anything else.
    ValueError: it is another kind of file, or too large.
    Exception: of any kind, where the file is damaged.
  """
  _check_size(os.path.getsize(path), max_bytes)
  if zipfile.is_zipfile(path):
    with zipfile.ZipFile(path) as archive:
      yield _from_zip(archive, max_bytes)
    return
  with open(path, 'rb') as file:
    if file.read(len(_ZIP)) == _ZIP:
      raise ValueError('it is cut short: copy or download it again')
    file.seek(0)
    yield _from_pickles(file)


def read_arrays(path: str, max_bytes: int) -> dict[str, np.ndarray]:
  """Reads a dictionary of tensors, which may be the `state_dict` of a checkpoint; arguments and errors of `opened`."""
  with opened(path, max_bytes) as saved:
    if not isinstance(saved, dict):
      raise ValueError('it holds no dictionary of tensors')
    return read(saved.get('state_dict', saved), max_bytes)


def read(tensors: dict[str, Tensor], max_bytes: int) -> dict[str, np.ndarray]:
  """The numbers of tensors of an open file.

  Raises:
    ValueError: one of them is none, or reaches beyond what is there, or all are too large together.
    Exception: of any kind, where the file is damaged.
  """
  for name, tensor in tensors.items():
    if not isinstance(tensor, Tensor):
      raise ValueError(f'{name} is no tensor')
  _check_size(sum(tensor.nbytes for tensor in tensors.values()), max_bytes)
  arrays = {}
  for name, tensor in tensors.items():
    try:
      arrays[name] = tensor.read()
    except ValueError as error:
      raise ValueError(f'{name}: {error}') from error
  return arrays


def why_unreadable(path: str, error: Exception) -> str:
  """Why a file of weights cannot be read, in one line: what else it is or, where that is not known, the error."""
  kind = files.mistaken_for(path)
  if kind in ('', files.PICKLE):  # older files of PyTorch are pickles
    return ' '.join(f'{error}'.split())[:300] or type(error).__name__
  return kind


def _check_size(size, max_bytes):
  if size > max_bytes:
    raise ValueError(f'{size} bytes are more than {max_bytes}')


def _from_zip(archive, max_bytes):
  _check_size(sum(entry.file_size for entry in archive.infolist()), max_bytes)
  pickled = next((name for name in archive.namelist() if name.endswith('/data.pkl')), None)
  if pickled is None:
    raise ValueError('a zip without data.pkl')
  root = pickled.removesuffix('data.pkl')
  if f'{root}constants.pkl' in archive.namelist():
    raise ValueError('it is a program (TorchScript)')
  _check_size(archive.getinfo(pickled).file_size, _MAX_PICKLE_BYTES)
  return _Unpickler(io.BytesIO(archive.read(pickled)), lambda key: archive.read(f'{root}data/{key}')).load()


def _from_pickles(file):
  places = {}

  def load(key):
    start, size = places[key]
    file.seek(start)
    return file.read(size)

  if _Unpickler(file, load).load() != _LEGACY_MAGIC:
    raise ValueError('not a file of PyTorch')
  _Unpickler(file, load).load()  # version of the protocol
  _Unpickler(file, load).load()  # sizes of C types
  unpickler = _Unpickler(file, load)
  saved = unpickler.load()
  for key in _Unpickler(file, load).load():
    size = int.from_bytes(file.read(8), 'little') * np.dtype(unpickler.dtypes[key]).itemsize
    places[key] = file.tell(), size
    file.seek(size, os.SEEK_CUR)
  return saved


class _Ignored:
  """Stands for a value that no weights need."""

  def __init__(self, *args):
    pass

  def __setstate__(self, state):
    pass


class _Unpickler(pickle.Unpickler):
  """Knows nothing but dictionaries, lists, plain values and tensors, whose numbers `load` finds."""

  def __init__(self, file, load):
    super().__init__(file, encoding='utf-8')
    self.dtypes, self._load = {}, load

  def find_class(self, module, name):
    if (module, name) == ('collections', 'OrderedDict'):
      return collections.OrderedDict
    if (module, name) == ('torch._utils', '_rebuild_tensor_v2'):
      return functools.partial(_rebuild, self._load)
    if (module, name) == ('torch._utils', '_rebuild_parameter'):
      return lambda tensor, *_: tensor
    if module == 'torch' and name in _DTYPES:
      return _DTYPES[name]
    if (module, name) in _IGNORED:
      return _Ignored
    raise pickle.UnpicklingError(f'it calls {module}.{name}, which no file of weights needs')

  def persistent_load(self, pid):
    kind, dtype, key = pid[:3]
    if kind != 'storage' or dtype not in _DTYPES.values():
      raise pickle.UnpicklingError('unknown kind of object')
    self.dtypes[key] = dtype
    return key, dtype


def _rebuild(load, storage, offset, shape, strides, *_):
  return Tensor(*storage, offset, shape, strides, load)
