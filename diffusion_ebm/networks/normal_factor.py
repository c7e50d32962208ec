"""Normal densities, fitted to the data, as a factor of the model: `f = log sum_k w_k N(y; m_k, S_k) + network`.

Diffused normal data have the same axes at every level, so that the factor is exact in closed form for any noise. It
confines the model to where data are, makes it normalisable whatever a network of linear growth has learned, and leaves
to the network what is not normal. Its numbers are part of the network's parameters, but do not train.

Source: a base density that is tilted by the energy, as in Arbel et al. 2021, Generalized energy based models; a
mixture diffused in closed form, as in Song et al. 2021, Score-based generative modeling, equation 29.
"""

import logging
import warnings

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from diffusion_ebm.noise_levels import between, powers_between

_log = logging.getLogger(__name__)

# Components, and numbers in the axes of all of them.
MAX_COMPONENTS, MAX_SIZE = 1000, 4096**2
# Examples, and numbers in them, that are fitted; a step of the fit passes over all.
_MAX_EXAMPLES, _MAX_NUMBERS = 50_000, 2**26
_MAX_ITERATIONS = 200
# Of every axis: that a pixel never changes in the data proves little.
_LEAST_VARIANCE = 1e-6


class NormalFactor(nn.Module):
  """Log density of `y_t` for data from a mixture of normal densities, in nats, normalised.

  Until it gets the parameters of `fit`, the data are standard normal.

  Attributes:
    num_components: K.
    log_snr: of the levels, as in `NoiseLevels`, (T,).
    a_y: of the levels, (T,): `y_t = a_y x_t`.
  """

  num_components: int
  log_snr: tuple[float, ...]
  a_y: tuple[float, ...]

  @nn.compact
  def __call__(self, y, t):
    """Log density of `y` (B, ...) at levels `t` (B,), between two of them on straight lines: float32 (B,)."""
    y = y.reshape(len(y), -1).astype(jnp.float32)
    count, size = self.num_components, y.shape[1]
    log_weights = self._constant('log_weights', nn.initializers.constant(-np.log(count)), (count,))
    centres = self._constant('centres', nn.initializers.zeros_init(), (count, size))
    variances = self._constant('variances', nn.initializers.ones_init(), (count, size))
    axes = self._constant('axes', lambda key, shape: jnp.broadcast_to(jnp.eye(size), shape), (count, size, size))
    a_y, (signal, noise) = between(self.a_y, t, centres[None]), powers_between(self.log_snr, t, centres[None])
    # Some axes are a hundred times shorter than others: no reduced precision.
    along = jnp.einsum('bd,kde->bke', y, axes, precision=lax.Precision.HIGHEST) - a_y * jnp.sqrt(signal) * centres
    variance = a_y**2 * (signal * variances + noise)
    log_densities = -0.5 * jnp.sum(along**2 / variance + jnp.log(2 * jnp.pi * variance), axis=2)
    return jax.nn.logsumexp(log_weights + log_densities, axis=1)

  def _constant(self, name, init, shape):
    return lax.stop_gradient(self.param(name, init, shape))


def fit(source, to_data, num_components: int, seed: int, flip: bool = False, width: float = 0.0):
  """The parameters of `NormalFactor` for a data set, by expectation maximisation.

  Args:
    source: of `diffusion_ebm.data.load_source`; at most 50,000 of its examples count, fewer of large ones, chosen at
      random.
    to_data: from what the source reads to what the model sees, a NumPy array (B, ...).
    num_components: K, at most the number of examples.
    seed: of the choice, and of where the fit begins.
    flip: count each image together with its mirror image.
    width: of the uniform noise by which the data are dequantised; its variance is added to that of each axis.

  Returns:
    `log_weights` (K,), `axes` (K, D, D), whose columns are orthonormal, `centres` (K, D), the means along them, and
    `variances` (K, D): float32.
  """
  from sklearn import exceptions, mixture  # only here, so that the package is imported quickly

  size = int(np.prod(source.shape))
  count = min(len(source), _MAX_EXAMPLES, _MAX_NUMBERS // size)
  index = np.sort(np.random.default_rng(seed).permutation(len(source))[:count])
  x = np.asarray(to_data(source.read(index)))
  x = np.concatenate([x, x[:, :, ::-1]]) if flip else x
  mixed = mixture.GaussianMixture(
    num_components, reg_covar=_LEAST_VARIANCE + width**2 / 12, max_iter=_MAX_ITERATIONS, random_state=seed
  )
  with warnings.catch_warnings():
    warnings.simplefilter('ignore', exceptions.ConvergenceWarning)
    mixed.fit(x.reshape(len(x), -1).astype(np.float64))
  if not mixed.converged_:
    _log.warning(
      'model.normal_factor: the %d normal densities still change after %d steps; used as they are',
      num_components,
      _MAX_ITERATIONS,
    )
  variances, axes = np.linalg.eigh(mixed.covariances_)
  found = {
    'log_weights': np.log(mixed.weights_),
    'axes': axes,
    'variances': variances,
    'centres': np.einsum('kd,kde->ke', mixed.means_, axes),
  }
  return {name: value.astype(np.float32) for name, value in found.items()}
