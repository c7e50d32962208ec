"""Image data sets of TensorFlow Datasets (TFDS)."""

import numpy as np

from diffusion_ebm.data import encoded
from diffusion_ebm.data.decode import check_channels, fit
from diffusion_ebm.data.source import ArraySource
from diffusion_ebm.data.tfds_data_dir import check_files, open_builder
from diffusion_ebm.data.tfds_prepare import prepare
from diffusion_ebm.run import paths
from diffusion_ebm.run.errors import UserError


def load(data, split, choose=None):
  """Loads one split of a data set, which is downloaded and prepared when it is first used.

  Images are cut to the middle square and resized; 28x28 ones become 32x32 by a frame of zeros.
  They are decoded into memory where all fit, otherwise whenever they are read.

  Args:
    data: the `data` section of a configuration; `data.path` is the TFDS data directory, or ''.
    split: 'train' or 'test'; `data.train_split` or `data.test_split` is its name in TFDS.
    choose: (number of examples) -> int (B,), which of them to load; None for all.

  Returns:
    A source of shape (image_size, image_size, num_channels).

  Raises:
    UserError: there is no such data set or split, it cannot be prepared, or holds no images.
  """
  check_channels(data)
  builder = open_builder(data.name, _data_dir(data.path))
  feature = _image_feature(builder, data.name)
  prepare(builder)
  examples = _examples(builder, data, split)
  padded = data.image_size == 32 and tuple(feature.shape[:2]) == (28, 28)
  label = _class_label(builder)
  classes = tuple(label.names) if label and label.num_classes else None
  labels = np.zeros(len(examples), np.int64)

  def read(number):
    try:
      example = examples[number]
    except Exception as error:
      raise UserError(
        f'image {number} of {data.name} cannot be read ({error}): remove {builder.data_dir} to have it prepared anew'
      ) from error
    if label:
      labels[number] = example['label']
    return _to_size(example['image'], padded, data)

  def find_labels():
    return np.array([int(example['label']) for example in examples]) if label else None

  shape = (data.image_size, data.image_size, data.num_channels)
  numbers = np.arange(len(examples)) if choose is None else choose(len(examples))
  if choose is None and not encoded.fits_memory(len(examples), shape, data.max_memory_gb):
    return encoded.on_demand(read, numbers, shape, find_labels, data.num_workers, classes=classes)
  read_row = lambda row: read(numbers[row])  # noqa: E731
  images, failures = encoded.decode_all(read_row, len(numbers), shape, data.num_workers, keep=True)
  if failures:
    raise next(iter(failures.values()))
  return ArraySource(images, labels[numbers] if label else None, classes)


def _data_dir(path):
  """TFDS reads from other storage than the local file system, too."""
  if '://' in path and not path.startswith('file://'):
    return path
  return paths.local(path, '--config.data.path')


def _image_feature(builder, name):
  """The TFDS feature called 'image', of 8-bit images."""
  import tensorflow_datasets as tfds

  features = builder.info.features
  feature = dict(features.items()).get('image')
  if not isinstance(feature, tfds.features.Image) or feature.np_dtype != np.uint8:
    raise UserError(
      f"{name} has no 8-bit images in a feature called 'image' (its features: "
      f'{", ".join(features)}): set --config.data.name to an image data set'
    )
  return feature


def _class_label(builder):
  """The TFDS feature of the classes, or None."""
  import tensorflow_datasets as tfds

  label = dict(builder.info.features.items()).get('label')
  return label if isinstance(label, tfds.features.ClassLabel) else None


def _examples(builder, data, split):
  name = data.train_split if split == 'train' else data.test_split
  try:
    examples = builder.as_data_source(name)
    len(examples)
  except (ValueError, KeyError) as error:
    filled = ', '.join(each for each, info in builder.info.splits.items() if info.num_examples > 0)
    if not filled:
      raise UserError(f'{builder.data_dir} holds no examples: remove it to have it prepared anew') from error
    raise UserError(
      f'{data.name} has no split {name!r} with examples: set --config.data.{split}_split to one of {filled}'
    ) from error
  except NotImplementedError as error:  # what TFDS raises for files other than ArrayRecord
    raise UserError(
      f'{builder.data_dir} holds {data.name} in a format that cannot be read in random order: '
      'remove it, or set --config.data.path to another directory, to have it prepared anew'
    ) from error
  check_files(builder, name)
  return examples


def _to_size(array, padded, data):
  from PIL import Image

  if padded:
    array = np.pad(array, ((2, 2), (2, 2), (0, 0)))
  image = Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)
  return fit(image, data.image_size, data.num_channels)[0]
