import json
import os
import tempfile

from absl.testing import absltest
import numpy as np

from diffusion_ebm import metrics
from diffusion_ebm.errors import DivergedError
from tests import testing


def step_metrics(levels=6, **changes):
  per_level = {name: np.ones(levels) for name in ('level_count', 'level_loss', 'level_f', 'level_displacement')}
  return {'loss': 0.5, 'grad_norm': 2.0, 'grad_max': 1.0, 'bad_steps': 0} | per_level | changes


class MetricsTest(absltest.TestCase):

  def test_averages_are_over_examples(self):
    a = step_metrics(2, loss=1.0, grad_max=3.0, level_count=np.array([1, 0]), level_f=np.array([4.0, 0.0]))
    b = step_metrics(2, loss=2.0, level_count=np.array([3, 0]), level_f=np.array([0.0, 0.0]))
    scalars = metrics.summarise([a, b])
    self.assertEqual((scalars['loss'], scalars['grad_max'], scalars['level_f/0']), (1.5, 3.0, 1.0))
    self.assertNotIn('level_f/1', scalars)

  def test_many_levels_are_grouped(self):
    scalars = metrics.summarise([step_metrics(999, level_f=np.arange(999.0))])
    levels = [key for key in scalars if key.startswith('level_f/')]
    self.assertLen(levels, 10)
    self.assertAlmostEqual(scalars['level_f/0'], 49.5)
    # 999 levels are nine groups of 100 and one of 99.
    self.assertCountEqual(levels, [f'level_f/{100 * i}' for i in range(10)])
    self.assertAlmostEqual(scalars['level_f/900'], 949.0)
    counts = np.arange(999) % 3  # of each group, the average is over examples, not over levels
    scalars = metrics.summarise([step_metrics(999, level_count=counts, level_loss=5.0 * counts)] * 2)
    self.assertAlmostEqual(scalars['level_loss/500'], 5.0)

  def test_a_group_without_examples_is_left_out(self):
    counts = np.where(np.arange(999) < 100, 0, 1)
    scalars = metrics.summarise([step_metrics(999, level_count=counts)])
    for name in ('level_loss', 'level_f', 'level_displacement'):
      self.assertNotIn(f'{name}/0', scalars)
      self.assertLen([key for key in scalars if key.startswith(f'{name}/')], 9)

  def test_records_are_plain_numbers(self):
    scalars = metrics.summarise([step_metrics(loss=np.float32(0.1), grad_norm=np.float32(0.2))])
    self.assertEqual({type(value) for value in scalars.values()}, {int, float})
    self.assertEqual(json.loads(json.dumps(scalars)), scalars)

  def test_skipped_steps_are_counted_and_left_out_of_the_averages(self):
    bad = step_metrics(2, loss=np.nan, grad_norm=np.inf, grad_max=np.nan, level_f=np.full(2, np.nan), bad_steps=1)
    sound = step_metrics(2, loss=2.0)
    scalars = metrics.summarise([bad, sound, bad | {'bad_steps': 2}])
    self.assertEqual(scalars, metrics.summarise([sound]) | {'skipped_steps': 2})
    self.assertEqual(metrics.summarise([bad]), {'skipped_steps': 1})

  def test_skipped_updates_are_trouble_once_there_are_too_many_in_a_row(self):
    bad = step_metrics(level_displacement=np.where(np.arange(6) == 3, np.nan, 1.0), loss=np.nan, grad_norm=np.nan)
    metrics.check(7, bad | {'bad_steps': 4}, 4, 5)
    with self.assertRaisesRegex(DivergedError, '^5 updates in a row .*chain of level 3 diverged at step 8'):
      metrics.check(8, bad | {'bad_steps': 5}, 4, 5)

  def test_what_a_full_disk_keeps_out_is_written_later_and_lines_are_whole(self):
    workdir = self.enterContext(tempfile.TemporaryDirectory())
    writer = metrics.Writer(workdir, 0)
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
    before = metrics.peak_memory_gb()
    self.assertBetween(before, 0.05, 1024)
    size = 2**28
    self.assertEqual(np.ones(size, np.uint8).sum(), size)
    self.assertLess(metrics.peak_memory_gb(), before + 1)

  def test_trouble_is_named_by_level(self):
    def at(level, value):
      return np.where(np.arange(6) == level, value, 1.0)

    metrics.check(7, step_metrics(), 4)
    for changes, message in (
        ({'level_displacement': at(3, 1e4)}, 'level 3 diverged at step 7'),
        ({'level_displacement': at(2, np.nan)}, 'level 2 diverged'),
        ({'level_loss': at(4, 2e6)}, 'level 4 exploded'),
        ({'level_loss': at(1, np.inf)}, 'level 1 exploded'),
        ({'grad_norm': np.nan}, 'gradient is not finite')):
      with self.assertRaisesRegex(DivergedError, message):
        metrics.check(7, step_metrics(**changes), 4)

  def test_limits_are_per_example_and_in_units_of_the_data(self):
    def moved(total, count, dimension):
      metrics.check(1, step_metrics(1, level_count=np.array([count]), level_displacement=np.array([total])), dimension)

    moved(399.0, 1, 16)  # a root mean square of 99.75 in 16 dimensions
    moved(399.0 * 8, 8, 16)
    with self.assertRaises(DivergedError):
      moved(401.0, 1, 16)
    with self.assertRaises(DivergedError):
      moved(399.0, 1, 15)
    exploding = {'level_loss': np.array([3e6]), 'level_displacement': np.array([0.0])}
    metrics.check(1, step_metrics(1, level_count=np.array([4]), **exploding), 16)
    with self.assertRaisesRegex(DivergedError, 'level 0 exploded'):
      metrics.check(1, step_metrics(1, level_count=np.array([2]), **exploding), 16)

  def test_levels_without_examples_are_in_no_trouble(self):
    nobody = {name: np.zeros(6) for name in ('level_count', 'level_loss', 'level_f', 'level_displacement')}
    metrics.check(1, step_metrics(**nobody), 4)

  def test_a_bad_gradient_names_the_level_of_the_largest_loss(self):
    losses = np.array([1.0, 2.0, 30.0, 40.0, 5.0, 6.0])
    counts = np.array([1, 1, 1, 20, 1, 1])
    with self.assertRaisesRegex(DivergedError, r'not finite at step 9 \(largest loss at level 2\)'):
      metrics.check(9, step_metrics(level_loss=losses, level_count=counts, grad_norm=np.inf), 4)

  def test_negative_losses_are_reported_once(self):
    negative = metrics.NegativeLosses()
    self.assertFalse(negative.reported(-1) or negative.reported(1))
    self.assertEqual([negative.reported(-1) for _ in range(2500)].index(True), 1999)
    self.assertFalse(negative.reported(-1))

  def test_a_positive_loss_starts_the_count_of_negative_ones_again(self):
    negative = metrics.NegativeLosses()
    losses = [-1.0] * 1999 + [0.0] + [-1.0] * 2000
    self.assertEqual([i for i, loss in enumerate(losses) if negative.reported(loss)], [len(losses) - 1])

  def test_entries_come_out_later_and_none_is_lost(self):
    lagged = metrics.Lagged(2)
    out = [list(lagged.push(i)) for i in range(4)]
    self.assertEqual(out, [[], [], [0], [1]])
    self.assertEqual(list(lagged.flush()), [2, 3])

  def test_records_beyond_the_resumed_step_are_dropped(self):
    workdir = self.enterContext(tempfile.TemporaryDirectory())
    path = os.path.join(workdir, 'metrics.jsonl')
    with open(path, 'w', encoding='utf-8') as file:
      file.write('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    writer = metrics.Writer(workdir, 2)
    writer.scalars(3, {'loss': 0.25})
    writer.picture(3, 'samples', np.zeros((2, 2, 3), np.uint8))
    writer.close()
    with open(path, encoding='utf-8') as file:
      self.assertEqual([json.loads(line) for line in file], [{'step': 1}, {'step': 2}, {'step': 3, 'loss': 0.25}])
    self.assertLen(os.listdir(os.path.join(workdir, 'tensorboard')), 1)

  def test_a_new_run_drops_what_another_left(self):
    workdir = self.enterContext(tempfile.TemporaryDirectory())
    for value in (1.0, 2.0):
      writer = metrics.Writer(workdir, 0)
      writer.scalars(1, {'loss': value})
      writer.close()
    with open(os.path.join(workdir, 'metrics.jsonl'), encoding='utf-8') as file:
      self.assertEqual(file.read(), '{"step": 1, "loss": 2.0}\n')
    self.assertNotIn('metrics.jsonl.tmp', os.listdir(workdir))


if __name__ == '__main__':
  absltest.main()
