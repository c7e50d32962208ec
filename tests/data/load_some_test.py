"""Some images of a set, without decoding the others."""

import os
import tempfile
from unittest import mock

from absl.testing import absltest, parameterized
import numpy as np
import tensorflow_datasets as tfds

from diffusion_ebm.data import images, load_some, load_source
from diffusion_ebm.data.decode import Facts
from diffusion_ebm.run.errors import UserError
from tests import testing
from tests.data import folders


class LoadSomeTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.path = os.path.join(self.enterContext(tempfile.TemporaryDirectory()), 'photos')
    self.decoded = 0

  def write(self, count, damaged=()):
    contents = {f'{"cat" if n % 2 else "dog"}/{n:03}.png': folders.encode(n) for n in range(count)}
    names = sorted(contents)
    folders.write(self.path, contents | {names[n]: contents[names[n]][:60] for n in damaged})

  def some(self, choose, split='train', **changes):
    decode = images.decode

    def counting(*args):
      self.decoded += 1
      return decode(*args)

    with mock.patch.object(images, 'decode', counting):
      return load_some(folders.section(self.path, **changes), split, choose)

  def assert_same(self, some, source, indices):
    np.testing.assert_array_equal(some.read(np.arange(len(some))), source.read(indices))
    np.testing.assert_array_equal(some.labels, source.labels[indices])
    self.assertEqual((some.classes, some.shape), (source.classes, source.shape))

  def test_they_are_those_of_the_whole_set_and_no_others_are_decoded(self):
    self.write(100)
    source = load_source(folders.section(self.path), 'train')
    for choose in (lambda count: np.arange(5), lambda count: np.random.default_rng(3).integers(count, size=7)):
      self.decoded = 0
      some = self.some(choose)
      self.assert_same(some, source, choose(100))
      self.assertEqual(self.decoded, len(some))

  def test_one_that_is_chosen_twice_is_decoded_once(self):
    self.write(10)
    some = self.some(lambda count: np.array([3, 3, 1]))
    self.assert_same(some, load_source(folders.section(self.path), 'train'), np.array([3, 3, 1]))
    self.assertEqual(self.decoded, 2)

  @parameterized.parameters([[0]], [[1, 2, 3]], [list(range(0, 30, 3))])
  def test_the_first_ones_are_those_of_the_whole_set_where_some_are_damaged(self, damaged):
    self.write(30, damaged)
    source = load_source(folders.section(self.path), 'train')
    self.assert_same(self.some(lambda count: np.arange(min(6, count))), source, np.arange(6))
    self.assertLessEqual(self.decoded, 6 + len(damaged))

  def test_random_ones_are_never_damaged(self):
    self.write(30, range(0, 30, 2))
    some = self.some(lambda count: np.random.default_rng(0).integers(count, size=8))
    good = {image.tobytes() for image in load_source(folders.section(self.path), 'train').read(np.arange(15))}
    self.assertLessEqual({image.tobytes() for image in some.examples}, good)

  def test_all_may_be_chosen(self):
    self.write(4, [1])
    self.assertLen(self.some(np.arange), 3)

  def test_only_damaged_ones_are_refused(self):
    self.write(3, range(3))
    with self.assertRaisesRegex(UserError, r'\Anone of the 3 images in .*photos can be decoded \(cat/001\.png: .*\): '):
      self.some(np.arange)
    folders.write(self.path, {'cat/001.png': b'', 'dog/000.png': b'', 'dog/002.png': b''})
    with self.assertRaisesRegex(UserError, r'\Anone of the 3 images in .*photos .*png: empty: fetch it again;'):
      self.some(np.arange)

  def test_a_split_that_is_not_there_is_refused_as_ever(self):
    self.write(3)
    with self.assertRaisesRegex(UserError, "has no folder 'test' with images to test on"):
      self.some(np.arange, 'test')

  def test_of_a_zip_likewise(self):
    contents = {f'{n}.png': folders.encode(n) for n in range(20)}
    path = folders.write_zip(self.path, contents)
    self.path = path
    some = self.some(lambda count: np.array([count - 1, 0]))
    np.testing.assert_array_equal(some.examples, load_source(folders.section(path), 'train').read(np.array([19, 0])))
    self.assertEqual(self.decoded, 2)

  def test_of_built_in_sets_likewise(self):
    for config in (testing.digits_config(), testing.toy2d_config()):
      source = load_source(config.data, 'test')
      some = load_some(config.data, 'test', lambda count: np.array([count - 1, 2]))
      indices = np.array([len(source) - 1, 2])
      np.testing.assert_array_equal(some.examples, source.read(indices))
      if source.labels is None:
        self.assertIsNone(some.labels)
      else:
        self.assert_same(some, source, indices)

  def test_of_tensorflow_datasets_likewise(self):
    data = folders.section('', name='cifar10', image_size=32)
    with tfds.testing.mock_data(num_examples=12):
      source = load_source(data, 'test')
      some = load_some(data, 'test', lambda count: np.array([count - 1, 2, 2]))
    self.assert_same(some, source, np.array([11, 2, 2]))
    self.assertEqual((len(source.classes), source.fingerprint), (10, ''))

  def test_facts_have_the_fields_that_the_summary_counts(self):
    self.assertEqual(Facts._fields, ('width', 'height', 'colour', 'transparent', 'largest', 'converted'))


if __name__ == '__main__':
  absltest.main()
