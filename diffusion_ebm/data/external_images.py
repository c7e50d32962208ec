"""Images from elsewhere: what they are called, and how they get the shape that a run's model takes."""

import logging
import os
import pathlib
import re
import tarfile
import zipfile

from diffusion_ebm.data import images, load, own_image
from diffusion_ebm.data.source import ArraySource
from diffusion_ebm.run import paths
from diffusion_ebm.run.errors import UnknownDataSetError, UserError, printable

_log = logging.getLogger(__name__)

_GIVEN_NAME = re.compile(r'(\w[\w.+ -]*)=(.+)', re.DOTALL)


def name_sets(entries, flag: str, others: tuple[str, ...] = (), reserved: tuple[str, ...] = ()) -> dict[str, str]:
  """Names the sets of images that a flag lists, so that no two share one.

  A set is called what the user calls it (`NAME=PATH`). Otherwise it is called after the last part of its path, or the
  last parts where one tells it neither from another set nor from a name that means something else. A path that exists
  is one, also if it holds '=', or commas at which the list was split.

  Args:
    entries: a path, the name of a data set, or one of `others` each, the former two perhaps behind `NAME=`.
    flag: the command line's flag that lists them, for messages.
    others: what else the flag takes.
    reserved: names that mean something else, beside `others`.

  Returns:
    Name to what has it, in the order of the list: an absolute path, the name of a data set, or one of `others`.

  Raises:
    UserError: a name that is given means something else, or is given twice.
  """
  found = []  # (name or None, what has it), each once
  for entry in _whole(entries, flag, others):
    if entry in others:
      pair = entry, entry
      if os.path.exists(entry):
        _log.info('--%s=%s is not the %s in %s: name that ./%s', flag, entry, entry, os.getcwd(), entry)
    else:
      given, where = _split(entry, flag)
      if given in (taken := (*others, *reserved)):
        raise UserError(
          f'--{flag}={entry}: {given} means something else, as do {", ".join(taken)}: choose another name'
        )
      place = _place(where, flag)
      pair = given or (None if os.path.isabs(place) else place), place
    if pair not in found:
      found.append(pair)
  fixed = [name for name, _ in found if name]
  if twice := sorted({name for name in fixed if fixed.count(name) > 1}):
    raise UserError(f'--{flag} calls more than one set {twice[0]}: give each a name of its own, as NAME=PATH')
  unnamed = [place for name, place in found if not name]
  taken = {*fixed, *others, *reserved}
  return {name or _short_name(place, unnamed, taken): place for name, place in found}


def _whole(entries, flag, others):
  """The entries, those that are nothing put together with the next ones where that is a path that holds commas."""
  left, whole = list(entries), []
  while left:
    count = 1
    if left[0] not in others and not _exists(left[0], flag):
      lengths = range(len(left), 1, -1)
      count = next((n for n in lengths if _exists(','.join(left[:n]), flag)), 1)
    whole.append(','.join(left[:count]))
    del left[:count]
  return whole


def _exists(entry, flag):
  return os.path.exists(paths.local(_split(entry, flag)[1], f'--{flag}'))


def _split(entry, flag):
  """`(name or None, where)` of an entry."""
  match = _GIVEN_NAME.fullmatch(entry)
  if not match or os.path.exists(paths.local(entry, f'--{flag}')):
    return None, entry
  return match.groups()


def _place(where, flag):
  """An absolute path; or what cannot be one but the name of a data set, as it is."""
  path = paths.local(where, f'--{flag}')
  return os.path.abspath(path) if os.path.exists(path) or path.startswith((os.sep, '.')) else where


def _short_name(path, unnamed, taken):
  """As many of the last parts of a path as tell it from other paths and from names that are taken."""

  def last(count, path):
    name = '/'.join(pathlib.PurePath(path).parts[-count:])
    return printable(name)  # it goes to terminals and tables

  for count in range(1, len(pathlib.PurePath(path).parts)):
    name = last(count, path)
    if name not in taken and [last(count, other) for other in unnamed].count(name) == 1:
      return name
  return path


def load_elsewhere(data, where: str, flag: str, choose, others: tuple[str, ...] = ()):
  """Loads the test split of another data set, or the images of a folder, of an archive or of a file.

  Grey and colour images may be mixed: all get the channels that the model takes.

  Args:
    data: the `data` section of a run's configuration, whose size and channels the images get.
    where: a path or the name of a data set.
    flag: the command line's flag that named it, for messages.
    choose: which images, as of `load.load_some`.
    others: what else the flag takes, for messages.

  Returns:
    A source of shape (image_size, image_size, num_channels).

  Raises:
    UserError: there is no such thing, or its images do not fit.
  """
  place = _place(where, flag)
  what = ', '.join((*others, 'a folder, a .zip or .tar, an image, or a data set such as mnist or cifar10'))
  if not os.path.isabs(place):
    return _data_set(data, place, flag, choose, what)
  if not os.path.exists(place):
    raise UserError(f'--{flag}: {place} does not exist: name {what}')
  if os.path.isfile(place) and not _is_archive(place):
    return _file(data, place, flag)
  other = data.copy_and_resolve_references()
  other.update(
    {'name': 'images', 'path': place, 'train_split': '', 'test_split': '', 'test_fraction': 0.0, 'strict': False}
  )
  try:
    return images.load_some(other, 'train', choose)
  except UserError as error:  # its advice is for the run's own data
    raise UserError(f'{error}'.replace('--config.data.path', f'--{flag}')) from error


def _is_archive(path):
  return path.lower().endswith(('.zip', '.tar')) or zipfile.is_zipfile(path) or tarfile.is_tarfile(path)


def _data_set(data, name, flag, choose, what):
  other, shape = data.copy_and_resolve_references(), (data.image_size, data.image_size, data.num_channels)
  other.update(
    {'name': name, 'path': '' if data.name == 'images' else data.path, 'train_split': 'train', 'test_split': 'test'}
  )
  try:
    if name == 'images':  # which is for the run's own data
      raise UnknownDataSetError(name)
    source = load.load_some(other, 'test', choose)
  except UnknownDataSetError as error:
    raise UserError(f'--{flag}={name} is neither a file in {os.getcwd()} nor a data set: name {what}') from error
  except UserError as error:
    raise UserError(f'--{flag}={name} cannot be used: {error}') from error
  if source.shape != shape:
    raise UserError(f'--{flag}={name} has examples of shape {source.shape}, but the model takes {shape}')
  return source


def _file(data, path, flag):
  try:
    image = own_image.load(path, data.image_size, data.num_channels)
  except UserError as error:
    raise UserError(f'--{flag}: {error}: name an image, a folder or a .zip') from error
  return ArraySource(image[None])
