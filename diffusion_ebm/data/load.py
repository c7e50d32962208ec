"""From the `data` section of a configuration to a source."""

import numpy as np

from diffusion_ebm.data import digits, images, tfds_images, toy
from diffusion_ebm.data.source import ArraySource

# Every other name is taken for one of TensorFlow Datasets.
_LOADERS = {'digits': digits.load, 'toy2d': toy.load, 'images': images.load}


def load_source(data, split):
  """Loads one split of the data set that a configuration names.

  Args:
    data: the `data` section of a configuration, or any object with its fields as attributes.
    split: 'train' or 'test'.

  Returns:
    A `diffusion_ebm.data.source.Source`.

  Raises:
    UserError: the data are missing, damaged, or do not fit the configuration.
  """
  _check_split(split)
  return _LOADERS.get(data.name, tfds_images.load)(data, split)


def load_some(data, split, choose):
  """Loads some examples of a split; of images, no others are decoded.

  Args:
    data: as of `load_source`.
    split: likewise.
    choose: (number of examples, N) -> int (B,), which of them, each in 0..N-1.

  Returns:
    A source of these B examples.

  Raises:
    UserError: as of `load_source`.
  """
  _check_split(split)
  if data.name == 'images':
    return images.load_some(data, split, choose)
  if data.name not in _LOADERS:
    return tfds_images.load(data, split, choose)
  source = _LOADERS[data.name](data, split)
  chosen = choose(len(source))
  labels = None if source.labels is None else source.labels[chosen]
  return ArraySource(source.read(chosen), labels, source.classes)


def first(limit: int):
  """For `load_some`: the first examples, at most so many."""
  return lambda count: np.arange(min(limit, count))


def random_choice(limit: int, seed: int):
  """For `load_some`: at most so many examples, drawn without replacement; the first ones may all be of one class."""
  return lambda count: np.sort(np.random.default_rng(seed).permutation(count)[:limit])


def _check_split(split):
  if split not in ('train', 'test'):
    raise ValueError(f"split must be 'train' or 'test', not {split!r}")
