"""The image files of a folder or of a zip archive, read without being unpacked."""

from collections.abc import Callable
import os
import threading
from typing import NamedTuple
import zipfile

from diffusion_ebm.data.decode import MAX_BYTES
from diffusion_ebm.run import paths
from diffusion_ebm.run.errors import UserError

SUFFIXES = ('.png', '.jpg', '.jpeg', '.webp')
# Images are compressed already: an archive that unpacks to more than this, and to so many times its size, is a bomb.
_SUSPICIOUS_BYTES, _SUSPICIOUS_RATIO = 2**30, 100


class Files(NamedTuple):
  """Image files.

  Attributes:
    names: sorted paths inside the folder or archive, with '/' between the parts.
    read: (name) -> bytes; may be called from several threads.
  """

  names: list[str]
  read: Callable


def list_images(path):
  """Lists the images in a folder, at any depth, or in a zip archive.

  Hidden files, what macOS adds to archives, and files that are not images are left out.

  Args:
    path: a folder or a zip archive.

  Returns:
    A `Files`.

  Raises:
    UserError: there is nothing at the path, it is neither a folder nor a zip archive, it holds no
      images, or names in the archive lead out of it, or it unpacks to far more than its size.
  """
  if not path:
    raise UserError('no images to read: name a folder or a zip archive with --config.data.path=PATH')
  path = paths.local(path, '--config.data.path')
  if not os.path.exists(path):
    raise UserError(f'{path} does not exist: set --config.data.path to a folder or a zip archive')
  files = _folder(path) if os.path.isdir(path) else _archive(path)
  if not files.names:
    raise UserError(f'{path} holds no images (PNG, JPEG or WebP files): set --config.data.path to one that does')
  return files


def _is_image(name):
  parts = name.split('/')
  hidden = any(part.startswith('.') or part == '__MACOSX' for part in parts)
  return not hidden and name.lower().endswith(SUFFIXES)


def _refuse(error):
  raise UserError(f'{error.filename} cannot be listed ({error.strerror}): allow it to be read, or remove it')


def _folder(path):
  names, seen = [], set()
  for folder, subfolders, files in os.walk(path, onerror=_refuse, followlinks=True):
    # Links may run in circles.
    real = os.path.realpath(folder)
    if real in seen:
      subfolders.clear()
      continue
    seen.add(real)
    subfolders.sort()
    inside = os.path.relpath(folder, path).replace(os.sep, '/')
    names += [name if inside == '.' else f'{inside}/{name}' for name in files]

  def read(name):
    file = os.path.join(path, name)
    if not os.path.isfile(file):  # reading from a pipe or a device may never end
      raise ValueError('not a file')
    with open(file, 'rb') as file:
      return _bounded(file, os.fstat(file.fileno()).st_size)

  return Files(sorted(filter(_is_image, names)), read)


def _archive(path):
  try:
    if not os.path.isfile(path):
      raise ValueError('not a file')
    archive = zipfile.ZipFile(path)
  except Exception as error:  # a damaged archive may lead to anything
    raise UserError(
      f'{path} is neither a folder nor a zip archive that can be read ({error}): '
      'set --config.data.path to one, or fetch the archive again'
    ) from error
  _check_archive(archive, path)
  lock = threading.Lock()  # what threads may do with a `ZipFile` is not documented

  def read(name):
    with lock, archive.open(name) as file:
      return _bounded(file, archive.getinfo(name).file_size)

  return Files(sorted(filter(_is_image, set(archive.namelist()))), read)


def _check_archive(archive, path):
  """Refuses what no archive of images holds. Nothing is ever unpacked to the disk."""
  unpacked = 0
  for entry in archive.infolist():
    parts = entry.filename.replace('\\', '/').split('/')
    if '..' in parts or os.path.isabs(entry.filename) or ':' in parts[0]:
      raise UserError(
        f'{path} holds {entry.filename!r}, a name that leads out of the archive: do not trust it; '
        'fetch the images from elsewhere, or pack them again'
      )
    unpacked += entry.file_size
  packed = os.path.getsize(path)
  if unpacked > max(_SUSPICIOUS_BYTES, _SUSPICIOUS_RATIO * packed):
    raise UserError(
      f'{path} has {packed} bytes but unpacks to {unpacked}: images do not, so it is not read; '
      'unpack it yourself if you trust it, and name the folder'
    )


def _bounded(file, size):
  """Reads a file whole, unless it is too large to be an image."""
  if size > MAX_BYTES:
    raise ValueError(f'{size} bytes are more than {MAX_BYTES}')
  return file.read(MAX_BYTES)
