import os
import tempfile

from absl.testing import absltest
import numpy as np

from diffusion_ebm import npz


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
    read = npz.read(self.path)
    self.assertCountEqual(read, arrays)
    for name, array in arrays.items():
      np.testing.assert_array_equal(read[name], array)

  def test_objects_are_refused_and_nothing_is_executed(self):
    marker = self.path + '.ran'
    np.savez(self.path, a=np.array([_Evil(marker)], object))
    with self.assertRaisesRegex(ValueError, 'allow_pickle=False'):
      npz.read(self.path)
    self.assertFalse(os.path.exists(marker))

  def test_what_unpacks_to_too_much_is_refused_unread(self):
    np.savez_compressed(self.path, a=np.zeros(2**20, np.uint8))
    self.assertLess(os.path.getsize(self.path), 2000)
    with self.assertRaisesRegex(ValueError, 'it unpacks to 10487.. bytes, more than 1000000'):
      npz.read(self.path, 1_000_000)

  def test_damage_is_a_value_error_wherever_it_is(self):
    np.savez_compressed(self.path, a=np.random.default_rng(0).normal(size=99), b=np.zeros(9))
    with open(self.path, 'rb') as file:
      content = file.read()
    refused = 0
    for place in range(0, len(content), 7):
      with open(self.path, 'wb') as file:
        file.write(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1:])
      try:
        npz.read(self.path)
      except ValueError as error:
        self.assertNotEqual(str(error), '')
        refused += 1
    self.assertGreater(refused, 0.5 * len(content) / 7)  # the rest are dates and attributes
    with open(self.path, 'wb') as file:
      file.write(content[:-30])
    with self.assertRaises(ValueError):
      npz.read(self.path)

  def test_no_file_is_an_os_error(self):
    with self.assertRaises(FileNotFoundError):
      npz.read(self.path)


if __name__ == '__main__':
  absltest.main()
