"""Tests of what becomes of one image file; tests/data/images_test.py has those of folders of them."""

import io
import pathlib
import struct
import subprocess
import sys
import tempfile
from unittest import mock
import warnings
import zlib

from absl.testing import absltest, parameterized
import numpy as np
from PIL import Image

from diffusion_ebm.data import decode as decode_lib
from diffusion_ebm.data.decode import decode
from tests import testing

_ORIENTATION = 0x0112
# What a camera stores of an upright scene, for each value of the tag: EXIF 2.3, page 31.
_STORED = {
  1: lambda scene: scene,
  2: np.fliplr,
  3: lambda scene: np.rot90(scene, 2),
  4: np.flipud,
  5: lambda scene: scene.swapaxes(0, 1),
  6: np.rot90,
  7: lambda scene: np.rot90(scene, 2).swapaxes(0, 1),
  8: lambda scene: np.rot90(scene, -1),
}


def _encode(image, kind='PNG', **options):
  """The bytes of an image file, of a PIL image or of pixels."""
  file = io.BytesIO()
  (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
  return file.getvalue()


def _noise(*shape, seed=0):
  return np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8)


def _png(values, colour_type, *chunks):
  """A PNG of 16 bits, which Pillow cannot write: values (H, W, C) and chunks (name, data)."""
  height, width = values.shape[:2]
  rows = b''.join(b'\0' + row.astype('>u2').tobytes() for row in values)
  header = struct.pack('>IIBBBBB', width, height, 16, colour_type, 0, 0, 0)
  content = b'\x89PNG\r\n\x1a\n'
  for name, data in ((b'IHDR', header), *chunks, (b'IDAT', zlib.compress(rows)), (b'IEND', b'')):
    content += struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))
  return content


def _tiff(data, size, bits, white_is_zero=False, sample_format=1, **more):
  """A grey TIFF in one strip, of layouts that Pillow cannot write."""
  tags = {256: size[0], 257: size[1], 258: bits, 259: 1, 262: 0 if white_is_zero else 1, 273: 8, 277: 1, 278: size[1]}
  tags |= {279: len(data), 339: sample_format, **{int(key[1:]): value for key, value in more.items()}}
  entries = b''.join(
    struct.pack('<HHII', key, 4 if key in (273, 279, 254) else 3, 1, tags[key]) for key in sorted(tags)
  )
  return struct.pack('<2sHI', b'II', 42, 8 + len(data)) + data + struct.pack('<H', len(tags)) + entries + bytes(4)


def _quarters(height, width):
  """A scene whose quarters are black, red, green and blue."""
  scene = np.zeros((height, width, 3), np.uint8)
  scene[: height // 2, width // 2 :, 0] = 200
  scene[height // 2 :, : width // 2, 1] = 200
  scene[height // 2 :, width // 2 :, 2] = 200
  return scene


class DecodeTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    # Which `decode` does for a process, but not within pytest's own filters.
    self.enterContext(warnings.catch_warnings(action='ignore', category=UserWarning))

  def _assert_facts(self, encoded, size=4, **expected):
    facts = decode(encoded, size, 3)[1]._asdict()
    self.assertEqual({key: facts[key] for key in expected}, expected)

  # Formats.

  @parameterized.parameters('BMP', 'GIF', 'PCX', 'PNG', 'PPM', 'QOI', 'SGI', 'TIFF')
  def test_formats_without_loss_are_read_exactly(self, kind):
    pixels = _noise(4, 4, 3)
    image = Image.fromarray(pixels)
    np.testing.assert_array_equal(
      decode(_encode(image.quantize(256) if kind == 'GIF' else image, kind), 4, 3)[0], pixels
    )

  @parameterized.parameters(
    ('WEBP', {'lossless': True}, 0),
    ('JPEG2000', {'irreversible': False}, 0),
    ('JPEG', {'quality': 95, 'subsampling': 0}, 9),
    ('JPEG', {'quality': 95, 'subsampling': 0, 'progressive': True}, 9),
    ('MPO', {'quality': 95, 'subsampling': 0, 'save_all': True, 'append_images': [Image.new('RGB', (9, 9))]}, 9),
    ('AVIF', {'quality': 95, 'subsampling': '4:4:4'}, 9),
  )
  def test_formats_with_loss_are_read_to_within_it(self, kind, options, atol):
    pixels, _ = decode(_encode(_quarters(16, 16), kind, **options), 16, 3)
    np.testing.assert_allclose(pixels.astype(int), _quarters(16, 16), atol=atol)

  def test_sun_raster_is_read(self):
    pixels = _noise(4, 4)
    header = struct.pack('>8I', 0x59A66A95, 4, 4, 8, 16, 1, 0, 0)
    np.testing.assert_array_equal(decode(header + pixels.tobytes(), 4, 1)[0][..., 0], pixels)

  @parameterized.parameters('GIF', 'PNG', 'WEBP', 'TIFF')
  def test_first_frame_of_a_moving_image_is_taken(self, kind):
    frames = [Image.new('L', (4, 4), level) for level in (51, 102, 153)]
    options = {'lossless': True} if kind == 'WEBP' else {}
    encoded = _encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    with Image.open(io.BytesIO(encoded)) as image:
      self.assertEqual(image.n_frames, 3)
    np.testing.assert_array_equal(decode(encoded, 4, 1)[0], np.full((4, 4, 1), 51))

  def test_inks_with_luminance_are_read_as_inks(self):
    # YCCK: luminance and chrominance of the inks cyan, magenta and yellow, and black beside them.
    inks = Image.new('CMYK', (16, 16), (90, 40, 10, 30))
    of_inks = Image.merge('RGB', inks.split()[:3]).convert('YCbCr')
    stored = Image.merge('CMYK', [channel.point(lambda v: 255 - v) for channel in of_inks.split()] + [inks.split()[3]])
    encoded = bytearray(_encode(stored, 'JPEG', quality=100))
    encoded[encoded.index(b'Adobe') + 11] = 2  # the marker's transform: YCCK
    expected = decode(_encode(inks, 'JPEG', quality=100), 16, 3)[0]
    np.testing.assert_allclose(decode(bytes(encoded), 16, 3)[0].astype(int), expected, atol=2)
    np.testing.assert_allclose(expected[0, 0], (146, 190, 216), atol=3)

  @parameterized.parameters(
    (b'', 'empty'),
    (b'<html>404</html>', 'HTML page'),
    (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n', 'document: export'),
    (b'\0\0\0\x24ftypheic\0\0\0\0mif1heic', 'HEIC'),
    (b'\0\0\0\x18ftypmif1\0\0\0\0mif1heic', 'HEIC'),
    (b'GIF89a', 'a damaged or unusual GIF file: convert it to PNG'),
  )
  def test_other_files_are_refused_by_name(self, encoded, pattern):
    with self.assertRaisesRegex(ValueError, f'^{pattern}'):
      decode(encoded, 4, 3)

  @parameterized.parameters('AVIF', 'BMP', 'GIF', 'JPEG', 'JPEG2000', 'PCX', 'PNG', 'PPM', 'SGI', 'TIFF', 'WEBP')
  def test_truncated_files_are_refused(self, kind):
    encoded = _encode(Image.fromarray(_noise(64, 64)).convert('RGB'), kind)
    for length in (20, len(encoded) // 2, len(encoded) - 200):
      with self.assertRaises((OSError, RuntimeError, SyntaxError, ValueError)):
        decode(encoded[:length], 4, 3)

  def test_previews_of_raw_photographs_are_refused(self):
    for tag, value in (('t254', 1), ('t50706', 1)):
      with self.assertRaisesRegex(ValueError, 'RAW photograph.*export it'):
        decode(_tiff(bytes(16), (4, 4), 8, **{tag: value}), 4, 3)

  @parameterized.parameters((9000, 9000, '9000x9000 pixels are'), (18_000, 10_000, 'more than'))
  def test_too_many_pixels_are_refused_unread(self, width, height, pattern):
    encoded = _encode(Image.new('1', (width, height)))
    for function in (lambda: decode(encoded, 4, 3), lambda: decode_lib.memory(encoded, 4)):
      with (
        mock.patch.object(Image.Image, 'load', side_effect=AssertionError),
        self.assertRaisesRegex(ValueError, pattern),
      ):
        function()

  # Orientation.

  @parameterized.product(orientation=tuple(range(1, 9)), kind=('PNG', 'TIFF', 'WEBP', 'JPEG', 'MPO', 'AVIF'))
  def test_images_are_turned_upright(self, orientation, kind):
    exif = Image.Exif()
    exif[_ORIENTATION] = orientation
    options = {'WEBP': {'lossless': True}, 'TIFF': {'tiffinfo': {_ORIENTATION: orientation}}}.get(kind, {'quality': 95})
    if kind in ('PNG', 'WEBP'):
      options = {'exif': exif, **options}
    elif kind != 'TIFF':
      options['exif'] = exif
    scene = _quarters(48, 64)
    encoded = _encode(np.ascontiguousarray(_STORED[orientation](scene)), kind, **options)
    pixels, facts = decode(encoded, 48, 3)
    np.testing.assert_allclose(pixels[4:20, 4:20], np.zeros((16, 16, 3)), atol=9)
    for corner, channel in ((pixels[4:20, 28:44], 0), (pixels[28:44, 4:20], 1), (pixels[28:44, 28:44], 2)):
      np.testing.assert_allclose(corner, 200 * np.eye(3)[channel] + np.zeros((16, 16, 3)), atol=9)
    self.assertEqual((facts.width, facts.height), (64, 48))

  @parameterized.parameters(*range(1, 9))
  def test_a_large_jpeg_is_turned_too_and_decoded_at_a_reduced_size(self, orientation):
    exif = Image.Exif()
    exif[_ORIENTATION] = orientation
    scene = _quarters(480, 640)
    encoded = _encode(np.ascontiguousarray(_STORED[orientation](scene)), 'JPEG', quality=95, exif=exif)
    sizes = []
    transpose = decode_lib._turn_upright
    with mock.patch.object(decode_lib, '_turn_upright', lambda image: (sizes.append(image.size), transpose(image))):
      pixels, facts = decode(encoded, 24, 3)
    self.assertEqual(sorted(sizes[0]), [60, 80])
    self.assertEqual((facts.width, facts.height), (640, 480))
    np.testing.assert_allclose(pixels[2:10, 2:10], np.zeros((8, 8, 3)), atol=9)
    for corner, channel in ((pixels[2:10, 14:22], 0), (pixels[14:22, 2:10], 1), (pixels[14:22, 14:22], 2)):
      np.testing.assert_allclose(corner, 200 * np.eye(3)[channel] + np.zeros((8, 8, 3)), atol=9)

  def test_a_reduced_jpeg_is_antialiased_as_a_whole_one(self):
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(256, size=(40, 40, 3), dtype=np.uint8)).resize((800, 800))
    encoded = _encode(smooth, 'JPEG', quality=95)
    whole = Image.open(io.BytesIO(encoded)).resize((16, 16), Image.Resampling.LANCZOS)
    np.testing.assert_allclose(decode(encoded, 16, 3)[0].astype(int), np.asarray(whole), atol=3)

  def test_damaged_exif_data_are_ignored(self):
    scene = _quarters(16, 16)
    exif = Image.Exif()
    exif[0x010F] = 'maker'
    plain = _encode(scene, exif=exif)
    start = plain.index(b'eXIf') + 4
    for position in range(8, 26):
      for value in (b'\0', b'\x7f', b'\xff'):
        damaged = bytearray(plain)
        damaged[start + position : start + position + 1] = value
        end = start + int.from_bytes(plain[start - 8 : start - 4], 'big')
        damaged[end : end + 4] = struct.pack('>I', zlib.crc32(damaged[start - 4 : end]))
        np.testing.assert_array_equal(decode(bytes(damaged), 16, 3)[0], scene)

  # Transparency and colours.

  def _transparent(self, mode):
    """An image of 4x4: red (or its grey), on the left, transparent on the right; what it shows in colour."""
    alpha = np.full((4, 4), 255, np.uint8)
    alpha[:, 2:] = 0
    shown = np.full((4, 4, 3), 255, np.uint8)
    shown[:, :2] = (76, 76, 76) if mode in ('LA', 'L') else (255, 0, 0)
    image = Image.new('RGB', (4, 4), (255, 0, 0))
    options = {}
    if mode in ('RGBA', 'LA'):
      image = image.convert(mode[:-1])
      image.putalpha(Image.fromarray(alpha))
    else:
      image = Image.fromarray(np.where(alpha[..., None], np.asarray(image), np.uint8([0, 0, 255])))
      image = image.convert('L') if mode == 'L' else image.quantize(4) if mode == 'P' else image
      options = {'transparency': image.getpixel((3, 3))}
    return image, options, shown

  @parameterized.parameters('RGBA', 'LA', 'P', 'L', 'RGB')
  def test_transparent_parts_show_white(self, mode):
    image, options, shown = self._transparent(mode)
    pixels, facts = decode(_encode(image, **options), 4, 3)
    np.testing.assert_array_equal(pixels, shown)
    self.assertTrue(facts.transparent)
    self.assertEqual(facts.colour, mode not in ('LA', 'L'))

  @parameterized.parameters(
    ('LA', 'La', (100, 51)), ('RGBA', 'RGBa', (100, 100, 100, 51)), ('RGBA', 'PA', (102, 102, 102, 51))
  )
  def test_less_usual_modes_with_alpha_show_white_too(self, mode, unusual, level):
    pixels, transparent = decode_lib.fit(Image.new(mode, (4, 4), level).convert(unusual), 4, 1)
    np.testing.assert_allclose(pixels.astype(int), np.full((4, 4, 1), 224), atol=1)
    self.assertTrue(transparent)

  def test_images_whose_alpha_is_full_are_not_transparent(self):
    pixels = _noise(4, 4, 4)
    pixels[..., 3] = 255
    found, facts = decode(_encode(pixels), 4, 3)
    np.testing.assert_array_equal(found, pixels[..., :3])
    self.assertFalse(facts.transparent)

  def test_one_pixel_that_is_partly_transparent_makes_an_image_transparent(self):
    pixels = _noise(4, 4, 4)
    pixels[..., 3] = 255
    pixels[3, 3, 3] = 254
    self._assert_facts(_encode(pixels), transparent=True)

  def test_a_white_shape_on_transparency_becomes_white(self):
    pixels = np.full((4, 4, 4), 255, np.uint8)
    pixels[:, 2:] = 0
    np.testing.assert_array_equal(decode(_encode(pixels), 4, 3)[0], np.full((4, 4, 3), 255))

  def test_colours_behind_full_transparency_do_not_leak_when_it_shrinks(self):
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[..., 0] = 255  # red, of which nothing is to be seen
    np.testing.assert_array_equal(decode(_encode(pixels), 8, 3)[0], np.full((8, 8, 3), 255))

  def test_palette_of_greys_is_grey(self):
    grey = Image.fromarray(_noise(4, 4) // 64 * 64).quantize(4)
    self._assert_facts(_encode(grey), colour=False)
    self._assert_facts(_encode(Image.fromarray(_quarters(4, 4)).quantize(4)), colour=True)

  @parameterized.parameters(('L', 'JPEG', False), ('RGB', 'JPEG', True), ('1', 'PNG', False), ('CMYK', 'TIFF', True))
  def test_colours_are_those_of_the_file(self, mode, kind, colour):
    self._assert_facts(_encode(Image.new(mode, (4, 4)), kind), colour=colour)

  # More than eight bits.

  def test_sixteen_bits_of_colour_are_scaled(self):
    values = np.random.default_rng(0).integers(65536, size=(4, 4, 3))
    pixels, facts = decode(_png(values, 2), 4, 3)
    np.testing.assert_array_equal(pixels, values >> 8)
    self.assertEqual(facts.largest, values.max() | 255)
    self.assertTrue(facts.colour)

  @parameterized.parameters((4095, True), (4096, False), (65535, False))
  def test_the_largest_value_tells_twelve_bits_in_sixteen(self, largest, below):
    values = np.random.default_rng(0).integers(largest, size=(4, 4))
    values[1, 2] = largest
    of_grey = decode(_encode(values.astype(np.uint16)), 4, 1)[1].largest
    of_colours = decode(_png(np.stack(3 * [values], axis=-1), 2), 4, 1)[1].largest
    self.assertEqual(of_grey, largest)
    self.assertEqual((of_grey < 4096, of_colours < 4096), (below, below))

  def test_eight_bits_have_no_largest_value(self):
    self._assert_facts(_encode(_noise(4, 4, 3)), largest=0)

  def test_grey_of_sixteen_bits_with_alpha_is_grey(self):
    values = np.random.default_rng(0).integers(65536, size=(4, 4, 2))
    values[..., 1] = 65535
    pixels, facts = decode(_png(values, 4), 4, 1)
    np.testing.assert_array_equal(pixels[..., 0], values[..., 0] >> 8)
    self.assertEqual((facts.colour, facts.transparent, facts.largest), (False, False, values[..., 0].max() | 255))

  def test_transparent_value_of_sixteen_bits_shows_white(self):
    values = np.arange(16).reshape(4, 4, 1) * 4096 + 5
    pixels, facts = decode(_png(values, 0, (b'tRNS', struct.pack('>H', 2 * 4096 + 5))), 4, 1)
    expected = values >> 8
    expected[0, 2] = 255
    np.testing.assert_array_equal(pixels, expected)
    self.assertTrue(facts.transparent)

  @parameterized.parameters(b'65535', b'1000')
  def test_sixteen_bits_of_a_pgm_are_scaled_by_its_white(self, white):
    values = np.arange(16) * int(white) // 15
    encoded = b'P5 4 4 ' + white + b'\n' + values.astype('>u2').tobytes()
    pixels, _ = decode(encoded, 4, 1)
    np.testing.assert_allclose(pixels.ravel(), 255 * values / int(white), atol=1)

  @parameterized.parameters(False, True)
  def test_grey_tiffs_of_sixteen_bits_are_read_with_their_white(self, white_is_zero):
    values = np.random.default_rng(0).integers(65536, size=(4, 4), dtype=np.uint16)
    pixels, _ = decode(_tiff(values.tobytes(), (4, 4), 16, white_is_zero), 4, 1)
    np.testing.assert_array_equal(pixels[..., 0], (65535 - values if white_is_zero else values) >> 8)

  def test_twelve_bits_of_a_tiff_are_scaled(self):
    values = np.random.default_rng(0).integers(4096, size=(4, 4))
    values[0, 0] = 4095
    bits = ''.join(f'{v:012b}' for v in values.ravel())
    pixels, facts = decode(_tiff(int(bits, 2).to_bytes(24, 'big'), (4, 4), 12), 4, 1)
    np.testing.assert_array_equal(pixels[..., 0], values >> 4)
    self.assertEqual(facts.largest, 4095 * 16)

  @parameterized.parameters(False, True)
  def test_floats_from_0_to_1_are_scaled(self, white_is_zero):
    values = (np.arange(16, dtype=np.float32) / 15).reshape(4, 4)
    pixels, _ = decode(_tiff(values.tobytes(), (4, 4), 32, white_is_zero, sample_format=3), 4, 1)
    np.testing.assert_array_equal(
      pixels[..., 0], 255 - 17 * np.arange(16).reshape(4, 4) if white_is_zero else 255 * values
    )

  @parameterized.parameters(-0.1, 1.1, 255.0, float('nan'), float('inf'))
  def test_other_floats_are_refused(self, value):
    values = np.full((4, 4), 0.5, np.float32)
    values[1, 2] = value
    with self.assertRaisesRegex(ValueError, r'floats outside of \[0, 1\].*save it with 8 or 16 bits'):
      decode(_encode(Image.fromarray(values), 'TIFF'), 4, 1)

  def test_integers_of_32_bits_are_refused(self):
    with self.assertRaisesRegex(ValueError, '32-bit integers.*save it with 8 or 16 bits'):
      decode(_encode(Image.fromarray(np.ones((4, 4), np.int32)), 'TIFF'), 4, 1)

  # Large images.

  @parameterized.product(
    mode=('1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'CMYK', 'I;16'), size=((37, 23), (23, 40)), image_size=(5, 23, 30)
  )
  def test_bands_give_the_pixels_of_the_whole(self, mode, size, image_size):
    if mode == 'I;16':
      image = Image.fromarray(np.random.default_rng(0).integers(65536, size=size, dtype=np.uint16))
    else:
      image = (
        Image.fromarray(_noise(*size, 4)).convert(mode)
        if mode in ('RGBA', 'LA')
        else Image.fromarray(_noise(*size, 3)).convert(mode)
      )
    encoded = _encode(image, 'TIFF' if mode == 'CMYK' else 'PNG')
    for channels in (1, 3):
      whole = decode(encoded, image_size, channels)
      with mock.patch.object(decode_lib, '_BAND_PIXELS', 100):
        in_bands = decode(encoded, image_size, channels)
      np.testing.assert_array_equal(in_bands[0], whole[0])
      self.assertEqual(in_bands[1], whole[1])

  @parameterized.parameters(
    ('PNG', {}, 8, 8 * 64 * 64),
    ('WEBP', {}, 8, 20 * 64 * 64),
    ('JPEG', {}, 64, 8 * 64 * 64),
    ('JPEG', {}, 8, 8 * 16 * 16),
    ('JPEG', {'progressive': True}, 8, 8 * 16 * 16 + 6 * 64 * 64),
  )
  def test_memory_is_known_unread(self, kind, options, image_size, expected):
    encoded = _encode(Image.new('RGB', (64, 64)), kind, **options)
    with mock.patch.object(Image.Image, 'load', side_effect=AssertionError):
      self.assertEqual(decode_lib.memory(encoded, image_size), expected)

  @testing.long
  def test_a_process_takes_the_memory_of_the_decoded_image_and_prints_no_warnings(self):
    code = """if True:
      import sys
      from diffusion_ebm.data.decode import decode
      for name in sys.argv[1:]:
        with open(name, 'rb') as file:
          encoded = file.read()
        try:
          decode(encoded, 32, 3)
        except ValueError:
          pass
        with open('/proc/self/status') as status:
          print(*(line.split()[1] for line in status if line.startswith('VmHWM')))  # the peak, in KiB
    """
    exif = Image.Exif()
    exif[0x010F] = 'maker of the camera'
    odd_exif = bytearray(_encode(_quarters(9, 9), 'JPEG', exif=exif))
    at = odd_exif.index(b'Exif\0\0') + 14
    odd_exif[at : at + 2] = b'\xff\xff'
    not_moving = b'acTL' + bytes(8)
    plain = _encode(_quarters(9, 9))
    odd_png = plain[:33] + struct.pack('>I12sI', 8, not_moving, zlib.crc32(not_moving)) + plain[33:]
    files = {
      'odd.jpg': bytes(odd_exif),
      'odd.png': odd_png,
      'bomb.png': _encode(Image.new('1', (10_000, 9_500))),
      'large.png': _encode(Image.new('RGBA', (4096, 4096), (9, 9, 9, 99)), compress_level=1),
    }
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    paths = [folder / name for name in files]
    for path in paths:
      path.write_bytes(files[path.name])
    command = [sys.executable, '-c', code, *paths]
    result = subprocess.run(command, cwd=testing.ROOT, capture_output=True, text=True, check=True)
    self.assertEqual(result.stderr, '')
    before, after = map(int, result.stdout.split()[-2:])
    self.assertLess((after - before) * 2**10, 1.5 * 4 * 4096**2)


if __name__ == '__main__':
  absltest.main()
