"""The endless, seeded, resumable stream of training batches."""

import functools

import grain
import numpy as np

# Batches made ahead, and the threads that make them: a source decodes in threads of its own, and
# a source in memory is bound by Python's lock.
_AHEAD = 8
_THREADS = 2
# Threads may be an epoch apart, and a batch of a small set spans several.
_ORDERS_KEPT = 4
# More steps than anyone takes, few enough for the products with batch sizes to fit 64 bits.
_FOREVER = 2**40


def train_batches(source, batch_size, seed, start_step=0, share=(0, 1), labelled=False):
  """Streams training batches without end.

  Batch `s` depends on the source, the batch size, the seed and `s` alone, so the position in the
  stream is the number of global batches consumed, and any number of hosts can take it up there.
  Each epoch is a new random order of all examples; a batch may span epochs. Closing or dropping
  the iterator ends the threads that read ahead.

  Args:
    source: a `diffusion_ebm.data.source.Source`.
    batch_size: examples in a global batch, B.
    seed: any non-negative integer.
    start_step: the number of the first batch.
    share: (i, n), i.e. this is host i of n; it gets rows i * B / n to (i + 1) * B / n.
    labelled: give the classes too; the source has labels.

  Returns:
    An iterator of `(examples, label)`: what `source.read` gives for B / n examples, and their classes, int32 (B / n,)
    from 1, as the networks number them; None if they are not asked for.

  Raises:
    ValueError: the source is empty, the hosts cannot share a batch equally, or the start, the
      seed or the share is out of range.
  """
  host, num_hosts = share
  if not len(source):
    raise ValueError('the source is empty')
  if not 0 <= host < num_hosts:
    raise ValueError(f'share {share} is not (i, n) with 0 <= i < n')
  if batch_size < 1 or batch_size % num_hosts:
    raise ValueError(f'{num_hosts} hosts cannot share batches of {batch_size} equally')
  if min(start_step, seed) < 0:
    raise ValueError(f'start_step {start_step} and seed {seed} have to be non-negative')
  labels = np.asarray(source.labels, np.int32) + 1 if labelled else None
  rows = np.arange(batch_size // num_hosts) + host * (batch_size // num_hosts)

  @functools.lru_cache(maxsize=_ORDERS_KEPT)
  def order(epoch):
    return np.random.default_rng((seed, epoch)).permutation(len(source))

  def batch(step):
    epochs, places = np.divmod(step * batch_size + rows, len(source))
    indices = np.empty_like(places)
    for epoch in np.unique(epochs):
      indices[epochs == epoch] = order(int(epoch))[places[epochs == epoch]]
    return source.read(indices), labels[indices] if labelled else None

  # Grain's own shuffle and batch take tens of microseconds per example: too long for small ones.
  options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_AHEAD)
  return iter(grain.MapDataset.range(start_step, _FOREVER).map(batch).to_iter_dataset(options))
