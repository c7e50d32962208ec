"""The out-of-distribution job, on a network that has not learned anything."""

import json
import os
import tempfile

from absl.testing import absltest
import numpy as np
from PIL import Image

from diffusion_ebm.jobs import ood
from diffusion_ebm.run.errors import UserError
from tests import testing


class OodTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.workdir = cls.enterClassContext(tempfile.TemporaryDirectory())
    testing.save_first_state(testing.digits_config(), cls.workdir, step=7)

  def ood(self, against, batch_size=5, num_examples=50):
    config = testing.digits_config()
    config.sampling.batch_size = batch_size
    config.ood.update({'against': against, 'num_examples': num_examples})
    return ood.run(config, self.workdir)

  def test_every_score_of_every_set_is_reported(self):
    record = self.ood(('noise', 'constant'))
    with open(os.path.join(self.workdir, 'ood', 'ood_7.json'), encoding='utf-8') as file:
      self.assertEqual(json.load(file), record)
    self.assertEqual(record['num_examples'], {'test': 50, 'noise': 50, 'constant': 50})
    self.assertLen(record['results'], 6 * 2 + 2)
    self.assertCountEqual(record['mean_log_density']['test'], '012345')
    for row in record['results'].values():
      self.assertCountEqual(row, ['noise', 'constant'])
      for measures in row.values():
        self.assertTrue(all(0 <= value <= 1 for value in measures.values()))
    # Any smooth function of images tells those of one colour from digits.
    self.assertGreater(record['results']['all levels, Mahalanobis']['constant']['auroc'], 0.9)
    with open(os.path.join(self.workdir, 'ood', 'ood_7.md'), encoding='utf-8') as file:
      self.assertEqual(sum(line.startswith('| level ') for line in file), 3 * (1 + 6 * 2))
    with Image.open(os.path.join(self.workdir, 'ood', 'ood_7_sets.png')) as picture:
      self.assertEqual(picture.size, (16 * 42, 3 * 42))
    again = self.ood(('noise', 'constant'), batch_size=7)
    for name, of_level in record['mean_log_density'].items():
      np.testing.assert_allclose(
        list(again['mean_log_density'][name].values()), list(of_level.values()), rtol=1e-3, atol=0.1
      )

  def test_a_folder_may_be_what_to_tell_from(self):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    for number in range(3):
      Image.fromarray(np.full((12, 9, 3), 80 * number, np.uint8)).save(os.path.join(folder, f'{number}.png'))
    record = self.ood((folder,))
    self.assertEqual(record['num_examples'], {'test': 50, os.path.basename(folder): 3})
    self.assertIn(f'ood_7_{os.path.basename(folder)}.md', os.listdir(os.path.join(self.workdir, 'ood')))

  def test_what_cannot_be_told_from_is_refused(self):
    for against, message in (
      ((), '--against names nothing'),
      (('',), '--against names nothing'),
      (('nosuchset',), '--against=nosuchset is neither a file nor a data set: name noise, .*, constant, a folder'),
      (('toy2d',), r'--against=toy2d has examples of shape \(2,\), but the model takes \(8, 8, 1\)'),
      (('/nowhere/x',), '--against: /nowhere/x does not exist'),
    ):
      with self.subTest(message), self.assertRaisesRegex(UserError, message) as caught:
        self.ood(against)
      self.assertNotIn('\n', str(caught.exception))

  def test_too_few_examples_are_refused(self):
    with self.assertRaisesRegex(UserError, r'ood\.num_examples is 1, but must be at least 2'):
      self.ood(('noise',), num_examples=1)

  def test_points_are_refused(self):
    with self.assertRaisesRegex(UserError, 'is for images, not for toy2d'):
      ood.run(testing.toy2d_config(), 'unused')


if __name__ == '__main__':
  absltest.main()
