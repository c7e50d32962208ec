"""What a run reports of its training steps, and what it stops at."""

import json

from absl.testing import absltest
import numpy as np

from diffusion_ebm import training_metrics
from diffusion_ebm.run.errors import DivergedError


def step_metrics(levels=6, **changes):
  per_level = {name: np.ones(levels) for name in ('level_count', 'level_loss', 'level_f', 'level_displacement')}
  return {'loss': 0.5, 'grad_norm': 2.0, 'grad_max': 1.0, 'bad_steps': 0} | per_level | changes


class TrainingMetricsTest(absltest.TestCase):
  def test_averages_are_over_examples(self):
    a = step_metrics(2, loss=1.0, grad_max=3.0, level_count=np.array([1, 0]), level_f=np.array([4.0, 0.0]))
    b = step_metrics(2, loss=2.0, level_count=np.array([3, 0]), level_f=np.array([0.0, 0.0]))
    scalars = training_metrics.summarise([a, b])
    self.assertEqual((scalars['loss'], scalars['grad_max'], scalars['level_f/0']), (1.5, 3.0, 1.0))
    self.assertNotIn('level_f/1', scalars)

  def test_many_levels_are_grouped(self):
    scalars = training_metrics.summarise([step_metrics(999, level_f=np.arange(999.0))])
    levels = [key for key in scalars if key.startswith('level_f/')]
    self.assertLen(levels, 10)
    self.assertAlmostEqual(scalars['level_f/0'], 49.5)
    # 999 levels are nine groups of 100 and one of 99.
    self.assertCountEqual(levels, [f'level_f/{100 * i}' for i in range(10)])
    self.assertAlmostEqual(scalars['level_f/900'], 949.0)
    counts = np.arange(999) % 3  # of each group, the average is over examples, not over levels
    scalars = training_metrics.summarise([step_metrics(999, level_count=counts, level_loss=5.0 * counts)] * 2)
    self.assertAlmostEqual(scalars['level_loss/500'], 5.0)

  def test_a_group_without_examples_is_left_out(self):
    counts = np.where(np.arange(999) < 100, 0, 1)
    scalars = training_metrics.summarise([step_metrics(999, level_count=counts)])
    for name in ('level_loss', 'level_f', 'level_displacement'):
      self.assertNotIn(f'{name}/0', scalars)
      self.assertLen([key for key in scalars if key.startswith(f'{name}/')], 9)

  def test_records_are_plain_numbers(self):
    scalars = training_metrics.summarise([step_metrics(loss=np.float32(0.1), grad_norm=np.float32(0.2))])
    self.assertEqual({type(value) for value in scalars.values()}, {int, float})
    self.assertEqual(json.loads(json.dumps(scalars)), scalars)

  def test_skipped_steps_are_counted_and_left_out_of_the_averages(self):
    bad = step_metrics(2, loss=np.nan, grad_norm=np.inf, grad_max=np.nan, level_f=np.full(2, np.nan), bad_steps=1)
    sound = step_metrics(2, loss=2.0)
    scalars = training_metrics.summarise([bad, sound, bad | {'bad_steps': 2}])
    self.assertEqual(scalars, training_metrics.summarise([sound]) | {'skipped_steps': 2})
    self.assertEqual(training_metrics.summarise([bad]), {'skipped_steps': 1})

  def test_skipped_updates_are_trouble_once_there_are_too_many_in_a_row(self):
    bad = step_metrics(level_displacement=np.where(np.arange(6) == 3, np.nan, 1.0), loss=np.nan, grad_norm=np.nan)
    training_metrics.check(7, bad | {'bad_steps': 4}, 4, 5)
    with self.assertRaisesRegex(DivergedError, '^5 updates in a row .*chain of level 3 diverged at step 8'):
      training_metrics.check(8, bad | {'bad_steps': 5}, 4, 5)

  def test_trouble_is_named_by_level(self):
    def at(level, value):
      return np.where(np.arange(6) == level, value, 1.0)

    training_metrics.check(7, step_metrics(), 4)
    for changes, message in (
      ({'level_displacement': at(3, 1e4)}, 'level 3 diverged at step 7'),
      ({'level_displacement': at(2, np.nan)}, 'level 2 diverged'),
      ({'level_loss': at(4, 2e6)}, 'level 4 exploded'),
      ({'level_loss': at(1, np.inf)}, 'level 1 exploded'),
      ({'grad_norm': np.nan}, 'gradient is not finite'),
    ):
      with self.assertRaisesRegex(DivergedError, message):
        training_metrics.check(7, step_metrics(**changes), 4)

  def test_limits_are_per_example_and_in_units_of_the_data(self):
    def moved(total, count, dimension):
      step = step_metrics(1, level_count=np.array([count]), level_displacement=np.array([total]))
      training_metrics.check(1, step, dimension)

    moved(399.0, 1, 16)  # a root mean square of 99.75 in 16 dimensions
    moved(399.0 * 8, 8, 16)
    with self.assertRaises(DivergedError):
      moved(401.0, 1, 16)
    with self.assertRaises(DivergedError):
      moved(399.0, 1, 15)
    exploding = {'level_loss': np.array([3e6]), 'level_displacement': np.array([0.0])}
    training_metrics.check(1, step_metrics(1, level_count=np.array([4]), **exploding), 16)
    with self.assertRaisesRegex(DivergedError, 'level 0 exploded'):
      training_metrics.check(1, step_metrics(1, level_count=np.array([2]), **exploding), 16)

  def test_levels_without_examples_are_in_no_trouble(self):
    nobody = {name: np.zeros(6) for name in ('level_count', 'level_loss', 'level_f', 'level_displacement')}
    training_metrics.check(1, step_metrics(**nobody), 4)

  def test_a_bad_gradient_names_the_level_of_the_largest_loss(self):
    losses = np.array([1.0, 2.0, 30.0, 40.0, 5.0, 6.0])
    counts = np.array([1, 1, 1, 20, 1, 1])
    with self.assertRaisesRegex(DivergedError, r'not finite at step 9 \(largest loss at level 2\)'):
      training_metrics.check(9, step_metrics(level_loss=losses, level_count=counts, grad_norm=np.inf), 4)

  def test_negative_losses_are_reported_once(self):
    negative = training_metrics.NegativeLosses()
    self.assertFalse(negative.reported(-1) or negative.reported(1))
    self.assertEqual([negative.reported(-1) for _ in range(2500)].index(True), 1999)
    self.assertFalse(negative.reported(-1))

  def test_a_positive_loss_starts_the_count_of_negative_ones_again(self):
    negative = training_metrics.NegativeLosses()
    losses = [-1.0] * 1999 + [0.0] + [-1.0] * 2000
    self.assertEqual([i for i, loss in enumerate(losses) if negative.reported(loss)], [len(losses) - 1])


if __name__ == '__main__':
  absltest.main()
