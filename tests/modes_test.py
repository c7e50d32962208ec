"""The jobs on a trained model: inpaint, interpolate, ood. Networks that have not learned anything."""

import json
import os
import subprocess
import sys
import tempfile
from unittest import mock

from absl.testing import absltest
import numpy as np
from PIL import Image

from diffusion_ebm import inpaint, interpolate, interpolation, ood, sample
from diffusion_ebm.errors import UserError
from diffusion_ebm.evaluate import classifier
from tests import testing


def load(workdir, *path):
  with np.load(os.path.join(workdir, *path), allow_pickle=False) as file:
    return dict(file)


class ModesTest(absltest.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.workdir = cls.enterClassContext(tempfile.TemporaryDirectory())
    cls.enterClassContext(mock.patch.object(classifier, '_STEPS', 5))
    testing.save_first_state(testing.digits_config(), cls.workdir, step=7)

  def config(self, **sampling):
    config = testing.digits_config()
    config.sampling.update(sampling)
    return config

  def inpaint(self, mask='top', images='', num_images=3, num_completions=2, num_repeats=2, seed=0, **sampling):
    return inpaint.inpaint(
        self.config(**sampling), self.workdir, mask, images, num_images, num_completions, num_repeats, seed)

  def ood(self, against, num_examples=50, seed=0, **sampling):
    return ood.ood(self.config(**sampling), self.workdir, against, num_examples, seed)

  def save_mask(self, pixels):
    path = os.path.join(self.enterContext(tempfile.TemporaryDirectory()), 'hole.png')
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)
    return path

  def assert_close(self, one, other):
    """Sums of float32 in another order may round a pixel to either side."""
    self.assertEqual(one.shape, other.shape)
    difference = np.abs(one.astype(int) - other)
    self.assertLessEqual(np.max(difference), 1)
    self.assertLess(np.mean(difference > 0), 0.02)

  # Inpainting.

  def test_completions_keep_the_known_half_exactly(self):
    completions = self.inpaint()
    kept = load(self.workdir, 'inpainting', 'inpaint_7_top.npz')
    np.testing.assert_array_equal(kept['completions'], completions)
    self.assertEqual((completions.dtype, completions.shape), (np.uint8, (3, 2, 8, 8, 1)))
    np.testing.assert_array_equal(kept['mask'], np.arange(8)[:, None] + np.zeros(8, int) < 4)
    np.testing.assert_array_equal(completions[:, 0, 4:], kept['images'][:, 4:])
    np.testing.assert_array_equal(completions[:, 1, 4:], kept['images'][:, 4:])
    self.assertGreater(np.mean(completions[:, 0, :4] != completions[:, 1, :4]), 0.5)
    with Image.open(os.path.join(self.workdir, 'inpainting', 'inpaint_7_top.png')) as picture:
      self.assertEqual(picture.size, (4 * 42, 3 * 42))  # image, known part, two completions

  def test_a_completion_depends_on_its_image_number_and_the_seed_alone(self):
    completions = self.inpaint()
    self.assert_close(self.inpaint(batch_size=2), completions)
    self.assert_close(self.inpaint(num_images=2, num_completions=3)[:, :2], completions[:2])
    other = self.inpaint(seed=1)
    self.assertGreater(np.mean(other[:, :, :4] != completions[:, :, :4]), 0.5)
    # Beside the files of the first, not in their place.
    np.testing.assert_array_equal(load(self.workdir, 'inpainting', 'inpaint_7_seed1_top.npz')['completions'], other)

  def test_the_classifiers_opinion_is_written(self):
    self.inpaint()
    with open(os.path.join(self.workdir, 'inpainting', 'inpaint_7_top.json'), encoding='utf-8') as file:
      opinion = json.load(file)
    for key in ('agreement', 'accuracy_original', 'accuracy_known', 'accuracy_trained_on_known'):
      self.assertBetween(opinion[key], 0, 1)

  def test_a_mask_and_an_image_may_be_files(self):
    pixels = np.zeros((8, 8), np.uint8)
    pixels[2:4, 5:] = 255
    image = self.save_mask(np.full((20, 30), 77))
    completions = self.inpaint(self.save_mask(pixels), image)
    self.assertEqual(completions.shape, (1, 2, 8, 8, 1))
    np.testing.assert_array_equal(completions[:, :, pixels == 0], 77)
    self.assertFalse(np.all(completions[:, :, pixels > 0] == 77))
    self.assertEqual(inpaint._load_mask('center', (8, 8), 0)[0], 'centre')
    self.assertTrue(os.path.exists(os.path.join(self.workdir, 'inpainting', 'inpaint_7_hole.png')))

  def test_bad_masks_and_numbers_are_refused(self):
    for kwargs, message in (
        ({'mask': 'middle'}, '--mask=middle is neither a file nor one of left, right'),
        ({'mask': self.save_mask(np.zeros((8, 9)))}, '9x8, but the images are 8x8'),
        ({'mask': self.save_mask(np.zeros((8, 8)))}, 'hides nothing'),
        ({'mask': self.save_mask(np.full((8, 8), 255))}, 'hides everything'),
        ({'mask': __file__}, 'is no image'),
        ({'images': '/nowhere/images'}, '--images: /nowhere/images does not exist'),
        ({'images': '/nowhere/image.png'}, '--images: /nowhere/image.png cannot be read'),
        ({'num_images': 0}, '--num_samples is 0'), ({'num_completions': 0}, '--completions is 0'),
        ({'num_completions': 1025}, '--completions is 1025, but must be at most 1024'),
        ({'num_repeats': 0}, '--repeats is 0'), ({'seed': -1}, '--seed is -1')):
      with self.subTest(message), self.assertRaisesRegex(UserError, f'{message}.*') as caught:
        self.inpaint(**kwargs)
      self.assertNotIn('\n', str(caught.exception))

  # Interpolation.

  def test_a_strip_runs_from_one_sample_to_another(self):
    strips = interpolate.interpolate(self.config(), self.workdir, 2, 4, 0)
    np.testing.assert_array_equal(load(self.workdir, 'interpolation', 'interpolation_7.npz')['strips'], strips)
    sample.sample(self.config(), self.workdir, 4, 0)
    samples = load(self.workdir, 'samples', 'samples_7.npz')['samples']
    self.assert_close(strips[:, 0], samples[::2])
    self.assert_close(strips[:, -1], samples[1::2])
    self.assert_close(interpolate.interpolate(self.config(batch_size=3), self.workdir, 2, 4, 0), strips)
    with open(os.path.join(self.workdir, 'interpolation', 'interpolation_7.json'), encoding='utf-8') as file:
      written = json.load(file)
    steps = interpolation.path_lengths(strips)
    np.testing.assert_allclose(written['largest_step'], steps.max(1))
    np.testing.assert_allclose(written['median_step'], np.median(steps, 1))
    with Image.open(os.path.join(self.workdir, 'interpolation', 'interpolation_7.png')) as picture:
      self.assertEqual(picture.size, (4 * 42, 2 * 42))

  def test_too_few_frames_or_strips_are_refused(self):
    for args, message in (((0, 4, 0), '--num_samples is 0'), ((2, 1, 0), '--frames is 1'), ((2, 4, -1), '--seed')):
      with self.assertRaisesRegex(UserError, message):
        interpolate.interpolate(self.config(), self.workdir, *args)

  # Out of distribution.

  def test_every_score_of_every_set_is_reported(self):
    record = self.ood(['noise', 'constant'])
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
    again = self.ood(['noise', 'constant'], batch_size=7)
    for name, of_level in record['mean_log_density'].items():
      np.testing.assert_allclose(
          list(again['mean_log_density'][name].values()), list(of_level.values()), rtol=1e-3, atol=0.1)

  def test_a_folder_may_be_what_to_tell_from(self):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    for number in range(3):
      Image.fromarray(np.full((12, 9, 3), 80 * number, np.uint8)).save(os.path.join(folder, f'{number}.png'))
    record = self.ood([folder])
    self.assertEqual(record['num_examples'], {'test': 50, os.path.basename(folder): 3})
    self.assertIn(f'ood_7_{os.path.basename(folder)}.md', os.listdir(os.path.join(self.workdir, 'ood')))

  def test_what_cannot_be_told_from_is_refused(self):
    for against, message in (
        ([], '--against names nothing'), ([''], '--against names nothing'),
        (['nosuchset'], "--against=nosuchset is neither a file nor a data set: name noise, .*, constant, a folder"),
        (['toy2d'], r'--against=toy2d has examples of shape \(2,\), but the model takes \(8, 8, 1\)'),
        (['/nowhere/x'], '--against: /nowhere/x does not exist')):
      with self.subTest(message), self.assertRaisesRegex(UserError, message) as caught:
        self.ood(against)
      self.assertNotIn('\n', str(caught.exception))

  # All.

  def test_points_are_refused(self):
    config = testing.toy2d_config()
    for call in (lambda: inpaint.inpaint(config, 'unused', 'left', '', 1, 1, 1, 0),
                 lambda: interpolate.interpolate(config, 'unused', 1, 2, 0),
                 lambda: ood.ood(config, 'unused', [], 1, 0)):
      with self.assertRaisesRegex(UserError, 'is for images, not for toy2d'):
        call()

  def test_two_devices_do_as_one(self):
    workdir = self.enterContext(tempfile.TemporaryDirectory())
    testing.save_first_state(testing.digits_config(), workdir, step=7)
    result = subprocess.run(
        [sys.executable, '-c', 'import sys; from tests import testing; testing.sample_and_more(sys.argv[1])', workdir],
        cwd=testing.ROOT, capture_output=True, text=True, check=False,
        env=os.environ | {'XLA_FLAGS': '--xla_force_host_platform_device_count=2', 'JAX_PLATFORMS': 'cpu'})
    self.assertEqual(result.returncode, 0, result.stderr)
    self.assertEqual(result.stdout.splitlines()[-1], '2 devices')
    for what in ('inpainting', 'interpolating', 'energies'):
      self.assertRegex(result.stderr, rf'{what} at step 7 \d+/\d+')
    self.assert_close(load(workdir, 'inpainting', 'inpaint_7_top.npz')['completions'], self.inpaint())
    self.assert_close(load(workdir, 'interpolation', 'interpolation_7.npz')['strips'],
                      interpolate.interpolate(self.config(), self.workdir, 2, 3, 0))
    with open(os.path.join(workdir, 'ood', 'ood_7.json'), encoding='utf-8') as file:
      theirs = json.load(file)['mean_log_density']
    for name, of_level in self.ood(['noise', 'shuffle'])['mean_log_density'].items():
      np.testing.assert_allclose(list(theirs[name].values()), list(of_level.values()), rtol=1e-3, atol=0.1)


if __name__ == '__main__':
  absltest.main()
