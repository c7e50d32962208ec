"""The guidance job, on networks that have not learned anything."""

import os
import shutil
import tempfile
from unittest import mock

from absl.testing import absltest
import numpy as np
from PIL import Image

from diffusion_ebm import scoring
from diffusion_ebm.evaluate import results
from diffusion_ebm.jobs import evaluate, guidance
from diffusion_ebm.run.errors import UserError
from tests import testing
from tests.jobs import classes_test


def guidance_config(*weights, **changes):
  config = classes_test.classes_config()
  config.guidance.weights = weights or (0.0, 2.0)
  config.sampling.batch_size = 20
  config.eval.update(
    {'extractor': 'classifier', 'num_samples': 40, 'batch_size': 512, 'max_wait_minutes': 0.0, 'baselines': False}
    | changes
  )
  return config


def drawn():
  """Counts, and lets through, what is drawn."""
  return mock.patch.object(scoring, 'draw', side_effect=scoring.draw)


class GuidanceTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.enterClassContext(mock.patch('diffusion_ebm.evaluate.classifier._STEPS', 20))
    cls.first = cls.enterClassContext(tempfile.TemporaryDirectory())
    testing.save_first_state(classes_test.classes_config(), cls.first, 4)
    cls.rows = guidance.run(guidance_config(), cls.first)

  def setUp(self):
    super().setUp()
    self.workdir = os.path.join(self.enterContext(tempfile.TemporaryDirectory()), 'run')
    shutil.copytree(self.first, self.workdir)

  def test_there_is_a_row_for_each_weight_and_one_without_a_class(self):
    self.assertEqual([row.guidance for row in self.rows], [None, 0.0, 2.0])
    self.assertIsNone(self.rows[0].accuracy)
    for row in self.rows[1:]:
      self.assertTrue(0 <= row.accuracy <= 1)
    self.assertLen({row.frechet_distance for row in self.rows}, 3)

  def test_pictures(self):
    names = [name for name in os.listdir(os.path.join(self.first, 'guidance')) if name.endswith('.png')]
    self.assertCountEqual(names, ['guidance_4.png', 'guidance_4_no_class.png', 'guidance_4_0.png', 'guidance_4_2.png'])
    with Image.open(os.path.join(self.first, 'guidance', 'guidance_4_2.png')) as picture:
      self.assertEqual(picture.size, (10 * 42, 4 * 42))  # a column for each class

  def test_the_numbers_of_the_evaluation_are_the_same(self):
    config = guidance_config()
    config.sampling.update({'label': 'all', 'guidance': 2.0})
    evaluate.run(config, self.workdir)
    (record,) = results.read(os.path.join(self.workdir, 'eval', 'results.jsonl'))
    row = self.rows[2]
    self.assertEqual((row.frechet_distance, row.precision), (record['fid'], record['precision']))
    levels = record['classes']['levels']
    self.assertEqual([each['level'] for each in levels], [*range(6)])
    self.assertTrue(all(0 <= each['accuracy'] <= 1 and each['log_loss'] > 0 for each in levels))

  def test_the_accuracy_is_that_of_the_class_asked_for(self):
    draw = scoring.draw

    def classified(right):
      def of(*args):
        found = draw(*args)
        asked = np.arange(len(found.features)) % 10
        return found._replace(logits=np.eye(10)[np.where(np.arange(len(asked)) < right, asked, (asked + 1) % 10)])

      return of

    for right in (40, 10):
      shutil.rmtree(os.path.join(self.workdir, 'guidance'))
      with mock.patch.object(scoring, 'draw', side_effect=classified(right)):
        rows = guidance.run(guidance_config(1.0), self.workdir)
      self.assertEqual(rows[1].accuracy, right / 40)

  def test_nothing_is_drawn_twice_and_other_weights_are_added(self):
    with drawn() as draw:
      self.assertEqual(guidance.run(guidance_config(2.0, 0.0), self.workdir), self.rows)
      self.assertEqual(draw.call_count, 0)
      rows = guidance.run(guidance_config(1.0), self.workdir)
    self.assertEqual(draw.call_count, 1)
    self.assertEqual([row.guidance for row in rows], [None, 0.0, 1.0, 2.0])

  def test_what_cannot_be(self):
    with self.assertRaisesRegex(UserError, 'guidance.weights names no weight'):
      config = guidance_config()
      config.guidance.weights = ()
      guidance.run(config, self.workdir)
    with self.assertRaisesRegex(UserError, "guidance.weights names 'x', which is no number"):
      config = guidance_config()
      with config.unlocked():
        config.guidance.weights = ('x',)
      guidance.run(config, self.workdir)
    with self.assertRaisesRegex(UserError, 'needs a model that knows classes'):
      guidance.run(testing.digits_config(), self.workdir)


if __name__ == '__main__':
  absltest.main()
