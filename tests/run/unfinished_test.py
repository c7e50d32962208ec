"""Unfinished work on disk."""

import os
import tempfile
from unittest import mock

from absl.testing import absltest
import numpy as np

from diffusion_ebm.run import files, unfinished


class UnfinishedTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = self.enterContext(tempfile.TemporaryDirectory())

  def test_work_of_the_same_inputs_goes_on_and_of_others_does_not(self):
    unfinished.Unfinished(self.folder, {'seed': 1}).write('forward', {'x': np.arange(3)}, True)
    np.testing.assert_array_equal(unfinished.Unfinished(self.folder, {'seed': 1}).read('forward')['x'], [0, 1, 2])
    self.assertEqual(unfinished.Unfinished(self.folder, {'seed': 2}).read('forward'), {})
    self.assertEqual(unfinished.Unfinished(self.folder, {'seed': 1}).read('reverse'), {})

  def test_it_is_written_now_and_then_and_at_the_end(self):
    work = unfinished.Unfinished(self.folder, {})
    with mock.patch.object(unfinished.time, 'monotonic', side_effect=[0.0, 19.0, 21.0, 21.0, 22.0, 23.0, 23.0]):
      found = []
      for number, done in ((1, False), (2, False), (3, False), (4, False), (5, True)):
        work.write('forward', {'x': np.array(number)}, done)
        found.append(int(work.read('forward').get('x', 0)))
    self.assertEqual(found, [0, 0, 3, 3, 5])

  def test_what_cannot_be_read_is_done_again_and_all_is_removed_in_the_end(self):
    work = unfinished.Unfinished(self.folder, {})
    work.write('forward', {'x': np.arange(3)}, True)
    (name,) = os.listdir(self.folder)
    files.write_text(os.path.join(self.folder, name, 'forward.npz'), 'PK')
    self.assertEqual(work.read('forward'), {})
    work.remove()
    self.assertEqual(os.listdir(self.folder), [])

  def test_without_a_folder_nothing_is_kept(self):
    work = unfinished.Unfinished()
    work.write('forward', {'x': np.arange(3)}, True)
    self.assertEqual(work.read('forward'), {})
    work.remove()


if __name__ == '__main__':
  absltest.main()
