import json
import os
import tempfile

from absl.testing import absltest, parameterized
import numpy as np
from PIL import Image

from diffusion_ebm.run import files
from tests import testing


class _Evil:
  """Makes a folder when it is unpickled."""

  def __init__(self, path):
    self._path = path

  def __reduce__(self):
    return os.mkdir, (self._path,)


class NpzTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.path = os.path.join(self.enterContext(tempfile.TemporaryDirectory()), 'file.npz')

  def test_arrays_come_back(self):
    arrays = {'a/b': np.arange(6).reshape(2, 3), 'text': np.asarray('some')}
    np.savez_compressed(self.path, **arrays)
    read = files.read_npz(self.path)
    self.assertCountEqual(read, arrays)
    for name, array in arrays.items():
      np.testing.assert_array_equal(read[name], array)

  def test_only_what_is_asked_for_is_read(self):
    marker = self.path + '.ran'
    np.savez_compressed(self.path, a=np.arange(3), b=np.array([_Evil(marker)], object), c=np.zeros(10**6))
    read = files.read_npz(self.path, 1000, names=('a', 'd'))
    self.assertEqual(list(read), ['a'])
    np.testing.assert_array_equal(read['a'], np.arange(3))
    with self.assertRaisesRegex(ValueError, 'it unpacks to 8000.*, more than 1000'):
      files.read_npz(self.path, 1000, names=('a', 'c'))

  def test_objects_are_refused_and_nothing_is_executed(self):
    marker = self.path + '.ran'
    np.savez(self.path, a=np.array([_Evil(marker)], object))
    with self.assertRaisesRegex(ValueError, 'allow_pickle=False'):
      files.read_npz(self.path)
    self.assertFalse(os.path.exists(marker))

  def test_what_unpacks_to_too_much_is_refused_unread(self):
    np.savez_compressed(self.path, a=np.zeros(2**20, np.uint8))
    self.assertLess(os.path.getsize(self.path), 2000)
    with self.assertRaisesRegex(ValueError, 'it unpacks to 10487.. bytes, more than 1000000'):
      files.read_npz(self.path, 1_000_000)

  def test_damage_is_a_value_error_wherever_it_is(self):
    np.savez_compressed(self.path, a=np.random.default_rng(0).normal(size=99), b=np.zeros(9))
    with open(self.path, 'rb') as file:
      content = file.read()
    refused = 0
    for place in range(0, len(content), 7):
      with open(self.path, 'wb') as file:
        file.write(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
      try:
        files.read_npz(self.path)
      except ValueError as error:
        self.assertNotEqual(str(error), '')
        refused += 1
    self.assertGreater(refused, 0.5 * len(content) / 7)  # the rest are dates and attributes
    with open(self.path, 'wb') as file:
      file.write(content[:-30])
    with self.assertRaises(ValueError):
      files.read_npz(self.path)

  def test_no_file_is_an_os_error(self):
    with self.assertRaises(FileNotFoundError):
      files.read_npz(self.path)


class WholeTest(parameterized.TestCase):
  """Files are replaced at once or stay as they were."""

  def setUp(self):
    super().setUp()
    self.folder = self.enterContext(tempfile.TemporaryDirectory())
    self.path = os.path.join(self.folder, 'file')

  def content(self):
    """What is in the file; there is no other."""
    self.assertEqual(os.listdir(self.folder), ['file'])
    with open(self.path, 'rb') as file:
      return file.read()

  def test_until_the_end_the_old_file_is_there_and_then_the_new_one(self):
    files.write_text(self.path, 'old')
    with files.replacing(self.path) as file:
      file.write(b'new')
      file.flush()
      with open(self.path, 'rb') as old:
        self.assertEqual(old.read(), b'old')
    self.assertEqual(self.content(), b'new')

  @parameterized.parameters(ValueError, KeyboardInterrupt, SystemExit)
  def test_after_a_failure_the_old_file_is_whole_and_nothing_else_is_left(self, error):
    for old in (None, b'old'):
      if old:
        files.write_text(self.path, old.decode())
      with self.assertRaises(error), files.replacing(self.path) as file:
        file.write(b'new')
        raise error
      if old:
        self.assertEqual(self.content(), old)
      else:
        self.assertEmpty(os.listdir(self.folder))

  @parameterized.named_parameters(
    ('text', lambda path: files.write_text(path, 'x' * 1000)),
    ('json', lambda path: files.write_json(path, ['x' * 1000])),
    ('npz', lambda path: files.write_npz(path, {'a': np.random.default_rng(0).normal(size=1000)})),
    ('npz_as_it_is', lambda path: files.write_npz(path, {'a': np.zeros(1000)}, compress=False)),
    ('npy', lambda path: files.write_npy(path, np.zeros(1000))),
    ('npy_that_is_small', lambda path: files.write_npy(path, np.zeros(9))),
    ('png', lambda path: files.write_png(path, np.random.default_rng(0).integers(256, size=(9, 9, 3), dtype='u1'))),
  )
  def test_on_a_full_disk_the_old_file_is_whole(self, write):
    files.write_text(self.path, 'old')
    with testing.full_disk(), self.assertRaises(OSError) as caught:
      write(self.path)
    self.assertEqual(caught.exception.filename, self.path)
    self.assertEqual(self.content(), b'old')

  def test_on_a_full_disk_nothing_is_added_to_a_file(self):
    files.write_text(self.path, 'old\n')
    for size in (4, 5, 12):
      with testing.full_disk(size), open(self.path, 'ab', buffering=0) as file, self.assertRaises(OSError):
        files.append(file, b'a longer line\n')
      self.assertEqual(self.content(), b'old\n')
    with open(self.path, 'ab', buffering=0) as file:
      files.append(file, b'a longer line\n')
    self.assertEqual(self.content(), b'old\na longer line\n')

  def test_numbers_that_json_has_no_words_for_are_null(self):
    value = {'a': [float('nan'), (1.5, -float('inf'))], 'b': {'c': np.float64('nan'), 'd': True, 'e': None}}
    files.write_json(self.path, value)
    self.assertEqual(files.read_json(self.path), {'a': [None, [1.5, None]], 'b': {'c': None, 'd': True, 'e': None}})
    self.assertNotIn(b'NaN', self.content())

  def test_a_value_that_json_cannot_hold_leaves_the_old_file(self):
    files.write_json(self.path, 1)
    with self.assertRaises(TypeError):
      files.write_json(self.path, {'a': object()})
    self.assertEqual(files.read_json(self.path), 1)
    self.assertEqual(os.listdir(self.folder), ['file'])

  def test_text_is_utf8_with_the_line_ends_that_it_has(self):
    files.write_text(self.path, 'ä\r\n雪\n')
    self.assertEqual(self.content(), 'ä\r\n雪\n'.encode())

  def test_json_comes_back(self):
    value = {'a': [1, 0.1, None, True], 'ä': {'b': '雪'}}
    files.write_json(self.path, value)
    self.assertEqual(files.read_json(self.path), value)
    self.assertEqual(self.content(), (json.dumps(value, indent=2) + '\n').encode())

  @parameterized.parameters(False, True)
  def test_npz_comes_back_under_the_very_name(self, compress):
    arrays = {'a/b': np.arange(6, dtype=np.float32).reshape(2, 3), 'none': np.zeros((0, 3)), 'one': np.asarray(7)}
    files.write_npz(self.path, arrays, compress)
    self.assertEqual(os.listdir(self.folder), ['file'])
    read = files.read_npz(self.path)
    self.assertCountEqual(read, arrays)
    for name, array in arrays.items():
      np.testing.assert_array_equal(read[name], array, strict=True)
    if compress:
      files.write_npz(self.path, {'a': np.zeros(10_000)}, compress)
      self.assertLess(os.path.getsize(self.path), 1000)

  def test_png_comes_back_whatever_the_name(self):
    picture = np.random.default_rng(0).integers(0, 256, (9, 7, 3)).astype(np.uint8)
    files.write_png(self.path, picture)
    with Image.open(self.path) as image:
      self.assertEqual(image.format, 'PNG')
      np.testing.assert_array_equal(np.asarray(image), picture)
    self.assertEqual(os.listdir(self.folder), ['file'])

  def test_json_that_is_not_there_is_none_and_damage_a_value_error(self):
    self.assertIsNone(files.read_json(self.path))
    files.write_text(self.path, '')
    self.assertIsNone(files.read_json(os.path.join(self.path, 'below')))
    for content in (b'', b'{"a": ', b'\xff', b'[' * 100_000):
      with open(self.path, 'wb') as file:
        file.write(content)
      with self.assertRaises(ValueError):
        files.read_json(self.path)
    with self.assertRaises(OSError):
      files.read_json(self.folder)


if __name__ == '__main__':
  absltest.main()
