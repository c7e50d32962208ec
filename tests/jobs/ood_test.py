"""The out-of-distribution job, on a network that has not learned anything."""

import json
import os
import tempfile
from unittest import mock
import warnings

from absl.testing import absltest
import numpy as np
from PIL import Image

from diffusion_ebm import scoring, trained
from diffusion_ebm.evaluate import ood_detection
from diffusion_ebm.jobs import ood
from diffusion_ebm.run import files
from diffusion_ebm.run.errors import UserError
from tests import testing


def first_pixels(config, ebm, sets, fitted_on, shown, seed, step):
  """As many of each image as there are levels, in place of each of its statistics."""
  del config, ebm, seed, step
  of_train, *others = (
    ood_detection.Statistics(*3 * [images.reshape(len(images), -1)[:, : len(shown)].astype(float)])
    for images in (fitted_on, *sets.values())
  )
  return of_train, dict(zip(sets, others, strict=True))


class OodTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.workdir = cls.enterClassContext(tempfile.TemporaryDirectory())
    cls.enterClassContext(mock.patch.object(ood_detection, '_SIZES', (1, 2)))  # fewer mixtures to fit
    testing.save_first_state(testing.convolutional(testing.digits_config()), cls.workdir, step=7)
    cls.trained = trained.load(testing.convolutional(testing.digits_config()), cls.workdir)

  def ood(self, against, batch_size=5, num_examples=50, seed=0):
    config = testing.convolutional(testing.digits_config())
    config.sampling.batch_size = batch_size
    config.ood.update({'against': against, 'num_examples': num_examples})
    return ood.run(config, self.workdir, seed)

  def without_energies(self, *args, **kwargs):
    """The job with pixels in place of energies."""

    def load(config, *_):
      return self.trained._replace(config=config)

    with mock.patch.object(ood, '_statistics', first_pixels), mock.patch.object(trained, 'load', load):
      return self.ood(*args, **kwargs)

  def written(self, name):
    return files.read_json(os.path.join(self.workdir, 'ood', name))

  def test_every_score_of_every_set_is_reported(self):
    record = self.ood(('noise', 'constant'))
    with open(os.path.join(self.workdir, 'ood', 'ood_7.json'), encoding='utf-8') as file:
      self.assertEqual(json.load(file), record)
    self.assertEqual(record['num_examples'], {'test': 50, 'noise': 50, 'constant': 50})
    self.assertLen(record['results'], 6 * 3 + 7)
    self.assertCountEqual(record['mean_log_density']['test'], '012345')
    for row in record['results'].values():
      self.assertCountEqual(row, ['noise', 'constant'])
      for measures in row.values():
        for measure, (lower, upper) in measures['intervals'].items():
          self.assertBetween(measures[measure], 0, 1)
          self.assertTrue(0 <= lower <= upper <= 1)
    # Any smooth function of images tells those of one colour from digits.
    self.assertGreater(record['results']['all levels, Mahalanobis']['constant']['auroc'], 0.9)
    with open(os.path.join(self.workdir, 'ood', 'ood_7.md'), encoding='utf-8') as file:
      self.assertEqual(sum(line.startswith('| level ') for line in file), 3 * (1 + 6 * 3))
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

  def test_where_there_are_more_images_the_seed_chooses_and_the_folder_of_a_class_is_a_set(self):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    for label in ('cat', 'dog'):
      os.makedirs(os.path.join(folder, 'test', label))
      for number in range(60):
        pixels = np.full((8, 8), number + 100 * (label == 'dog'), np.uint8)
        Image.fromarray(pixels).save(os.path.join(folder, 'test', label, f'{number:02}.png'))
    whole, dog = os.path.join(folder, 'test'), os.path.join(folder, 'test', 'dog')
    seen = []
    with mock.patch.object(ood, '_write', lambda base, record, results, sets, *_: seen.append(sets)):
      for seed in (3, 4):
        self.without_energies((f'all={whole}', f'dog={dog}'), seed=seed)
    for sets in seen:
      self.assertEqual({name: len(images) for name, images in sets.items()}, {'test': 50, 'all': 50, 'dog': 50})
      self.assertLen(np.unique(sets['dog'][:, 0, 0, 0]), 50)
      self.assertGreaterEqual(sets['dog'].min(), 100)
      self.assertBetween(np.mean(sets['all'] >= 100), 0.3, 0.7)  # not the first of a list by class
    for one, other in zip(seen[0].values(), seen[1].values(), strict=True):
      self.assertTrue(np.any(one != other))

  def test_sets_of_one_name_stay_apart_and_the_runs_own_is_never_replaced(self):
    folder = os.path.realpath(self.enterContext(tempfile.TemporaryDirectory()))
    for name, value in (('a/test', 0), ('b/test', 120), ('noise', 240)):
      os.makedirs(os.path.join(folder, name))
      Image.fromarray(np.full((8, 8), value, np.uint8)).save(os.path.join(folder, name, '1.png'))
    a, b, noise = (os.path.join(folder, name) for name in ('a/test', 'b/test', 'noise'))
    above = f'{os.path.basename(folder)}/noise'
    record = self.without_energies((a, b, 'noise', noise, f'mine={noise}'), seed=1)
    counts = {'test': 50, 'a/test': 1, 'b/test': 1, 'noise': 50, above: 1, 'mine': 1}
    self.assertEqual(list(record['num_examples'].items()), list(counts.items()))
    alone = self.without_energies(('noise',), seed=1)
    for score, row in record['results'].items():
      self.assertCountEqual(row, list(counts)[1:])
      self.assertEqual(row['noise'], alone['results'][score]['noise'])
      self.assertEqual(row['mine'], row[above])
    sets = record['inputs']['sets']
    sources = {'test': 'digits', 'a/test': a, 'b/test': b, 'noise': 'noise', above: noise, 'mine': noise}
    self.assertEqual({name: each['source'] for name, each in sets.items()}, sources)
    self.assertEqual({name: each['num_images'] for name, each in sets.items()}, counts)
    self.assertLen({each['fingerprint'] for each in sets.values()}, 5)

  def test_results_of_other_sets_numbers_and_images_are_never_overwritten(self):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    path = os.path.join(folder, 'x.png')
    for value, num_examples, name in (
      (0, 50, 'ood_7_seed1_mine.json'),
      (0, 40, 'ood_7_seed1_mine_2.json'),
      (1, 50, 'ood_7_seed1_mine_3.json'),
      (0, 50, 'ood_7_seed1_mine.json'),
    ):
      Image.fromarray(np.full((8, 8), value, np.uint8)).save(path)
      record = self.without_energies((f'mine={folder}',), num_examples=num_examples, seed=1)
      self.assertEqual(self.written(name), record)

  def test_a_set_called_like_a_file_of_another_result_overwrites_nothing(self):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(os.path.join(folder, 'x.png'))
    self.without_energies(('noise', 'constant'), seed=2)
    before = testing.contents(os.path.join(self.workdir, 'ood'))
    self.without_energies((f'sets={folder}',), seed=2)
    after = testing.contents(os.path.join(self.workdir, 'ood'))
    self.assertEqual({name: after[name] for name in before}, before)
    self.assertContainsSubset(['ood_7_seed2_sets_2.png', 'ood_7_seed2_sets_2_sets.png'], after)

  def test_odd_names_do_no_harm(self):
    folder = os.path.join(self.enterContext(tempfile.TemporaryDirectory()), '$\\bad{|$ \n猫')
    os.mkdir(folder)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(os.path.join(folder, 'x.png'))
    with warnings.catch_warnings():
      warnings.simplefilter('error')
      self.without_energies((folder,))
    with open(os.path.join(self.workdir, 'ood', 'ood_7__bad_n猫.md'), encoding='utf-8') as file:
      self.assertIn('| level | score | $\\bad{\\|$ \\n猫 |', file.read())

  def test_what_cannot_be_told_from_is_refused(self):
    for against, message in (
      ((), '--against names nothing'),
      (('',), '--against names nothing'),
      (
        ('nosuchset',),
        '--against=nosuchset is neither a file in .* nor a data set: name noise, .*, pink_noise, a folder',
      ),
      (('noise=/x',), '--against=noise=/x: noise means something else'),
      (('toy2d',), r'--against=toy2d has examples of shape \(2,\), but the model takes \(8, 8, 1\)'),
      (('/nowhere/x',), '--against: /nowhere/x does not exist'),
    ):
      with self.subTest(message), self.assertRaisesRegex(UserError, message) as caught:
        self.ood(against)
      self.assertNotIn('\n', str(caught.exception))

  def test_a_run_without_a_test_split_may_be_given_one_later(self):
    folder, workdir = (self.enterContext(tempfile.TemporaryDirectory()) for _ in range(2))
    rng = np.random.default_rng(0)
    for split, count in (('train', 50), ('holdout', 3), ('more', 4)):
      os.mkdir(os.path.join(folder, split))
      for number in range(count):
        pixels = rng.integers(256, size=(8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(os.path.join(folder, split, f'{number}.png'))
    config = testing.digits_config()
    config.data.update({'name': 'images', 'path': folder})
    config.ood.update({'against': ('noise',), 'num_examples': 50})
    testing.save_first_state(config, workdir, step=7)
    with self.assertRaisesRegex(UserError, "no folder 'test' .*set --config.data.test_split to another folder"):
      ood.run(config, workdir)
    for split, count in (('holdout', 3), ('more', 4)):
      config.data.test_split = split
      with mock.patch.object(ood, '_statistics', first_pixels):
        self.assertEqual(ood.run(config, workdir)['num_examples'], {'test': count, 'noise': count})
    self.assertTrue(os.path.exists(os.path.join(workdir, 'ood', 'ood_7_2.json')))
    # Scores of different test splits never count for each other; training goes on with its own.
    compared = mock.Mock()
    compared.extractor.key = 'pixels'
    inputs = scoring.inputs(config, compared)
    config.data.test_split = 'holdout'
    self.assertNotEqual(scoring.inputs(config, compared), inputs)

  def test_too_few_examples_are_refused(self):
    with self.assertRaisesRegex(UserError, r'ood\.num_examples is 1, but must be at least 2'):
      self.ood(('noise',), num_examples=1)

  def test_points_are_refused(self):
    with self.assertRaisesRegex(UserError, 'is for images, not for toy2d'):
      ood.run(testing.toy2d_config(), 'unused')


if __name__ == '__main__':
  absltest.main()
