import json
import os
import tempfile

from absl.testing import absltest
import numpy as np

from diffusion_ebm.run import writers
from tests import testing


class WritersTest(absltest.TestCase):
  def test_what_a_full_disk_keeps_out_is_written_later_and_lines_are_whole(self):
    workdir = self.enterContext(tempfile.TemporaryDirectory())
    writer = writers.Writer(workdir, 0)
    writer.scalars(1, {'loss': 1.0})
    path = os.path.join(workdir, 'metrics.jsonl')
    with testing.full_disk(os.path.getsize(path) + 9):
      for step in (2, 3):
        with self.assertRaises(OSError):
          writer.scalars(step, {'loss': 1.0})
      for step in range(20):  # more than tensorboardX' queue holds
        writer.picture(step, 'samples', np.zeros((2, 2, 3), np.uint8))
      with open(path, encoding='utf-8') as file:
        self.assertEqual(file.read(), '{"step": 1, "loss": 1.0}\n')
    writer.scalars(4, {'loss': 1.0})
    writer.close()
    with open(path, encoding='utf-8') as file:
      self.assertEqual([json.loads(line)['step'] for line in file], [1, 2, 3, 4])

  def test_the_peak_of_the_memory_is_that_of_this_process(self):
    before = writers.peak_memory_gb()
    self.assertBetween(before, 0.05, 1024)
    size = 2**28
    self.assertEqual(np.ones(size, np.uint8).sum(), size)
    self.assertLess(writers.peak_memory_gb(), before + 1)

  def test_entries_come_out_later_and_none_is_lost(self):
    lagged = writers.Lagged(2)
    out = [list(lagged.push(i)) for i in range(4)]
    self.assertEqual(out, [[], [], [0], [1]])
    self.assertEqual(list(lagged.flush()), [2, 3])

  def test_records_beyond_the_resumed_step_are_dropped(self):
    workdir = self.enterContext(tempfile.TemporaryDirectory())
    path = os.path.join(workdir, 'metrics.jsonl')
    with open(path, 'w', encoding='utf-8') as file:
      file.write('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    writer = writers.Writer(workdir, 2)
    writer.scalars(3, {'loss': 0.25})
    writer.picture(3, 'samples', np.zeros((2, 2, 3), np.uint8))
    writer.close()
    with open(path, encoding='utf-8') as file:
      self.assertEqual([json.loads(line) for line in file], [{'step': 1}, {'step': 2}, {'step': 3, 'loss': 0.25}])
    self.assertLen(os.listdir(os.path.join(workdir, 'tensorboard')), 1)

  def test_a_new_run_drops_what_another_left(self):
    workdir = self.enterContext(tempfile.TemporaryDirectory())
    for value in (1.0, 2.0):
      writer = writers.Writer(workdir, 0)
      writer.scalars(1, {'loss': value})
      writer.close()
    with open(os.path.join(workdir, 'metrics.jsonl'), encoding='utf-8') as file:
      self.assertEqual(file.read(), '{"step": 1, "loss": 2.0}\n')
    self.assertNotIn('metrics.jsonl.tmp', os.listdir(workdir))


if __name__ == '__main__':
  absltest.main()
