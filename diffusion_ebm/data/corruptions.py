"""Images that no model of the data should take for data: made from images, or of their shape alone."""

import numpy as np
from scipy import ndimage

from diffusion_ebm.data import made_images

_BLUR = 1 / 8  # of the image's height: the standard deviation, 1 pixel of 8


def _noise(images, rng):
  return rng.integers(256, size=images.shape, dtype=np.uint8)


def _inversion(images, rng):
  del rng
  return 255 - images


def _shuffle(images, rng):
  pixels = images.reshape(len(images), -1, images.shape[-1])
  order = rng.permuted(np.broadcast_to(np.arange(pixels.shape[1]), pixels.shape[:2]), axis=1)
  return np.take_along_axis(pixels, order[..., None], axis=1).reshape(images.shape)


def _constant(images, rng):
  colour = rng.integers(256, size=(len(images), 1, 1, images.shape[-1]), dtype=np.uint8)
  return np.broadcast_to(colour, images.shape)


def _flip(images, rng):
  del rng
  return images[:, ::-1]


def _shift(images, rng):
  del rng
  return np.roll(images, images.shape[2] // 4, axis=2)


def _blur(images, rng):
  del rng
  sigma = _BLUR * images.shape[1]
  return np.round(ndimage.gaussian_filter(images.astype(np.float32), (0, sigma, sigma, 0), mode='nearest'))


def _made(make):
  return lambda images, rng: make(images.shape, rng)


_CORRUPTIONS = {
  'noise': _noise,
  'inversion': _inversion,
  'shuffle': _shuffle,
  'constant': _constant,
  'flip': _flip,
  'shift': _shift,
  'blur': _blur,
  'letters': _made(made_images.letters),
  'patches': _made(made_images.patches),
  'gratings': _made(made_images.gratings),
  'pink_noise': _made(made_images.pink_noise),
}
NAMES = tuple(_CORRUPTIONS)


def corrupt(name: str, images: np.ndarray, seed: int, grey_levels: int = 256) -> np.ndarray:
  """Makes images that are no data.

  Args:
    name: of images: 'inversion', 255 minus the image; 'shuffle', the pixels of each image in an order of its own;
      'flip', upside down; 'shift', by a quarter of the width, what leaves on the right comes in on the left; 'blur', by
      a Gaussian whose standard deviation is an eighth of the height. Of their shape alone: 'noise', every number
      uniform; 'constant', each image of one colour, uniform; and 'letters', 'patches', 'gratings' and 'pink_noise' of
      `made_images`.
    images: uint8 (N, H, W, C).
    seed: of the random numbers.
    grey_levels: of the data, over 0..255: those of what is made.

  Returns:
    Like `images`.
  """
  made = _CORRUPTIONS[name](images, np.random.default_rng(seed))
  width = 255 / (grey_levels - 1)
  return np.round(np.round(made / width) * width).astype(np.uint8)
