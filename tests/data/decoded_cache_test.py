"""What took long to decode is read from the cache the next time, and only if it is the same."""

import os
import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest
import numpy as np

from diffusion_ebm.data import decoded_cache, encoded, images, load_some, load_source
from tests import testing
from tests.data import folders


class DecodedCacheTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    root = self.enterContext(tempfile.TemporaryDirectory())
    self.path, home = os.path.join(root, 'photos'), os.path.join(root, 'cache')
    self.folder = pathlib.Path(home, 'diffusion_ebm', 'images')
    self.enterContext(mock.patch.dict(os.environ, {'XDG_CACHE_HOME': home}))
    self.enterContext(mock.patch.object(decoded_cache, 'MIN_SECONDS', 0.0))
    contents = {f'{c}/{n}.png': folders.encode(n) for c in ('cat', 'dog') for n in range(4)}
    folders.write(self.path, contents | {'cat/2.png': folders.encode(9)[:-30]})

  def load(self, **changes):
    return load_source(folders.section(self.path, **changes), 'train')

  def cached(self, **changes):
    """Loads without decoding anything: an exception if that cannot be."""
    with mock.patch.object(encoded, 'decode_all', side_effect=AssertionError('decoded')):
      return self.load(**changes)

  def assert_decoded(self, **changes):
    with self.assertRaisesRegex(AssertionError, 'decoded'):
      self.cached(**changes)

  def assert_same(self, one, other):
    every = np.arange(7)
    np.testing.assert_array_equal(one.read(every), other.read(every))
    np.testing.assert_array_equal(one.labels, other.labels)
    self.assertEqual((len(one), one.fingerprint, one.classes), (len(other), other.fingerprint, other.classes))
    self.assertEqual(one.record.numbers, other.record.numbers)
    self.assertEqual(one.record.inventory.files, other.record.inventory.files)

  def test_what_is_kept_equals_what_was_decoded(self):
    first = self.load()
    with self.assertLogs('diffusion_ebm', 'INFO') as logs:
      self.assert_same(self.cached(), first)
    said = '\n'.join(logs.output)
    self.assertIn('8 images of', said)
    self.assertIn('as decoded before', said)
    self.assertIn('skipping 1 of 8 images', said)

  def test_what_is_quickly_decoded_is_not_kept(self):
    with mock.patch.object(decoded_cache, 'MIN_SECONDS', 100.0):
      self.load()
    self.assertFalse(self.folder.exists())

  def test_other_files_sizes_channels_and_versions_are_others(self):
    self.load()
    self.assert_decoded(image_size=5)
    self.assert_decoded(num_channels=1)
    with mock.patch.object(decoded_cache, '_VERSION', -1):
      self.assert_decoded()
    with mock.patch('PIL.__version__', 'another'):
      self.assert_decoded()
    os.rename(self.path, self.path + '2')
    self.path += '2'
    self.assert_decoded()
    self.load()
    self.cached()
    folders.write(self.path, {'cat/0.png': folders.encode(5)})
    self.assert_decoded()

  def test_images_beyond_the_memory_are_not_looked_at_again(self):
    first = self.load(max_memory_gb=1e-9)
    again = self.cached(max_memory_gb=1e-9)
    self.assertIsInstance(again, encoded.OnDemandSource)
    self.assert_same(again, first)
    self.assert_decoded()  # their pixels are not kept
    self.assertLen(list(self.folder.iterdir()), 1)

  def test_damaged_cut_and_foreign_files_are_made_anew(self):
    first = self.load()
    for path in sorted(self.folder.iterdir()):
      content = path.read_bytes()
      for damaged in (content[: len(content) // 2], b'', b'PK\3\4', content[:-200] + bytes(100) + content[-100:]):
        path.write_bytes(damaged)
        self.assert_decoded()
        self.assert_same(self.load(), first)
        self.cached()
    facts, pixels = sorted(self.folder.iterdir())
    np.savez(pixels, images=np.zeros((6, 4, 4, 3), np.uint8))
    self.assert_decoded()
    self.load()
    np.savez(facts, facts=np.zeros((7, 2), int), failed=np.array([2]), reasons=np.array(['x']))
    self.assert_decoded()

  def test_the_oldest_makes_room(self):
    self.load()
    first = set(self.folder.iterdir())
    for path in first:
      os.utime(path, (1, 1))
    size = sum(path.stat().st_size for path in first)
    with mock.patch.object(decoded_cache, '_MAX_BYTES', 2.5 * size):
      self.load(image_size=5)
      self.assertLen(list(self.folder.iterdir()), 4)
      self.cached()  # what is used is not the oldest any more
      for path in set(self.folder.iterdir()) - first:
        os.utime(path, (2, 2))
      self.load(num_channels=1)
      self.cached()
      self.cached(num_channels=1)
      self.assert_decoded(image_size=5)
      self.assertLessEqual(sum(path.stat().st_size for path in self.folder.iterdir()), 2.5 * size)

  def test_a_set_larger_than_all_room_is_not_kept(self):
    with mock.patch.object(decoded_cache, '_MAX_BYTES', 300):
      self.load()
    self.assert_decoded()

  def test_nothing_is_kept_on_a_disk_that_is_nearly_full(self):
    usage = mock.Mock(free=500)
    with mock.patch.object(decoded_cache.shutil, 'disk_usage', return_value=usage):
      self.load()
    self.assertEmpty(list(self.folder.iterdir()))

  def test_a_folder_that_cannot_be_written_does_not_matter(self):
    first = self.load()
    for home in ('/dev/null', '/proc/nowhere'):
      with mock.patch.dict(os.environ, {'XDG_CACHE_HOME': home}):
        self.assert_same(self.load(), first)
    for path in self.folder.iterdir():
      path.unlink()
    with testing.full_disk(), self.assertLogs('diffusion_ebm', 'INFO') as logs:
      self.assert_same(self.load(), first)
    self.assertRegex('\n'.join(logs.output), r'the decoded images are not kept for the next time \(.+\)')
    self.assertEmpty(list(self.folder.iterdir()))

  def test_damaged_images_that_are_known_are_not_tried_again(self):
    self.load()
    tried, decode = [], images.decode
    with mock.patch.object(images, 'decode', lambda content, *args: (tried.append(content), decode(content, *args))[1]):
      some = load_some(folders.section(self.path), 'train', lambda count: np.arange(3))
    self.assertLen(tried, 3)
    self.assertLen(some, 3)


if __name__ == '__main__':
  absltest.main()
