"""Writes files as PyTorch does, without PyTorch."""

import collections
import io
import os
import pathlib
import pickle
import sys
import types
from unittest import mock
import zipfile

import numpy as np

STORAGES = {'<f4': 'FloatStorage', '<f8': 'DoubleStorage', '<f2': 'HalfStorage', '<i8': 'LongStorage'}


def torch_modules():
  """Stand-ins for the names that PyTorch's pickles call."""
  torch, utils = types.ModuleType('torch'), types.ModuleType('torch._utils')

  def _rebuild_tensor_v2():
    raise AssertionError('a reader called it')

  def _rebuild_parameter():
    raise AssertionError('a reader called it')

  for function in (_rebuild_tensor_v2, _rebuild_parameter):
    function.__module__, function.__qualname__ = 'torch._utils', function.__name__
    setattr(utils, function.__name__, function)
  for name in STORAGES.values():
    setattr(torch, name, type(name, (), {'__module__': 'torch'}))
  torch._utils = utils
  return {'torch': torch, 'torch._utils': utils}


class _Storage:
  def __init__(self, array):
    self.array = array

  @property
  def key(self):
    return str(1000 + id(self.array))


class _Tensor:
  def __init__(self, array, is_parameter, utils):
    self.array, self.is_parameter, self.utils = array, is_parameter, utils

  def __reduce__(self):
    array = self.array
    if self.is_parameter:
      return self.utils._rebuild_parameter, (_Tensor(array, False, self.utils), True, collections.OrderedDict())
    base = array if array.base is None else array.base
    start = (array.ctypes.data - base.ctypes.data) // array.itemsize
    strides = tuple(s // array.itemsize for s in array.strides)
    arguments = (_Storage(base), start, array.shape, strides, False, collections.OrderedDict())
    return self.utils._rebuild_tensor_v2, arguments


def save(tree, path, legacy=False, parameters=()):
  """Writes a file as `torch.save` does: since 1.6 a zip, before it a row of pickles (`legacy`).

  Arrays in the dictionaries and lists of `tree` are tensors, those of the names `parameters` parameters. Views of one
  array share a storage.
  """
  modules, storages = torch_modules(), {}

  def tensors(value, name=''):
    if isinstance(value, np.ndarray):
      return _Tensor(value, name in parameters, modules['torch._utils'])
    if isinstance(value, list):
      return [tensors(each) for each in value]
    if not isinstance(value, dict):
      return value
    made = collections.OrderedDict((key, tensors(each, key)) for key, each in value.items())
    made._metadata = collections.OrderedDict(version=1)
    return made

  class Pickler(pickle.Pickler):
    def persistent_id(self, thing):
      if not isinstance(thing, _Storage):
        return None
      storages[thing.key] = array = thing.array
      kind = getattr(modules['torch'], STORAGES[array.dtype.str])
      pid = 'storage', kind, thing.key, 'cpu', array.size
      return (*pid, None) if legacy else pid

  with mock.patch.dict(sys.modules, modules):
    if not legacy:
      pickled = io.BytesIO()
      Pickler(pickled, 2).dump(tensors(tree))
      with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('weights/data.pkl', pickled.getvalue())
        for key, array in storages.items():
          archive.writestr(f'weights/data/{key}', array.tobytes())
      return
    with open(path, 'wb') as file:
      pickle.dump(0x1950A86A20F9469CFC6C, file, 2)
      pickle.dump(1001, file, 2)
      pickle.dump({'protocol_version': 1001, 'little_endian': True, 'type_sizes': {'long': 4}}, file, 2)
      Pickler(file, 2).dump(tensors(tree))
      pickle.dump(sorted(storages, reverse=True), file, 2)
      for key in sorted(storages, reverse=True):
        file.write(storages[key].size.to_bytes(8, 'little') + storages[key].tobytes())


class Evil:
  """What makes a folder when it is unpickled."""

  def __init__(self, folder):
    self._folder = folder

  def __reduce__(self):
    return os.mkdir, (self._folder,)


def write_pickle(saved, path, legacy):
  """Writes a pickle where a file of either format has it."""
  pickled = pickle.dumps(saved, 2)
  if legacy:
    pathlib.Path(path).write_bytes(pickled)
  else:
    with zipfile.ZipFile(path, 'w') as archive:
      archive.writestr('x/data.pkl', pickled)
