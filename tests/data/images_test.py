"""Tests of folders and zip archives of images."""

import contextlib
import io
import itertools
import os
import pathlib
import shutil
import signal
import tempfile
import threading
import time
import types
from unittest import mock
import zipfile

from absl.testing import absltest, parameterized
import ml_collections
import numpy as np
from PIL import Image

from diffusion_ebm.data import (
  archives,
  decode,
  encoded,
  external_images,
  first,
  images,
  load_source,
  memory,
  train_batches,
)
from diffusion_ebm.run.errors import UserError
from tests.data import folders


def _encode(pixels, format_='PNG', mode=None, **options):
  """The bytes of an image file with given pixels, uint8 (H, W) or (H, W, C)."""
  image = Image.fromarray(pixels)
  buffer = io.BytesIO()
  (image.convert(mode) if mode else image).save(buffer, format_, **options)
  return buffer.getvalue()


def _noise(height, width, *channels, seed=0):
  return np.random.default_rng(seed).integers(256, size=(height, width, *channels), dtype=np.uint8)


class ImagesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = self.enterContext(tempfile.TemporaryDirectory())
    self.path = os.path.join(self.folder, 'images')

  def _write(self, **contents):
    """Writes files, given as {'folder/name': bytes}, where `self.path` points."""
    for name, content in contents.items():
      path = pathlib.Path(self.path, name)
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(content)

  def _zip(self, path=None):
    """Packs what is written: the path of the archive."""
    return shutil.make_archive(os.path.join(self.folder, 'archive'), 'zip', path or self.path)

  def _load(self, split='train', **changes):
    fields = {
      'name': 'images',
      'path': self.path,
      'image_size': 4,
      'num_channels': 3,
      'strict': False,
      'train_split': '',
      'test_split': '',
      'test_fraction': 0.0,
      'random_flip': False,
      'max_memory_gb': 1.0,
      'num_workers': 3,
    }
    return load_source(types.SimpleNamespace(**{**fields, **changes}), split)

  def _only(self, content, **changes):
    """The pixels that become of a single image."""
    self._write(**{'only.png': content})
    return self._load(**changes).read(np.array([0]))[0]

  # What becomes of the pixels.

  def test_image_of_the_right_size_is_kept_pixel_by_pixel(self):
    pixels = _noise(5, 5, 3)
    np.testing.assert_array_equal(self._only(_encode(pixels), image_size=5), pixels)

  @parameterized.parameters((4, 10, (0, 3)), (10, 4, (3, 0)), (4, 7, (0, 1)), (9, 4, (2, 0)))
  def test_middle_square_is_cut_out(self, height, width, corner):
    pixels = _noise(height, width, 3)
    top, left = corner
    np.testing.assert_array_equal(self._only(_encode(pixels)), pixels[top : top + 4, left : left + 4])

  def test_nothing_outside_of_the_square_leaks_in(self):
    pixels = np.full((40, 80, 3), 255, np.uint8)
    pixels[:, 20:60] = 90
    np.testing.assert_array_equal(self._only(_encode(pixels)), np.full((4, 4, 3), 90))

  def test_shrinking_is_antialiased(self):
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    middle = self._only(_encode(stripes), image_size=8)[2:-2, 2:-2].astype(int)
    np.testing.assert_allclose(middle, 127.5, atol=3)

  def test_linear_ramp_stays_one(self):
    ramp = np.repeat(np.arange(0, 256, 4, dtype=np.uint8)[None, :, None], 64, axis=0)
    small = self._only(_encode(ramp.repeat(3, axis=2)), image_size=8)
    expected = ramp[0, :, 0].reshape(8, 8).mean(axis=1)
    np.testing.assert_allclose(small[3, 1:-1, 0], expected[1:-1], atol=1)

  def test_large_jpeg_keeps_its_content(self):
    # Decoded at a reduced scale: the quarters keep their places and colours.
    pixels = np.zeros((512, 512, 3), np.uint8)
    pixels[:256, :256] = 200, 0, 0
    pixels[:256, 256:] = 0, 200, 0
    pixels[256:, :256] = 0, 0, 200
    small = self._only(_encode(pixels, 'JPEG', quality=95), image_size=8).astype(int)
    for rows, columns, colour in (
      (slice(0, 3), slice(0, 3), (200, 0, 0)),
      (slice(0, 3), slice(5, 8), (0, 200, 0)),
      (slice(5, 8), slice(0, 3), (0, 0, 200)),
      (slice(5, 8), slice(5, 8), (0, 0, 0)),
    ):
      np.testing.assert_allclose(small[rows, columns], np.broadcast_to(colour, (3, 3, 3)), atol=12)

  def test_orientation_of_the_camera_is_respected(self):
    pixels = _noise(4, 4, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # the top of the scene is on the right
    turned = self._only(_encode(pixels, exif=exif))
    np.testing.assert_array_equal(turned, np.rot90(pixels, -1))

  def test_transparency_is_laid_over_white(self):
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[..., 0] = 200
    pixels[:2, :, 3] = 255
    pixels[2, :, 3] = 51  # a fifth
    expected = np.full((4, 4, 3), 255, np.uint8)
    expected[:2] = 200, 0, 0
    expected[2] = 244, 204, 204
    np.testing.assert_array_equal(self._only(_encode(pixels)), expected)

  def test_palette_is_looked_up(self):
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[:, :2] = 0, 204, 51  # of the palette that PIL takes
    np.testing.assert_array_equal(self._only(_encode(pixels, mode='P', palette=1)), pixels)

  def test_sixteen_bits_are_scaled_to_eight(self):
    levels = np.arange(16, dtype=np.uint16).reshape(4, 4) * 4096 + 77
    buffer = io.BytesIO()
    Image.fromarray(levels).save(buffer, 'PNG')
    np.testing.assert_array_equal(self._only(buffer.getvalue(), num_channels=1)[..., 0], levels // 256)

  def test_black_and_white_become_0_and_255(self):
    pixels = _noise(4, 4) // 128 * 255
    np.testing.assert_array_equal(self._only(_encode(pixels, mode='1'), num_channels=1)[..., 0], pixels)

  def test_grey_images_fill_three_channels(self):
    pixels = _noise(4, 4)
    np.testing.assert_array_equal(self._only(_encode(pixels)), np.repeat(pixels[..., None], 3, axis=2))

  def test_colour_images_become_grey_in_one_channel(self):
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[..., 1] = 255
    # The weight of green in ITU-R 601 is 0.587.
    np.testing.assert_array_equal(self._only(_encode(pixels), num_channels=1), np.full((4, 4, 1), 150))

  @parameterized.parameters(('JPEG', {}), ('WEBP', {'lossless': True}), ('PNG', {}))
  def test_formats_are_known_by_content_whatever_the_suffix(self, format_, options):
    pixels = np.full((4, 4, 3), 128, np.uint8)
    np.testing.assert_allclose(self._only(_encode(pixels, format_, **options)), pixels, atol=1)

  # Which images there are, in what order.

  def _classes(self, *splits):
    """Writes two images of each of two classes: {name: pixels}."""
    names = [f'{s}{c}/{n}.png' for s in splits for c in ('cat', 'dog') for n in (0, 1)]
    images = {name: _noise(4, 4, 3, seed=k) for k, name in enumerate(names)}
    self._write(**{name: _encode(pixels) for name, pixels in images.items()})
    return images

  def _assert_reads(self, source, images):
    self.assertLen(source, len(images))
    np.testing.assert_array_equal(source.read(np.arange(len(images))), np.stack(images))

  @parameterized.product(archive=(False, True), max_memory_gb=(1.0, 0.0))
  def test_images_are_read_in_the_order_of_their_names(self, archive, max_memory_gb):
    names = ['b.png', 'a/z.png', 'B.png', 'ä.png', 'a/10.png', 'a/9.png', '雪.png']
    images = {name: _noise(4, 4, 3, seed=k) for k, name in enumerate(names)}
    self._write(**{name: _encode(pixels) for name, pixels in images.items()})
    source = self._load(path=self._zip() if archive else self.path, max_memory_gb=max_memory_gb)
    self._assert_reads(source, [images[name] for name in sorted(names)])
    self.assertIsNone(source.labels)
    self.assertEqual(source.shape, (4, 4, 3))

  @parameterized.parameters(False, True)
  def test_splits_are_folders_and_classes_their_folders(self, archive):
    images = self._classes('train/', 'test/')
    path = self._zip() if archive else self.path
    for split in ('train', 'test'):
      source = self._load(split, path=path, train_split='train', test_split='test')
      self._assert_reads(source, [i for name, i in images.items() if name.startswith(split)])
      np.testing.assert_array_equal(source.labels, [0, 0, 1, 1])

  def test_split_may_be_a_folder_of_any_name_and_depth(self):
    images = self._classes('raw/part 1/', 'raw/part 2/')
    source = self._load('test', train_split='raw/part 1', test_split='raw/part 2')
    self._assert_reads(source, list(images.values())[4:])
    np.testing.assert_array_equal(source.labels, [0, 0, 1, 1])

  def test_folder_that_wraps_everything_is_looked_through(self):
    images = self._classes('outer/inner/train/', 'outer/inner/test/')
    source = self._load('test', train_split='train', test_split='test')
    self._assert_reads(source, list(images.values())[4:])
    np.testing.assert_array_equal(source.labels, [0, 0, 1, 1])

  def test_without_split_names_both_splits_are_everything(self):
    images = self._classes('')
    for split in ('train', 'test'):
      self._assert_reads(self._load(split), list(images.values()))
    np.testing.assert_array_equal(self._load().labels, [0, 0, 1, 1])

  def test_without_split_folders_everything_is_for_training(self):
    images = self._classes('')
    self._assert_reads(self._load(train_split='train', test_split='test'), list(images.values()))

  def test_without_split_folders_nothing_is_for_testing(self):
    self._classes('')
    with self.assertRaisesRegex(UserError, "no folder 'test'.*--config.data.test_split"):
      self._load('test', train_split='train', test_split='test')

  def test_test_images_alone_are_not_trained_on(self):
    self._classes('test/')
    with self.assertRaisesRegex(UserError, "no folder 'train'.*--config.data.train_split"):
      self._load('train', train_split='train', test_split='test')

  def test_other_files_are_left_out(self):
    pixels = _noise(4, 4, 3)
    other = _encode(_noise(4, 4, 3, seed=1))
    self._write(
      **{
        'a.PNG': _encode(pixels),
        '.hidden.png': other,
        '.cache/b.png': other,
        'notes.txt': b'text',
        '__MACOSX/._a.png': b'metadata',
        'Thumbs.db': b'x',
        'text.png~': other,
      }
    )
    for path in (self.path, self._zip()):
      self._assert_reads(self._load(path=path, strict=True), [pixels])

  def test_linked_folders_are_read_once(self):
    images = self._classes('')
    os.symlink(self.path, os.path.join(self.path, 'cat', 'round'))
    other = os.path.join(self.folder, 'other')
    os.makedirs(other)
    pixels = _noise(4, 4, 3, seed=9)
    pathlib.Path(other, '0.png').write_bytes(_encode(pixels))
    os.symlink(other, os.path.join(self.path, 'elk'))
    self._assert_reads(self._load(), [*images.values(), pixels])

  # In memory and on demand.

  def test_max_memory_gb_is_the_limit_between_memory_and_demand(self):
    self._classes('')
    size = 4 * 4 * 4 * 3 / 2**30
    in_memory, on_demand = self._load(max_memory_gb=size), self._load(max_memory_gb=0.99 * size)
    self.assertNotIsInstance(in_memory, encoded.OnDemandSource)
    self.assertIsInstance(on_demand, encoded.OnDemandSource)

  @parameterized.product(archive=(False, True), num_workers=(0, 1, 5))
  def test_on_demand_is_as_in_memory(self, archive, num_workers):
    names = [f'{c}/{n}.jpg' for c in ('cat', 'dog') for n in range(9)]
    contents = {n: _encode(_noise(9, 7, 3, seed=k), 'JPEG') for k, n in enumerate(names)}
    contents['cat/5.jpg'] = contents['cat/5.jpg'][:200]
    self._write(**contents)
    path = self._zip() if archive else self.path
    in_memory = self._load(path=path, num_workers=num_workers)
    on_demand = self._load(path=path, num_workers=num_workers, max_memory_gb=0.0)
    self.assertLen(on_demand, 17)
    self.assertEqual(on_demand.shape, in_memory.shape)
    np.testing.assert_array_equal(on_demand.labels, in_memory.labels)
    for indices in (np.arange(17), np.array([16, 0, 0, 5]), np.array([3]), np.array([], int)):
      np.testing.assert_array_equal(on_demand.read(indices), in_memory.read(indices))

  def test_archive_can_be_read_by_many_threads(self):
    contents = {f'{n}.png': _encode(_noise(6, 6, 3, seed=n)) for n in range(40)}
    self._write(**contents)
    source = self._load(path=self._zip(), max_memory_gb=0.0)
    expected = self._load().read(np.arange(40))
    wrong = []

    def work(seed):
      for _ in range(5):
        indices = np.random.default_rng(seed).permutation(40)
        if not np.array_equal(source.read(indices), expected[indices]):
          wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    self.assertEmpty(wrong)

  def test_batches_of_an_on_demand_source_are_its_images(self):
    images = self._classes('')
    batches = train_batches(self._load(max_memory_gb=0.0), 4, seed=0)
    for _ in range(3):
      self.assertCountEqual([i.tobytes() for i in next(batches)[0]], [i.tobytes() for i in images.values()])
    batches.close()

  def test_image_that_is_lost_during_a_run_is_named(self):
    self._classes('')
    source = self._load(max_memory_gb=0.0)
    os.remove(os.path.join(self.path, 'dog', '0.png'))
    source.read(np.array([0, 1, 3]))
    with self.assertRaisesRegex(UserError, 'dog/0.png in .* was there, but cannot be read any more .*: see that'):
      source.read(np.array([2]))

  def test_a_share_that_goes_away_while_images_are_read_ends_the_start(self):
    self._classes('')
    decode = images.decode

    def gone(*args):
      if os.path.exists(self.path):
        os.rename(self.path, self.path + ' away')
      return decode(*args)

    for max_memory_gb in (1.0, 1e-9):
      with (
        mock.patch.object(images, 'decode', gone),
        self._refused('png in .*images was there, but cannot be read any more .No such file or directory.: see that'),
      ):
        self._load(num_workers=1, max_memory_gb=max_memory_gb)
      os.rename(self.path + ' away', self.path)

  def test_an_image_that_is_overwritten_during_a_run_is_named(self):
    self._classes('')
    source = self._load(max_memory_gb=1e-9)
    self._write(**{'dog/0.png': b'something else'})
    with self.assertRaisesRegex(UserError, 'dog/0.png in .* could be read at the start, but not now'):
      source.read(np.array([2]))

  def test_ctrl_c_ends_the_reading_at_once(self):
    self._write(**{f'{n}.png': _encode(_noise(4, 4, 3)) for n in range(400)})
    # Shells start commands in the background with this signal ignored.
    self.addCleanup(signal.signal, signal.SIGINT, signal.signal(signal.SIGINT, signal.default_int_handler))
    decoded, numbers = [], itertools.count(1)

    def slow(*args):
      number = next(numbers)  # each is given once, whatever the threads
      decoded.append(number)
      if number == 5:
        signal.raise_signal(signal.SIGINT)
      time.sleep(0.01)
      raise ValueError

    with mock.patch.object(images, 'decode', slow), self.assertRaises(KeyboardInterrupt):
      self._load(num_workers=2)
    self.assertLess(len(decoded), 200)

  def test_reading_is_not_silent_for_long(self):
    self._write(**{f'{n}.png': _encode(_noise(4, 4, 3)) for n in range(40)})
    decode = images.decode
    slow = mock.patch.object(images, 'decode', lambda *args: (time.sleep(0.02), decode(*args))[1])
    often = mock.patch.multiple('diffusion_ebm.data.encoded', _SECONDS_BETWEEN_LOOKS=0.05)
    lines = mock.patch('diffusion_ebm.run.progress._SECONDS_BETWEEN_LINES', 0.1)
    with slow, often, lines, self.assertLogs('diffusion_ebm', 'INFO') as logs:
      self._load()
    self.assertRegex('\n'.join(logs.output), r'reading images \d+/40 images, 00:00 left')

  def test_few_large_images_are_decoded_at_once(self):
    self._write(**{f'{n}.png': _encode(_noise(900, 2000, 3, seed=n)) for n in range(4)})
    decode, at_once, most = images.decode, [], []

    def counting(*args):
      at_once.append(1)
      most.append(len(at_once))
      image = decode(*args)
      at_once.pop()
      return image

    for max_memory_gb in (1e-9, 0.01):  # what is kept fits the latter, and nothing else beside it
      with mock.patch.object(images, 'decode', counting), mock.patch.object(memory, '_SMALL_IMAGE', 2**20):
        self._load(num_workers=4, max_memory_gb=max_memory_gb)
    self.assertEqual(max(most), 1)

  # Bad input.

  @contextlib.contextmanager
  def _refused(self, pattern):
    """Expects a `UserError` of one line that matches a pattern."""
    with self.assertRaisesRegex(UserError, pattern) as caught:
      yield
    self.assertNotIn('\n', str(caught.exception))

  def test_no_path_is_refused(self):
    with self._refused('--config.data.path=PATH'):
      self._load(path='')

  def test_missing_path_is_refused(self):
    with self._refused('images does not exist.*--config.data.path'):
      self._load()

  def test_folder_without_images_is_refused(self):
    self._write(**{'notes.txt': b'text'})
    with self._refused(r'images holds no images \(JPEG, PNG, .*\); it holds 1 \.txt: set --config.data.path'):
      self._load()

  def test_archive_without_images_is_refused(self):
    self._write(**{'notes.txt': b'text'})
    with self._refused(r'archive.zip holds no images \(JPEG, PNG, .*\); it holds 1 \.txt: set --config.data.path'):
      self._load(path=self._zip())

  @parameterized.parameters(b'', b'not a zip archive', b'PK\x03\x04 cut off')
  def test_file_that_is_no_archive_is_refused(self, content):
    self._write(**{'file.zip': content})
    with self._refused(r'file.zip is neither a folder nor a \.zip or \.tar'):
      self._load(path=os.path.join(self.path, 'file.zip'))

  def _damaged(self):
    """Writes good and damaged images: {name: pixels} of the good ones."""
    good = {f'{n}.png': _noise(4, 4, 3, seed=n) for n in (1, 4, 6)}
    whole = _encode(_noise(40, 40, 3))
    self._write(
      **{name: _encode(pixels) for name, pixels in good.items()},
      **{
        '0.png': whole[: len(whole) // 2],
        '2.jpg': b'',
        '3.webp': b'GIF89a and so on',
        '5.png': whole[:300] + bytes(200) + whole[500:],
      },
    )
    return good

  @parameterized.product(archive=(False, True), max_memory_gb=(1.0, 0.0))
  def test_damaged_images_are_skipped_with_a_warning(self, archive, max_memory_gb):
    good = self._damaged()
    path = self._zip() if archive else self.path
    with self.assertLogs('diffusion_ebm', 'WARNING') as logs:
      source = self._load(path=path, max_memory_gb=max_memory_gb)
    self._assert_reads(source, list(good.values()))
    self.assertLen(logs.output, 1)
    self.assertRegex(logs.output[0], r'skipping 4 of 7 .*0\.png.*2\.jpg.*3\.webp.*5\.png')

  def test_labels_keep_to_their_images_when_some_are_skipped(self):
    images = self._classes('')
    self._write(**{'cat/0.png': b'damaged', 'cat/00.png': b'damaged'})
    source = self._load()
    self._assert_reads(source, list(images.values())[1:])
    np.testing.assert_array_equal(source.labels, [0, 1, 1])

  def test_damaged_images_are_refused_if_strict(self):
    self._damaged()
    with self._refused(r'4 of 7 images .*0\.png.*--config.data.strict=False'):
      self._load(strict=True)

  def test_only_damaged_images_are_refused(self):
    self._write(**{f'{n}.png': b'damaged' for n in range(7)})
    with self._refused(r'none of the 7 images .* can be decoded \(0.png: not an image;.*; \.\.\.\)'):
      self._load()

  def test_archive_with_a_password_is_refused(self):
    self._write(**{'a.png': _encode(_noise(4, 4, 3))})
    content = bytearray(pathlib.Path(self._zip()).read_bytes())
    content[content.index(b'PK\x01\x02') + 8] |= 1  # the flag in the directory
    content[content.index(b'PK\x03\x04') + 6] |= 1
    self._write(**{'locked.zip': bytes(content)})
    with self._refused('locked.zip is encrypted: unpack it with its password'):
      self._load(path=os.path.join(self.path, 'locked.zip'))

  @parameterized.parameters(False, True)
  def test_image_of_too_many_pixels_is_refused_unread(self, archive):
    bomb = io.BytesIO()
    Image.new('1', (9000, 9000)).save(bomb, 'PNG')
    self.assertLess(bomb.tell(), 20_000)
    self._write(**{'bomb.png': bomb.getvalue()})
    with self._refused('bomb.png: 9000x9000 pixels are more than'):
      self._load(path=self._zip() if archive else self.path)

  @parameterized.parameters(False, True)
  def test_file_that_unpacks_to_too_many_bytes_is_refused_unread(self, archive):
    self._write(**{'bomb.png': _encode(_noise(4, 4, 3)) + bytes(2**20), 'good.png': _encode(_noise(4, 4, 3))})
    path = self._zip() if archive else self.path
    with mock.patch.object(decode, 'MAX_BYTES', 2**20), self.assertLogs('diffusion_ebm', 'WARNING') as logs:
      self.assertLen(self._load(path=path), 1)
    self.assertIn('bytes are more than 1048576', logs.output[0])

  def test_archive_that_lies_about_the_size_is_read_no_further_than_it_says(self):
    self._write(**{'a.png': _encode(_noise(40, 40, 3))})
    path = pathlib.Path(self._zip())
    with zipfile.ZipFile(path) as archive:
      size = archive.getinfo('a.png').file_size
    content = path.read_bytes().replace(size.to_bytes(4, 'little'), (99).to_bytes(4, 'little'))
    path.write_bytes(content)
    with self._refused('none of the 1 images'):
      self._load(path=str(path))

  @parameterized.parameters('../a.png', 'a/../../b.png', '/etc/a.png', '..\\\\a.png', 'C:/a.png')
  def test_archive_whose_names_lead_out_of_it_is_refused(self, name):
    with zipfile.ZipFile(self.path, 'w') as archive:
      archive.writestr('train/1.png', _encode(_noise(4, 4, 3)))
      archive.writestr(name, _encode(_noise(4, 4, 3)))
    with self.assertRaisesRegex(UserError, 'a name that leads out of the archive'):
      self._load()

  def test_archive_that_unpacks_to_many_times_its_size_is_refused_unread(self):
    with zipfile.ZipFile(self.path, 'w', zipfile.ZIP_DEFLATED) as archive:
      archive.writestr('1.png', bytes(2**20))
    with (
      mock.patch.object(archives, '_SUSPICIOUS_BYTES', 2**20 - 1),
      mock.patch.object(zipfile.ZipFile, 'open', mock.Mock(side_effect=AssertionError('read'))),
      self.assertRaisesRegex(UserError, r'has \d+ bytes but unpacks to 1048576: images do not'),
    ):
      self._load()

  def test_a_pipe_among_the_images_is_left_out_and_one_for_an_archive_is_refused(self):
    self._write(**{'1.png': _encode(_noise(4, 4, 3))})
    os.mkfifo(os.path.join(self.path, '2.png'))
    self.assertLen(self._load(), 1)
    os.mkfifo(self.path + '.zip')
    with self.assertRaisesRegex(UserError, r'neither a folder nor a \.zip or \.tar'):
      self._load(path=self.path + '.zip')

  def test_mixture_of_grey_and_colour_is_refused_in_colour(self):
    for n in range(3):
      self._write(**{f'grey{n}.png': _encode(_noise(4, 4, seed=n))})
    self._write(**{'colour.png': _encode(_noise(4, 4, 3))})
    for max_memory_gb in (1.0, 0.0):
      with self._refused('mixes 3 grey and 1 colour images.*--config.data.num_channels=1'):
        self._load(max_memory_gb=max_memory_gb)

  def test_mixture_of_grey_and_colour_becomes_grey_if_told(self):
    grey = _noise(4, 4)
    self._write(**{'a.png': _encode(grey), 'b.png': _encode(grey[..., None].repeat(3, axis=2))})
    source = self._load(num_channels=1)
    self._assert_reads(source, [grey[..., None], grey[..., None]])

  def test_of_images_from_elsewhere_none_are_set_aside(self):
    self._write(**{f'{n}.png': _encode(_noise(4, 4, 3)) for n in range(20)})
    data = ml_collections.ConfigDict(vars(folders.section('', test_fraction=0.5)))
    self.assertLen(external_images.load_elsewhere(data, self.path, 'images', first(30)), 20)

  def test_two_channels_are_refused(self):
    with self._refused('num_channels=1 or 3'):
      self._load(num_channels=2)


if __name__ == '__main__':
  absltest.main()
