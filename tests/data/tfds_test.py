"""Tests of the image data sets of TensorFlow Datasets, without TensorFlow and without a network."""

import contextlib
import functools
import gzip
import http.server
import io
import os
import pathlib
import struct
import sys
import tarfile
import tempfile
import threading
import types
from unittest import mock
import zipfile

from absl.testing import absltest, parameterized
import numpy as np
from PIL import Image
import scipy.io
import tensorflow_datasets as tfds
from tensorflow_datasets.core import dataset_builder
from tensorflow_datasets.core.download import downloader, extractor
from tensorflow_datasets.core.features import image_feature
from tensorflow_datasets.datasets.celeb_a import celeb_a_dataset_builder as celeb_a
from tensorflow_datasets.datasets.svhn_cropped import svhn_cropped_dataset_builder as svhn
from tensorflow_datasets.image_classification import cifar, mnist

from diffusion_ebm.data import load_source, tfds_prepare
from diffusion_ebm.run.errors import UserError


def _data(name, **changes):
  fields = {
    'name': name,
    'path': '',
    'image_size': 32,
    'num_channels': 3,
    'train_split': 'train',
    'test_split': 'test',
    'strict': False,
    'max_memory_gb': 4.0,
    'num_workers': 2,
  }
  return types.SimpleNamespace(**{**fields, **changes})


class _Quiet(http.server.SimpleHTTPRequestHandler):
  def log_message(self, *args):
    pass


@contextlib.contextmanager
def _server(folder):
  """Serves the files of a folder: yields its URL."""
  handler = functools.partial(_Quiet, directory=folder)
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with mock.patch.dict(os.environ, {'no_proxy': '127.0.0.1', 'NO_PROXY': '127.0.0.1'}):
      yield f'http://127.0.0.1:{server.server_port}/'
    server.shutdown()


def _refused_port():
  """A URL at which nothing answers."""
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), _Quiet) as server:
    return f'http://127.0.0.1:{server.server_port}/'


class PreparationTest(parameterized.TestCase):
  """Original archives are served on this machine, then downloaded, prepared and read back."""

  def setUp(self):
    super().setUp()
    self.assertNotIn('tensorflow', sys.modules)
    self.www = self.enterContext(tempfile.TemporaryDirectory())
    # The threads of a download that has failed may still write there.
    self.path = self.enterContext(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
    self.rng = np.random.default_rng(0)

  def _mnist(self, num_train=7, num_test=3):
    """Writes the four files of MNIST: {split: (images, labels)}."""
    splits = {}
    for split, prefix, n in (('train', 'train', num_train), ('test', 't10k', num_test)):
      images = self.rng.integers(256, size=(n, 28, 28, 1), dtype=np.uint8)
      labels = self.rng.integers(10, size=n, dtype=np.uint8)
      for kind, header, array in (
        ('images-idx3', struct.pack('>4i', 2051, n, 28, 28), images),
        ('labels-idx1', struct.pack('>2i', 2049, n), labels),
      ):
        with gzip.open(os.path.join(self.www, f'{prefix}-{kind}-ubyte.gz'), 'wb') as file:
          file.write(header + array.tobytes())
      splits[split] = images, labels
    return splits

  @contextlib.contextmanager
  def _mnist_at(self, url, num_train=7, num_test=3):
    with (
      mock.patch.object(mnist.MNIST, 'URL', url),
      mock.patch.object(mnist, '_TRAIN_EXAMPLES', num_train),
      mock.patch.object(mnist, '_TEST_EXAMPLES', num_test),
    ):
      yield

  def _assert_same_set(self, source, images, labels):
    """Same pairs of images and labels: TFDS shuffles when it prepares."""
    read = source.read(np.arange(len(source)))
    self.assertCountEqual(
      [(image.tobytes(), int(label)) for image, label in zip(read, source.labels, strict=True)],
      [(image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True)],
    )

  def test_mnist_is_prepared_from_its_original_files(self):
    splits = self._mnist()
    with _server(self.www) as url, self._mnist_at(url):
      for split, (images, labels) in splits.items():
        source = load_source(_data('mnist', path=self.path, image_size=28, num_channels=1), split)
        self.assertEqual(source.shape, (28, 28, 1))
        self._assert_same_set(source, images, labels)
    self.assertNotIn('tensorflow', sys.modules)

  def test_what_is_prepared_is_read_without_a_network_in_memory_as_on_demand(self):
    with _server(self.www) as url, self._mnist_at(url):
      images, labels = self._mnist()['test']
      load_source(_data('mnist', path=self.path, num_channels=1), 'train')
    with self._mnist_at(_refused_port()):
      data = _data('mnist', path=self.path, num_channels=1)
      source = load_source(data, 'test')
      data.max_memory_gb = 0.0
      on_demand = load_source(data, 'test')
    padded = np.zeros((3, 32, 32, 1), np.uint8)
    padded[:, 2:30, 2:30] = images
    self._assert_same_set(source, padded, labels)
    self.assertNotIsInstance(on_demand, type(source))
    some = np.array([2, 0, 0, 1])
    np.testing.assert_array_equal(on_demand.read(some), source.read(some))
    np.testing.assert_array_equal(on_demand.labels, source.labels)

  @parameterized.parameters(
    (
      'cifar10',
      'Cifar10',
      'cifar-10-binary.tar.gz',
      'cifar-10-batches-bin',
      [f'data_batch_{i}.bin' for i in range(1, 6)],
      'test_batch.bin',
      {'batches.meta.txt': [f'c{i}' for i in range(10)]},
      1,
    ),
    (
      'cifar100',
      'Cifar100',
      'cifar-100-binary.tar.gz',
      'cifar-100-binary',
      ['train.bin'],
      'test.bin',
      {'fine_label_names.txt': [f'f{i}' for i in range(100)], 'coarse_label_names.txt': [f'c{i}' for i in range(20)]},
      2,
    ),
  )
  def test_cifar_is_prepared_from_its_original_archive(
    self, name, builder, archive, folder, train_files, test_file, names, num_labels
  ):
    train, test = [], []
    with tarfile.open(os.path.join(self.www, archive), 'w:gz') as tar:

      def add(file, content):
        info = tarfile.TarInfo(f'{folder}/{file}')
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))

      for file in [*train_files, test_file]:
        labels = self.rng.integers(10, size=(3, num_labels), dtype=np.uint8)
        planes = self.rng.integers(256, size=(3, 3, 32, 32), dtype=np.uint8)
        add(file, b''.join(a.tobytes() + b.tobytes() for a, b in zip(labels, planes, strict=True)))
        split = test if file == test_file else train
        split += zip(planes.transpose(0, 2, 3, 1), labels[:, -1], strict=True)
      for file, lines in names.items():
        add(file, '\n'.join(lines).encode() + b'\n')

    class_ = getattr(cifar, builder)
    original = class_._cifar_info.fget(class_.__new__(class_))
    with _server(self.www) as url:
      info = cifar.CifarInfo(**{**original._asdict(), 'url': url + archive})
      with mock.patch.object(class_, '_cifar_info', info):
        for split, examples in (('train', train), ('test', test)):
          source = load_source(_data(name, path=self.path), split)
          self._assert_same_set(source, *zip(*examples, strict=True))

  def test_svhn_is_prepared_from_its_original_files(self):
    splits = {}
    for split, n in (('train', 4), ('test', 3), ('extra', 1)):
      images = self.rng.integers(256, size=(n, 32, 32, 3), dtype=np.uint8)
      labels = np.arange(11 - n, 11, dtype=np.uint8)
      contents = {'X': images.transpose(1, 2, 3, 0), 'y': labels[:, None]}
      scipy.io.savemat(os.path.join(self.www, f'{split}_32x32.mat'), contents)
      splits[split] = images, labels % 10  # the original files call 0 ten
    with _server(self.www) as url, mock.patch.object(svhn, 'URL', url):
      for split in ('train', 'test'):
        source = load_source(_data('svhn_cropped', path=self.path), split)
        self._assert_same_set(source, *splits[split])

  def test_celeb_a_is_prepared_from_its_original_files(self):
    names = [f'{n:06d}.jpg' for n in range(1, 5)]
    images = {}
    with zipfile.ZipFile(os.path.join(self.www, 'img.zip'), 'w') as archive:
      for name in names:
        small = self.rng.integers(256, size=(7, 5, 3), dtype=np.uint8)
        encoded = io.BytesIO()
        Image.fromarray(small).resize((178, 218)).save(encoded, 'JPEG')
        archive.writestr(f'img_align_celeba/{name}', encoded.getvalue())
        images[name] = np.asarray(Image.open(encoded))

    def write(file, lines):
      pathlib.Path(self.www, file).write_text(''.join(f'{line}\n' for line in lines))

    def table(headings):
      return ['4', ' '.join(headings), *(f'{n} ' + '1 ' * len(headings) for n in names)]

    write('split.txt', [f'{name} {split}' for name, split in zip(names, (0, 0, 1, 2), strict=True)])
    write('attributes.txt', table(celeb_a.ATTR_HEADINGS))
    write('landmarks.txt', table(celeb_a.LANDMARK_HEADINGS))
    write('identity.txt', [f'{name} 5' for name in names])
    with (
      _server(self.www) as url,
      mock.patch.multiple(
        celeb_a,
        IMG_ALIGNED_DATA=f'{url}img.zip',
        EVAL_LIST=f'{url}split.txt',
        ATTR_DATA=f'{url}attributes.txt',
        LANDMARKS_DATA=f'{url}landmarks.txt',
        IDENTITY_DATA=f'{url}identity.txt',
      ),
    ):
      data = _data('celeb_a', path=self.path, image_size=178)
      train, test = load_source(data, 'train'), load_source(data, 'test')
    self.assertLen(train, 2)
    self.assertIsNone(train.labels)
    self.assertCountEqual(
      [image.tobytes() for image in train.read(np.arange(2))], [images[name][20:198].tobytes() for name in names[:2]]
    )
    np.testing.assert_array_equal(test.read(np.arange(1))[0], images[names[3]][20:198])

  def test_no_network_is_reported_in_one_line(self):
    with (
      self._mnist_at(_refused_port()),
      mock.patch.object(tfds_prepare, '_MAX_RETRIES', 0),
      self.assertRaisesRegex(UserError, 'mnist could not be downloaded.*ConnectionError') as caught,
    ):
      load_source(_data('mnist', path=self.path), 'train')
    self.assertNotIn('\n', str(caught.exception))

  def test_however_much_the_library_has_to_say_the_remedy_stays_in_sight(self):
    with (
      mock.patch.object(tfds.core.DatasetBuilder, 'download_and_prepare', side_effect=OSError('no route ' * 500)),
      self.assertRaisesRegex(UserError, 'mnist could not be downloaded.*OSError: no route') as caught,
    ):
      load_source(_data('mnist', path=self.path), 'train')
    self.assertLess(str(caught.exception).index('check the network'), 500)

  def test_damaged_download_is_reported(self):
    self._mnist()
    pathlib.Path(self.www, 't10k-images-idx3-ubyte.gz').write_bytes(b'<html>')
    with (
      _server(self.www) as url,
      self._mnist_at(url),
      self.assertRaisesRegex(UserError, 'could not be downloaded .*Not a gzipped file'),
    ):
      load_source(_data('mnist', path=self.path), 'train')

  def test_unknown_split_is_refused_with_the_known_ones(self):
    self._mnist()
    with _server(self.www) as url, self._mnist_at(url):
      data = _data('mnist', path=self.path, test_split='validation')
      with self.assertRaisesRegex(UserError, "no split 'validation'.*one of train, test"):
        load_source(data, 'test')

  def test_set_prepared_in_the_default_format_of_tfds_is_refused(self):
    with _server(self.www) as url, self._mnist_at(url):
      self._mnist()
      data = _data('mnist', path=self.path)
      load_source(data, 'train')
      (info,) = pathlib.Path(self.path).glob('mnist/*/dataset_info.json')
      info.write_text(info.read_text().replace('array_record', 'tfrecord'))
      with self.assertRaisesRegex(UserError, 'format.*random order.*another directory'):
        load_source(data, 'train')

  def test_celeb_a_hq_is_prepared_from_a_tar_that_was_fetched_by_hand(self):
    manual = os.path.join(self.path, 'downloads', 'manual')
    os.makedirs(manual)
    images = self.rng.integers(256, size=(3, 128, 128, 3), dtype=np.uint8)
    with tarfile.open(os.path.join(manual, 'data128x128.tar'), 'w') as tar:
      for number, image in enumerate(images):
        encoded = io.BytesIO()
        Image.fromarray(image).save(encoded, 'PNG')
        info = tarfile.TarInfo(f'{number}.png')
        info.size = encoded.tell()
        encoded.seek(0)
        tar.addfile(info, encoded)
    source = load_source(_data('celeb_a_hq/128', path=self.path, image_size=128), 'train')
    self.assertIsNone(source.labels)
    self.assertCountEqual(
      [image.tobytes() for image in source.read(np.arange(3))], [image.tobytes() for image in images]
    )

  def test_celeb_a_hq_says_where_to_put_what(self):
    with self.assertRaisesRegex(UserError, 'by hand: put its files into .*manual.*data1024x1024'):
      load_source(_data('celeb_a_hq/256', path=self.path), 'train')

  @parameterized.parameters('lsun/church', 'lsun/church_outdoor', 'lsun/bedroom')
  def test_lsun_says_that_it_takes_tensorflow_before_it_downloads(self, name):
    with (
      mock.patch.object(downloader._Downloader, 'download') as download,
      self.assertRaisesRegex(UserError, 'takes TensorFlow.*pip install tensorflow.*tfds build lsun/.*array_record'),
    ):
      load_source(_data(name, path=self.path), 'train')
    download.assert_not_called()

  def test_tensorflow_datasets_is_left_as_it_was(self):
    modules = downloader, dataset_builder, extractor, mnist, image_feature._ImageEncoder
    before = [dict(vars(module)) for module in modules]
    self._mnist()
    with _server(self.www) as url, self._mnist_at(url):
      load_source(_data('mnist', path=self.path), 'train')
    names = 'tf', 'MAX_RETRIES', 'importlib_resources', '_encode_image'
    for module, old in zip(modules, before, strict=True):
      for name in names:
        # Even to look at a missing module would try to import it.
        self.assertIs(vars(module).get(name), old.get(name))


class MockedTest(parameterized.TestCase):
  """The source on the mock data that TFDS makes for tests."""

  @parameterized.parameters(
    ('mnist', 1, True),
    ('cifar10', 3, True),
    ('cifar100', 3, True),
    ('svhn_cropped', 3, True),
    ('celeb_a', 3, False),
    ('lsun/church', 3, False),
    ('lsun/bedroom', 3, False),
    ('celeb_a_hq/128', 3, False),
    ('celeb_a_hq/256', 3, False),
  )
  def test_mock_data_of_every_known_set_load(self, name, num_channels, labelled):
    for max_memory_gb in (4.0, 0.0):
      with tfds.testing.mock_data(num_examples=5):
        data = _data(name, num_channels=num_channels, max_memory_gb=max_memory_gb)
        source = load_source(data, 'train')
        images = source.read(np.array([4, 0]))
        self.assertEqual(source.labels is not None, labelled)
      self.assertLen(source, 5)
      self.assertEqual(source.shape, (32, 32, num_channels))
      self.assertEqual((images.shape, images.dtype), ((2, *source.shape), np.uint8))

  def _source_of(self, image, name, **changes):
    """A source over one example with a given image."""
    with tfds.testing.mock_data(as_data_source_fn=lambda *args, **kwargs: [{'image': image, 'label': 3}]):
      return load_source(_data(name, **changes), 'train')

  def test_celeb_a_is_cut_to_the_middle_square(self):
    image = np.random.default_rng(0).integers(256, size=(218, 178, 3), dtype=np.uint8)
    source = self._source_of(image, 'celeb_a', image_size=178)
    np.testing.assert_array_equal(source.read(np.array([0]))[0], image[20:198])

  def test_mnist_is_framed_with_zeros_at_32_and_resized_elsewhere(self):
    image = np.full((28, 28, 1), 200, np.uint8)
    at_32 = self._source_of(image, 'mnist', num_channels=1).read(np.array([0]))[0]
    np.testing.assert_array_equal(at_32, np.pad(image, ((2, 2), (2, 2), (0, 0))))
    at_64 = self._source_of(image, 'mnist', num_channels=1, image_size=64).read(np.array([0]))[0]
    np.testing.assert_array_equal(at_64, np.full((64, 64, 1), 200))

  def test_grey_set_fills_three_channels_and_colours_one(self):
    image = np.arange(28 * 28, dtype=np.uint8).reshape(28, 28, 1)
    three = self._source_of(image, 'mnist', image_size=28).read(np.array([0]))[0]
    np.testing.assert_array_equal(three, np.repeat(image, 3, axis=2))
    green = np.zeros((32, 32, 3), np.uint8)
    green[..., 1] = 255
    one = self._source_of(green, 'cifar10', num_channels=1).read(np.array([0]))[0]
    np.testing.assert_array_equal(one, np.full((32, 32, 1), 150))  # ITU-R 601: 0.587

  def test_set_without_images_is_refused(self):
    with self.assertRaisesRegex(UserError, "no 8-bit images.*'image'.*label, title"):
      load_source(_data('ag_news_subset'), 'train')

  @parameterized.parameters('no_such_set', 'lsun/no_such_config', '')
  def test_unknown_name_is_refused_with_the_known_ones(self, name):
    with self.assertRaisesRegex(UserError, 'no data set is called.*digits, toy2d.*celeb_a_hq/256'):
      load_source(_data(name), 'train')

  def test_two_channels_are_refused(self):
    with self.assertRaisesRegex(UserError, 'num_channels=1 or 3'):
      load_source(_data('mnist', num_channels=2), 'train')


if __name__ == '__main__':
  absltest.main()
