"""What a split of a set of images is like: in numbers, and in a line."""

import collections
from typing import Any, NamedTuple

import numpy as np

from diffusion_ebm.data import inventory as inventory_lib
from diffusion_ebm.data.decode import Facts
from diffusion_ebm.run.errors import printable

_CLASSES_SHOWN = 5
_FULL_RANGE_BITS = 16
_DARK_BITS = 12  # below a sixteenth of the range


class Record(NamedTuple):
  """What is known of the files behind a source.

  Attributes:
    inventory: of the whole set, with what turned out to be damaged.
    numbers: of the split, as of `numbers`.
  """

  inventory: inventory_lib.Inventory
  numbers: dict[str, Any]


def numbers(inventory, split: str, facts: np.ndarray, data) -> dict[str, Any]:
  """Counts what there is in a split.

  Args:
    inventory: with what turned out to be damaged.
    split: 'train' or 'test'.
    facts: of its images, int (N, F), the fields of `decode.Facts`.
    data: the `data` section of a configuration.

  Returns:
    What JSON can hold; `smallest` and `largest` are width and height in pixels.
  """
  images, of = [file for file in inventory.of(split) if not file.left_out], Facts(*facts.T)
  pixels, side = of.width * of.height, np.minimum(of.width, of.height)
  ends = {'smallest': np.argmin(pixels), 'largest': np.argmax(pixels)}
  labels = collections.Counter(file.label for file in images)
  deep = of.largest[of.largest > 0]
  return {
    'images': len(images),
    'classes': dict(sorted(labels.items())) if inventory_lib.classes(inventory, split) else {},
    **{name: [int(of.width[i]), int(of.height[i])] for name, i in ends.items()},
    'cropped': int(np.sum(of.width != of.height)),
    'enlarged': int(np.sum(side < data.image_size)),
    'transparent': int(np.sum(of.transparent != 0)),
    'grey': int(np.sum(of.colour == 0)),
    'converted_to_srgb': int(np.sum(of.converted != 0)),
    'sixteen_bits': len(deep),
    'largest_of_sixteen_bits': int(deep.max()) if len(deep) else 0,
    'left_out': dict(inventory_lib.reasons(_left_out(inventory, split))),
  }


def _left_out(inventory, split):
  """Files that are not used though they lie where the images of the split do, or, for training, in no split."""
  return [
    file for file in inventory.files if file.left_out and (split in file.split or split == 'train' and not file.split)
  ]


def line(found: dict[str, Any], split: str, data) -> str:
  """The numbers in words; what there is none of is left out."""
  count = found['images']
  text = [f'{count:,} {"training" if split == "train" else "test"} image{"" if count == 1 else "s"}{_classes(found)}']
  smallest, largest = ('x'.join(map(str, found[end])) for end in ('smallest', 'largest'))
  text.append(smallest if smallest == largest else f'{smallest} to {largest}')
  grey = 'grey' if data.num_channels == 3 else None
  for name, words in (
    ('cropped', 'cropped'),
    ('enlarged', 'enlarged'),
    ('transparent', 'transparent (over white)'),
    ('grey', grey),
    ('converted_to_srgb', 'converted to sRGB'),
  ):
    if found[name] and words:
      text.append(f'{found[name]:,} {words}')
  if data.num_channels == 1 and found['grey'] < count:
    text.append(f'{count - found["grey"]:,} in colour turned to grey')
  if split == 'train' and data.random_flip:
    text.append('mirrored at random')
  left_out = inventory_lib.in_words(found['left_out'])
  return ', '.join(text) + (f'; left out: {left_out}' if left_out else '')


def _classes(found):
  if not found['classes']:
    return ''
  shown = [f'{printable(name)} {count:,}' for name, count in found['classes'].items()]
  more = ', ...' if len(shown) > _CLASSES_SHOWN else ''
  return f' in {len(shown)} classes ({", ".join(shown[:_CLASSES_SHOWN])}{more})'


def warning(found: dict[str, Any]) -> str:
  """A warning of images that come out nearly black, or ''."""
  largest = found['largest_of_sixteen_bits']
  if not 0 < largest < 2**_DARK_BITS:
    return ''
  bits = largest.bit_length()
  return (
    f'the largest value in {inventory_lib.counted(found["sixteen_bits"], "image")} of 16 bits is {largest} of 65535, '
    f'so that they are nearly black: if they hold {bits} bits, multiply them by {2 ** (_FULL_RANGE_BITS - bits)}'
  )
