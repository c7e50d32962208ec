"""The Inception network against `tests/fixtures/inception.npz`, and its weights out of PyTorch's files.

The reference: torch-fidelity 0.4.0's `inception-v3-compat`, in float32, on weights that anyone can make again.
"""

import functools
import gzip
import hashlib
import io
import json
import os
import pathlib
import pickle
import tempfile
from unittest import mock
import urllib.error
import urllib.request
import zipfile
import zlib

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_ebm.evaluate import features, inception, inception_weights
from diffusion_ebm.run import torch_file
from diffusion_ebm.run.errors import UserError
from tests import testing, torch_files


@functools.cache
def reference():
  with np.load(pathlib.Path(__file__).parents[1] / 'fixtures' / 'inception.npz', allow_pickle=False) as file:
    return dict(file)


def weight(name, shape):
  r = np.random.RandomState(zlib.crc32(name.encode()))
  if name.endswith('num_batches_tracked'):
    value = np.zeros(shape, np.int64)
  elif name.endswith('bn.weight'):
    value = 1 + 0.1 * r.randn(*shape)
  elif name.endswith('running_var'):
    value = 1 + 0.2 * r.rand(*shape)
  elif name.endswith(('bias', 'running_mean')):
    value = 0.1 * r.randn(*shape)
  else:
    value = r.randn(*shape) * np.sqrt(2 / np.prod(shape[1:]))
  return value if value.dtype == np.int64 else value.astype(np.float32)


@functools.cache
def weights():
  return {name: weight(name, shape) for name, shape in json.loads(str(reference()['names'])).items()}


class NetworkTest(parameterized.TestCase):
  @parameterized.parameters(32, 64, 299)
  def test_features_of_all_stages_and_logits(self, size):
    given = reference()
    params = inception_weights.from_arrays(weights())
    outputs = jax.jit(lambda params, x: inception.Inception().apply({'params': params}, x))(
      params, given[f'images_{size}']
    )
    self.assertCountEqual(outputs, ['64', '192', '768', '2048', 'logits', 'logits_unbiased'])
    for name, ours in outputs.items():
      theirs = given[f'{name}_{size}']
      # The reference names 1e-3; float32 gives 1e-6 of the largest value.
      np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5 * np.abs(theirs).max(), err_msg=name)

  def test_the_weights_fill_the_whole_network(self):
    expected = jax.eval_shape(inception.Inception().init, jax.random.key(0), np.zeros((1, 32, 32, 3), np.uint8))
    params = inception_weights.from_arrays(weights())
    self.assertEqual(jax.tree.map(lambda a: a.shape, expected['params']), jax.tree.map(np.shape, params))

  def test_resizing_is_tensorflows_first(self):
    # Pixel i of the new image lies at i * old / new in the old one; beyond its last pixel the image is constant.
    image = np.random.default_rng(0).uniform(0, 255, (1, 5, 7, 1)).astype(np.float32)
    resized = np.asarray(inception.resize(image))
    self.assertEqual(resized.shape, (1, 299, 299, 1))
    for row, column in ((0, 0), (100, 31), (150, 298), (298, 200)):
      y, x = row * 5 / 299, column * 7 / 299
      i, j = int(y), int(x)
      below, right = min(i + 1, 4), min(j + 1, 6)
      p = image[0, :, :, 0]
      expected = (1 - (y - i)) * ((1 - (x - j)) * p[i, j] + (x - j) * p[i, right]) + (y - i) * (
        (1 - (x - j)) * p[below, j] + (x - j) * p[below, right]
      )
      np.testing.assert_allclose(resized[0, row, column, 0], expected, rtol=1e-4)

  def test_the_extractor_reads_a_file_and_takes_grey_images(self):
    path = os.path.join(self.enterContext(tempfile.TemporaryDirectory()), 'weights.pth')
    torch_files.save(weights(), path, legacy=True)
    extractor = features.inception_v3(path)
    self.assertIn('not the published ones', extractor.notes['inception_weights'])
    found, logits = features.compile_extractor(extractor, (32, 32, 3), 2)(reference()['images_32'])
    for ours, theirs in ((found, reference()['2048_32']), (logits, reference()['logits_32'])):
      np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5 * np.abs(theirs).max())
    grey = jnp.asarray(reference()['images_32'][..., :1])
    apply = jax.jit(extractor.apply)
    np.testing.assert_allclose(
      apply(extractor.params, grey)[0], apply(extractor.params, jnp.repeat(grey, 3, axis=3))[0], rtol=1e-4, atol=1e-4
    )

  @parameterized.parameters((1, 1, 1), (17, 512, 3))
  @testing.long
  def test_images_of_any_size_count_as_what_they_are_resized_to(self, height, width, channels):
    params = inception_weights.from_arrays(weights())
    apply = functools.partial(
      jax.jit(lambda params, x: inception.Inception().apply({'params': params}, x)['2048']), params
    )
    image = np.random.default_rng(0).integers(0, 256, (2, height, width, channels)).astype(np.uint8)
    image = np.broadcast_to(image, (2, height, width, 3))
    # One pixel is a constant image; of 299 x 299 nothing is resized.
    resized = np.broadcast_to(image, (2, 299, 299, 3)) if height == 1 else inception.resize(image)
    found = apply(image)
    self.assertTrue(np.all(np.isfinite(found)))
    self.assertGreater(np.abs(found[0] - found[1]).max(), 0.01)
    np.testing.assert_allclose(found, apply(resized.astype(np.float32)), rtol=1e-4, atol=1e-4 * np.abs(found).max())


class WeightsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.path = os.path.join(self.enterContext(tempfile.TemporaryDirectory()), 'weights.pth')

  @parameterized.parameters(False, True)
  def test_a_pickle_that_calls_anything_else_is_refused_and_not_run(self, legacy):
    marker = self.path + '.ran'
    torch_files.write_pickle(torch_files.Evil(marker), self.path, legacy)
    with self.assertRaisesRegex(UserError, r'cannot be read as Inception weights \(it calls .*mkdir') as caught:
      inception_weights.load(self.path)
    self.assertNotIn('\n', str(caught.exception))
    self.assertFalse(os.path.exists(marker))

  @parameterized.named_parameters(
    ('shape', 'fc.weight', lambda w: w[:10], r'\(fc\.weight has the shape \(10, 2048\), not \(1008, 2048\)\)'),
    ('turned', 'Mixed_6b.branch7x7_2.conv.weight', lambda w: w.swapaxes(2, 3), r'\(128, 128, 7, 1\), not \(.*1, 7\)'),
    ('missing', 'Mixed_7c.branch_pool.bn.bias', lambda w: None, r'\(Mixed_7c\.branch_pool\.bn\.bias is missing\)'),
    ('nan', 'Conv2d_1a_3x3.conv.weight', lambda w: w * np.nan, r'\(Conv2d_1a_3x3\.conv\.weight is not finite\)'),
    ('infinity', 'fc.bias', lambda w: w + np.inf, r'\(fc\.bias is not finite\)'),
    ('variance', 'Mixed_5b.branch1x1.bn.running_var', lambda w: w - 2, r'\(Mixed_5b\..*running_var is negative\)'),
    ('extra', 'Mixed_8a.conv.weight', lambda w: np.zeros(3), r'\(Mixed_8a\.conv\.weight is unknown\)'),
    ('all', '', lambda w: None, r'\(\S+ is missing, \S+ is missing, and 470 more\)'),
    ('torchvision', 'AuxLogits.fc.bias', lambda w: np.zeros(1000), r"\(it is torchvision's .* classification"),
    ('torchvision_without_auxiliary', 'fc.weight', lambda w: w[:1000], r"\(it is torchvision's .* classification"),
  )
  def test_other_weights_are_refused_and_the_first_named(self, name, change, message):
    arrays = {key: value for key, value in weights().items() if name}
    if (changed := change(arrays.pop(name, None))) is not None:
      arrays[name] = changed
    with (
      mock.patch.object(torch_file, 'read_arrays', lambda *_: arrays),
      self.assertRaisesRegex(UserError, message + '.*: it should be a copy of https://') as caught,
    ):
      inception_weights.load(self.path)
    self.assertNotIn('\n', str(caught.exception))

  def test_the_batches_counted_in_training_are_of_no_use(self):
    arrays = {name: value for name, value in weights().items() if not name.endswith('num_batches_tracked')}
    self.assertLess(len(arrays), len(weights()))
    np.testing.assert_array_equal(inception_weights.from_arrays(arrays)['fc']['bias'], arrays['fc.bias'])

  @parameterized.named_parameters(
    ('empty', b'', 'it is empty'),
    ('text', b'not a pickle', r'\(.'),
    ('number', pickle.dumps(3), 'not a file of PyTorch'),
    ('page', b'\n<!DOCTYPE html>\n<title>Not found</title>', 'it is a web page'),
    (
      'lfs',
      b'version https://git-lfs.github.com/spec/v1\noid sha256:6726\nsize 95628359\n',
      'it is a pointer of Git LFS',
    ),
    ('safetensors', (64).to_bytes(8, 'little') + b'{"fc.bias":{"dtype":"F32"', 'it is a file of safetensors'),
    ('tensorflow', b'\n&\n\x13DecodeJpeg/contents\x12\x05Const', 'it is a graph of TensorFlow'),
    ('archive', gzip.compress(b'inception-2015-12-05'), 'it is compressed by gzip'),
  )
  def test_other_files_are_refused_in_one_line(self, content, message):
    pathlib.Path(self.path).write_bytes(content)
    with self.assertRaisesRegex(
      UserError, rf'cannot be read as Inception weights .*{message}.* copy of https'
    ) as caught:
      inception_weights.load(self.path)
    self.assertNotIn('\n', str(caught.exception))

  def test_a_program_is_refused_and_so_is_what_is_no_tensor(self):
    with zipfile.ZipFile(self.path, 'w') as archive:
      archive.writestr('x/data.pkl', pickle.dumps({}))
      archive.writestr('x/constants.pkl', pickle.dumps(()))
    with self.assertRaisesRegex(UserError, r'\(it is a program \(TorchScript\)\)'):
      inception_weights.load(self.path)
    for content, message in (([], 'no dictionary of tensors'), ({'a.weight': 3}, r'a\.weight is no tensor')):
      with zipfile.ZipFile(self.path, 'w') as archive:
        archive.writestr('x/data.pkl', pickle.dumps(content))
      with self.assertRaisesRegex(UserError, message):
        inception_weights.load(self.path)

  def test_no_file_is_refused(self):
    with self.assertRaisesRegex(UserError, r'/nowhere is no file.*https://'):
      inception_weights.find(os.path.dirname(self.path) + '/nowhere')

  def test_a_file_that_asks_for_more_memory_than_the_weights_need_is_refused(self):
    arrays = {'a.weight': np.zeros(300, np.float32)}
    for legacy in (False, True):
      torch_files.save(arrays, self.path, legacy)
      with (
        mock.patch.object(inception_weights, '_MAX_BYTES', 1000),
        self.assertRaisesRegex(UserError, r'\(\d+ bytes are more than 1000\)'),
      ):
        inception_weights.load(self.path)

  def test_without_a_network_the_message_says_what_to_fetch(self):
    cache = self.enterContext(tempfile.TemporaryDirectory())
    self.enterContext(mock.patch.dict(os.environ, {'XDG_CACHE_HOME': cache}))
    self.enterContext(mock.patch.object(urllib.request, 'urlopen', side_effect=urllib.error.URLError('no route')))
    with self.assertRaisesRegex(UserError, r'no route.*fetch https://.*--config\.eval\.inception_weights='):
      inception_weights.find('')

  def test_a_download_is_checked_and_kept(self):
    cache = self.enterContext(tempfile.TemporaryDirectory())
    self.enterContext(mock.patch.dict(os.environ, {'XDG_CACHE_HOME': cache}))
    with mock.patch.object(urllib.request, 'urlopen', lambda *_, **__: io.BytesIO(b'weights')):
      with self.assertRaisesRegex(UserError, 'damaged'):
        inception_weights.find('')
      self.assertEmpty(os.listdir(os.path.join(cache, 'diffusion_ebm')))
      with mock.patch.object(inception_weights, 'SHA256', hashlib.sha256(b'weights').hexdigest()):
        path = inception_weights.find('')
    self.assertEqual(pathlib.Path(path).read_bytes(), b'weights')
    self.assertEqual(inception_weights.find(''), path)  # without a network


if __name__ == '__main__':
  absltest.main()
