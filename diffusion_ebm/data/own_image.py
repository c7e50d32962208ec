"""A picture from anywhere, as a model of images sees it: the same decoding as that of training images."""

import io
import os
import re

import numpy as np

from diffusion_ebm.data import decode
from diffusion_ebm.run import paths
from diffusion_ebm.run.errors import UserError

# Pillow's modes of pixels that a PNG file can hold.
_PNG_MODES = ('1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'I;16')


def load(image, image_size: int, num_channels: int) -> np.ndarray:
  """Decodes a picture.

  Args:
    image: the path of an image file, a PIL image, or a uint8 array (H, W) or (H, W, C) of any size: grey, grey with
      alpha, RGB or RGBA.
    image_size: the side of the result, S.
    num_channels: of the result, 1 (grey) or 3 (RGB).

  Returns:
    uint8 (S, S, num_channels), as of `decode.decode`.

  Raises:
    UserError: there is no such file, or it is no picture that can be read.
  """
  if isinstance(image, str | os.PathLike):
    image, encode = os.fspath(image), _read
    name = image
  else:
    name, encode = 'the image', _encode
  try:
    return decode.decode(encode(image), image_size, num_channels)[0]
  except UserError:
    raise
  except Exception as error:  # a damaged file may lead to anything
    cause = ' '.join(str(error).split()) or type(error).__name__
    raise UserError(f'{name} cannot be read as an image ({cause})') from error


def _read(path):
  """The bytes of a file."""
  if re.match('(https?|ftp)://', path, re.IGNORECASE):
    raise UserError(f'{path} is a web address: download the picture, and name the file')
  file = paths.local(path, 'image')
  if not os.path.exists(file):
    raise UserError(f'{path} does not exist (looked in {os.getcwd()}): name an image file')
  if os.path.isdir(file):
    raise UserError(f'{path} is a folder: name an image file in it, or give a list of them')
  if not os.path.isfile(file):  # reading from a pipe may never end
    raise UserError(f'{path} is not a file: name an image file')
  if os.path.getsize(file) > decode.MAX_BYTES:
    raise UserError(f'{path} has more than {decode.MAX_BYTES} bytes: make the picture smaller')
  with open(file, 'rb') as opened:
    return opened.read()


def _encode(image):
  """The bytes of a PNG file of an image that has been opened, which is then decoded like any other."""
  from PIL import Image, ImageOps

  image = ImageOps.exif_transpose(image if isinstance(image, Image.Image) else _from_array(image))
  if image.mode in ('I', 'F'):
    raise UserError(f'the image has mode {image.mode}, whose white is unknown: convert it to L or RGB first')
  profile = image.info.get('icc_profile')
  if image.mode not in _PNG_MODES:
    image = image.convert('RGBA' if image.has_transparency_data else 'RGB')
    profile = None  # it is of other colours
  buffer = io.BytesIO()
  image.save(buffer, 'PNG', compress_level=1, icc_profile=profile)
  return buffer.getvalue()


def _from_array(image):
  from PIL import Image

  pixels = np.asarray(image)
  if pixels.dtype != np.uint8:
    raise UserError(
      f'the image is {pixels.dtype}, not uint8: give the path of a file, or turn floats in [-1, 1] into uint8 with '
      'preprocessing.to_uint8'
    )
  if pixels.ndim not in (2, 3) or not pixels.size or pixels.ndim == 3 and pixels.shape[2] not in (1, 2, 3, 4):
    raise UserError(f'the image has shape {pixels.shape}, not (H, W) or (H, W, C) of 1 to 4 channels')
  return Image.fromarray(np.squeeze(pixels, 2) if pixels.shape[2:] == (1,) else pixels)
