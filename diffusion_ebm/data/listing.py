"""What is known of the files of a folder or archive, and which names in it are passed over."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from diffusion_ebm.data.decode import MAX_BYTES
from diffusion_ebm.run.errors import UserError

# What systems put beside images, in lower case, beside what begins with a dot; @eadir holds thumbnails.
_HIDDEN = {'__macosx', '@eadir', '#recycle', '$recycle.bin', 'system volume information', 'thumbs.db', 'desktop.ini'}
# What a run keeps of its data: beside each other in a folder of images, they are not its own.
KEPT = ('files.csv', 'summary.json', 'training_images.png')


class Head(NamedTuple):
  """What is known of a file before it is read whole.

  Attributes:
    size: bytes.
    modified: when it was last changed: UTC, or in a zip the time on the clock that it was packed by.
    checksum: of its content, where the archive has one, else ''.
    prefix: its first `decode.MAGIC_BYTES` bytes.
  """

  size: int
  modified: str
  checksum: str
  prefix: bytes


class Files(NamedTuple):
  """The files of a folder or archive.

  Attributes:
    path: of the folder or archive, absolute.
    names: sorted paths inside of it, with '/' between the parts.
    hidden: how many files and folders were passed over because they are hidden, or the system's own.
    workdirs: folders that were passed over because they are workdirs of runs, whose images are results.
    links: links to folders that were passed over because these are read under another name.
    head: (name) -> `Head`; may be called from several threads. Raises an exception where the file cannot be read.
    read: (name) -> bytes; likewise. Raises a UserError where the file was there and cannot be reached any more.
  """

  path: str
  names: list[str]
  hidden: int
  workdirs: list[str]
  links: list[str]
  head: Callable
  read: Callable


def is_hidden(part: str) -> bool:
  """Whether a file or folder of that name is passed over."""
  # Of an image that lies in iCloud alone, `.NAME.icloud` is left: it is missing, and counted.
  return part.startswith('.') and not part.endswith('.icloud') or part.lower() in _HIDDEN


def utc(microseconds: int) -> str:
  """A time since 1970, to be read; times that no clock shows stay in range."""
  return f'{np.datetime64(min(max(microseconds, -(2**62)), 2**62), "us")}Z'


def read_bounded(file, size: int) -> bytes:
  """Reads a file whole, unless it is too large to be an image."""
  if size > MAX_BYTES:
    raise ValueError(f'{size} bytes are more than {MAX_BYTES}')
  return file.read(MAX_BYTES)


def lost(path: str, name: str, error: OSError) -> UserError:
  """Of a file that was there a moment ago: what is left is not the set of images that was asked for."""
  return UserError(
    f'{name} in {path} was there, but cannot be read any more '
    f'({error.strerror or error}): see that the disk or share is connected, leave the images alone during a run, and '
    'start again'
  )


def workdir_refused(path: str) -> UserError:
  """Of a workdir in place of a folder of images."""
  return UserError(
    f'{path} is the workdir of a run, not a folder of images: keep images in a folder of their own, '
    'or name one of its folders'
  )
