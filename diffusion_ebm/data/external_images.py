"""Images from elsewhere, in the shape that a run's model takes."""

import os

import numpy as np

from diffusion_ebm.data import decode, load
from diffusion_ebm.data.image_files import SUFFIXES
from diffusion_ebm.data.source import ArraySource
from diffusion_ebm.run import paths
from diffusion_ebm.run.errors import UnknownDataSetError, UserError


def load_elsewhere(data, where: str, flag: str, others: tuple[str, ...] = ()):
  """Loads the test split of another data set, or all images of a folder, of a zip archive or of a file.

  Args:
    data: the `data` section of a run's configuration, whose size and channels the images get.
    where: a path or the name of a data set.
    flag: the command line's flag that named it, for messages.
    others: what else the flag takes, likewise.

  Returns:
    A source of shape (image_size, image_size, num_channels).

  Raises:
    UserError: there is no such thing, or its images do not fit.
  """
  path = paths.local(where, f'--{flag}')
  if where.lower().endswith(SUFFIXES):
    return _file(data, path, flag)
  what = ', '.join((*others, 'a folder, a .zip, an image, or a data set such as mnist or cifar10'))
  other = data.copy_and_resolve_references()
  if os.path.exists(path):
    other.update({'name': 'images', 'path': path, 'train_split': '', 'test_split': '', 'test_fraction': 0.0})
    return load.load_source(other, 'train')
  if os.sep in where or where.endswith('.zip'):
    raise UserError(f'--{flag}: {where} does not exist: name {what}')
  other.update(
    {'name': where, 'path': '' if data.name == 'images' else data.path, 'train_split': 'train', 'test_split': 'test'}
  )
  try:
    source = load.load_source(other, 'test')
  except UnknownDataSetError as error:
    raise UserError(f'--{flag}={where} is neither a file nor a data set: name {what}') from error
  except UserError as error:
    raise UserError(f'--{flag}={where} cannot be used: {error}') from error
  shape = (data.image_size, data.image_size, data.num_channels)
  if source.shape != shape:
    raise UserError(f'--{flag}={where} has examples of shape {source.shape}, but the model takes {shape}')
  return source


def _file(data, path, flag):
  try:
    with open(path, 'rb') as file:
      image, _ = decode.decode(file.read(), data.image_size, data.num_channels)
  except Exception as error:
    raise UserError(f'--{flag}: {path} cannot be read as an image ({error}): name a PNG, JPEG or WebP file') from error
  return ArraySource(np.asarray(image)[None])
