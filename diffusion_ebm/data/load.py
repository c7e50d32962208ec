"""From the `data` section of a configuration to a source."""

from diffusion_ebm.data import digits, images, tfds_images, toy

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
  if split not in ('train', 'test'):
    raise ValueError(f"split must be 'train' or 'test', not {split!r}")
  return _LOADERS.get(data.name, tfds_images.load)(data, split)
