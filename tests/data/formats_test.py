"""Tests of what files are, by their first bytes."""

import io

from absl.testing import absltest, parameterized
from PIL import Image

from diffusion_ebm.data import formats


class FormatsTest(parameterized.TestCase):
  @parameterized.parameters(
    ('AVIF', 'RGB', 'AVIF'),
    ('BMP', 'RGB', 'BMP'),
    ('GIF', 'L', 'GIF'),
    ('JPEG', 'L', 'JPEG'),
    ('MPO', 'RGB', 'JPEG'),
    ('JPEG2000', 'RGB', 'JPEG2000'),
    ('PCX', 'RGB', 'PCX'),
    ('PNG', 'RGBA', 'PNG'),
    ('PPM', '1', 'PPM'),
    ('PPM', 'L', 'PPM'),
    ('PPM', 'RGB', 'PPM'),
    ('QOI', 'RGB', 'QOI'),
    ('SGI', 'RGB', 'SGI'),
    ('TIFF', 'CMYK', 'TIFF'),
    ('WEBP', 'RGBA', 'WEBP'),
  )
  def test_what_pillow_writes_is_known(self, written, mode, kind):
    file = io.BytesIO()
    Image.new(mode, (3, 2)).save(file, written)
    self.assertEqual(formats.kind(file.getvalue()[: formats.MAGIC_BYTES]), kind)

  @parameterized.parameters(
    (b'\x59\xa6\x6a\x95' + bytes(60), 'SUN'),
    (b'MM\0*' + bytes(60), 'TIFF'),
    (b'II+\0' + bytes(60), 'TIFF'),
    (b'\xff\x4f\xff\x51' + bytes(60), 'JPEG2000'),
    (b'\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf', 'AVIF'),
    (b'P5 #made by hand\n2 2 255 abcd', 'PPM'),
  )
  def test_rarer_openings_are_known(self, prefix, kind):
    self.assertEqual(formats.kind(prefix), kind)

  @parameterized.parameters(
    b'', b'\xff', b'\x89PNG', b'BM is a text', b'P1 is a text', b'Python', b'P5', b'\n\n\1\1', b'RIFF....WAVE', b'II*'
  )
  def test_other_files_are_none(self, prefix):
    self.assertEqual(formats.kind(prefix), '')

  @parameterized.parameters(
    ('a.jpg', b'', 'empty: fetch it again'),
    ('a.jpg', b'version https://git-lfs.github.com/spec/v1\noid', 'git LFS pointer: run git lfs pull'),
    ('a.jpg', b'\n<!DOCTYPE html>\n<title>404', 'HTML page, not an image'),
    ('a.jpg', b'<HTML lang="en">', 'HTML page, not an image'),
    ('a', b'<?xml version="1.0"?>\n<svg width="3">', 'vector graphic: export it as PNG'),
    ('a.heic', b'\0\0\0\x24ftypheic\0\0\0\0mif1heic', 'HEIC: .* pillow-heif'),
    ('a', b'\0\0\0\x18ftypmif1\0\0\0\0mif1heic', 'HEIC: .* pillow-heif'),
    ('a', b'\xff\x0a\xfa\x1f', 'JPEG XL'),
    ('a', b'II*\0\x10\0\0\0CR\2\0', 'RAW photograph: export it as JPEG or PNG'),
    ('a', b'FUJIFILMCCD-RAW 0201', 'RAW photograph'),
    ('b/a.X3F', b'FOVb', 'RAW photograph'),
    ('a', b'\0\0\0\x18ftypqt  ', 'video: extract its frames'),
    ('a', b'RIFF\0\0\0\0AVI LIST', 'video'),
    ('a', b'%PDF-1.4', 'document'),
    ('a', b'%!PS-Adobe-3.0 EPSF', 'document'),
    ('a', b'PK\3\4', 'archive: unpack it'),
    ('a.7z', b'7z\xbc\xaf\x27\x1c', 'archive'),
    ('a', b'8BPS\0\1', 'document with layers'),
    ('a', b'#?RADIANCE', 'high dynamic range'),
    ('a', b'DDS |\0\0\0', 'texture or icon'),
    ('a', b'\0\0\1\0\1\0', 'texture or icon'),
    ('a.tga', b'\0\0\x0a\0', 'texture or icon'),
    ('.a.jpg.icloud', b'bplist00', 'in iCloud alone: download it'),
    ('a.npy', b'\x93NUMPY\1\0', 'array: save its images'),
    ('a.jpg', b'garbage', 'not an image'),
    ('jpg', b'garbage', 'not an image'),
    ('pdf.d/a', b'garbage', 'not an image'),
  )
  def test_what_is_not_read_is_named_with_the_remedy(self, name, prefix, pattern):
    self.assertEqual(formats.kind(prefix), '')
    self.assertRegex(formats.unreadable(name, prefix), f'^{pattern}')


if __name__ == '__main__':
  absltest.main()
