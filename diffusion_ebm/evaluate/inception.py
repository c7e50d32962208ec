"""The Inception-v3 network of the Frechet inception distance, with its resizing and input scaling.

The graph of 2015-12-05 differs from the published Inception-v3: average pools leave out the padding, and the last
block takes the largest value instead of the average. Layers are named as in the PyTorch port of its weights.

Source: Szegedy et al. 2016 (arXiv 1512.00567); Heusel et al. 2017 (arXiv 1706.08500).
"""

from flax import linen as nn
from jax import lax
import jax.numpy as jnp
import numpy as np

SIZE = 299
NUM_FEATURES, NUM_CLASSES = 2048, 1008


def _resize_matrix(size: int) -> np.ndarray:
  """The weights of `size` pixels in each of 299 new ones, (299, size)."""
  place = np.arange(SIZE, dtype=np.float32) * np.float32(size / SIZE)
  low = np.floor(place).astype(int)
  weights = np.zeros((SIZE, size), np.float32)
  rows = np.arange(SIZE)
  np.add.at(weights, (rows, low), 1 - (place - low))
  np.add.at(weights, (rows, np.minimum(low + 1, size - 1)), place - low)
  return weights


def resize(images):
  """TensorFlow 1's bilinear resizing: corners are not aligned, nor are the pixels' centres.

  Args:
    images: (B, H, W, C).

  Returns:
    float32 (B, 299, 299, C), in the range of the images.
  """
  images = images.astype(jnp.float32)
  rows, columns = _resize_matrix(images.shape[1]), _resize_matrix(images.shape[2])
  precision = lax.Precision.HIGHEST
  images = jnp.einsum('hi,bijc->bhjc', rows, images, precision=precision)
  return jnp.einsum('wj,bhjc->bhwc', columns, images, precision=precision)


def _mean_pool(x):
  return nn.avg_pool(x, (3, 3), (1, 1), 'SAME', count_include_pad=False)


def _max_pool(x, stride=2, padding='VALID'):
  return nn.max_pool(x, (3, 3), (stride, stride), padding)


class _Block(nn.Module):
  """Branches side by side, each a chain of convolutions; kernels are written (height, width)."""

  def _conv(self, x, name, width, kernel=(1, 1), stride=1, padding='SAME'):
    x = nn.Conv(width, kernel, stride, padding, precision=lax.Precision.HIGHEST, name=name)(x)
    return nn.relu(x)


class _Stem(_Block):
  """To 35 x 35 x 192, and the features on the way."""

  @nn.compact
  def __call__(self, x):
    x = self._conv(x, 'Conv2d_1a_3x3', 32, (3, 3), 2, 'VALID')
    x = self._conv(x, 'Conv2d_2a_3x3', 32, (3, 3), 1, 'VALID')
    x = self._conv(x, 'Conv2d_2b_3x3', 64, (3, 3))
    first = _max_pool(x)
    x = self._conv(first, 'Conv2d_3b_1x1', 80)
    x = self._conv(x, 'Conv2d_4a_3x3', 192, (3, 3), 1, 'VALID')
    return first, _max_pool(x)


class _A(_Block):
  pool_width: int

  @nn.compact
  def __call__(self, x):
    one = self._conv(x, 'branch1x1', 64)
    five = self._conv(self._conv(x, 'branch5x5_1', 48), 'branch5x5_2', 64, (5, 5))
    double = self._conv(self._conv(x, 'branch3x3dbl_1', 64), 'branch3x3dbl_2', 96, (3, 3))
    double = self._conv(double, 'branch3x3dbl_3', 96, (3, 3))
    pool = self._conv(_mean_pool(x), 'branch_pool', self.pool_width)
    return jnp.concatenate([one, five, double, pool], -1)


class _B(_Block):
  @nn.compact
  def __call__(self, x):
    three = self._conv(x, 'branch3x3', 384, (3, 3), 2, 'VALID')
    double = self._conv(self._conv(x, 'branch3x3dbl_1', 64), 'branch3x3dbl_2', 96, (3, 3))
    double = self._conv(double, 'branch3x3dbl_3', 96, (3, 3), 2, 'VALID')
    return jnp.concatenate([three, double, _max_pool(x)], -1)


class _C(_Block):
  width: int

  @nn.compact
  def __call__(self, x):
    one = self._conv(x, 'branch1x1', 192)
    seven = self._conv(self._conv(x, 'branch7x7_1', self.width), 'branch7x7_2', self.width, (1, 7))
    seven = self._conv(seven, 'branch7x7_3', 192, (7, 1))
    double = self._conv(self._conv(x, 'branch7x7dbl_1', self.width), 'branch7x7dbl_2', self.width, (7, 1))
    double = self._conv(double, 'branch7x7dbl_3', self.width, (1, 7))
    double = self._conv(double, 'branch7x7dbl_4', self.width, (7, 1))
    double = self._conv(double, 'branch7x7dbl_5', 192, (1, 7))
    return jnp.concatenate([one, seven, double, self._conv(_mean_pool(x), 'branch_pool', 192)], -1)


class _D(_Block):
  @nn.compact
  def __call__(self, x):
    three = self._conv(self._conv(x, 'branch3x3_1', 192), 'branch3x3_2', 320, (3, 3), 2, 'VALID')
    seven = self._conv(self._conv(x, 'branch7x7x3_1', 192), 'branch7x7x3_2', 192, (1, 7))
    seven = self._conv(seven, 'branch7x7x3_3', 192, (7, 1))
    seven = self._conv(seven, 'branch7x7x3_4', 192, (3, 3), 2, 'VALID')
    return jnp.concatenate([three, seven, _max_pool(x)], -1)


class _E(_Block):
  max_pool: bool

  @nn.compact
  def __call__(self, x):
    one = self._conv(x, 'branch1x1', 320)
    three = self._conv(x, 'branch3x3_1', 384)
    double = self._conv(self._conv(x, 'branch3x3dbl_1', 448), 'branch3x3dbl_2', 384, (3, 3))
    pool = _max_pool(x, 1, 'SAME') if self.max_pool else _mean_pool(x)
    return jnp.concatenate(
      [
        one,
        self._conv(three, 'branch3x3_2a', 384, (1, 3)),
        self._conv(three, 'branch3x3_2b', 384, (3, 1)),
        self._conv(double, 'branch3x3dbl_3a', 384, (1, 3)),
        self._conv(double, 'branch3x3dbl_3b', 384, (3, 1)),
        self._conv(pool, 'branch_pool', 192),
      ],
      -1,
    )


class Inception(nn.Module):
  """From images to features of four stages and logits; the weights are those of `inception_weights.load`."""

  @nn.compact
  def __call__(self, images):
    """Evaluates the network.

    Args:
      images: (B, H, W, 3) in [0, 255], of any size; uint8 or float.

    Returns:
      A dictionary, float32: `64`, `192`, `768` and `2048`, the spatially averaged features (B, width) of each stage,
      `logits` (B, 1008) and `logits_unbiased`, the same without the bias.
    """
    x = (resize(images) - 128) / 128
    first, second = _Stem(name='stem')(x)
    x = _A(32, name='Mixed_5b')(second)
    x = _A(64, name='Mixed_5c')(x)
    x = _B(name='Mixed_6a')(_A(64, name='Mixed_5d')(x))
    for name, width in (('6b', 128), ('6c', 160), ('6d', 160), ('6e', 192)):
      x = _C(width, name=f'Mixed_{name}')(x)
    third = x
    x = _D(name='Mixed_7a')(x)
    x = _E(False, name='Mixed_7b')(x)
    x = _E(True, name='Mixed_7c')(x)
    features = {
      name: jnp.mean(stage, (1, 2)) for name, stage in (('64', first), ('192', second), ('768', third), ('2048', x))
    }
    fc = nn.Dense(NUM_CLASSES, precision=lax.Precision.HIGHEST, name='fc')
    logits = fc(features['2048'])
    return features | {'logits': logits, 'logits_unbiased': logits - fc.variables['params']['bias']}
