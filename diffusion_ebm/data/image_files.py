"""The files of a folder or of an archive, listed and read without being unpacked."""

import errno
import os
import re
import stat

from diffusion_ebm.data import archives, decode, listing
from diffusion_ebm.run import paths, workdir
from diffusion_ebm.run.errors import UserError

# Names of images; files of other names are used where their content is one.
SUFFIXES = (
  *('.png', '.jpg', '.jpeg', '.jfif', '.jpe', '.webp', '.tif', '.tiff', '.bmp', '.gif', '.avif'),
  *('.jp2', '.ppm', '.pgm', '.pbm', '.qoi'),
)
# What is wrong with a single file, where the folder around it can be reached.
_OF_ONE_FILE = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG)


def list_files(path: str) -> listing.Files:
  """Lists the files in a folder, at any depth, or in a `.zip` or `.tar` archive.

  Raises:
    UserError: there is nothing at the path, or nothing of the kind; names in the archive lead out of it, or it unpacks
      to far more than its size, or cannot be read as it is.
  """
  if not path:
    raise UserError('no images to read: name a folder or an archive with --config.data.path=PATH')
  if re.match(r'(https?|ftp)://', path):
    raise UserError(f'--config.data.path={path} is a web address: download it, and name the folder or archive')
  path = os.path.abspath(paths.local(path, '--config.data.path'))
  if os.path.isdir(path):
    return _list_folder(path)
  if not os.path.exists(path):
    raise UserError(f'{path} does not exist: set --config.data.path to a folder or an archive (.zip, .tar)')
  return archives.list_archive(path)


def _list_folder(path):
  names, hidden, workdirs, links, seen, left = [], 0, [], [], set(), [('', path)]
  while left:
    inside, folder = left.pop()
    # Links may run in circles.
    real = os.path.realpath(folder)
    if real in seen:
      if os.path.commonpath([real, os.path.realpath(os.path.dirname(folder))]) != real:  # not in a circle
        links.append(inside.rstrip('/'))
      continue
    seen.add(real)
    files, folders = _scan(folder)
    if set(files).issuperset(listing.KEPT):
      files = [name for name in files if name not in listing.KEPT]
    if workdir.is_one(files, folders):
      if not inside:
        raise listing.workdir_refused(path)
      workdirs.append(inside.rstrip('/'))
      continue
    hidden += sum(map(listing.is_hidden, (*files, *folders)))
    names += [inside + name for name in files if not listing.is_hidden(name)]
    # The first of several links to a folder counts: in the order of names.
    for name in sorted(folders, reverse=True):
      if not listing.is_hidden(name):
        left.append((f'{inside}{name}/', os.path.join(folder, name)))
  identity = _identity(path)

  def head(name):
    try:
      return _head(os.path.join(path, name))
    except OSError as error:
      if error.errno in _OF_ONE_FILE and _identity(path) == identity:
        raise
      raise listing.lost(path, name, error) from error

  def read(name):
    try:
      with open(os.path.join(path, name), 'rb') as file:
        return listing.read_bounded(file, os.fstat(file.fileno()).st_size)
    except OSError as error:
      raise listing.lost(path, name, error) from error

  return listing.Files(path, sorted(names), hidden, sorted(workdirs), sorted(links), head, read)


def _scan(folder):
  """`(files, folders)`, the names."""
  files, folders = [], []
  try:
    with os.scandir(folder) as entries:
      for entry in entries:
        (folders if _is_folder(entry) else files).append(entry.name)
  except OSError as error:
    advice = 'allow it to be read, or remove it' if isinstance(error, PermissionError) else 'is it still connected?'
    raise UserError(f'{folder} cannot be listed ({error.strerror}): {advice}') from error
  return files, folders


def _is_folder(entry):
  try:
    return entry.is_dir()
  except OSError:  # such as a link to itself
    return False


def _head(path):
  status = os.stat(path)
  if not stat.S_ISREG(status.st_mode):  # reading from a pipe or a device may never end
    raise ValueError('not a file')
  with open(path, 'rb', buffering=0) as file:
    prefix = file.read(decode.MAGIC_BYTES)
  return listing.Head(status.st_size, listing.utc(status.st_mtime_ns // 1000), '', prefix)


def _identity(path):
  """Of a folder: another one once a share is no longer mounted there; None if it is gone."""
  try:
    status = os.stat(path)
    os.scandir(path).close()
    return status.st_dev, status.st_ino
  except OSError:
    return None
