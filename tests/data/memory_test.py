"""Few large images at once, however many threads there are."""

import threading
import time

from absl.testing import absltest, parameterized

from diffusion_ebm.data import memory
from tests.data import folders


class NeededTest(parameterized.TestCase):
  def test_small_images_need_nothing_worth_counting(self):
    self.assertEqual(memory.needed(folders.encode(), 4), 0)
    self.assertEqual(memory.needed(folders.encode(0, 300, 400, 'JPEG'), 4), 0)

  def test_large_ones_need_several_times_their_pixels(self):
    image = folders.encode(0, 2000, 3000)
    self.assertBetween(memory.needed(image, 32), 4 * 6_000_000, 40 * 6_000_000)

  def test_of_a_jpeg_what_is_decoded_counts(self):
    image = folders.encode(0, 2400, 3000, 'JPEG')
    self.assertEqual(memory.needed(image, 32), 0)
    self.assertGreater(memory.needed(image, 2000), 4 * 7_000_000)

  def test_what_will_be_refused_is_refused_here(self):
    with self.assertRaises(ValueError):
      memory.needed(bytes(100_000), 4)


class BudgetTest(absltest.TestCase):
  def largest(self, limit, amounts):
    """The largest sum of amounts that threads held at once."""
    budget, lock, held, most = memory.Budget(limit), threading.Lock(), [], []

    def work(amount):
      with budget.taking(amount):
        with lock:
          held.append(amount)
          most.append(sum(held))
        time.sleep(0.02)
        with lock:
          held.remove(amount)

    threads = [threading.Thread(target=work, args=(amount,)) for amount in amounts]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join(10)
      self.assertFalse(thread.is_alive())
    return max(most)

  def test_no_more_than_the_limit_is_taken_at_once(self):
    self.assertBetween(self.largest(10, [4] * 8), 4, 8)

  def test_what_is_more_than_the_limit_comes_alone(self):
    self.assertEqual(self.largest(10, [25] * 4), 25)

  def test_nothing_is_always_there(self):
    budget = memory.Budget(0)
    with budget.taking(5), budget.taking(0):
      pass

  def test_what_fails_gives_back(self):
    budget = memory.Budget(3)
    for _ in range(3):
      with self.assertRaises(ValueError), budget.taking(2):
        raise ValueError


if __name__ == '__main__':
  absltest.main()
