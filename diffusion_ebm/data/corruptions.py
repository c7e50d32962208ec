"""Images that no model of the data should take for data, made from images."""

import numpy as np


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


_CORRUPTIONS = {'noise': _noise, 'inversion': _inversion, 'shuffle': _shuffle, 'constant': _constant}
NAMES = tuple(_CORRUPTIONS)


def corrupt(name: str, images: np.ndarray, seed: int) -> np.ndarray:
  """Corrupts images.

  Args:
    name: 'noise', every number uniform; 'inversion', 255 minus the image; 'shuffle', the pixels of each image in an
      order of its own; 'constant', each image of one colour, uniform.
    images: uint8 (N, H, W, C).
    seed: of the random numbers.

  Returns:
    Like `images`.
  """
  return _CORRUPTIONS[name](images, np.random.default_rng(seed))
