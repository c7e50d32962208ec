"""One image: from the bytes of a file to the pixels that a model sees."""

import io
from typing import NamedTuple
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from diffusion_ebm.data import colour
from diffusion_ebm.data.formats import MAGIC_BYTES, kind, unreadable
from diffusion_ebm.run.errors import UserError

__all__ = ['MAGIC_BYTES', 'MAX_BYTES', 'Facts', 'check_channels', 'decode', 'fit', 'kind', 'memory', 'unreadable']

# Refused unread: no photograph is larger, and a small file may unpack to a very large image.
MAX_BYTES = 256 * 2**20
MAX_PIXELS = 64 * 2**20

# Larger images are converted in bands of about so many pixels, for the sake of memory.
_BAND_PIXELS = 2**20

# Bytes for a pixel: of a decoded image and its turned copy, and what some decoders were seen to take beside them.
_PIXEL_BYTES, _PROGRESSIVE_BYTES, _DECODER_BYTES = 8, 6, {'AVIF': 8, 'JPEG2000': 16, 'WEBP': 12}

# Numbers of TIFF's tags.
_NEW_SUBFILE_TYPE, _BITS_PER_SAMPLE, _PHOTOMETRIC, _DNG_VERSION = 254, 258, 262, 50706
_WHITE_IS_ZERO = 0  # of the photometric interpretation

# What Pillow remarks on odd metadata and on sizes: warnings cannot be filtered for one thread alone.
warnings.filterwarnings('ignore', module=r'PIL\.')


class Facts(NamedTuple):
  """What `decode` saw of an image.

  Attributes:
    width, height: its size in pixels, upright, before it was cut.
    colour: whether the file holds colours. A palette does unless all of it is grey.
    transparent: whether some pixel of the middle square is, at least in part.
    largest: the largest value of an image of 16 bits (or 12, or floats), on the scale of 16, [0, 65535]; of colours,
      of which only the upper bytes are known, the most that it can be. 0 of other images.
    converted: whether colours were converted to sRGB.
  """

  width: int
  height: int
  colour: bool
  transparent: bool
  largest: int
  converted: bool


def check_channels(data):
  """Refuses a `data.num_channels` other than 1 and 3."""
  if data.num_channels not in (1, 3):
    raise UserError(
      f'images have 1 channel (grey) or 3 (RGB), not {data.num_channels}: set --config.data.num_channels=1 or 3'
    )


def decode(encoded, image_size, num_channels):
  """Decodes an image: upright, in sRGB, over white, the middle square, resized.

  Of a moving image the first frame is taken. Colours are converted as `colour.to_srgb` says. Transparent parts show
  white: nothing else is known to lie behind them. 16 bits become the upper 8; 32 bits are read only if they are floats
  in [0, 1]. The square is antialiased where it shrinks, untouched where it fits already.

  Args:
    encoded: the bytes of a file that has a `kind`.
    image_size: the side of the result, S.
    num_channels: 1 (grey) or 3 (RGB), C.

  Returns:
    (uint8 (S, S, C) in [0, 255], `Facts`).

  Raises:
    Exception: of any kind, where the file is damaged.
    ValueError: it is no such file, a RAW photograph, has too many pixels, or values whose white is unknown.
  """
  with _open(encoded) as image:
    width, height = image.size
    # Of a large JPEG, only the frequencies that the result can show, with a margin of two.
    image.draft(None, (2 * image_size, 2 * image_size))
    stored = image.size
    layout = str([tile.args for tile in image.tile])  # of the file; `mode` is what Pillow makes of it
    image.load()
    _turn_upright(image)
    if image.size != stored:
      width, height = height, width
    has_colours = _has_colours(image) and 'LA;16' not in layout
    to_srgb = colour.to_srgb(image)
    if image.mode[0] in 'IF':
      image, largest = _to_eight_bits(image)
    else:
      largest = _upper_bytes(image) if ';16' in layout else 0
    square, transparent = fit(image, image_size, num_channels, to_srgb)
  return square, Facts(width, height, has_colours, transparent, largest, to_srgb is not None)


def memory(encoded, image_size):
  """About how many bytes `decode` takes at most, known without decoding; raises what `decode` raises before that."""
  with _open(encoded) as image:
    stored = image.width * image.height
    image.draft(None, (2 * image_size, 2 * image_size))
    of_decoder = _PROGRESSIVE_BYTES if image.info.get('progressive') else _DECODER_BYTES.get(image.format, 0)
    return _PIXEL_BYTES * image.width * image.height + of_decoder * stored


def fit(image, image_size, num_channels, to_srgb=None):
  """Cuts the middle square out of an image, lays it over white and resizes it; see `decode`.

  Args:
    image: a PIL image of 8 bits, of any mode.
    image_size: the side of the result, S.
    num_channels: 1 (grey) or 3 (RGB), C.
    to_srgb: what `colour.to_srgb` found for the image.

  Returns:
    (uint8 (S, S, C) in [0, 255], whether some pixel of the square is transparent).
  """
  side = min(image.size)
  left, top = (image.width - side) // 2, (image.height - side) // 2
  mode = 'L' if num_channels == 1 else 'RGB'
  bands, transparent = [], False
  for box in _bands((left, top, left + side, top + side)):
    band, partly = _flatten(image if box == (0, 0, *image.size) else image.crop(box), mode, to_srgb)
    # Pillow, too, resizes the width first and then the height: bands give the same pixels and take less memory.
    bands.append(band if side == image_size else band.resize((image_size, band.height), Image.Resampling.LANCZOS))
    transparent |= partly
  square = bands[0] if len(bands) == 1 else Image.fromarray(np.concatenate(bands))
  if side != image_size:
    square = square.resize((image_size, image_size), Image.Resampling.LANCZOS)
  return np.asarray(square).reshape(image_size, image_size, -1), transparent


def _open(encoded):
  """Opens an image without decoding it, within bounds."""
  format_ = kind(encoded[:MAGIC_BYTES])
  if not format_:
    raise ValueError(unreadable('', encoded[:MAGIC_BYTES]))
  try:
    image = Image.open(io.BytesIO(encoded), formats=(format_,))
  except UnidentifiedImageError:
    raise ValueError(f'a damaged or unusual {format_} file: convert it to PNG') from None
  except Image.DecompressionBombError:
    raise ValueError(f'more than {MAX_PIXELS} pixels') from None
  if image.width * image.height > MAX_PIXELS:
    raise ValueError(f'{image.width}x{image.height} pixels are more than {MAX_PIXELS}')
  if format_ == 'TIFF' and (image.tag_v2.get(_NEW_SUBFILE_TYPE, 0) & 1 or _DNG_VERSION in image.tag_v2):
    raise ValueError('RAW photograph, of which only a preview could be read: export it as JPEG or PNG')
  return image


def _turn_upright(image):
  """Turns a loaded image as its EXIF data say, in place."""
  try:
    ImageOps.exif_transpose(image, in_place=True)
  except MemoryError:
    raise
  except Exception:
    pass  # these data are damaged, which viewers do not mind either


def _has_colours(image):
  if image.mode in ('P', 'PA'):
    palette = np.array(image.getpalette('RGB')).reshape(-1, 3)
    return bool(np.any(palette != palette[:, :1]))
  return colour.base_mode(image) not in ('L', 'LA')


def _to_eight_bits(image):
  """Turns an image of 16 bits or of floats to L, or to LA where one value is transparent.

  Returns:
    (the image, the largest value in [0, 65535]).
  """
  if image.mode == 'I' and image.format != 'PPM':
    raise ValueError('32-bit integers, whose white is unknown: save it with 8 or 16 bits')
  tags, key = getattr(image, 'tag_v2', {}), image.info.get('transparency')
  grey, largest = Image.new('L' if key is None else 'LA', image.size), 0
  for box in _bands((0, 0, *image.size)):
    stored = np.asarray(image.crop(box))
    if image.mode == 'F':
      if not np.all((stored >= 0) & (stored <= 1)):
        raise ValueError('floats outside of [0, 1], whose white is unknown: save it with 8 or 16 bits')
      values = np.rint(65535 * stored).astype(np.int32)
    else:  # 12 bits are the only ones that Pillow does not scale to 16
      values = stored.astype(np.int32) * (16 if tags.get(_BITS_PER_SAMPLE) == (12,) else 1)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
      values = 65535 - values
    largest = max(largest, int(values.max()))
    levels = (values >> 8).astype(np.uint8)
    if key is not None:
      levels = np.stack([levels, np.where(stored == key, 0, 255).astype(np.uint8)], axis=-1)
    grey.paste(Image.fromarray(levels), box[:2])
  return grey, largest


def _upper_bytes(image):
  """The largest value of an image of 16 bits whose lower bytes Pillow has dropped: rounded up."""
  colours = [image.getchannel(name) for name in image.getbands() if name != 'A']
  return 256 * max(channel.getextrema()[1] for channel in colours) + 255


def _flatten(image, mode, to_srgb):
  """Converts a part of an image to sRGB, lays it over white and turns it to L or RGB.

  Returns:
    (the image, whether some pixel is transparent).
  """
  base = colour.base_mode(image)
  if to_srgb is not None:
    image = to_srgb(image.convert(base))
  transparent = False
  if base in ('LA', 'RGBA'):
    image = image.convert(base).convert('RGBA')  # in two steps, as La has no other way
    transparent = image.getchannel('A').getextrema()[0] < 255
    if transparent:
      image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
  return image if image.mode == mode else image.convert(mode), transparent


def _bands(box):
  """Cuts a box (left, top, right, bottom) into bands of its width."""
  left, top, right, bottom = box
  rows = max(_BAND_PIXELS // (right - left), 1)
  for start in range(top, bottom, rows):
    yield left, start, right, min(start + rows, bottom)
