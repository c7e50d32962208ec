"""One image: from the bytes of a file to the pixels that a model sees."""

import io
import re
from typing import NamedTuple

import numpy as np

from diffusion_ebm.run.errors import UserError

# Refused unread: no photograph is larger, and a small file may unpack to a very large image.
MAX_BYTES = 256 * 2**20
MAX_PIXELS = 64 * 2**20

# Formats by Pillow's names, and how their files begin.
_FORMATS = {
  'PNG': rb'\x89PNG\r\n\x1a\n',
  'JPEG': rb'\xff\xd8\xff',
  'WEBP': rb'RIFF.{4}WEBP',
  'TIFF': rb'II[*+]\0|MM\0[*+]',
  'BMP': rb'BM',
  'GIF': rb'GIF8[79]a',
  'AVIF': rb'.{4}ftypavi[fs]',
}
# What else there is among images, how it begins, and its suffixes.
_OTHERS = (
  ('empty: fetch it again', rb'\Z', ''),
  ('git LFS pointer: run git lfs pull', rb'version https://git-lfs', ''),
  ('HTML page, not an image: fetch the image again', rb'(?i)\s*<(!doctype html|html)', 'html htm'),
  ('HEIC: convert it to JPEG or PNG, for instance with pillow-heif', rb'.{4}ftyp(hei|mif1)', 'heic heif'),
  ('video: extract its frames as PNG', rb'.{4}(ftyp|moov)', 'mov mp4 avi'),
  ('RAW photograph: export it as JPEG or PNG', rb'II\*\0.{4}CR', 'cr2 dng nef arw'),
  ('document: export its pages as PNG', rb'%PDF', 'pdf'),
)
MAGIC_BYTES = 64
_GREY_MODES = ('1', 'L', 'LA', 'I', 'I;16', 'I;16B')


class Facts(NamedTuple):
  """What a picture was before it was fitted.

  Attributes:
    width: upright, before it is cropped.
    height: likewise.
    colour: whether the file holds colours; a palette counts as colours.
    transparent: whether some pixel is.
    largest: the largest value of a picture of 16 bits, else 0.
    converted: whether its colours were converted to sRGB.
  """

  width: int
  height: int
  colour: bool
  transparent: bool
  largest: int
  converted: bool


def kind(prefix: bytes) -> str:
  """Pillow's name of a file's format by its first `MAGIC_BYTES` bytes; '' if it is none that is read."""
  return next((name for name, sign in _FORMATS.items() if re.match(sign, prefix, re.DOTALL)), '')


def unreadable(name: str, prefix: bytes) -> str:
  """What a file is that has no `kind`, and the remedy, in a phrase."""
  suffix = name.rpartition('.')[2].lower()
  by_content = [what for what, sign, _ in _OTHERS if re.match(sign, prefix, re.DOTALL)]
  by_name = [what for what, _, suffixes in _OTHERS if suffix in suffixes.split()]
  return (by_content + by_name + ['not an image'])[0]


def check_channels(data):
  """Refuses a `data.num_channels` other than 1 and 3."""
  if data.num_channels not in (1, 3):
    raise UserError(
      f'images have 1 channel (grey) or 3 (RGB), not {data.num_channels}: set --config.data.num_channels=1 or 3'
    )


def decode(encoded, image_size, num_channels):
  """Decodes an image, upright, and fits it with `fit`.

  Transparent parts are laid over white. Of a moving image the first frame is taken.

  Args:
    encoded: the bytes of a file.
    image_size: the side of the result, S.
    num_channels: 1 (grey) or 3 (RGB), C.

  Returns:
    (uint8 (S, S, C) in [0, 255], `Facts`).

  Raises:
    Exception: of any kind, where the file is damaged.
    ValueError: it is no such file, or has too many pixels.
  """
  from PIL import Image, ImageOps, UnidentifiedImageError

  try:
    opened = Image.open(io.BytesIO(encoded), formats=tuple(_FORMATS))
  except UnidentifiedImageError:
    raise ValueError('not an image that is read, or damaged') from None
  with opened as image:
    if image.width * image.height > MAX_PIXELS:
      raise ValueError(f'{image.width}x{image.height} pixels are more than {MAX_PIXELS}')
    width, height = image.size
    # Of a large JPEG, only the frequencies that the result can show, with a margin of two.
    image.draft(None, (2 * image_size, 2 * image_size))
    before = image.size
    ImageOps.exif_transpose(image, in_place=True)
    if image.size != before:
      width, height = height, width
    colour = image.mode not in _GREY_MODES
    largest = image.getextrema()[1] if image.mode.startswith('I') else 0
    facts = Facts(width, height, colour, image.has_transparency_data, largest, False)
    return fit(to_mode(image, num_channels), image_size), facts


def fit(image, image_size):
  """Cuts the largest square out of the middle of an image and resizes it.

  Args:
    image: a PIL image, mode L or RGB.
    image_size: the side of the result, S.

  Returns:
    uint8 (S, S, C): antialiased where the image shrinks, untouched where it fits already.
  """
  from PIL import Image

  side = min(image.size)
  left, top = (image.width - side) // 2, (image.height - side) // 2
  if image.size != (side, side):
    image = image.crop((left, top, left + side, top + side))
  if side != image_size:
    image = image.resize((image_size, image_size), Image.Resampling.LANCZOS)
  return np.asarray(image).reshape(image_size, image_size, -1)


def to_mode(image, num_channels):
  """Converts a PIL image of any mode to L (one channel) or RGB; see `decode`."""
  from PIL import Image

  if image.mode.startswith('I'):
    # 16 bits, which `convert` would clip rather than scale.
    image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).astype(np.uint8))
  if image.has_transparency_data:
    white = Image.new('RGBA', image.size, 'white')
    image = Image.alpha_composite(white, image.convert('RGBA'))
  mode = 'L' if num_channels == 1 else 'RGB'
  return image if image.mode == mode else image.convert(mode)
