import json
import os
import tempfile

from absl.testing import absltest
import numpy as np

from diffusion_ebm import metrics
from diffusion_ebm.errors import DivergedError


def step_metrics(levels=6, **changes):
  per_level = {name: np.ones(levels) for name in ('level_count', 'level_loss', 'level_f', 'level_displacement')}
  return {'loss': 0.5, 'grad_norm': 2.0, 'grad_max': 1.0} | per_level | changes


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

  def test_negative_losses_are_reported_once(self):
    negative = metrics.NegativeLosses()
    self.assertFalse(negative.reported(-1) or negative.reported(1))
    self.assertEqual([negative.reported(-1) for _ in range(2500)].index(True), 1999)
    self.assertFalse(negative.reported(-1))

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


if __name__ == '__main__':
  absltest.main()
