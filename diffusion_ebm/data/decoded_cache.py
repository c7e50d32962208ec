"""A cache of decoded images, in the user's cache folder: what took long to decode is read at once the next time."""

import contextlib
import hashlib
import json
import logging
import os
import shutil
from typing import NamedTuple

import numpy as np

from diffusion_ebm.data.decode import Facts
from diffusion_ebm.run import files, paths

_log = logging.getLogger(__name__)

MIN_SECONDS = 10.0  # what is decoded faster is not kept
_MAX_BYTES = 8 * 2**30  # of all that is kept; the oldest makes room
_SHARE_OF_DISK = 0.2  # of what is free, at most
_VERSION = 1  # raised when `decode` makes other pixels of the same file


class Decoded(NamedTuple):
  """A split of N images, K of which can be decoded.

  Attributes:
    images: these, uint8 (K, S, S, C); None where they do not fit the memory.
    facts: of these, int (K, F): the fields of `decode.Facts`.
    failures: number of each other image, in 0..N-1, to what is wrong with it.
  """

  images: np.ndarray | None
  facts: np.ndarray
  failures: dict[int, str]


def key(path: str, fingerprint: str, shape) -> str:
  """A name for decoded images: of which files, of what size, and by which version."""
  import PIL

  parts = [_VERSION, PIL.__version__, path, fingerprint, list(shape)]
  return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def load(name: str, count: int, shape: tuple[int, ...] | None) -> Decoded | None:
  """What is kept under a name; None if there is nothing, or something damaged.

  Args:
    name: of `key`.
    count: N.
    shape: (S, S, C), or None where the images are not needed.
  """
  parts = _paths(name)
  try:
    known = files.read_npz(parts['facts'])
    facts, failures = known['facts'], dict(zip(known['failed'].tolist(), known['reasons'].tolist(), strict=True))
    images = files.read_npz(parts['images'], 2 * _MAX_BYTES)['images'] if shape else None
    if len(facts) + len(failures) != count or facts.shape[1:] != (len(Facts._fields),):
      raise ValueError('facts of other images')
    if shape and (images.shape != (len(facts), *shape) or images.dtype != np.uint8):
      raise ValueError('other images')
  except (OSError, ValueError, LookupError):
    return None
  for path in parts.values():  # what is used is not the oldest
    with contextlib.suppress(OSError):
      os.utime(path)
  return Decoded(images, facts, failures)


def save(name: str, decoded: Decoded):
  """Keeps decoded images, where there is room; that there is none, or no right to write, does not matter."""
  parts = {
    'facts': {
      'facts': decoded.facts,
      'failed': np.array(list(decoded.failures), np.int64),
      'reasons': np.array(list(decoded.failures.values()), np.str_),
    }
  }
  if decoded.images is not None:
    parts['images'] = {'images': decoded.images}
  try:
    os.makedirs(_folder(), exist_ok=True)
    for part, arrays in parts.items():
      size, path = sum(array.nbytes for array in arrays.values()), _paths(name)[part]
      if size > min(_MAX_BYTES, _SHARE_OF_DISK * shutil.disk_usage(_folder()).free):
        return
      files.write_npz(path, arrays, compress=False)
    _remove_oldest()
  except OSError as error:
    _log.info('the decoded images are not kept for the next time (%s)', error.strerror or error)


def _folder():
  return os.path.join(paths.user_cache(), 'images')


def _paths(name):
  return {part: os.path.join(_folder(), f'{name}-{part}.npz') for part in ('facts', 'images')}


def _remove_oldest():
  with os.scandir(_folder()) as entries:
    kept = sorted(((entry.stat().st_mtime, entry.path, entry.stat().st_size) for entry in entries), reverse=True)
  total = 0
  for _, path, size in kept:
    total += size
    if total > _MAX_BYTES:
      with contextlib.suppress(OSError):
        os.remove(path)
