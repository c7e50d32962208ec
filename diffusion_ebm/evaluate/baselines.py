"""Simple generators, fitted to training examples, whose scores say what a model's scores mean."""

import warnings

import numpy as np
from sklearn import decomposition, exceptions, mixture

# More examples than these would not fit much better, only longer.
MAX_EXAMPLES = 10_000
_COMPONENTS = 10
# Of the principal components: those that hold most of the variance, but no more than covariances can be fitted to.
_VARIANCE, _MAX_DIMENSIONS = 0.99, 100


def gaussian(examples: np.ndarray, count: int, seed: int) -> np.ndarray:
  """Samples of the Gaussian with the examples' mean and full covariance.

  A sample is the mean and a random combination of the centred examples, so that the covariance is never formed.

  Args:
    examples: uint8 (N, ...) or float32 (N, D).
    count: samples.
    seed: of the random numbers.

  Returns:
    (count, ...), like the examples.
  """
  x = _flat(examples, np.float32)
  mean = x.mean(0)
  weights = np.random.default_rng(seed).standard_normal((count, len(x)), np.float32)
  return _like(weights @ (x - mean) / np.float32(np.sqrt(len(x) - 1)) + mean, examples)


def gaussian_mixture(examples: np.ndarray, count: int, seed: int) -> np.ndarray:
  """Samples of a mixture of ten Gaussians in the space of the principal components (99 % of the variance).

  Args and Returns: as of `gaussian`.
  """
  x = _flat(examples, np.float64)
  dimensions = min(_MAX_DIMENSIONS, *x.shape)
  pca = decomposition.PCA(dimensions, random_state=0).fit(x)
  enough = 1 + int(np.searchsorted(np.cumsum(pca.explained_variance_ratio_), _VARIANCE))
  pca = decomposition.PCA(min(enough, dimensions), random_state=0).fit(x)
  model = mixture.GaussianMixture(min(_COMPONENTS, len(x)), random_state=0)
  with warnings.catch_warnings():
    warnings.simplefilter('ignore', exceptions.ConvergenceWarning)  # the best so far is a baseline too
    model.fit(pca.transform(x))
  model.random_state = seed
  samples, _ = model.sample(count)
  np.random.default_rng(seed).shuffle(samples)  # they come sorted by component
  return _like(pca.inverse_transform(samples), examples)


def _flat(examples, dtype):
  return examples.reshape(len(examples), -1).astype(dtype)


def _like(x, examples):
  if examples.dtype == np.uint8:
    x = np.clip(np.round(x), 0, 255)
  return x.astype(examples.dtype).reshape(-1, *examples.shape[1:])
