"""The published weights of the Inception network: fetched, checked, and read without executing what is in them."""

import functools
import logging
import os
import urllib.request

from flax import traverse_util
import jax
import numpy as np

from diffusion_ebm.evaluate import inception
from diffusion_ebm.run import files, paths, torch_file
from diffusion_ebm.run.errors import UserError
from diffusion_ebm.run.progress import Progress

_log = logging.getLogger(__name__)

NAME = 'pt_inception-2015-12-05-6726825d.pth'
URL = f'https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{NAME}'
SHA256 = '6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2'
_BYTES = 95_628_359

_MAX_BYTES = 4 * _BYTES  # no file of these weights is larger, unpacked

_EPSILON = 1e-3  # of the batch normalisation
_BATCH_NORM = ('weight', 'bias', 'running_mean', 'running_var')
_UNUSED = '.num_batches_tracked'
_FAULTS_SHOWN = 2
_CHUNK = 2**20


def find(path: str) -> str:
  """The file of weights: `path`, or the published one, downloaded into the user's cache when it is not there yet.

  Raises:
    UserError: there is no such file, or it cannot be downloaded, or what came is not what was published.
  """
  path = paths.local(path, '--config.eval.inception_weights')
  if path:
    if not os.path.isfile(path):
      raise UserError(f'--config.eval.inception_weights={path} is no file: it should be a copy of {URL}')
    return path
  path = os.path.join(paths.user_cache(), NAME)
  if not os.path.exists(path):
    _download(path)
  return path


def _download(path):
  advice = f'fetch {URL} elsewhere and name the file with --config.eval.inception_weights='
  try:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with urllib.request.urlopen(URL, timeout=30) as response, files.replacing(path) as file:
      progress = Progress('downloading the Inception weights', _BYTES, unit='byte')
      while (chunk := response.read(_CHUNK)) and file.tell() <= _BYTES:  # more would be something else
        file.write(chunk)
        progress.update(len(chunk))
        progress.line(always=False)
      progress.close()
      file.flush()
      found = files.sha256(file.name)
      if found != SHA256:
        raise UserError(
          f'what {URL} gave is damaged (SHA-256 {found[:8]}..., not {SHA256[:8]}...): try again, or {advice}'
        )
  except OSError as error:
    raise UserError(f'the Inception weights cannot be downloaded ({error}): {advice}') from error


def load(path: str):
  """Reads the network's parameters, batch normalisation folded into the convolutions.

  Args:
    path: a file of `torch.save`, of either format.

  Returns:
    The `params` of `inception.Inception`, float32.

  Raises:
    UserError: the file is not one of Inception weights.
  """
  try:
    return from_arrays(torch_file.read_arrays(path, _MAX_BYTES))
  except Exception as error:  # a damaged file may lead to anything
    cause = torch_file.why_unreadable(path, error)
    raise UserError(f'{path} cannot be read as Inception weights ({cause}): it should be a copy of {URL}') from error


def from_arrays(arrays: dict[str, np.ndarray]):
  """Turns weights with PyTorch's names into the `params` of `inception.Inception`.

  Args:
    arrays: for each layer `LAYER.conv.weight` (O, I, H, W) and `LAYER.bn.weight`, `bias`, `running_mean`,
      `running_var` (O,); `fc.weight` (1008, 2048), `fc.bias`.

  Returns:
    The parameters.

  Raises:
    ValueError: they are not those of this network: one is missing, has another shape, or holds what no weight can be.
  """
  _check(arrays)
  params = {('fc', 'kernel'): arrays['fc.weight'].T, ('fc', 'bias'): arrays['fc.bias']}
  for name, kernel in arrays.items():
    if not name.endswith('.conv.weight'):
      continue
    layer = name.removesuffix('.conv.weight')
    scale, shift, mean, variance = (arrays[f'{layer}.bn.{part}'].astype(np.float64) for part in _BATCH_NORM)
    scale = scale / np.sqrt(variance + _EPSILON)
    path = tuple(layer.split('.')) if '.' in layer else ('stem', layer)
    params[(*path, 'kernel')] = kernel.transpose(2, 3, 1, 0) * scale
    params[(*path, 'bias')] = shift - mean * scale
  return traverse_util.unflatten_dict({path: np.asarray(value, np.float32) for path, value in params.items()})


def _check(arrays):
  """Raises a `ValueError` that names the first weights at fault."""
  if any(name.startswith('AuxLogits.') for name in arrays) or np.shape(arrays.get('fc.weight')) == (1000, 2048):
    raise ValueError("it is torchvision's network for classification, not that of the Frechet inception distance")
  shapes = _shapes()
  faults = [fault for name, shape in shapes.items() if (fault := _fault(name, arrays.get(name), shape))]
  faults += [f'{name} is unknown' for name in arrays if name not in shapes and not name.endswith(_UNUSED)]
  if faults:
    more = f', and {len(faults) - _FAULTS_SHOWN} more' if len(faults) > _FAULTS_SHOWN else ''
    raise ValueError(', '.join(faults[:_FAULTS_SHOWN]) + more)


def _fault(name, array, shape):
  if array is None:
    return f'{name} is missing'
  if array.shape != shape:
    return f'{name} has the shape {array.shape}, not {shape}'
  if not np.all(np.isfinite(array)):
    return f'{name} is not finite'
  return f'{name} is negative' if name.endswith('.running_var') and array.min() < 0 else ''


@functools.cache
def _shapes():
  """Of all weights that the network needs, by PyTorch's names."""
  images = np.zeros((1, inception.SIZE, inception.SIZE, 3), np.uint8)
  params = jax.eval_shape(inception.Inception().init, jax.random.key(0), images)['params']
  shapes = {}
  for path, kernel in traverse_util.flatten_dict(params).items():
    layer, width = '.'.join(path[:-1]).removeprefix('stem.'), kernel.shape[-1:]
    if path == ('fc', 'kernel'):
      shapes |= {'fc.weight': kernel.shape[::-1], 'fc.bias': width}
    elif path[-1] == 'kernel':
      height, breadth, channels, _ = kernel.shape
      shapes[f'{layer}.conv.weight'] = (*width, channels, height, breadth)
      shapes |= {f'{layer}.bn.{part}': width for part in _BATCH_NORM}
  return shapes
