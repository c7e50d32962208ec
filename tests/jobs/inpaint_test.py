"""The inpainting job, on a network that has not learned anything."""

import json
import os
import tempfile
from unittest import mock

from absl.testing import absltest
import numpy as np
from PIL import Image

from diffusion_ebm import trained
from diffusion_ebm.evaluate import classifier, features
from diffusion_ebm.jobs import inpaint
from diffusion_ebm.run import files
from diffusion_ebm.run.errors import UserError
from tests import testing


class InpaintTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.workdir = cls.enterClassContext(tempfile.TemporaryDirectory())
    testing.save_first_state(testing.digits_config(), cls.workdir, step=7)

  def setUp(self):
    super().setUp()
    self.enterContext(mock.patch.object(features, 'CLASSIFIED', ()))  # it takes most of the time

  def inpaint(self, seed=0, batch_size=5, **changes):
    config = testing.digits_config()
    config.sampling.batch_size = batch_size
    config.inpaint.update({'mask': 'top', 'num_images': 3, 'completions': 2, 'repeats': 2} | changes)
    return inpaint.run(config, self.workdir, seed)

  def written(self, name):
    return os.path.join(self.workdir, 'inpainting', name)

  def save_mask(self, pixels):
    path = os.path.join(self.enterContext(tempfile.TemporaryDirectory()), 'hole.png')
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)
    return path

  def test_completions_keep_the_known_half_exactly(self):
    completions = self.inpaint()
    kept = files.read_npz(self.written('inpaint_7_top.npz'))
    np.testing.assert_array_equal(kept['completions'], completions)
    self.assertEqual((completions.dtype, completions.shape), (np.uint8, (3, 2, 8, 8, 1)))
    np.testing.assert_array_equal(kept['mask'], np.arange(8)[:, None] + np.zeros(8, int) < 4)
    np.testing.assert_array_equal(completions[:, 0, 4:], kept['images'][:, 4:])
    np.testing.assert_array_equal(completions[:, 1, 4:], kept['images'][:, 4:])
    self.assertGreater(np.mean(completions[:, 0, :4] != completions[:, 1, :4]), 0.5)
    with Image.open(self.written('inpaint_7_top.png')) as picture:
      self.assertEqual(picture.size, (4 * 42, 3 * 42))  # image, known part, two completions

  def test_a_completion_depends_on_its_image_number_and_the_seed_alone(self):
    completions = self.inpaint()
    testing.assert_same_images(self.inpaint(batch_size=2), completions)
    testing.assert_same_images(self.inpaint(num_images=2, completions=3)[:, :2], completions[:2])
    self.assertEqual(files.read_npz(self.written('inpaint_7_top.npz'))['completions'].shape, (3, 2, 8, 8, 1))
    other = self.inpaint(seed=1)
    self.assertGreater(np.mean(other[:, :, :4] != completions[:, :, :4]), 0.5)
    # Beside the files of the first, not in their place.
    np.testing.assert_array_equal(files.read_npz(self.written('inpaint_7_seed1_top.npz'))['completions'], other)

  def test_the_classifiers_opinion_is_written(self):
    with mock.patch.object(features, 'CLASSIFIED', ('digits',)), mock.patch.object(classifier, '_STEPS', 5):
      self.inpaint()
    with open(self.written('inpaint_7_top.json'), encoding='utf-8') as file:
      opinion = json.load(file)
    for key in ('agreement', 'accuracy_original', 'accuracy_known', 'accuracy_trained_on_known'):
      self.assertBetween(opinion[key], 0, 1)
    self.assertEqual((opinion['inputs']['mask'], opinion['inputs']['repeats']), ('top', 2))

  def test_a_mask_and_an_image_may_be_files(self):
    pixels = np.zeros((8, 8), np.uint8)
    pixels[2:4, 5:] = 255
    image = self.save_mask(np.full((20, 30), 77))
    completions = self.inpaint(mask=self.save_mask(pixels), images=image)
    self.assertEqual(completions.shape, (1, 2, 8, 8, 1))
    np.testing.assert_array_equal(completions[:, :, pixels == 0], 77)
    self.assertFalse(np.all(completions[:, :, pixels > 0] == 77))
    self.assertEqual(inpaint._load_mask('center', (8, 8), 0)[0], 'centre')
    self.assertTrue(os.path.exists(self.written('inpaint_7_hole_hole.png.png')))

  def test_results_of_other_masks_images_and_numbers_are_never_overwritten(self):
    one, other = np.eye(8, dtype=np.uint8) * 255, 255 - np.eye(8, dtype=np.uint8) * 255
    masks = [self.save_mask(pixels) for pixels in (one, other)]  # of one name in two folders
    images = [self.save_mask(np.full((8, 8), value)) for value in (10, 20)]
    expected = {
      'inpaint_7_hole': {'mask': masks[0]},
      'inpaint_7_hole_2': {'mask': masks[1]},
      'inpaint_7_left_hole.png': {'mask': 'left', 'images': images[0]},
      'inpaint_7_left_hole.png_2': {'mask': 'left', 'images': images[1]},
      'inpaint_7_left_mine': {'mask': 'left', 'images': f'mine={images[1]}'},
      'inpaint_7_left': {'mask': 'left'},
      'inpaint_7_left_2': {'mask': 'left', 'repeats': 3},
      'inpaint_7_left_3': {'mask': 'left', 'num_images': 2},
    }
    expected = {name.replace('7', '7_seed5'): changes for name, changes in expected.items()}
    with (
      mock.patch.object(trained, 'load', lambda config, *_: trained.Trained(config, None, None, (8, 8, 1), 7)),
      mock.patch.object(inpaint, '_NUM_SHOWN', 1),
      mock.patch.object(inpaint, '_draw') as draw,
    ):
      for _ in range(2):  # equal results take the place of what they equal
        for number, changes in enumerate(expected.values()):
          draw.return_value = np.full((1, 2, 8, 8, 1), number, np.uint8)
          self.inpaint(seed=5, **changes)
    for number, name in enumerate(expected):
      self.assertEqual(files.read_npz(self.written(name + '.npz'))['completions'].flat[0], number)
    with open(self.written('inpaint_7_seed5_left_mine.json'), encoding='utf-8') as file:
      self.assertEqual(json.load(file)['inputs']['images'], {'mine': images[1]})
    self.assertLen([name for name in os.listdir(self.written('')) if '_seed5' in name], 3 * len(expected))

  def test_bad_masks_and_numbers_are_refused(self):
    for kwargs, message in (
      ({'mask': 'middle'}, '--mask=middle is neither a file in .* nor one of left, right'),
      ({'mask': self.save_mask(np.zeros((8, 9)))}, '9x8, but the images are 8x8'),
      ({'mask': self.save_mask(np.zeros((8, 8)))}, 'hides nothing'),
      ({'mask': self.save_mask(np.full((8, 8), 255))}, 'hides everything'),
      ({'mask': __file__}, 'is no image'),
      ({'images': '/nowhere/images'}, '--images: /nowhere/images does not exist'),
      ({'images': '/nowhere/image.png'}, '--images: /nowhere/image.png does not exist'),
      ({'images': __file__}, '--images: .*/inpaint_test.py cannot be read as an image'),
      ({'num_images': 0}, r'inpaint\.num_images is 0'),
      ({'completions': 0}, r'inpaint\.completions is 0'),
      ({'completions': 1025}, r'inpaint\.completions is 1025, but must be at most 1024'),
      ({'repeats': 0}, r'inpaint\.repeats is 0'),
      ({'seed': -1}, '--seed is -1'),
    ):
      with self.subTest(message), self.assertRaisesRegex(UserError, f'{message}.*') as caught:
        self.inpaint(**kwargs)
      self.assertNotIn('\n', str(caught.exception))

  def test_points_are_refused(self):
    with self.assertRaisesRegex(UserError, 'is for images, not for toy2d'):
      inpaint.run(testing.toy2d_config(), 'unused')


if __name__ == '__main__':
  absltest.main()
