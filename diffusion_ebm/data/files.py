"""The image files of a folder or of a zip archive, read without being unpacked."""

from collections.abc import Callable
import os
import threading
from typing import NamedTuple
import zipfile

from diffusion_ebm.data.decode import MAX_BYTES
from diffusion_ebm.errors import UserError

SUFFIXES = ('.png', '.jpg', '.jpeg', '.webp')


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
    UserError: there is nothing at the path, it is neither a folder nor a zip archive, or it holds
      no images.
  """
  if not path:
    raise UserError(
      'no images to read: name a folder or a zip archive with --config.data.path=PATH'
    )
  path = os.path.expanduser(path)
  if not os.path.exists(path):
    raise UserError(f'{path} does not exist: set --config.data.path to a folder or a zip archive')
  files = _folder(path) if os.path.isdir(path) else _archive(path)
  if not files.names:
    raise UserError(
      f'{path} holds no images (PNG, JPEG or WebP files): set --config.data.path to one that does'
    )
  return files


def _is_image(name):
  parts = name.split('/')
  hidden = any(part.startswith('.') or part == '__MACOSX' for part in parts)
  return not hidden and name.lower().endswith(SUFFIXES)


def _refuse(error):
  raise UserError(
    f'{error.filename} cannot be listed ({error.strerror}): allow it to be read, or remove it'
  )


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
    with open(os.path.join(path, name), 'rb') as file:
      return _bounded(file, os.fstat(file.fileno()).st_size)

  return Files(sorted(filter(_is_image, names)), read)


def _archive(path):
  try:
    archive = zipfile.ZipFile(path)
  except (zipfile.BadZipFile, OSError) as error:
    raise UserError(
      f'{path} is neither a folder nor a zip archive that can be read ({error}): '
      'set --config.data.path to one, or fetch the archive again'
    ) from error
  lock = threading.Lock()  # what threads may do with a `ZipFile` is not documented

  def read(name):
    with lock, archive.open(name) as file:
      return _bounded(file, archive.getinfo(name).file_size)

  return Files(sorted(filter(_is_image, set(archive.namelist()))), read)


def _bounded(file, size):
  """Reads a file whole, unless it is too large to be an image."""
  if size > MAX_BYTES:
    raise ValueError(f'{size} bytes are more than {MAX_BYTES}')
  return file.read(MAX_BYTES)
