"""Tests of the stream of training batches."""

import gc
import itertools
import threading
import time

from absl.testing import absltest, parameterized
import numpy as np

from diffusion_ebm.data import train_batches
from diffusion_ebm.data.source import ArraySource


def _numbers(n):
  """A source whose examples are their own indices."""
  return ArraySource(np.arange(n, dtype=np.float32)[:, None])


def _take(batches, count):
  return [batch[:, 0].astype(int).tolist() for batch, _ in itertools.islice(batches, count)]


def _flat(batches):
  return list(itertools.chain.from_iterable(batches))


def _prefetch_threads():
  return [t for t in threading.enumerate() if t.name.startswith('grain-prefetch')]


class PipelineTest(parameterized.TestCase):
  @parameterized.parameters((12, 4), (10, 4), (7, 3), (1, 1), (5, 1))
  def test_each_epoch_covers_every_example_exactly_once(self, num_examples, batch_size):
    batches = train_batches(_numbers(num_examples), batch_size, seed=3)
    stream = _flat(_take(batches, 3 * num_examples))
    for start in range(0, len(stream) - num_examples + 1, num_examples):
      self.assertCountEqual(stream[start : start + num_examples], range(num_examples))

  def test_batch_larger_than_the_data_spans_epochs(self):
    stream = _flat(_take(train_batches(_numbers(3), 10, seed=0), 6))
    self.assertLen(stream, 60)
    for start in range(0, 60, 3):
      self.assertCountEqual(stream[start : start + 3], range(3))

  def test_epochs_differ_in_order(self):
    epochs = _take(train_batches(_numbers(50), 50, seed=0), 5)
    self.assertLen({tuple(epoch) for epoch in epochs}, 5)

  def test_order_is_uniform(self):
    # Over many epochs each example is first about equally often: chi-squared, 9 degrees.
    firsts = [epoch[0] for epoch in _take(train_batches(_numbers(10), 10, seed=1), 2000)]
    counts = np.bincount(firsts, minlength=10)
    self.assertLess(np.sum((counts - 200) ** 2 / 200), 27.9)  # the 99.9th percentile

  def test_same_seed_gives_the_same_stream_and_another_seed_another(self):
    stream = _take(train_batches(_numbers(100), 8, seed=5), 30)
    self.assertEqual(stream, _take(train_batches(_numbers(100), 8, seed=5), 30))
    self.assertNotEqual(stream, _take(train_batches(_numbers(100), 8, seed=6), 30))

  def test_neighbouring_seeds_share_no_epochs(self):
    epochs = [{tuple(epoch) for epoch in _take(train_batches(_numbers(30), 30, seed=seed), 20)} for seed in (0, 1, 2)]
    self.assertLen(epochs[0] | epochs[1] | epochs[2], 60)

  @parameterized.parameters(0, 2**31, 2**32, 2**63 + 1)
  def test_any_non_negative_seed_will_do(self, seed):
    self.assertCountEqual(_take(train_batches(_numbers(9), 9, seed=seed), 1)[0], range(9))

  @parameterized.parameters(1, 2, 5, 13)
  def test_stream_from_step_s_is_the_stream_without_its_first_s_batches(self, start):
    whole = _take(train_batches(_numbers(10), 4, seed=2), 20)
    self.assertEqual(_take(train_batches(_numbers(10), 4, seed=2, start_step=start), 20 - start), whole[start:])

  @parameterized.parameters(1, 2, 3, 6)
  def test_shares_of_hosts_make_up_the_global_batch(self, num_hosts):
    whole = _take(train_batches(_numbers(20), 12, seed=4, start_step=3), 7)
    shares = [
      _take(train_batches(_numbers(20), 12, seed=4, start_step=3, share=(host, num_hosts)), 7)
      for host in range(num_hosts)
    ]
    for step, batch in enumerate(whole):
      self.assertEqual(_flat(share[step] for share in shares), batch)

  def test_another_number_of_hosts_can_continue_the_stream(self):
    whole = _take(train_batches(_numbers(20), 6, seed=4), 10)
    first = [_take(train_batches(_numbers(20), 6, 4, share=(h, 2)), 5) for h in range(2)]
    then = [_take(train_batches(_numbers(20), 6, 4, 5, share=(h, 3)), 5) for h in range(3)]
    joined = [_flat(parts) for parts in zip(*first, strict=True)]
    joined += [_flat(parts) for parts in zip(*then, strict=True)]
    self.assertEqual(joined, whole)

  def test_far_start_reads_no_more_than_a_near_one(self):
    read = []

    class Counting(ArraySource):
      def read(self, indices):
        read.append(len(indices))
        return super().read(indices)

    source = Counting(_numbers(1000).examples)
    start = time.monotonic()
    with_far_start = train_batches(source, 10, seed=0, start_step=10**9)
    self.assertLen(next(with_far_start)[0], 10)
    with_far_start.close()
    self.assertLess(time.monotonic() - start, 5)
    self.assertLess(sum(read), 1000)

  def test_batches_are_what_the_source_reads(self):
    images = np.random.default_rng(0).integers(256, size=(9, 4, 4, 3), dtype=np.uint8)
    batch, label = next(train_batches(ArraySource(images), 9, seed=0))
    self.assertIsNone(label)
    self.assertEqual((batch.shape, batch.dtype), ((9, 4, 4, 3), np.uint8))
    self.assertCountEqual([i.tobytes() for i in batch], [i.tobytes() for i in images])

  def test_labels_are_those_of_the_examples_counted_from_one(self):
    source = ArraySource(np.arange(10, dtype=np.float32)[:, None], np.arange(10) % 3, ('a', 'b', 'c'))
    for examples, label in itertools.islice(train_batches(source, 4, seed=0, labelled=True), 9):
      np.testing.assert_array_equal(label, examples[:, 0].astype(int) % 3 + 1)
      self.assertEqual(label.dtype, np.int32)

  def test_batches_are_read_ahead(self):
    reads = threading.Semaphore(0)

    class Signalling(ArraySource):
      def read(self, indices):
        reads.release()
        return super().read(indices)

    batches = train_batches(Signalling(_numbers(10).examples), 2, seed=0)
    next(batches)
    for _ in range(4):
      self.assertTrue(reads.acquire(timeout=10))

  def test_closing_or_dropping_the_iterator_ends_its_threads(self):
    for close in (lambda batches: batches.close(), lambda batches: None):
      gc.collect()
      before = set(_prefetch_threads())
      batches = train_batches(_numbers(10), 2, seed=0)
      next(batches)
      threads = set(_prefetch_threads()) - before
      self.assertNotEmpty(threads)
      close(batches)
      del batches
      gc.collect()
      for thread in threads:
        thread.join(timeout=10)
        self.assertFalse(thread.is_alive())

  def test_error_of_the_source_reaches_the_reader(self):
    class Broken(ArraySource):
      def read(self, indices):
        raise OSError('the disk is gone')

    with self.assertRaisesRegex(OSError, 'the disk is gone'):
      next(train_batches(Broken(_numbers(10).examples), 2, seed=0))

  @parameterized.parameters(
    ({'batch_size': 0}, 'batches of 0'),
    ({'batch_size': 4, 'share': (0, 3)}, '3 hosts cannot share batches of 4'),
    ({'share': (2, 2)}, 'share'),
    ({'share': (-1, 2)}, 'share'),
    ({'start_step': -1}, 'start_step'),
    ({'source': _numbers(0)}, 'empty'),
    ({'seed': -1}, 'non-negative'),
  )
  def test_senseless_arguments_are_refused_at_once(self, changes, message):
    with self.assertRaisesRegex(ValueError, message):
      train_batches(**{'source': _numbers(5), 'batch_size': 4, 'seed': 0, **changes})


if __name__ == '__main__':
  absltest.main()
