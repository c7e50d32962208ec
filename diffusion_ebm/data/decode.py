"""One image: from the bytes of a file to the pixels that a model sees."""

import io

import numpy as np

from diffusion_ebm.run.errors import UserError

# Refused unread: no photograph is larger, and a small file may unpack to a very large image.
MAX_BYTES = 256 * 2**20
MAX_PIXELS = 64 * 2**20

_FORMATS = ('PNG', 'JPEG', 'WEBP')
_GREY_MODES = ('1', 'L', 'LA', 'I', 'I;16', 'I;16B')


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
    encoded: the bytes of a PNG, JPEG or WebP file.
    image_size: the side of the result, S.
    num_channels: 1 (grey) or 3 (RGB), C.

  Returns:
    (uint8 (S, S, C) in [0, 255], whether the file holds colours). A palette counts as colours.

  Raises:
    Exception: of any kind, where the file is damaged.
    ValueError: it is no such file, or has too many pixels.
  """
  from PIL import Image, ImageOps, UnidentifiedImageError

  try:
    opened = Image.open(io.BytesIO(encoded), formats=_FORMATS)
  except UnidentifiedImageError:
    raise ValueError('not a PNG, JPEG or WebP image') from None
  with opened as image:
    if image.width * image.height > MAX_PIXELS:
      raise ValueError(f'{image.width}x{image.height} pixels are more than {MAX_PIXELS}')
    # Of a large JPEG, only the frequencies that the result can show, with a margin of two.
    image.draft(None, (2 * image_size, 2 * image_size))
    ImageOps.exif_transpose(image, in_place=True)
    colour = image.mode not in _GREY_MODES
    return fit(to_mode(image, num_channels), image_size), colour


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
