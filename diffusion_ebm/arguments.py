"""What users pass to the API, checked: one line says what is wrong, and what to do.

Inside `jax.jit`, `jax.grad` and the like types and shapes are checked, but not values, which are not known there.
"""

import contextlib
import operator
import os

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_ebm import preprocessing
from diffusion_ebm.run.errors import UserError

# How large the numbers of float images may be: dequantised data of two grey levels reach 2, and data with noise never
# exceed 1 + 7 standard deviations. Images from 0 to 255 do.
DATA_BOUND, NOISY_BOUND = 2.0, 10.0
# Numbers are 32 bits wide on the devices.
_MAX_INT = 2**31 - 1


def integer(name: str, value, low: int) -> int:
  """A whole number of at least `low`; raises a `UserError` for anything else."""
  try:
    number = operator.index(None if isinstance(value, bool) else value)
  except TypeError:
    hint = ': inside jax.jit it must be a static argument' if _is_traced(value) else ''
    raise UserError(f'{name} is {_describe(value)}, not an integer{hint}') from None
  if number < low:
    raise UserError(f'{name} is {number}, but must be at least {low}')
  if number > _MAX_INT:
    raise UserError(f'{name} is {number}, but must be at most {_MAX_INT}')
  return number


def random_key(key) -> jax.Array:
  """One random key, of `jax.random.key` or `jax.random.PRNGKey`; raises a `UserError` for anything else."""
  given = key
  if isinstance(key, np.ndarray | jax.Array) and key.dtype == np.uint32 and key.ndim:
    with contextlib.suppress(TypeError, ValueError):  # of another length
      key = jax.random.wrap_key_data(jnp.asarray(key))
  if not (isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)):
    seed = given if type(given) is int else 'SEED'
    raise UserError(f'key is {_describe(given)}, not a random key: give jax.random.key({seed})')
  if key.shape:
    raise UserError(f'key holds keys of shape {key.shape}, not one: give one of them, such as key[0]')
  return key


def class_number(label, classes: tuple[str, ...]) -> int:
  """The number of a class, by its name or number; raises a `UserError` where there is none."""
  if not classes:
    raise UserError('the model knows no classes: train one with --config.model.num_classes')
  if isinstance(label, str) and label in classes:
    return classes.index(label)
  number = integer('label', int(label) if isinstance(label, str) and label.isdecimal() else label, 0)
  if number >= len(classes):
    raise UserError(f'label is {number}, but there are {len(classes)} classes: {", ".join(classes)}')
  return number


def level(value, batch: int, count: int):
  """The level of each example.

  Args:
    value: an integer in 0..count - 1, or one for each example.
    batch: how many examples, B.
    count: how many levels.

  Returns:
    int (B,).

  Raises:
    UserError: it is something else.
  """
  try:
    levels = value if isinstance(value, jax.Array) else np.asarray(value)
  except (TypeError, ValueError):  # it may hold traced numbers
    levels = _array('level', value)
  if not jnp.issubdtype(levels.dtype, jnp.integer) or levels.shape not in ((), (batch,)):
    raise UserError(f'level is {_describe(value)}, neither an integer nor one for each of {batch} examples')
  if _is_traced(levels):
    return jnp.broadcast_to(levels, (batch,))
  levels = np.asarray(levels)
  wrong = levels[(levels < 0) | (levels >= count)]
  if wrong.size:
    raise UserError(f'level {wrong[0]} is out of range: the levels are 0 to {count - 1}')
  return np.broadcast_to(levels.astype(np.int32), (batch,))


def examples(name: str, x, shape: tuple[int, ...], bound: float):
  """A batch of images, with numbers in [-bound, bound], or of vectors.

  Args:
    name: of the argument.
    x: (B, *shape), images of type uint8 or float.
    shape: of one example.
    bound: of float images.

  Returns:
    float32 (B, *shape), images in [-1, 1] where they were uint8.

  Raises:
    UserError: type, shape or a value is wrong.
  """
  x = _numbers(name, x, shape)
  if x.ndim != len(shape) + 1 or x.shape[1:] != shape or not len(x):
    hint = f': {name}[None] is a batch of one' if x.shape == shape else _shape_hint(shape)
    raise UserError(f'{name} has shape {x.shape}, not (B, {", ".join(map(str, shape))}){hint}')
  _check_values(name, x, shape, bound)
  return _to_float(x)


def image_and_mask(image, mask, shape: tuple[int, ...]):
  """An image (or a vector) and what is hidden of it.

  Args:
    image: of type uint8 or float, in [-1, 1].
    mask: bool, of the shape of the image or (H, W).
    shape: of the image.

  Returns:
    float32 and bool, both of the shape; what is hidden of the image is of no consequence, and finite.

  Raises:
    UserError: a type, a shape or a value is wrong.
  """
  image, mask = _numbers('image', image, shape), _array('mask', mask)
  if image.shape != shape:
    hint = ': give one of them, such as image[0]' if image.shape[1:] == shape else _shape_hint(shape)
    raise UserError(f'image has shape {image.shape}, not {shape}{hint}')
  if mask.dtype != bool:
    raise UserError(f'mask is {mask.dtype}, not bool: True where pixels are hidden')
  if mask.shape not in (shape, shape[:2]):
    raise UserError(f'mask has shape {mask.shape}, not {shape[:2]} as the image')
  mask = jnp.broadcast_to(mask if mask.ndim == image.ndim else mask[..., None], shape)
  known = jnp.where(mask, jnp.zeros_like(image), image)
  _check_values('image', known, shape, DATA_BOUND)
  return _to_float(known), mask


def _shape_hint(shape):
  return ': model.load_image brings a picture into the shape of the model' if len(shape) > 1 else ''


def _numbers(name, value, shape):
  """An array of a type that examples of the shape may have."""
  x = _array(name, value)
  dtype, is_image = getattr(value, 'dtype', x.dtype), len(shape) > 1
  if not jnp.issubdtype(x.dtype, jnp.floating):
    if is_image and x.dtype != jnp.uint8:
      raise UserError(f'{name} is {dtype}: give images as uint8, or as floats in [-1, 1]')
    if not jnp.issubdtype(x.dtype, jnp.integer):
      raise UserError(f'{name} is {dtype}: give vectors of floats')
  # Whole numbers are as good for vectors, where uint8 means nothing else.
  return x if is_image else x.astype(jnp.float32)


def _array(name, value):
  for part in value if isinstance(value, list | tuple) else [value]:
    if isinstance(part, str | bytes | os.PathLike) or _is_picture(part):
      raise UserError(f'{name} is {_describe(part)}, not an array: model.load_image makes one of a picture')
  try:
    return jnp.asarray(value)
  except (TypeError, ValueError, OverflowError):
    raise UserError(f'{name} is {_describe(value)}, not an array of numbers') from None


def _is_picture(value):
  """Whether it is an image of Pillow, which is not imported for that."""
  return any(each.__module__.startswith('PIL.') for each in type(value).__mro__)


def _check_values(name, x, shape, bound):
  """Raises a `UserError` for NaN, infinity, and images beyond the bound."""
  bound = bound if len(shape) > 1 else float(jnp.finfo(jnp.float32).max)
  if x.dtype == jnp.uint8 or _is_traced(x) or _within(x, bound):
    return
  values = np.asarray(x, np.float32)
  if wrong := np.sum(~np.isfinite(values)):
    raise UserError(f'{name} holds NaN or infinity ({wrong} of {values.size} numbers): look at how it was computed')
  raise UserError(
    f'{name} has values from {values.min():.4g} to {values.max():.4g}, but float images are in [-1, 1], and with noise '
    f'in [-{NOISY_BOUND:g}, {NOISY_BOUND:g}]: give uint8, or scale from 0 .. 255 with x / 127.5 - 1'
  )


def _to_float(x):
  return preprocessing.to_unit_range(x) if x.dtype == jnp.uint8 else x.astype(jnp.float32)


def _within(x, bound):
  """Whether all numbers are in [-bound, bound], and none is NaN; of a large array on a device one bit comes back."""
  if jax.default_backend() == 'cpu':  # NumPy reads the same memory, and has nothing to compile
    return np.all(np.abs(np.asarray(x)) <= bound)
  with jax.ensure_compile_time_eval():  # of an array that a jitted function finds outside of itself
    return bool(_all_within(x, bound))


@jax.jit
def _all_within(x, bound):
  return jnp.all(jnp.abs(x) <= bound)  # no maximum, which may lose a NaN


def _is_traced(value):
  return isinstance(value, jax.core.Tracer)


def _describe(value):
  """A few words that name a wrong value."""
  if _is_traced(value):
    return f'traced {value.dtype}{list(value.shape)}'
  if _is_picture(value):
    return 'a PIL image'
  if getattr(value, 'shape', ()):
    return f'an array of type {value.dtype} and shape {value.shape}'
  text = ' '.join(str(value if hasattr(value, 'dtype') else repr(value)).split())
  return text if len(text) <= 60 else f'{text[:60]}...'
