"""The Inception network against `tests/fixtures/inception.npz`, and its weights out of PyTorch's files.

The reference: torch-fidelity 0.4.0's `inception-v3-compat`, in float32, on weights that anyone can make again.
"""

import collections
import functools
import hashlib
import io
import json
import os
import pathlib
import pickle
import sys
import tempfile
import types
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
from diffusion_ebm.run.errors import UserError


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


def torch_modules():
  """Stand-ins for the names that PyTorch's pickles call."""
  torch, utils = types.ModuleType('torch'), types.ModuleType('torch._utils')

  def _rebuild_tensor_v2():
    raise AssertionError('a reader called it')

  def _rebuild_parameter():
    raise AssertionError('a reader called it')

  for function in (_rebuild_tensor_v2, _rebuild_parameter):
    function.__module__, function.__qualname__ = 'torch._utils', function.__name__
    setattr(utils, function.__name__, function)
  for name in ('FloatStorage', 'LongStorage'):
    setattr(torch, name, type(name, (), {'__module__': 'torch'}))
  torch._utils = utils
  return {'torch': torch, 'torch._utils': utils}


def save_torch(arrays, path, legacy, parameters=()):
  """Writes a file as `torch.save` does: since 1.6 a zip, before it a row of pickles (`legacy`)."""
  modules = torch_modules()
  storages = {str(1000 + i): array for i, array in enumerate(arrays.values())}

  class Storage:
    def __init__(self, key):
      self.key = key

  class Tensor:
    def __init__(self, name, key):
      self.name, self.key = name, key

    def __reduce__(self):
      array = storages[self.key]
      strides = tuple(s // array.itemsize for s in array.strides)
      utils = modules['torch._utils']
      rebuilt = utils._rebuild_tensor_v2, (Storage(self.key), 0, array.shape, strides, False, collections.OrderedDict())
      if self.name not in parameters:
        return rebuilt
      return utils._rebuild_parameter, (Tensor('', self.key), True, collections.OrderedDict())

  class Pickler(pickle.Pickler):
    def persistent_id(self, thing):
      if not isinstance(thing, Storage):
        return None
      array = storages[thing.key]
      kind = modules['torch'].LongStorage if array.dtype == np.int64 else modules['torch'].FloatStorage
      pid = 'storage', kind, thing.key, 'cpu', array.size
      return (*pid, None) if legacy else pid

  state = collections.OrderedDict((name, Tensor(name, key)) for name, key in zip(arrays, storages, strict=True))
  state._metadata = collections.OrderedDict(version=1)
  with mock.patch.dict(sys.modules, modules):
    if not legacy:
      pickled = io.BytesIO()
      Pickler(pickled, 2).dump(state)
      with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('weights/data.pkl', pickled.getvalue())
        for key, array in storages.items():
          archive.writestr(f'weights/data/{key}', array.tobytes('A'))
      return
    with open(path, 'wb') as file:
      pickle.dump(0x1950A86A20F9469CFC6C, file, 2)
      pickle.dump(1001, file, 2)
      pickle.dump({'protocol_version': 1001, 'little_endian': True, 'type_sizes': {'long': 4}}, file, 2)
      Pickler(file, 2).dump(state)
      pickle.dump(sorted(storages, reverse=True), file, 2)
      for key in sorted(storages, reverse=True):
        file.write(storages[key].size.to_bytes(8, 'little') + storages[key].tobytes('A'))


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
    save_torch(weights(), path, legacy=True)
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


class WeightsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.path = os.path.join(self.enterContext(tempfile.TemporaryDirectory()), 'weights.pth')

  @parameterized.parameters(False, True)
  def test_tensors_come_out_of_both_formats(self, legacy):
    arrays = {
      'a.weight': np.arange(24, dtype=np.float32).reshape(2, 3, 4),
      'b': np.array(7, np.int64),
      'transposed': np.arange(6, dtype=np.float32).reshape(3, 2).T,
    }
    save_torch(arrays, self.path, legacy, parameters=('a.weight',))
    found = inception_weights.read_torch(self.path)
    self.assertCountEqual(found, arrays)
    for name, array in found.items():
      self.assertEqual((array.dtype, array.shape), (arrays[name].dtype, arrays[name].shape))
      np.testing.assert_array_equal(array, arrays[name])

  @parameterized.parameters(False, True)
  def test_a_pickle_that_calls_anything_else_is_refused_and_not_run(self, legacy):
    marker = self.path + '.ran'

    class Evil:
      def __reduce__(self):
        return os.mkdir, (marker,)

    pickled = pickle.dumps(Evil(), 2)
    if legacy:
      pathlib.Path(self.path).write_bytes(pickled)
    else:
      with zipfile.ZipFile(self.path, 'w') as archive:
        archive.writestr('x/data.pkl', pickled)
    with self.assertRaisesRegex(UserError, r'cannot be read as Inception weights \(it calls .*mkdir') as caught:
      inception_weights.load(self.path)
    self.assertNotIn('\n', str(caught.exception))
    self.assertFalse(os.path.exists(marker))

  def test_other_files_are_refused_in_one_line(self):
    save_torch({'a.weight': np.zeros(3, np.float32)}, self.path, False)
    with self.assertRaisesRegex(UserError, 'cannot be read as Inception weights'):
      inception_weights.load(self.path)
    for content in (b'', b'not a pickle', pickle.dumps(3)):
      pathlib.Path(self.path).write_bytes(content)
      with self.assertRaisesRegex(UserError, 'cannot be read as Inception weights'):
        inception_weights.load(self.path)
    with self.assertRaisesRegex(UserError, r'/nowhere does not exist.*https://'):
      inception_weights.find(os.path.dirname(self.path) + '/nowhere')

  def test_a_file_that_asks_for_more_memory_than_the_weights_need_is_refused(self):
    arrays = {'a.weight': np.zeros(300, np.float32)}
    for legacy in (False, True):
      save_torch(arrays, self.path, legacy)
      with (
        mock.patch.object(inception_weights, '_MAX_BYTES', 1000),
        self.assertRaisesRegex(UserError, r'\(\d+ bytes are more than 1000\)'),
      ):
        inception_weights.load(self.path)
    # A shape may repeat a small storage without end.
    storage = inception_weights._Storage('0', '<f4')
    tensor = inception_weights._Tensor(storage, 0, (2**20, 2**20), (0, 0))
    with self.assertRaisesRegex(ValueError, 'larger than its storage'):
      inception_weights._resolve({'a': tensor}, lambda storage: bytes(4))

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
