"""Between examples as they are stored, uint8 images or float32 vectors, and as the model sees them, in [-1, 1]."""

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_ebm import random_keys


def to_unit_range(batch):
  """uint8 images to float32 in [-1, 1]; float vectors as they are."""
  return batch.astype(jnp.float32) / 127.5 - 1 if batch.dtype == jnp.uint8 else batch


def to_uint8(x):
  """Images in [-1, 1] (clipped) to uint8 `(x + 1) * 127.5`, rounded to the nearest."""
  return jnp.round((jnp.clip(x, -1, 1) + 1) * 127.5).astype(jnp.uint8)


def to_stored(x: np.ndarray) -> np.ndarray:
  """Samples (N, ...) as they are stored: uint8 images, float32 vectors."""
  return np.asarray(to_uint8(x)) if x.ndim > 2 else x


def random_flip(keys, x):
  """Mirrors each image (B, H, W, C) with probability 1/2, by its own key of `keys` (B,)."""
  flip = jax.vmap(jax.random.bernoulli)(keys)
  return jnp.where(flip[:, None, None, None], x[:, :, ::-1], x)


def dequantize(keys, x, width: float):
  """Images as continuous data: uniform noise over the bin of each grey level, [-width / 2, width / 2).

  Args:
    keys: one key for each image, (B,).
    x: images in [-1, 1], (B, H, W, C).
    width: of a bin, 2 / (grey levels - 1).

  Returns:
    Like `x`.

  Source: Theis et al. 2016, A note on the evaluation of generative models, section 3.1.
  """
  centred = lambda key, shape: jax.random.uniform(key, shape, minval=-0.5, maxval=0.5)  # noqa: E731
  return x + width * random_keys.draw(centred, keys, x.shape[1:])


def to_continuous(keys, examples, width: float):
  """Stored examples as continuous data: images dequantised over bins of `width`, vectors (`width` 0) as they are."""
  x = to_unit_range(examples)
  return dequantize(keys, x, width) if width else x


def to_grey_levels(x, width: float):
  """The nearest grey level, on the grid of bins of `width`, to each number of images in [-1, 1] (clipped)."""
  return np.round((np.clip(x, -1, 1) + 1) / width) * width - 1
