"""Tests of colour profiles and gamma."""

import concurrent.futures
import io
import struct
import zlib

from absl.testing import absltest, parameterized
import numpy as np
from PIL import Image, ImageCms

from diffusion_ebm.data import colour
from diffusion_ebm.data.decode import decode

# Chromaticities (x, y) of red, green and blue.
_SRGB = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
_P3 = ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06))
_ADOBE = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06))
_D65, _D50 = (0.3127, 0.3290), (0.9642, 1.0, 0.8249)
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def _srgb_to_light(levels):
  return np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)


_SRGB_CURVE = np.round(65535 * _srgb_to_light(np.linspace(0, 1, 1024)))


def _xyz(x, y):
  return np.array([x / y, 1, (1 - x - y) / y])


def _tag(kind, *parts):
  content = kind + bytes(4) + b''.join(parts)
  return content + bytes(-len(content) % 4)


def _curve(gamma):
  """A tone curve: light is a level to the power of a number, or is interpolated in a table of 16 bits."""
  if np.isscalar(gamma):
    return _tag(b'curv', struct.pack('>IH', 1, round(256 * gamma)))
  return _tag(b'curv', struct.pack('>I', len(gamma)), np.asarray(gamma, '>u2').tobytes())


def _profile(space, tags):
  """The bytes of an ICC profile, version 2.1, for a display."""

  def fixed(*numbers):
    return b''.join(struct.pack('>i', round(65536 * n)) for n in numbers)

  tags = {
    b'desc': _tag(b'desc', struct.pack('>I', 5), b'test\0', bytes(78)),
    b'cprt': _tag(b'text', b'none\0'),
    b'wtpt': np.array(_D50),
    **tags,
  }
  contents = [t if isinstance(t, bytes) else _tag(b'XYZ ', fixed(*t)) for t in tags.values()]
  offsets = 132 + 12 * len(tags) + np.cumsum([0] + [len(c) for c in contents])
  table = b''.join(struct.pack('>4sII', key, o, len(c)) for key, o, c in zip(tags, offsets, contents, strict=False))
  head = struct.pack('>I4sI4s4s4s12x4s', offsets[-1], b'none', 0x02100000, b'mntr', space, b'XYZ ', b'acsp')
  head += bytes(28) + fixed(*_D50)
  return head.ljust(128, b'\0') + struct.pack('>I', len(tags)) + table + b''.join(contents)


def _rgb_profile(primaries, gamma):
  """A profile of red, green and blue primaries with the white point D65, adapted to D50 as ICC asks."""
  white = _xyz(*_D65)
  to_xyz = np.stack([_xyz(*p) for p in primaries], axis=1)
  to_xyz = to_xyz * np.linalg.solve(to_xyz, white)
  adapt = np.linalg.inv(_BRADFORD) @ np.diag((_BRADFORD @ _D50) / (_BRADFORD @ white)) @ _BRADFORD
  tags = {}
  for letter, column in zip((b'r', b'g', b'b'), (adapt @ to_xyz).T, strict=True):
    tags |= {letter + b'XYZ': column, letter + b'TRC': _curve(gamma)}
  return _profile(b'RGB ', tags)


def _grey_profile(gamma):
  return _profile(b'GRAY', {b'kTRC': _curve(gamma)})


def _cmyk_profile():
  """A profile of an ideal printer whose only ink is black: L* falls from 100 to 0, the other inks do nothing."""
  grid = np.zeros((2, 2, 2, 2, 3), '>u2')
  grid[..., 0, 0] = 0xFF00  # L* = 100
  grid[..., 1:] = 0x8000  # a* = b* = 0
  identity = np.eye(3)
  table = struct.pack('>4B', 4, 3, 2, 0) + b''.join(struct.pack('>i', int(65536 * e)) for e in identity.ravel())
  table += struct.pack('>HH', 2, 2) + np.tile(np.array([0, 65535], '>u2'), 4).tobytes()
  table += grid.tobytes() + np.tile(np.array([0, 65535], '>u2'), 3).tobytes()
  profile = bytearray(_profile(b'CMYK', {b'A2B0': _tag(b'mft2', table)}))
  profile[12:16], profile[20:24] = b'prtr', b'Lab '
  return bytes(profile)


def _encode(image, kind='PNG', **options):
  file = io.BytesIO()
  image.save(file, kind, **options)
  return file.getvalue()


def _with_chunks(png, *chunks):
  """Adds chunks (name, data) to a PNG, after its header."""
  added = b''.join(
    struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data)) for name, data in chunks
  )
  return png[:33] + added + png[33:]


def _gamma(value):
  return b'gAMA', struct.pack('>I', round(100_000 * value))


class ColourTest(parameterized.TestCase):
  def _pixel(self, encoded, channels=3):
    """The colour of a flat image, and what `decode` says of it."""
    pixels, facts = decode(encoded, 8, channels)
    np.testing.assert_array_equal(pixels, np.broadcast_to(pixels[0, 0], pixels.shape))
    return pixels[0, 0].astype(int), facts

  @parameterized.product(
    case=(
      (_P3, 2.2, (219, 37, 49)),
      (_P3, _SRGB_CURVE, (217, 42, 52)),
      (_ADOBE, 563 / 256, (231, 57, 57)),
      (_SRGB, 1.0, (229, 133, 133)),
      (_P3[1::-1] + _P3[2:], 2.2, (0, 205, 0)),
    ),
    written=(
      ('PNG', {}),
      ('JPEG', {'quality': 100, 'subsampling': 0}),
      ('WEBP', {'lossless': True}),
      ('TIFF', {}),
      ('AVIF', {'quality': 100, 'subsampling': '4:4:4'}),
    ),
  )
  def test_profiles_are_converted(self, case, written):
    primaries, gamma, expected = case
    kind, options = written
    flat = Image.new('RGB', (8, 8), (200, 60, 60))
    pixel, facts = self._pixel(_encode(flat, kind, icc_profile=_rgb_profile(primaries, gamma), **options))
    np.testing.assert_allclose(pixel, expected, atol=2)
    self.assertTrue(facts.converted)

  def test_conversion_is_that_of_the_definitions(self):
    # The primaries of Display P3 in those of sRGB, both of light.
    to_srgb = np.array([[1.22494, -0.22494, 0], [-0.04206, 1.04206, 0], [-0.01964, -0.07864, 1.09827]])
    levels = np.random.default_rng(0).integers(256, size=(8, 8, 3), dtype=np.uint8)
    light = np.clip(_srgb_to_light(levels / 255) @ to_srgb.T, 0, 1)
    expected = 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    pixels, _ = decode(_encode(Image.fromarray(levels), icc_profile=_rgb_profile(_P3, _SRGB_CURVE)), 8, 3)
    np.testing.assert_allclose(pixels, expected, atol=2)

  @parameterized.parameters('written by hand', 'of Pillow')
  def test_srgb_stays_as_it_is(self, which):
    profile = _rgb_profile(_SRGB, _SRGB_CURVE)
    if which == 'of Pillow':
      profile = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
    levels = np.random.default_rng(0).integers(256, size=(8, 8, 3), dtype=np.uint8)
    pixels, facts = decode(_encode(Image.fromarray(levels), icc_profile=profile), 8, 3)
    np.testing.assert_array_equal(pixels, levels)
    self.assertFalse(facts.converted)

  def test_profile_is_built_once_for_many_images(self):
    encoded = _encode(Image.new('RGB', (8, 8)), icc_profile=_rgb_profile(_P3, 1.75))
    before = colour._from_profile.cache_info().misses
    for _ in range(5):
      decode(encoded, 8, 3)
    self.assertEqual(colour._from_profile.cache_info().misses, before + 1)

  def test_threads_convert_as_one_does(self):
    levels = np.random.default_rng(0).integers(256, size=(40, 40, 3), dtype=np.uint8)
    images = [_encode(Image.fromarray(levels), icc_profile=_rgb_profile(_P3, 1.5 + k / 10)) for k in range(5)]
    expected = [decode(i, 16, 3)[0] for i in images]
    colour._from_profile.cache_clear()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
      found = list(pool.map(lambda n: decode(images[n % 5], 16, 3)[0], range(100)))
    for n, pixels in enumerate(found):
      np.testing.assert_array_equal(pixels, expected[n % 5])

  def test_palettes_are_converted(self):
    flat = Image.new('RGB', (8, 8), (200, 60, 60)).quantize(4)
    pixel, _ = self._pixel(_encode(flat, icc_profile=_rgb_profile(_P3, 2.2)))
    np.testing.assert_allclose(pixel, (219, 37, 49), atol=2)

  def test_colours_are_converted_before_they_turn_grey(self):
    pixel, _ = self._pixel(_encode(Image.new('RGB', (8, 8), (200, 60, 60)), icc_profile=_rgb_profile(_SRGB, 1.0)), 1)
    np.testing.assert_allclose(pixel, 0.299 * 229 + 0.701 * 133, atol=1)

  def test_transparent_colours_are_converted_before_they_are_laid_over_white(self):
    flat = Image.new('RGBA', (8, 8), (200, 60, 60, 51))  # a fifth
    pixel, facts = self._pixel(_encode(flat, icc_profile=_rgb_profile(_SRGB, 1.0)))
    np.testing.assert_allclose(pixel, 0.8 * 255 + 0.2 * np.array([229, 133, 133]), atol=1)
    self.assertTrue(facts.transparent)

  @parameterized.product(mode=('L', 'LA', 'I;16'), grey=(False, True))
  def test_grey_images_have_grey_profiles_or_a_colour_profiles_greys(self, mode, grey):
    profile = _grey_profile(1.0) if grey else _rgb_profile(_P3, 1.0)
    flat = Image.new('L', (8, 8), 60)
    if mode == 'I;16':
      flat = Image.fromarray(np.full((8, 8), 60 * 256, np.uint16))
    pixel, facts = self._pixel(_encode(flat.convert(mode), icc_profile=profile))
    np.testing.assert_allclose(pixel, 133, atol=1)
    self.assertFalse(facts.colour)
    self.assertTrue(facts.converted)

  @parameterized.parameters('JPEG', 'TIFF')
  def test_inks_are_converted_by_their_profile(self, kind):
    flat = Image.new('CMYK', (8, 8), (90, 10, 200, 128))
    options = {'quality': 100} if kind == 'JPEG' else {}
    pixel, facts = self._pixel(_encode(flat, kind, icc_profile=_cmyk_profile(), **options))
    # L* = 100 (1 - 128 / 255) = 49.8: light of ((49.8 + 16) / 116) ** 3.
    light = ((100 * (1 - 128 / 255) + 16) / 116) ** 3
    np.testing.assert_allclose(pixel, 255 * (1.055 * light ** (1 / 2.4) - 0.055), atol=2)
    self.assertTrue(facts.converted)

  def test_inks_without_a_profile_are_subtracted(self):
    pixel, facts = self._pixel(_encode(Image.new('CMYK', (8, 8), (100, 0, 50, 0)), 'TIFF'))
    np.testing.assert_allclose(pixel, (155, 255, 205), atol=1)
    self.assertFalse(facts.converted)

  @parameterized.parameters(
    ('RGB', b'no profile'),
    ('RGB', b''),
    ('RGB', bytes(200)),
    ('RGB', _rgb_profile(_P3, 2.2)[:300]),
    ('RGB', _grey_profile(1.0)),
    ('RGB', _cmyk_profile()),
    ('L', _cmyk_profile()),
    ('L', b'no profile'),
  )
  def test_profile_that_is_broken_or_of_other_channels_is_ignored(self, mode, profile):
    flat = Image.new('RGB', (8, 8), (200, 60, 60)).convert(mode)
    pixel, facts = self._pixel(_encode(flat, 'TIFF', icc_profile=profile))
    np.testing.assert_array_equal(pixel, (200, 60, 60) if mode == 'RGB' else 3 * [flat.getpixel((0, 0))])
    self.assertFalse(facts.converted)

  @parameterized.parameters(
    ((153, 128, 128), 3 * (145,), 1),  # L* = 60: light of (76 / 116) ** 3
    ((138, 209, 198), (255, 0, 0), 6),  # L* = 54, a* = 81, b* = 70, in the corner of the gamut
  )
  def test_lab_is_converted(self, lab, expected, atol):
    pixel, facts = self._pixel(_encode(Image.new('LAB', (8, 8), lab), 'TIFF'))
    np.testing.assert_allclose(pixel, expected, atol=atol)
    self.assertTrue(facts.colour)

  # A PNG's gamma.

  @parameterized.parameters(
    ('RGB', (229, 133, 133)), ('RGBA', (229, 133, 133)), ('P', (229, 133, 133)), ('L', (170, 170, 170))
  )
  def test_gamma_is_converted(self, mode, expected):
    flat = Image.new('RGB', (8, 8), (200, 60, 60))
    flat = flat.quantize(4) if mode == 'P' else flat.convert(mode)  # the grey is 102
    pixel, facts = self._pixel(_with_chunks(_encode(flat), _gamma(1.0)))
    np.testing.assert_allclose(pixel, expected, atol=1)
    self.assertTrue(facts.converted)
    self.assertFalse(facts.transparent)

  @parameterized.parameters(0.45455, 0.44, 0.47, 0.0, 1e-5, 21_000.0)
  def test_usual_and_absurd_gammas_are_ignored(self, gamma):
    pixel, facts = self._pixel(_with_chunks(_encode(Image.new('RGB', (8, 8), (200, 60, 60))), _gamma(gamma)))
    np.testing.assert_array_equal(pixel, (200, 60, 60))
    self.assertFalse(facts.converted)

  def test_an_srgb_chunk_outweighs_gamma(self):
    pixel, _ = self._pixel(
      _with_chunks(_encode(Image.new('RGB', (8, 8), (200, 60, 60))), (b'sRGB', b'\0'), _gamma(1.0))
    )
    np.testing.assert_array_equal(pixel, (200, 60, 60))

  def test_a_profile_outweighs_gamma(self):
    encoded = _encode(Image.new('RGB', (8, 8), (200, 60, 60)), icc_profile=_rgb_profile(_P3, 2.2))
    pixel, _ = self._pixel(_with_chunks(encoded, _gamma(1.0)))
    np.testing.assert_allclose(pixel, (219, 37, 49), atol=1)


if __name__ == '__main__':
  absltest.main()
