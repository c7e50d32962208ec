"""Sets of images from elsewhere: their names, and how they are read."""

import os
import tempfile
from unittest import mock
import zipfile

from absl.testing import absltest
import numpy as np
from PIL import Image

from configs import digits
from diffusion_ebm.data import decode, external_images, first
from diffusion_ebm.run.errors import UserError

OTHERS, RESERVED = ('noise', 'shuffle'), ('test', 'train')


def name_sets(*entries):
  return external_images.name_sets(entries, 'against', OTHERS, RESERVED)


class ExternalImagesTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = os.path.realpath(self.enterContext(tempfile.TemporaryDirectory()))
    self.addCleanup(os.chdir, os.getcwd())
    os.chdir(self.folder)

  def make(self, *names):
    for name in names:
      os.makedirs(name)
    return [os.path.join(self.folder, name) for name in names]


class NamesTest(ExternalImagesTest):
  def test_a_path_is_called_after_its_last_part_and_a_data_set_as_it_is(self):
    a, b = self.make('a/photos', 'b')
    found = name_sets('noise', 'a/photos/', 'lsun/church', f'mine={b}', 'your set=cifar10', 'mnist')
    expected = {
      'noise': 'noise',
      'photos': a,
      'lsun/church': 'lsun/church',
      'mine': b,
      'your set': 'cifar10',
      'mnist': 'mnist',
    }
    self.assertEqual(list(found.items()), list(expected.items()))

  def test_paths_of_one_name_are_told_apart_by_the_parts_before(self):
    a, b, c = self.make('a/photos', 'b/photos', 'c/b/photos')
    self.assertEqual(name_sets(a, 'b/photos'), {'a/photos': a, 'b/photos': b})
    above = os.path.basename(self.folder)
    self.assertEqual(name_sets(a, b, c), {'a/photos': a, f'{above}/b/photos': b, 'c/b/photos': c})

  def test_a_path_takes_no_name_that_means_something_else(self):
    a, b, c, d = self.make('a/test', 'b/noise', 'c/mnist', 'd/mine')
    self.assertEqual(
      name_sets(a, b, 'noise', c, 'mnist', d, 'mine=a/test'),
      {'a/test': a, 'b/noise': b, 'noise': 'noise', 'c/mnist': c, 'mnist': 'mnist', 'd/mine': d, 'mine': a},
    )
    self.assertEqual(name_sets(os.sep), {os.sep: os.sep})

  def test_what_is_listed_twice_is_one_set(self):
    (a,) = self.make('a')
    self.assertEqual(name_sets('a', './a/', a, 'noise', 'noise', 'b=a', f'b={a}'), {'a': a, 'noise': 'noise', 'b': a})

  def test_a_path_that_exists_is_one_whatever_it_holds(self):
    mine, both, three = self.make('mine=a', 'a,b', 'x,y,z=1')
    self.assertEqual(name_sets('mine=a'), {'mine=a': mine})
    self.assertEqual(name_sets('one=mine=a'), {'one': mine})
    # The command line splits at commas.
    self.assertEqual(
      name_sets('noise', 'a', 'b', 'shuffle', 'x', 'y', 'z=1', 'my=a', 'b'),
      {'noise': 'noise', 'a,b': both, 'shuffle': 'shuffle', 'x,y,z=1': three, 'my': both},
    )
    a, b = self.make('a', 'b')
    self.assertEqual(name_sets('a', 'b'), {'a': a, 'b': b})
    self.assertEqual(name_sets('a,b'), {'a,b': both})

  def test_a_corruption_is_meant_where_a_folder_has_its_name_too(self):
    (noise,) = self.make('noise')
    with self.assertLogs('diffusion_ebm', 'INFO') as logs:
      self.assertEqual(
        name_sets('noise', './noise', 'folder=noise'),
        {'noise': 'noise', 'folder': noise} | {f'{os.path.basename(self.folder)}/noise': noise},
      )
    self.assertIn('--against=noise is not the noise in', logs.output[0])

  def test_names_that_are_given_and_taken_are_refused(self):
    self.make('a', 'b')
    for entries, message in (
      (
        ['noise=a'],
        r'--against=noise=a: noise means something else, as do noise, shuffle, test, train: choose another',
      ),
      (['test=a'], r'--against=test=a: test means something else'),
      (['x=a', 'x=b'], r'--against calls more than one set x: give each a name of its own, as NAME=PATH$'),
      (['mnist=a', 'mnist'], r'--against calls more than one set mnist'),
    ):
      with self.subTest(message), self.assertRaisesRegex(UserError, message) as caught:
        name_sets(*entries)
      self.assertNotIn('\n', str(caught.exception))

  def test_what_a_terminal_would_obey_is_spelled_out(self):
    self.make('a\x1b[2J\nb')
    self.assertEqual(list(name_sets('a\x1b[2J\nb')), [r'a\x1b[2J\nb'])


class LoadTest(ExternalImagesTest):
  def load(self, where, num_channels=1, flag='images', **changes):
    data = digits.get_config().data
    data.update({'image_size': 4, 'num_channels': num_channels} | changes)
    return external_images.load_elsewhere(data, where, flag, first(100), ('noise',))

  def write(self, name, *shape, value=77):
    os.makedirs(os.path.dirname(name) or '.', exist_ok=True)
    Image.fromarray(np.full(shape, value, np.uint8)).save(name)

  def test_grey_and_colour_images_get_the_channels_of_the_model(self):
    self.write('a/grey.png', 4, 4, value=50)
    self.write('a/colour.png', 4, 4, 3, value=60)
    with self.assertLogs('diffusion_ebm', 'INFO') as logs:
      source = self.load('a', num_channels=3)
    np.testing.assert_array_equal(
      source.read(np.arange(2)), np.array([60, 50])[:, None, None, None] + np.zeros((4, 4, 3))
    )
    self.assertIn('mixes grey and colour images: all are used in colour', ''.join(logs.output))
    self.assertEqual(self.load('a').read(np.arange(2)).shape, (2, 4, 4, 1))

  def test_all_of_a_folder_is_read_and_damaged_images_left_out_whatever_the_runs_own_data_need(self):
    self.write('a/train/1.png', 4, 4)
    self.write('a/test/2.png', 4, 4)
    with open('a/3.png', 'wb') as file:
      file.write(b'no image')
    self.assertLen(self.load('a', strict=True, train_split='train', test_split='test'), 2)

  def test_an_archive_and_an_image_are_known_by_what_they_are(self):
    self.write('a/1.png', 4, 4)
    with zipfile.ZipFile('archive', 'w') as archive:
      archive.write('a/1.png')
    os.rename('a/1.png', 'photo')
    for name in ('archive', 'photo'):
      np.testing.assert_array_equal(self.load(name).read(np.arange(1)), np.full((1, 4, 4, 1), 77))

  def test_what_is_wrong_is_said_of_the_flag_that_named_it(self):
    os.mkdir('empty')
    for name in ('x.tiff', 'x.zip', 'empty/notes.txt'):
      with open(name, 'wb') as file:
        file.write(b'nothing')
    os.mkdir('pointers')
    with open('pointers/a.png', 'wb') as file:
      file.write(b'version https://git-lfs.github.com/spec/v1')
    for where, message in (
      ('pointers', r'pointers can be decoded \(a\.png: git LFS pointer: run git lfs pull\): .* set --images to'),
      ('x.tiff', r'--images: /.*/x\.tiff cannot be read as an image \(.*\): name an image, a folder or a \.zip$'),
      ('x.zip', r'x\.zip is neither a folder nor a \.zip or \.tar that can be read .*--images'),
      ('empty', r'empty holds no images .*--images'),
      ('./gone', rf'--images: {self.folder}/gone does not exist: name noise, a folder, a \.zip'),
      ('gone', rf'--images=gone is neither a file in {self.folder} nor a data set: name noise, a folder'),
      ('gone/photos', '--images=gone/photos is neither a file in'),
      ('images', '--images=images is neither a file in'),
      ('toy2d', r'--images=toy2d has examples of shape \(2,\), but the model takes \(4, 4, 1\)'),
    ):
      with self.subTest(where), self.assertRaisesRegex(UserError, message) as caught:
        self.load(where)
      self.assertNotIn('data.path', str(caught.exception))
      self.assertNotIn('\n', str(caught.exception))

  def test_an_image_of_too_many_bytes_is_refused_unread(self):
    self.write('1.png', 4, 4)
    with mock.patch.object(decode, 'MAX_BYTES', 10), self.assertRaisesRegex(UserError, 'more than 10 b'):
      self.load('1.png')


if __name__ == '__main__':
  absltest.main()
