"""Colours as viewers show them: what an image's profile or gamma says, converted to sRGB."""

import functools
import io

import numpy as np
from PIL import Image, ImageCms

# As far as this from sRGB is sRGB: profiles of it differ by rounding.
_TOLERANCE = 2
# A gamma within 5 % of the usual 1 / 2.2 means sRGB, as in libpng; far from all displays, it is a mistake.
_USUAL_GAMMA, _GAMMAS = (0.95 / 2.2, 1.05 / 2.2), (0.1, 10)
_PROFILES_KEPT = 32


def to_srgb(image):
  """Finds the function that converts an image's colours to sRGB.

  That is the ICC profile's transform with the perceptual intent, which browsers use. In a PNG without a profile or an
  sRGB chunk it is the gAMA chunk's curve; cHRM is ignored. Profiles that are broken, or of other channels than the
  image's, are ignored.

  Args:
    image: a PIL image as it was opened.

  Returns:
    A function from an image of the mode `base_mode(image)` to another one of L, LA, RGB or RGBA; None where there is
    nothing to convert. It may be called from several threads.
  """
  mode = base_mode(image)
  if mode == 'LAB':
    return _from_lab().apply
  profile, gamma = image.info.get('icc_profile'), image.info.get('gamma')
  if profile:
    return _from_profile(profile, mode)
  if image.format == 'PNG' and gamma and 'srgb' not in image.info:
    return _from_gamma(gamma, mode)
  return None


def base_mode(image):
  """The mode to which `to_srgb` applies: L, LA, RGB or RGBA, with the channels of an image of any mode, CMYK or LAB."""
  if image.mode in ('CMYK', 'LAB'):
    return image.mode
  grey = image.mode in ('1', 'L', 'LA', 'La') or image.mode[0] in 'IF'
  return ('L' if grey else 'RGB') + 'A' * image.has_transparency_data


@functools.cache
def _srgb():
  return ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB'))


@functools.cache
def _from_lab():
  lab = ImageCms.ImageCmsProfile(ImageCms.createProfile('LAB'))
  return ImageCms.ImageCmsTransform(lab, _srgb(), 'LAB', 'RGB')


@functools.lru_cache(_PROFILES_KEPT)
def _from_profile(profile, mode):
  """`to_srgb` for the bytes of an ICC profile: built once for many images."""
  try:
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    space = source.profile.xcolor_space.strip()
    if space == mode == 'CMYK':
      return ImageCms.ImageCmsTransform(source, _srgb(), 'CMYK', 'RGB').apply
    if mode in ('RGB', 'RGBA') and space == 'RGB':
      convert = ImageCms.ImageCmsTransform(source, _srgb(), mode, mode).apply
      return None if _is_identity(convert, mode) else convert
    if mode in ('L', 'LA') and space in ('RGB', 'GRAY'):
      levels = Image.fromarray(np.arange(256, dtype=np.uint8)[None]).convert('L' if space == 'GRAY' else 'RGB')
      convert = ImageCms.ImageCmsTransform(source, _srgb(), levels.mode, 'RGB').apply
      return _look_up(np.asarray(convert(levels))[0, :, 1], mode)
  except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
    pass  # broken
  return None


def _is_identity(convert, mode):
  levels = np.linspace(0, 255, 17).astype(np.uint8)
  colours = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(17, -1, 3)
  found = np.asarray(convert(Image.fromarray(colours).convert(mode)))[..., :3]
  return np.abs(found.astype(int) - colours).max() <= _TOLERANCE


def _from_gamma(gamma, mode):
  """`to_srgb` for levels that are light to the power of gamma."""
  if _USUAL_GAMMA[0] < gamma < _USUAL_GAMMA[1] or not _GAMMAS[0] < gamma < _GAMMAS[1]:
    return None
  light = np.linspace(0, 1, 256) ** (1 / gamma)
  srgb = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
  return _look_up(np.round(255 * srgb).astype(np.uint8), mode)


def _look_up(table, mode):
  """The function that looks up all levels in a table of 256, but alpha's; None if it changes nothing."""
  if np.abs(table - np.arange(256)).max() <= _TOLERANCE:
    return None
  colours, alpha = mode.removesuffix('A'), mode.endswith('A')
  tables = table.tolist() * len(colours) + list(range(256)) * alpha
  return lambda image: image.point(tables)
