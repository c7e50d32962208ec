"""Tests of the digits of scikit-learn."""

import types

from absl.testing import absltest, parameterized
import numpy as np
from sklearn import datasets

from diffusion_ebm.data import load_source
from diffusion_ebm.run.errors import UserError


def _data(**changes):
  return types.SimpleNamespace(**{'name': 'digits', 'image_size': 8, 'num_channels': 1, **changes})


class DigitsTest(parameterized.TestCase):
  def test_splits_together_are_all_scans_with_their_labels(self):
    scans, labels = datasets.load_digits(return_X_y=True)
    levels = np.round(scans * 255 / 16).astype(np.uint8)
    expected = [(image.tobytes(), n) for image, n in zip(levels, labels, strict=True)]
    read = []
    for split, size in (('train', 1437), ('test', 360)):
      source = load_source(_data(), split)
      self.assertLen(source, size)
      images = source.read(np.arange(size))
      self.assertEqual(source.shape, (8, 8, 1))
      self.assertEqual((images.shape, images.dtype), ((size, 8, 8, 1), np.uint8))
      read += [(i.tobytes(), n) for i, n in zip(images, source.labels, strict=True)]
    self.assertCountEqual(read, expected)

  def test_grey_levels_fill_the_range(self):
    images = load_source(_data(), 'train').read(np.arange(1437))
    self.assertCountEqual(np.unique(images), np.round(np.arange(17) * 255 / 16))

  def test_each_class_has_the_same_share_of_both_splits(self):
    train, test = (np.bincount(load_source(_data(), s).labels) for s in ('train', 'test'))
    np.testing.assert_allclose(test / (train + test), 0.2, atol=0.01)

  def test_split_is_the_same_on_every_run(self):
    first, second = load_source(_data(), 'test'), load_source(_data(), 'test')
    np.testing.assert_array_equal(first.read(np.arange(360)), second.read(np.arange(360)))

  @parameterized.parameters({'image_size': 32}, {'num_channels': 3})
  def test_another_shape_is_refused(self, **changes):
    with self.assertRaisesRegex(UserError, 'image_size=8 --config.data.num_channels=1'):
      load_source(_data(**changes), 'train')

  def test_split_other_than_train_and_test_is_an_error(self):
    with self.assertRaisesRegex(ValueError, "'train' or 'test', not 'valid'"):
      load_source(_data(), 'valid')


if __name__ == '__main__':
  absltest.main()
