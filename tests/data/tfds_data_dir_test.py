"""What is said of a data directory of TensorFlow Datasets, without a network."""

import json
import os
import pathlib
import shutil
import tempfile
import types
from unittest import mock

from absl.testing import absltest, parameterized
import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.image_classification import cifar

from diffusion_ebm.data import load_source, tfds_data_dir
from diffusion_ebm.run.errors import UnknownDataSetError, UserError

_VERSION = '3.0.2'  # of CIFAR-10, that TFDS prepares
_TRAIN_FILE = 'cifar10-train.array_record-00000-of-00001'


def _examples(count):
  return [(n, {'id': str(n), 'image': np.full((32, 32, 3), n, np.uint8), 'label': n}) for n in range(count)]


class DataDirTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.prepared = cls.enterClassContext(tempfile.TemporaryDirectory())
    with cls.source_files():
      cls.load(path=cls.prepared)

  def setUp(self):
    super().setUp()
    # Without links in it, as messages name it.
    self.around = os.path.realpath(self.enterContext(tempfile.TemporaryDirectory()))
    self.path = os.path.join(self.around, 'sets')
    shutil.copytree(self.prepared, self.path)
    self.folder = pathlib.Path(self.path, 'cifar10', _VERSION)
    self.download = self.enterContext(
      mock.patch.object(cifar.Cifar10, '_split_generators', side_effect=OSError('no network'))
    )

  @staticmethod
  def source_files(num_train=7, num_test=3):
    """As if CIFAR-10 had so many examples, and they had been downloaded."""
    splits = {'train': _examples(num_train), 'test': _examples(num_test)}
    return mock.patch.object(cifar.Cifar10, '_split_generators', lambda *_: splits)

  @staticmethod
  def load(split='train', **changes):
    fields = {
      'name': 'cifar10',
      'image_size': 32,
      'num_channels': 3,
      'train_split': 'train',
      'test_split': 'test',
      'max_memory_gb': 4.0,
      'num_workers': 2,
    }
    return load_source(types.SimpleNamespace(**fields | changes), split)

  def assert_refused(self, message, path=None, error=UserError, **changes):
    with self.assertRaisesRegex(error, message) as caught:
      self.load(path=self.path if path is None else path, **changes)
    self.assertNotIn('\n', str(caught.exception))
    self.download.assert_not_called()

  def assert_read(self, count=7, **changes):
    source = self.load(path=self.path, **changes)
    self.assertCountEqual(source.labels, range(count))
    np.testing.assert_array_equal(source.read(np.arange(count))[:, 0, 0, 0], source.labels)
    self.download.assert_not_called()

  def change_info(self, **changes):
    path = self.folder / 'dataset_info.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))

  def change_version(self, version):
    """As if an older or a newer TFDS had prepared the set."""
    self.change_info(version=version)
    self.folder = self.folder.rename(self.folder.with_name(version))

  @parameterized.parameters('cifar10', f'cifar10:{_VERSION}', 'cifar10:3.*.*', 'Cifar10')
  def test_what_is_prepared_is_read_under_its_name_with_and_without_a_version(self, name):
    self.assert_read(name=name)
    self.assert_read(3, name=name, split='test', max_memory_gb=0.0)

  @parameterized.parameters('cifar10', f'cifar10:{_VERSION}')
  def test_an_information_file_that_this_version_cannot_read_is_named(self, name):
    path = self.folder / 'dataset_info.json'
    whole = path.read_text()
    remedy = f'upgrade tensorflow-datasets if .*, or remove {self.folder} to have it prepared anew$'
    for content in (whole[:300], '', '[1]', whole.replace('{', '{"fieldOfTomorrow": 1,', 1)):
      path.write_text(content)
      self.assert_refused(
        rf'^{path} cannot be read by TensorFlow Datasets {tfds.__version__} \(.*\): {remedy}', name=name
      )
    path.unlink()
    self.assert_refused(rf'^{path} cannot be read by .*: {remedy}', name=name)

  @parameterized.parameters(
    ({'version': '3.0.1'}, 'do not match'),
    ({'fileFormat': 'format_of_tomorrow'}, "'format_of_tomorrow' is not a valid"),
  )
  def test_what_it_says_of_the_data_must_be_so(self, changes, cause):
    self.change_info(**changes)
    self.assert_refused(rf'^{self.folder} cannot be read by .*{cause}.*or remove {self.folder}')

  def test_a_damaged_list_of_features_is_reported(self):
    self.change_version('3.0.1')
    (self.folder / 'features.json').write_text('{')
    self.assert_refused(f'^{self.folder} cannot be read by .*JSONDecodeError', name='cifar10:3.0.1')

  @parameterized.parameters('3.0.1', '4.0.0')
  def test_another_version_is_read_when_it_is_named_and_otherwise_stops(self, there):
    self.change_version(there)
    self.assert_refused(
      f'^{self.path}/cifar10 holds version {there}, not {_VERSION}, .*--config.data.name=cifar10:{there}; '
      f'to download .*, cifar10:{_VERSION}$'
    )
    self.assert_read(name=f'cifar10:{there}')
    with self.source_files(num_train=5):
      self.assertLen(self.load(path=self.path, name=f'cifar10:{_VERSION}'), 5)
    self.assertCountEqual(os.listdir(self.folder.parent), [there, _VERSION])
    self.assertLen(self.load(path=self.path), 5)

  def test_a_version_that_is_not_to_be_had_is_refused_with_those_that_are(self):
    self.change_version('3.0.1')
    for version in ('2.0.0', '2.*.*'):
      self.assert_refused(
        rf'^there is no version {version.replace("*", "[*]")} of cifar10: {self.path}/cifar10 holds 3\.0\.1, and .* '
        rf'prepares {_VERSION}; .*--config\.data\.name=cifar10:{_VERSION}$',
        name=f'cifar10:{version}',
      )
    self.assert_refused('no version 9.9.9 of mnist: .* holds none, and .* prepares 3.0.1;', name='mnist:9.9.9')

  @parameterized.parameters('cifar10:latest', 'cifar10:3', 'cifar10/3.0.2', 'ci\nfar', 'no_such_set:1.0.0')
  def test_a_name_that_is_none_is_refused_as_that(self, name):
    self.assert_refused('^no data set is called ', name=name, error=UnknownDataSetError)

  def test_a_folder_too_deep_is_refused_with_the_right_one(self):
    link = os.path.join(self.around, 'link')
    os.symlink(self.folder.parent, link)
    for path in (self.folder.parent, self.folder, link):
      self.assert_refused(
        f'^--config.data.path={path} is a folder inside .*: set --config.data.path={self.path}$', str(path)
      )

  def test_a_folder_too_shallow_is_refused_with_the_right_one(self):
    self.assert_refused(
      f'^--config.data.path={self.around} holds no cifar10, but {self.path} does: set --config.data.path={self.path},',
      self.around,
    )

  def test_a_data_set_without_the_folders_around_it_is_refused_with_what_they_are(self):
    moved = os.path.join(self.around, 'a', 'copy')
    shutil.move(self.folder, moved)
    for path in (moved, os.path.dirname(moved)):
      self.assert_refused(f'^{moved} holds a prepared data set, .*DIRECTORY/cifar10/VERSION.: move it to one', path)

  def test_a_file_is_no_data_directory(self):
    path = str(self.folder / _TRAIN_FILE)
    self.assert_refused(f'^--config.data.path={path} is a file: name the directory', path)

  def test_other_storage_that_cannot_be_reached_is_no_unknown_name(self):
    self.assert_refused('^cifar10 cannot be opened in http://a/b .*: copy it to a local folder$', 'http://a/b')

  def test_where_nothing_lies_it_is_said_where_to_it_is_downloaded(self):
    path = os.path.join(self.around, 'new')
    with self.assertLogs('diffusion_ebm') as logs, self.source_files(num_train=5):
      self.assertLen(self.load(path=path), 5)
    self.assertRegex(logs.output[0], f'downloading cifar10 .*{path}/downloads .*{path}/cifar10/{_VERSION},')

  @parameterized.parameters(4.0, 0.0)
  def test_files_that_are_missing_or_cut_off_are_named_at_the_start(self, max_memory_gb):
    path = self.folder / _TRAIN_FILE
    remedy = f'copy it again, or remove {self.folder} to have it prepared anew$'
    for size in (100_000, 0):
      os.truncate(path, size)
      self.assert_refused(rf'^{path} is missing or damaged \(.*\): {remedy}', max_memory_gb=max_memory_gb)
    path.unlink()
    self.assert_refused(rf'^{path} is missing or damaged \(.*No such file.*\): {remedy}', max_memory_gb=max_memory_gb)
    self.assert_read(3, split='test', max_memory_gb=max_memory_gb)

  @parameterized.parameters('train', 'train[:1]', 'test+train')
  def test_files_of_another_number_of_examples_are_named(self, split):
    shutil.copy(self.folder / _TRAIN_FILE.replace('train', 'test'), self.folder / _TRAIN_FILE)
    self.assert_refused(rf'^.*/{_TRAIN_FILE} .*\(it holds 3 examples, not 7,', train_split=split, max_memory_gb=0.0)

  def test_a_split_without_examples_is_refused_with_those_that_have_some(self):
    train, test = json.loads((self.folder / 'dataset_info.json').read_text())['splits']
    for splits in ([train | {'shardLengths': ['0']}, test], [test]):
      self.change_info(splits=splits)
      self.assert_refused("no split 'train' with examples: set --config.data.train_split to one of test$")
    self.change_info(splits=[])
    self.assert_refused(f'^{self.folder} holds no examples: remove it')

  def test_a_set_that_the_user_has_prepared_is_read_and_looked_after_likewise(self):
    self.change_info(name='my_set')
    for file in self.folder.glob('cifar10-*'):
      file.rename(file.with_name(file.name.replace('cifar10', 'my_set')))
    os.rename(self.folder.parent, os.path.join(self.path, 'my_set'))
    self.assert_read(name='my_set')
    self.assert_read(name='my_set:3.0.2')
    self.assert_refused('no version 1.0.0 of my_set: .* holds 3.0.2, and .* prepares none;', name='my_set:1.0.0')
    self.assert_refused(f'set --config.data.path={self.path}$', f'{self.path}/my_set', name='my_set')


class NamesTest(parameterized.TestCase):
  @parameterized.parameters(
    ('cifar10', 'cifar10', None),
    ('cifar10:3.0.2', 'cifar10', '3.0.2'),
    ('lsun/church:3.*.10', 'lsun/church', '3.*.10'),
    ('huggingface:cifar10', 'huggingface:cifar10', None),
    ('cifar10:03.0.2', 'cifar10:03.0.2', None),
    ('cifar10:latest', 'cifar10:latest', None),
    ('', '', None),
  )
  def test_a_version_is_split_from_the_name(self, name, base, version):
    self.assertEqual(tfds_data_dir.split_version(name), (base, version))

  def test_our_own_names_may_have_a_version_too(self):
    builder = tfds_data_dir.open_builder('lsun/church:3.1.0', self.enterContext(tempfile.TemporaryDirectory()))
    self.assertEqual(builder.info.full_name, 'lsun/church_outdoor/3.1.0')


if __name__ == '__main__':
  absltest.main()
