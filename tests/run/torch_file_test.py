"""Files of PyTorch: what comes out of them, and that nothing in them is executed."""

import os
import pathlib
import pickle
import tempfile
from unittest import mock
import zipfile

from absl.testing import absltest, parameterized
import numpy as np

from diffusion_ebm.run import torch_file
from tests import torch_files

LARGE = 2**20
CHECKPOINT = pathlib.Path(__file__).parents[1] / 'fixtures' / 'cdrl_checkpoint.pth.tar'


class TorchFileTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.path = os.path.join(self.enterContext(tempfile.TemporaryDirectory()), 'weights.pth')

  @parameterized.parameters(False, True)
  def test_tensors_come_out_of_both_formats(self, legacy):
    storage = np.arange(60, dtype=np.float32)
    arrays = {
      'a.weight': np.arange(24, dtype=np.float32).reshape(2, 3, 4),
      'b': np.array(7, np.int64),
      'half': np.array([0.5, -2, 65504, 6e-8], np.float16),
      'double': np.array([[1e-300, 0.1]]),
      'transposed': np.arange(6, dtype=np.float32).reshape(3, 2).T,
      'part': storage[7:31].reshape(2, 3, 4)[:, 1:, ::2],
      'other.part': storage[5:9],
    }
    for tree in (arrays, {'epoch': 3, 'state_dict': arrays}):
      torch_files.save(tree, self.path, legacy, parameters=('a.weight', 'half'))
      found = torch_file.read_arrays(self.path, LARGE)
      self.assertCountEqual(found, arrays)
      for name, array in found.items():
        np.testing.assert_array_equal(array, arrays[name], strict=True)

  @parameterized.parameters(False, True)
  def test_what_is_nested_comes_out_as_it_was_and_only_what_is_read_is_loaded(self, legacy):
    arrays = [np.arange(3, dtype=np.float32), np.ones((2, 2))]
    tree = {
      'averages': {'decay': 0.9999, 'num_updates': 12, 'shadow_params': arrays, 'collected': None},
      'optimizer': {'state': {}, 'lr': np.float64(1e-4), 'seen': {1, 2}, 'betas': (0.9, 0.999)},
    }
    torch_files.save(tree, self.path, legacy)
    with torch_file.opened(self.path, LARGE) as saved:
      self.assertCountEqual(saved, tree)
      averages = saved['averages']
      self.assertEqual((averages['decay'], averages['num_updates'], averages['collected']), (0.9999, 12, None))
      self.assertEqual([tensor.shape for tensor in averages['shadow_params']], [(3,), (2, 2)])
      self.assertEqual([tensor.nbytes for tensor in averages['shadow_params']], [12, 32])
      np.testing.assert_array_equal(averages['shadow_params'][1].read(), arrays[1], strict=True)
      np.testing.assert_array_equal(averages['shadow_params'][0].read(), arrays[0], strict=True)
      self.assertEqual(saved['optimizer']['betas'], (0.9, 0.999))

  def test_a_file_that_pytorch_wrote_itself(self):
    with torch_file.opened(CHECKPOINT, 2**22) as saved:
      self.assertLen(saved['p_ema_state_dict']['shadow_params'], len(saved['p_state_dict']))
      self.assertEqual(saved['pi_lr_scheduler']['lr_lambdas'], [None])
      kernel = saved['pi_state_dict']['module.module_list.0.weight_orig'].read()
      u, v = (saved['pi_state_dict'][f'module.module_list.0.weight_{name}'].read() for name in 'uv')
    self.assertEqual(kernel.shape, (8, 3, 3, 3))
    np.testing.assert_allclose(u @ kernel.reshape(8, 27) @ v, np.linalg.norm(kernel.reshape(8, 27), 2), rtol=1e-5)

  @parameterized.parameters(False, True)
  def test_a_pickle_that_calls_anything_else_is_refused_and_not_run(self, legacy):
    marker = self.path + '.ran'
    torch_files.write_pickle({'a': [torch_files.Evil(marker)]}, self.path, legacy)
    with self.assertRaisesRegex(pickle.UnpicklingError, 'it calls .*mkdir'):
      torch_file.read_arrays(self.path, LARGE)
    self.assertFalse(os.path.exists(marker))

  @parameterized.parameters(
    ((300,), (1,), 0, 'a: it is larger than its storage'),
    ((2**20, 2**20), (0, 0), 0, '3 bytes are more|larger than its storage'),  # repeats a small storage without end
    ((3,), (2,), 0, 'a: it reaches beyond its storage'),
    ((2,), (1,), 3, 'a: it reaches beyond its storage'),
    ((2,), (-1,), 1, 'a: it reaches beyond its storage'),
    ((2,), (1,), -1, 'a: it reaches beyond its storage'),
  )
  def test_a_tensor_that_is_not_in_its_storage_is_refused(self, shape, strides, offset, message):
    tensor = torch_file.Tensor('0', '<f4', offset, shape, strides, lambda key: bytes(16))
    with self.assertRaisesRegex(ValueError, message):
      torch_file.read({'a': tensor}, 2**50)

  def test_too_much_is_refused(self):
    for legacy in (False, True):
      torch_files.save({'a': np.zeros(300, np.float32)}, self.path, legacy)
      with self.assertRaisesRegex(ValueError, r'\d+ bytes are more than 1000'):
        torch_file.read_arrays(self.path, 1000)
    with zipfile.ZipFile(self.path, 'w', zipfile.ZIP_DEFLATED) as archive:
      archive.writestr('x/data.pkl', bytes(LARGE))
    self.assertLess(os.path.getsize(self.path), 2000)
    with self.assertRaisesRegex(ValueError, f'{LARGE} bytes are more than 2000'):
      torch_file.read_arrays(self.path, 2000)
    with (
      mock.patch.object(torch_file, '_MAX_PICKLE_BYTES', 2000),
      self.assertRaisesRegex(ValueError, f'{LARGE} bytes are more than 2000'),
    ):
      torch_file.read_arrays(self.path, 2 * LARGE)
    # Tensors may share a storage: each is small enough, all together are not.
    tensors = {str(i): torch_file.Tensor('0', '<f4', 0, (4,), (1,), lambda key: bytes(16)) for i in range(10)}
    self.assertLen(torch_file.read(tensors, 160), 10)
    with self.assertRaisesRegex(ValueError, '160 bytes are more than 159'):
      torch_file.read(tensors, 159)

  def test_files_cut_short_and_others_are_refused(self):
    torch_files.save({'a': np.zeros(300, np.float32)}, self.path)
    content = pathlib.Path(self.path).read_bytes()
    for data, message in ((content[:-50], 'it is cut short'), (pickle.dumps(3), 'not a file of PyTorch')):
      pathlib.Path(self.path).write_bytes(data)
      with self.assertRaisesRegex(ValueError, message):
        torch_file.read_arrays(self.path, LARGE)
    for content, message in (([], 'no dictionary of tensors'), ({'a.weight': 3}, r'a\.weight is no tensor')):
      torch_files.save(content, self.path)
      with self.assertRaisesRegex(ValueError, message):
        torch_file.read_arrays(self.path, LARGE)
    with zipfile.ZipFile(self.path, 'w') as archive:
      archive.writestr('x/readme', b'')
    with self.assertRaisesRegex(ValueError, 'a zip without data.pkl'):
      torch_file.read_arrays(self.path, LARGE)


if __name__ == '__main__':
  absltest.main()
