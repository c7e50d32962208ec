"""The 8x8 scans of handwritten digits that come with scikit-learn."""

import numpy as np

from diffusion_ebm.data.source import ArraySource
from diffusion_ebm.run.errors import UserError


def load(data, split):
  """Loads the digits; nothing is downloaded.

  Args:
    data: the `data` section of a configuration.
    split: 'train' (1,437 scans) or 'test' (360), a fixed split with equal shares of each class.

  Returns:
    A source of shape (8, 8, 1): the grey levels 0..16 stretched to 0..255.

  Raises:
    UserError: the configuration asks for another shape.
  """
  if (data.image_size, data.num_channels) != (8, 1):
    raise UserError(
      f'digits are 8x8 with 1 channel, not {data.image_size}x{data.image_size} with '
      f'{data.num_channels}: set --config.data.image_size=8 --config.data.num_channels=1'
    )
  from sklearn import datasets, model_selection

  scans, labels = datasets.load_digits(return_X_y=True)
  images = np.round(scans * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
  train_images, test_images, train_labels, test_labels = model_selection.train_test_split(
    images, labels, test_size=0.2, random_state=0, stratify=labels
  )
  classes = tuple(map(str, range(10)))
  if split == 'train':
    return ArraySource(train_images, train_labels, classes)
  return ArraySource(test_images, test_labels, classes)
