"""The line that sums up what has been read."""

import os
import tempfile

from absl.testing import absltest, parameterized

from diffusion_ebm.data import load_source
from tests.data import folders

PNG = folders.encode()

# Contents; changes of the configuration; the line.
_LINES = {
  'one image': ({'a.png': PNG}, {}, '1 training image, 4x4'),
  'classes and sizes': (
    {f'{c}/{n}.png': folders.encode(n, 4 + n, 4) for c, count in (('cat', 3), ('dog', 2)) for n in range(count)},
    {},
    '5 training images in 2 classes (cat 3, dog 2), 4x4 to 4x6, 3 cropped',
  ),
  'more classes than are shown': (
    {f'{c}/1.png': PNG for c in 'abcdefg'},
    {},
    '7 training images in 7 classes (a 1, b 1, c 1, d 1, e 1, ...), 4x4',
  ),
  'enlarged': ({'a.png': folders.encode(0, 1, 1), 'b.png': PNG}, {}, '2 training images, 1x1 to 4x4, 1 enlarged'),
  'transparent': (
    {'a.png': folders.encode_transparent(), 'b.png': PNG},
    {},
    '2 training images, 4x4, 1 transparent (over white)',
  ),
  'grey': ({'a.png': folders.encode(mode='L')}, {}, '1 training image, 4x4, 1 grey'),
  'turned to grey': (
    {'a.png': folders.encode(mode='L'), 'b.png': PNG},
    {'num_channels': 1},
    '2 training images, 4x4, 1 in colour turned to grey',
  ),
  'mirrored': ({'a.png': PNG}, {'random_flip': True}, '1 training image, 4x4, mirrored at random'),
  'left out': (
    {'a.png': PNG, 'b.png': b'', 'c.xyz': b'1', 'd.xyz': b'1', 'e.heic': b'\0\0\0\x18ftypheic' + bytes(40)},
    {},
    '1 training image, 4x4; left out: 2 .xyz, 1 damaged, 1 .heic (HEIC: ',
  ),
  'many kinds left out': (
    {'a.png': PNG} | {f'{n}.{s}': b'1' for s in 'stuvwxyz' for n in range(1 + (s < 'y'))},
    {},
    '1 training image, 4x4; left out: 2 .s, 2 .t, 2 .u, 2 .v, 2 .w, 2 .x, 2 others',
  ),
}


class SummaryTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.path = os.path.join(self.enterContext(tempfile.TemporaryDirectory()), 'photos')

  def said(self, contents, split='train', **changes):
    """What is logged, a line each, and the source."""
    folders.write(self.path, contents)
    with self.assertLogs('diffusion_ebm', 'INFO') as logs:
      source = load_source(folders.section(self.path, **changes), split)
    return [record.getMessage() for record in logs.records], source

  @parameterized.named_parameters((name, *case) for name, case in _LINES.items())
  def test_line(self, contents, changes, line):
    said, _ = self.said(contents, **changes)
    self.assertStartsWith(said[-1], line)
    if not line.endswith(': '):
      self.assertEqual(said[-1], line)

  def test_thousands_have_a_comma(self):
    contents = {f'{n}.png': PNG for n in range(1001)} | {f'{n}.x': b'1' for n in range(1000)}
    self.assertEqual(self.said(contents)[0][-1], '1,001 training images, 4x4; left out: 1,000 .x')

  def test_of_a_split_what_lies_in_it_counts(self):
    contents = {'train/a.png': PNG, 'test/b.png': PNG, 'test/c.txt': b'x', 'test/d.png': b'', 'e.md': b'x'}
    self.assertEqual(self.said(contents)[0][-1], '1 training image, 4x4; left out: 1 .md')
    said = self.said({}, 'test', random_flip=True)[0]
    self.assertEqual(said[-1], '1 test image, 4x4; left out: 1 .txt, 1 damaged')
    self.assertRegex(said[-2], r'skipping 1 of 2 images in .* \(test/d\.png: empty')

  def test_the_numbers_are_known_to_the_source(self):
    _, source = self.said({'cat/a.png': PNG, 'dog/b.png': folders.encode(1, 4, 8), 'c.txt': b'x'})
    self.assertEqual(
      source.record.numbers,
      {
        'images': 2,
        'classes': {'cat': 1, 'dog': 1},
        'smallest': [4, 4],
        'largest': [8, 4],
        'cropped': 1,
        'enlarged': 0,
        'transparent': 0,
        'grey': 0,
        'converted_to_srgb': 0,
        'sixteen_bits': 0,
        'largest_of_sixteen_bits': 0,
        'left_out': {'.txt': 1},
      },
    )

  @parameterized.parameters(([4095, 300], 12, 16), ([1023], 10, 64), ([255, 9], 8, 256))
  def test_sixteen_bits_that_hold_fewer_are_named(self, largest, bits, factor):
    contents = {f'{n}.png': folders.encode_16_bits(each) for n, each in enumerate(largest)}
    said, _ = self.said(contents, num_channels=1)
    noun = 'image' if len(largest) == 1 else 'images'
    self.assertIn(
      f'the largest value in {len(largest)} {noun} of 16 bits is {max(largest)} of 65535, so that they are nearly '
      f'black: if they hold {bits} bits, multiply them by {factor}',
      said[-1],
    )

  @parameterized.parameters([[4096]], [[200, 65535]])
  def test_sixteen_bits_that_are_used_are_not(self, largest):
    contents = {f'{n}.png': folders.encode_16_bits(each) for n, each in enumerate(largest)}
    self.assertNotIn('black', '\n'.join(self.said(contents, num_channels=1)[0]))


if __name__ == '__main__':
  absltest.main()
