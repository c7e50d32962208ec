"""Separately encoded images: all decoded into memory, or each one when it is read."""

from collections.abc import Callable
import concurrent.futures
import dataclasses
import functools
import os
import threading
from typing import Any

import numpy as np

from diffusion_ebm.run.errors import UserError
from diffusion_ebm.run.progress import Progress

# Images per task of a thread, at most: to hand over a task takes longer than to decode a small image. Tasks, at most.
_CHUNK, _MAX_TASKS = 32, 2000
_SECONDS_BETWEEN_LOOKS = 0.5


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
    classes: as of `Source`, like the others.
    fingerprint: of the examples.
    record: of their files.
  """

  decode: Callable
  numbers: np.ndarray
  shape: tuple[int, ...]
  find_labels: Callable
  num_workers: int
  pool: concurrent.futures.ThreadPoolExecutor
  classes: tuple[str, ...] | None = None
  fingerprint: str = ''
  record: Any = dataclasses.field(default=None, repr=False)

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


def on_demand(decode, numbers, shape, find_labels, num_workers, **known):
  """Makes an `OnDemandSource`; num_workers = 0 is the number of cores, `known` its last attributes."""
  num_workers = num_workers or os.cpu_count()
  pool = concurrent.futures.ThreadPoolExecutor(num_workers, thread_name_prefix='decode')
  return OnDemandSource(decode, numbers, tuple(shape), find_labels, num_workers, pool, **known)


def fits_memory(count, shape, max_memory_gb):
  """Whether so many uint8 images take no more than the memory allowed, in units of 2**30 bytes."""
  return count * int(np.prod(shape)) <= max_memory_gb * 2**30


def decode_all(decode, count, shape, num_workers, keep):
  """Decodes images 0 .. count - 1 in threads, and says how far it is when it takes long.

  Args:
    decode: (number of an image) -> uint8 (H, W, C).
    count: the number of images, N.
    shape: (H, W, C).
    num_workers: threads; 0 is the number of cores.
    keep: whether to keep the images, or only to see that they can be decoded.

  Returns:
    (uint8 (N, H, W, C) or None, {number: exception} of those that cannot be decoded; their pixels are arbitrary).

  Raises:
    UserError: `decode` raised one: it is not about a single image.
  """
  num_workers = num_workers or os.cpu_count()
  chunk = max(1, min(_CHUNK, count // (4 * num_workers)), count // _MAX_TASKS)
  images = np.empty((count, *shape), np.uint8) if keep else None
  starts, failures, stopped = range(0, count, chunk), {}, threading.Event()
  done = np.zeros(len(starts), np.int64)  # in each task

  def work(task):
    for number in range(starts[task], min(starts[task] + chunk, count)):
      if stopped.is_set():
        return
      try:
        image = decode(number)
        if keep:
          images[number] = image
      except UserError:
        raise
      except Exception as error:  # a decoder may raise anything on damaged files
        failures[number] = error
      done[task] += 1

  pool, progress = concurrent.futures.ThreadPoolExecutor(num_workers), Progress('reading images', count, unit='image')
  try:
    _wait({pool.submit(work, task) for task in range(len(starts))}, done, progress)
  finally:
    stopped.set()  # an interrupt does not wait for the rest
    pool.shutdown(cancel_futures=True)
    progress.close()
  return images, dict(sorted(failures.items()))


def _wait(tasks, done, progress):
  """Waits for tasks, each of which counts in `done` what it has done; raises what one of them raises."""
  shown = 0
  while tasks:
    finished, tasks = concurrent.futures.wait(tasks, _SECONDS_BETWEEN_LOOKS, concurrent.futures.FIRST_EXCEPTION)
    for task in finished:
      task.result()
    so_far = int(done.sum())
    progress.update(so_far - shown)
    progress.line(always=False)
    shown = so_far
