"""The normal density with the mean and covariance of the data as a factor of the model: f = log N(y) + network.

Diffused data have the same axes at every level, so that the factor is exact in closed form for any noise. It confines
the model to where data are, makes it normalisable whatever a network of linear growth has learned, and leaves to the
network what is not normal. Its numbers are part of the network's parameters, but do not train.

Source: a reference measure that is tilted by the energy, as in Arbel et al. 2021, Generalized energy based models.
"""

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from diffusion_ebm.noise_levels import between

MAX_SIZE = 4096  # numbers in an example: the axes are a square matrix of it
_MAX_EXAMPLES = 50_000
_AT_ONCE = 1000


class NormalFactor(nn.Module):
  """Log density of `y_t` for normal data, in nats, normalised; until it gets `moments` the data are standard normal.

  Attributes:
    log_snr: of the levels, as in `NoiseLevels`, (T,).
    a_y: of the levels, (T,): `y_t = a_y x_t`.
  """
  log_snr: tuple[float, ...]
  a_y: tuple[float, ...]

  @nn.compact
  def __call__(self, y, t):
    """Log density of `y` (B, ...) at levels `t` (B,), between two of them on straight lines: float32 (B,)."""
    y = y.reshape(len(y), -1).astype(jnp.float32)
    size = y.shape[1]
    mean = self._constant('mean', nn.initializers.zeros_init(), (size,))
    variances = self._constant('variances', nn.initializers.ones_init(), (size,))
    axes = self._constant('axes', lambda key, shape: jnp.eye(*shape), (size, size))
    a_y, log_snr = between(self.a_y, t, y), between(self.log_snr, t, y)
    signal, noise = jax.nn.sigmoid(2 * log_snr), jax.nn.sigmoid(-2 * log_snr)
    variance = a_y**2 * (signal * variances + noise)
    # Some axes are a hundred times shorter than others: no reduced precision.
    along = jnp.dot(y - a_y * jnp.sqrt(signal) * mean, axes, precision=lax.Precision.HIGHEST)
    return -0.5 * jnp.sum(along**2 / variance + jnp.log(2 * jnp.pi * variance), axis=1)

  def _constant(self, name, init, shape):
    return lax.stop_gradient(self.param(name, init, shape))


def moments(source, to_data, seed: int, flip: bool = False, width: float = 0.0):
  """The parameters of `NormalFactor` for a data set.

  Args:
    source: of `diffusion_ebm.data.load_source`; at most 50,000 of its examples count, chosen at random.
    to_data: from what the source reads to what the model sees, a NumPy array (B, ...).
    seed: of the choice.
    flip: count each image together with its mirror image.
    width: of the uniform noise by which the data are dequantised.

  Returns:
    `mean` (D,), `variances` (D,) and `axes` (D, D), whose columns are orthonormal: float32.
  """
  count = min(len(source), _MAX_EXAMPLES)
  index = np.sort(np.random.default_rng(seed).permutation(len(source))[:count])
  total, products, seen = 0.0, 0.0, 0
  for first in range(0, count, _AT_ONCE):
    x = np.asarray(to_data(source.read(index[first:first + _AT_ONCE])))
    x = np.concatenate([x, x[:, :, ::-1]]) if flip else x
    x = x.reshape(len(x), -1).astype(np.float64)
    total, products, seen = total + x.sum(0), products + x.T @ x, seen + len(x)
  mean = total / seen
  variances, axes = np.linalg.eigh(products / seen - np.outer(mean, mean))
  variances = np.maximum(variances, 0) + width**2 / 12
  return {name: value.astype(np.float32) for name, value in (('mean', mean), ('variances', variances), ('axes', axes))}
