"""Bad input, drawn by Hypothesis: whatever it is, the user sees one line, never a traceback.

FUZZ_EXAMPLES in the environment multiplies the number of inputs, which is small here.
"""

import glob
import io
import json
import os
import re
import shutil
import tarfile
import tempfile
import types
from unittest import mock
import zipfile

from absl.testing import absltest
import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from tensorflow_datasets.image_classification import cifar

from configs import default, digits, toy2d
from diffusion_ebm import config as config_lib
from diffusion_ebm import networks, noise_levels, optimizer, train_step
from diffusion_ebm.data import load_source
from diffusion_ebm.evaluate import feature_statistics, inception_weights, scores
from diffusion_ebm.jobs import import_weights
from diffusion_ebm.run import checkpoints, paths, torch_file
from diffusion_ebm.run.errors import UserError
from tests import forks, testing, torch_files
from tests.data import tfds_data_dir_test
from tests.run.checkpoints_test import state_at

FACTOR = int(os.environ.get('FUZZ_EXAMPLES', 1))
COUNTS = {}


def fuzz(examples, **strategies):
  """A test of so many inputs, the same ones each time unless there are more than usual."""

  def decorate(test):
    def counted(self, **drawn):
      COUNTS[test.__name__] = COUNTS.get(test.__name__, 0) + 1
      test(self, **drawn)

    counted.__name__ = test.__name__
    counted = hypothesis.given(**strategies)(counted)
    return hypothesis.settings(
      max_examples=examples * FACTOR,
      deadline=None,
      derandomize=FACTOR == 1,
      database=None,
      suppress_health_check=list(hypothesis.HealthCheck),
      phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
    )(counted)

  return decorate


# Values for a key of the type that its default has.
_NUMBERS = st.one_of(st.integers(-3, 300), st.sampled_from([0, 1, 2, 3, 2**31, 2**63, 10**30, -(10**9)]))
_TEXTS = st.one_of(st.sampled_from(['', 'adam', 'resnet', 'mlp', 'digits', '/', '..']), st.text(max_size=8))


def values(old):
  if isinstance(old, bool):
    return st.booleans()
  if isinstance(old, int):
    return _NUMBERS
  if isinstance(old, float):
    return st.one_of(st.floats(), st.floats(-2, 2), _NUMBERS.map(float))
  if isinstance(old, tuple):
    return st.lists(st.one_of(_NUMBERS, st.integers(1, 4)), max_size=5).map(tuple)
  return _TEXTS


# What people, scripts and other systems put into names.
_PATH_PARTS = st.one_of(
  st.sampled_from(['run', '~', '..', 'ch=[1,2]', 'a b', 'ä', '日本', '-x', 'a*', 'x?', 'b\\c', "it's", '%20', '$HOME']),
  st.text(min_size=1, max_size=6).filter(lambda text: '/' not in text),
)
_DTYPES = ['f4', 'f8', 'f2', '>f8', 'i4', 'u1', '?', 'c8', 'U1']
_SHAPES = st.sampled_from([(2,), (2, 2), (3,), (3, 3), (5, 2), (1, 2), (0, 2), (), (2, 1)])
_ARRAYS = st.builds(
  lambda shape, dtype, seed, scale: (scale * np.random.default_rng(seed).normal(size=shape)).astype(dtype),
  _SHAPES,
  st.sampled_from(_DTYPES),
  st.integers(0, 5),
  st.sampled_from([0.0, 1.0, 1e-30, 1e30, np.inf, np.nan]),
) | st.builds(lambda seed: np.cov(np.random.default_rng(seed).normal(size=(2, 9))), st.integers(0, 5))
_ODD_FLAGS = [
  '--config.train={}',
  "--config.data={'name': 3}",
  '--config.model=None',
  '--config.eval.statistics=None',
  '--config.model.ch_mult=None',
  '--config=configs/digits.py:x',
  '--config=None',
  '--step=None',
  '--seed=1e3',
  '--num_samples=',
  '--against=a=b,c=',
  '--mask=',
  '--flagfile=/dev/null',
  '--workdir=~/[x]',
]
KEYS = sorted(key for key, _ in config_lib.flatten(default.get_config().to_dict()))


@st.composite
def changes(draw):
  """A few keys of a configuration, `{key: value}`."""
  config = default.get_config()
  found = {}
  for key in draw(st.lists(st.sampled_from(KEYS), min_size=1, max_size=4, unique=True)):
    old = config
    for part in key.split('.'):
      old = old[part]
    found[key] = draw(values(old))
  return found


def damaged(draw, content: bytes) -> bytes:
  """Bytes with something cut off, changed, inserted or repeated."""
  content = bytearray(content)
  for _ in range(draw(st.integers(1, 4))):
    kind, place = draw(st.sampled_from(['cut', 'flip', 'insert', 'repeat', 'zero'])), draw(st.integers(0, len(content)))
    length = draw(st.integers(1, 64))
    if kind == 'cut':
      del content[place : place + length if draw(st.booleans()) else None]
    elif kind == 'flip' and place < len(content):
      content[place] ^= draw(st.integers(1, 255))
    elif kind == 'insert':
      content[place:place] = draw(st.binary(min_size=1, max_size=64))
    elif kind == 'repeat':
      content[place:place] = content[place : place + length]
    else:
      content[place : place + length] = bytes(len(content[place : place + length]))
  return bytes(content)


@st.composite
def damage(draw, contents):
  """One of some files, damaged, or any bytes at all."""
  if draw(st.integers(0, 9)) == 0:
    return draw(st.binary(max_size=200))
  return damaged(draw, draw(st.sampled_from(contents)))


def encoded_images():
  pixels = np.random.default_rng(0).integers(256, size=(9, 7, 3), dtype=np.uint8)
  for mode, format_ in (('RGB', 'PNG'), ('P', 'PNG'), ('LA', 'PNG'), ('L', 'JPEG'), ('RGB', 'WEBP')):
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, format_)
    yield buffer.getvalue()


IMAGES = list(encoded_images())


def tar(images):
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode='w') as file:
    for number, image in enumerate(images):
      info = tarfile.TarInfo(f'train/{number}.png')
      info.size = len(image)
      file.addfile(info, io.BytesIO(image))
  return buffer.getvalue()


def archive(images):
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, 'w', zipfile.ZIP_DEFLATED) as file:
    for number, image in enumerate(images):
      file.writestr(f'train/{number}.png', image)
  return buffer.getvalue()


@testing.long
class FuzzTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = self.enterContext(tempfile.TemporaryDirectory())

  @classmethod
  def tearDownClass(cls):
    super().tearDownClass()
    if FACTOR > 1:
      print('\ninputs tried:', COUNTS, sum(COUNTS.values()))

  @fuzz(25, name=st.sampled_from(['digits', 'toy2d']), changes=changes())
  def test_a_configuration_is_refused_or_describes_a_network(self, name, changes):
    config = {'digits': digits, 'toy2d': toy2d}[name].get_config()
    config.update_from_flattened_dict(changes)
    config = config_lib.resolve(config)
    try:
      config_lib.check(config, 1)
    except UserError as error:
      self.assertNotIn('\n', str(error))
      return
    if config.model.ch * max((1, *config.model.ch_mult)) > 2000 or config.model.num_res_blocks > 5:
      return  # it takes long to say how large it would be
    size = config.data.image_size
    shape = (2,) if config_lib.is_vector(config) else (size, size, config.data.num_channels)
    levels = noise_levels.make_levels(
      config.diffusion.num_levels, config.sampling.step_size, config.sampling.step_size_rule
    )
    network = networks.make_network(config.model, levels)
    tx, schedule = optimizer.make_optimizer(config.train)
    state = jax.eval_shape(
      lambda key: train_step.init_state(key, network, tx, jnp.zeros(shape), config.model.spectral_norm),
      jax.random.key(0),
    )
    self.assertNotEmpty(jax.tree.leaves(state.params))
    self.assertTrue(np.isfinite(schedule(3)))

  @fuzz(1, lines=st.lists(changes(), min_size=15, max_size=15), data=st.data())
  def test_a_command_line_and_a_config_json_are_refused_in_one_line(self, lines, data):
    saved = json.dumps(config_lib.resolve(digits.get_config()).to_dict()).encode()
    waves = []
    for number, line in enumerate(lines):
      workdir = tempfile.mkdtemp(dir=self.folder)
      args = [f'--workdir={workdir}', '--mode=sample', '--config=configs/digits.py']
      if number % 3 == 0:
        args.pop()
        with open(os.path.join(workdir, 'config.json'), 'wb') as file:
          file.write(damaged(data.draw, saved))
      text = data.draw(st.sampled_from(['', '', ')', 'x', '--', '1e', "'", 'None']))
      args += data.draw(st.lists(st.sampled_from(_ODD_FLAGS), max_size=2))
      waves.append(
        [
          {
            'args': args
            + [
              f'--config.{key}={value}{text}'
              for key, value in line.items()
              if '\0' not in str(value) and str(value).isprintable()
            ]
          }
        ]
      )
    for (wave,), (result,) in zip(waves, forks.run(waves), strict=True):
      COUNTS['command lines'] = COUNTS.get('command lines', 0) + 1
      self.assertEqual(result[0], 2, (wave, result[1]))
      self.assertRegex(result[1], r'\Aerror: [^\n]*\n\Z', wave)

  @fuzz(
    40,
    content=damage([*IMAGES, archive(IMAGES[:2]), tar(IMAGES[:2])]),
    zipped=st.booleans(),
    channels=st.sampled_from([1, 3]),
  )
  def test_images_and_archives_are_read_left_out_or_refused(self, content, zipped, channels):
    path = os.path.join(tempfile.mkdtemp(dir=self.folder), 'images')
    if zipped:
      with open(path, 'wb') as file:
        file.write(content)
    else:
      os.mkdir(path)
      for name, image in (('a.png', content), ('b.jpg', IMAGES[4])):
        with open(os.path.join(path, name), 'wb') as file:
          file.write(image)
    try:
      source = load_source(
        types.SimpleNamespace(
          name='images',
          path=path,
          image_size=4,
          num_channels=channels,
          strict=False,
          train_split='',
          test_split='',
          test_fraction=0.0,
          random_flip=True,
          max_memory_gb=1.0,
          num_workers=1,
        ),
        'train',
      )
    except UserError as error:
      self.assertNotIn('\n', str(error))
      return
    read = source.read(np.arange(len(source)))
    self.assertEqual((read.dtype, read.shape[1:]), (np.uint8, (4, 4, channels)))

  @fuzz(
    60, parts=st.lists(_PATH_PARTS, min_size=1, max_size=4), scheme=st.sampled_from(['', '', '', 'file://', 'gs://'])
  )
  def test_a_path_is_taken_literally_or_refused(self, parts, scheme):
    relative = os.path.join(*parts).lstrip('/')
    given = scheme + (self.folder + '/' if scheme else '') + relative
    try:
      path = os.path.join(self.folder, paths.workdir(given))
    except UserError as error:
      self.assertNotIn('\n', str(error))
      return
    self.assertNoCommonElements(os.path.abspath(path), '[]*?\\')
    if '..' in relative or '~' in relative or '%' in relative or '\0' in relative:
      return  # elsewhere
    try:
      os.makedirs(path, exist_ok=True)
      config_lib.save(config_lib.resolve(digits.get_config()), path)
    except OSError:  # too long a name, or a file in the way
      return
    self.assertEqual(config_lib.load(os.path.join(self.folder, relative)).data.name, 'digits')

  def test_a_prepared_data_set_is_read_or_refused(self):
    sets = tfds_data_dir_test.DataDirTest
    sets.setUpClass()
    self.addCleanup(sets.doClassCleanups)
    files = sorted(glob.glob(os.path.join(sets.prepared, 'cifar10', '*', '*')))

    @fuzz(25, draw=st.data(), name=st.sampled_from(files))
    def damage_one(self, draw, name):
      path = os.path.join(tempfile.mkdtemp(dir=self.folder), 'sets')
      shutil.copytree(sets.prepared, path)
      with open(name, 'rb') as file:
        content = damaged(draw.draw, file.read())
      with open(os.path.join(path, os.path.relpath(name, sets.prepared)), 'wb') as file:
        file.write(content)
      try:
        with mock.patch.object(cifar.Cifar10, '_split_generators', side_effect=OSError('no network')):
          self.assertLen(sets.load(path=path), 7)
      except UserError as error:
        self.assertNotIn('\n', str(error))
      shutil.rmtree(path)

    damage_one(self)

  def test_a_damaged_checkpoint_folder_never_gives_another_state(self):
    intact = os.path.join(self.folder, 'intact')
    saver = checkpoints.Saver(intact, 3, 0, {'seed': 1})
    for step in (4, 8):
      saver.save(state_at(step), 10 * step)
    saver.close()
    files = sorted(
      os.path.relpath(name, intact) for name in glob.glob(os.path.join(intact, 'checkpoints', '**'), recursive=True)
    )

    @fuzz(12, draw=st.data(), names=st.lists(st.sampled_from(files[1:]), min_size=1, max_size=3))
    def damage_some(self, draw, names):
      workdir = os.path.join(tempfile.mkdtemp(dir=self.folder), 'run')
      shutil.copytree(intact, workdir)
      for name in names:
        path = os.path.join(workdir, name)
        kind = draw.draw(st.sampled_from(['damage', 'damage', 'remove', 'folder', 'pipe']))
        if kind == 'damage' and os.path.isfile(path):
          with open(path, 'rb') as file:
            content = file.read()
          with open(path, 'wb') as file:
            file.write(damaged(draw.draw, content))
          continue
        if os.path.isdir(path):
          shutil.rmtree(path)
        elif os.path.lexists(path):
          os.remove(path)
        if kind in ('folder', 'pipe') and os.path.isdir(os.path.dirname(path)):
          {'folder': os.mkdir, 'pipe': os.mkfifo}[kind](path)
      self.check_restored(workdir)
      shutil.rmtree(workdir)

    damage_some(self)

  def check_restored(self, workdir):
    try:
      manager = checkpoints.open_for_reading(workdir)
      try:
        state, batches = checkpoints.restore(manager, jax.tree.map(jnp.zeros_like, state_at(0)))
      finally:
        manager.close()
    except UserError as error:
      self.assertNotIn('\n', str(error))
      return
    self.assertIn(int(state.step), (4, 8))
    jax.tree.map(np.testing.assert_array_equal, state, state_at(int(state.step)))
    self.assertEqual(batches, 10 * int(state.step))

  def test_files_of_weights_and_statistics_are_read_or_refused(self):
    arrays = {'fc.weight': np.zeros((3, 2), np.float32), 'fc.bias': np.arange(3, dtype=np.float32)}
    contents = []
    for legacy in (False, True):
      path = os.path.join(self.folder, f'weights_{legacy}')
      torch_files.save(arrays, path, legacy)
      with open(path, 'rb') as file:
        contents.append(file.read())
    buffer = io.BytesIO()
    np.savez(buffer, mu=np.zeros(2), sigma=np.eye(2))

    @fuzz(60, weights=damage(contents), given=damage([buffer.getvalue()]))
    def read(self, weights, given):
      path = os.path.join(self.folder, 'file')
      for content, function in (
        (weights, inception_weights.load),
        (weights, lambda path: import_weights.read(path, 8)),
        (given, lambda path: feature_statistics.load_given(path, 2)),
        (given, feature_statistics.load),
      ):
        with open(path, 'wb') as file:
          file.write(content)
        try:
          function(path)
        except UserError as error:
          self.assertIsNone(re.search(r'\n', str(error)))

    read(self)

  @fuzz(100, arrays=st.dictionaries(st.sampled_from(['mu', 'sigma', 'pool_3', 'arr_0']), _ARRAYS))
  def test_statistics_of_any_arrays_are_moments_or_refused(self, arrays):
    path = os.path.join(self.folder, 'statistics.npz')
    np.savez(path, **arrays)
    try:
      mean, covariance = feature_statistics.load_given(path, 2)
    except UserError as error:
      self.assertNotIn('\n', str(error))
      return
    self.assertEqual((mean.shape, covariance.shape), ((2,), (2, 2)))
    distance = scores.frechet_distance(mean, covariance, np.zeros(2), np.eye(2))
    self.assertTrue(np.isfinite(distance) and distance >= 0)

  @fuzz(
    25,
    name=st.sampled_from(sorted(inception_weights._shapes())),
    kind=st.sampled_from(['drop', 'rename', 'nan', 'transpose', 'flatten', 'scalar', 'cut', 'negative', 'text']),
  )
  def test_weights_of_other_shapes_or_values_are_refused_by_name(self, name, kind):
    arrays = {each: np.broadcast_to(np.float32(0.5), shape) for each, shape in inception_weights._shapes().items()}
    good = arrays.pop(name)
    if kind != 'drop':
      arrays[name + 'x' if kind == 'rename' else name] = {
        'rename': good,
        'nan': np.where(np.arange(good.size) == good.size - 1, np.nan, good.ravel()).reshape(good.shape),
        'transpose': good.T if good.shape != good.T.shape else good[None],
        'flatten': good.ravel() if good.ndim > 1 else good[None],
        'scalar': good.ravel()[0],
        'cut': good[:-1],
        'negative': -good if name.endswith('.running_var') else good[:0],
        'text': np.full(good.shape, 'x'),
      }[kind]
    with (
      mock.patch.object(torch_file, 'read_arrays', return_value=arrays),
      self.assertRaisesRegex(UserError, r'\A\S+ cannot be read as Inception weights \(.*\): [^\n]*\Z') as caught,
    ):
      inception_weights.load('weights.pth')
    if kind not in ('scalar', 'text'):
      self.assertIn(name, str(caught.exception))


if __name__ == '__main__':
  absltest.main()
