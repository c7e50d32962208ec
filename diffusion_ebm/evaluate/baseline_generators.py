"""Simple generators, fitted to training examples, whose scores say what a model's scores mean."""

import contextlib
import warnings

import numpy as np
from sklearn import decomposition, exceptions, mixture, model_selection

# Changes of anything below change the scores: the version belongs to the name of the cached ones.
VERSION = 2
# More examples than these would not fit much better, only longer.
MAX_EXAMPLES = 10_000
COMPONENTS = 10
# Numbers of components that cross-validation chooses from, and its folds.
_SIZES, _FOLDS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 17, 20, 25, 30, 40, 50, 70, 100), 5
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


def gaussian_mixture(examples: np.ndarray, count: int, seed: int, num_components: int = COMPONENTS) -> np.ndarray:
  """Samples of a mixture of Gaussians in the space of the principal components (99 % of the variance).

  Args and Returns: as of `gaussian`; `num_components` is bounded by N.
  """
  x = _flat(examples, np.float64)
  pca = _principal_components(x)
  model = mixture.GaussianMixture(min(num_components, len(x)), random_state=0)
  with _unfinished_fits():
    model.fit(pca.transform(x))
  model.random_state = seed
  samples, _ = model.sample(count)
  np.random.default_rng(seed).shuffle(samples)  # they come sorted by component
  return _like(pca.inverse_transform(samples), examples)


def cross_validated_size(examples: np.ndarray) -> int:
  """The number of components with which `gaussian_mixture` gives held-out examples the highest likelihood.

  Larger and larger mixtures are tried, each on five folds, until two in a row are worse than the best.

  Args:
    examples: uint8 (N, ...) or float32 (N, D).
  """
  x = _flat(examples, np.float64)
  x = _principal_components(x).transform(x)
  folds = model_selection.KFold(min(_FOLDS, len(x)), shuffle=True, random_state=0)
  best, likelihood, worse = 1, -np.inf, 0
  for size in _SIZES:
    if max(size, 2) > len(x) - -(-len(x) // folds.n_splits):  # the examples of a training part
      break
    with _unfinished_fits():
      found = np.mean(model_selection.cross_val_score(mixture.GaussianMixture(size, random_state=0), x, cv=folds))
    if found > likelihood:
      best, likelihood, worse = size, found, 0
    elif (worse := worse + 1) == 2:
      break
  return best


def _principal_components(x):
  dimensions = min(_MAX_DIMENSIONS, *x.shape)
  pca = decomposition.PCA(dimensions, random_state=0).fit(x)
  enough = 1 + int(np.searchsorted(np.cumsum(pca.explained_variance_ratio_), _VARIANCE))
  return decomposition.PCA(min(enough, dimensions), random_state=0).fit(x)


@contextlib.contextmanager
def _unfinished_fits():
  """Accepts fits that ran out of iterations: the best so far is a baseline too."""
  with warnings.catch_warnings():
    warnings.simplefilter('ignore', exceptions.ConvergenceWarning)
    yield


def _flat(examples, dtype):
  return examples.reshape(len(examples), -1).astype(dtype)


def _like(x, examples):
  if examples.dtype == np.uint8:
    x = np.clip(np.round(x), 0, 255)
  return x.astype(examples.dtype).reshape(-1, *examples.shape[1:])
