"""Separately encoded images: all decoded into memory, or each one when it is read."""

from collections.abc import Callable
import concurrent.futures
import dataclasses
import functools
import os
import sys

import numpy as np

# Images per task of a thread: to hand over a task takes longer than to decode a small image.
_CHUNK = 32


@dataclasses.dataclass(frozen=True)
class OnDemandSource:
  """A source that decodes what is read, in threads.

  Attributes:
    decode: (number of an image) -> uint8 (H, W, C).
    numbers: int (N,), the numbers of the images.
    shape: (H, W, C).
    find_labels: () -> int (N,) or None; called once, when the labels are asked for.
    num_workers: threads.
    pool: these threads; they end with the source.
  """

  decode: Callable
  numbers: np.ndarray
  shape: tuple[int, ...]
  find_labels: Callable
  num_workers: int
  pool: concurrent.futures.ThreadPoolExecutor

  @functools.cached_property
  def labels(self):
    return self.find_labels()

  def __len__(self):
    return len(self.numbers)

  def read(self, indices):
    numbers = self.numbers[indices]
    images = np.empty((len(numbers), *self.shape), np.uint8)
    # Two tasks per thread even out the differences in size.
    chunk = -(-len(numbers) // (2 * self.num_workers)) or 1

    def work(start):
      for row in range(start, min(start + chunk, len(numbers))):
        images[row] = self.decode(numbers[row])

    for _ in self.pool.map(work, range(0, len(numbers), chunk)):
      pass
    return images


def on_demand(decode, numbers, shape, find_labels, num_workers):
  """Makes an `OnDemandSource`; num_workers = 0 is the number of cores."""
  num_workers = num_workers or os.cpu_count()
  pool = concurrent.futures.ThreadPoolExecutor(num_workers, thread_name_prefix='decode')
  return OnDemandSource(decode, numbers, tuple(shape), find_labels, num_workers, pool)


def fits_memory(count, shape, max_memory_gb):
  """Whether so many uint8 images take no more than the memory allowed, in units of 2**30 bytes."""
  return count * int(np.prod(shape)) <= max_memory_gb * 2**30


def decode_all(decode, count, shape, num_workers, keep):
  """Decodes images 0 .. count - 1 in threads, with a progress bar when it takes long.

  Args:
    decode: (number of an image) -> uint8 (H, W, C).
    count: the number of images, N.
    shape: (H, W, C).
    num_workers: threads; 0 is the number of cores.
    keep: whether to keep the images, or only to see that they can be decoded.

  Returns:
    (uint8 (N, H, W, C) or None, {number: exception} of those that cannot be decoded; their pixels
    are arbitrary).
  """
  import tqdm

  images = np.empty((count, *shape), np.uint8) if keep else None
  failures = {}

  def work(start):
    stop = min(start + _CHUNK, count)
    for number in range(start, stop):
      try:
        image = decode(number)
      except Exception as error:  # a decoder may raise anything on damaged files
        failures[number] = error
        continue
      if keep:
        images[number] = image
    return stop - start

  pool = concurrent.futures.ThreadPoolExecutor(num_workers or os.cpu_count())
  try:
    bar = tqdm.tqdm(total=count, desc='reading images', unit='image', delay=2, file=sys.stderr)
    with bar:
      for done in pool.map(work, range(0, count, _CHUNK)):
        bar.update(done)
  finally:
    pool.shutdown(cancel_futures=True)  # an interrupt does not wait for the rest
  return images, dict(sorted(failures.items()))
