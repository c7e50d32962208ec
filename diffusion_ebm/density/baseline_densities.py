"""Simple densities, fitted to the same dequantised images, beside which a model's is set."""

import itertools

import numpy as np
from sklearn import mixture, model_selection, neighbors

# Each training image counts with so many draws of the noise that dequantises it.
_DRAWS, _FOLDS = 4, 5
_MIXTURES = tuple({'n_components': n, 'reg_covar': r} for n, r in itertools.product((1, 5, 10, 20, 40), (1e-4, 1e-3)))
_KERNELS = tuple({'bandwidth': h} for h in np.round(np.geomspace(0.05, 0.4, 10), 3).tolist())


def gaussian_mixture(settings):
  """A mixture of Gaussians with full covariances, to be fitted."""
  return mixture.GaussianMixture(random_state=0, max_iter=200, **settings)


def kernel_density(settings):
  """Gaussian kernels, to be fitted."""
  return neighbors.KernelDensity(**settings)


BASELINES = {'gaussian_mixture': (gaussian_mixture, _MIXTURES), 'kernel_density': (kernel_density, _KERNELS)}


def log_densities(name: str, train, test, width: float, num_draws: int, seed: int):
  """Log densities of test images under a baseline whose settings are chosen by cross-validation on the training images.

  Args:
    name: of `BASELINES`.
    train: images in [-1, 1], (N, ...).
    test: likewise, (M, ...).
    width: of a grey level's bin.
    num_draws: of the noise, over which the log density of each test image is averaged.
    seed: of the noise.

  Returns:
    `(log_density, settings)`: (M,) in nats, and what was chosen.
  """
  make, grid = BASELINES[name]
  rng = np.random.default_rng(seed)

  def dequantized(images, draws):
    x = np.repeat(images.reshape(1, len(images), -1).astype(np.float64), draws, axis=0)
    return (x + width * rng.uniform(-0.5, 0.5, x.shape)).reshape(-1, x.shape[2])

  def score(settings):
    scores = []
    for fit, held_out in model_selection.KFold(_FOLDS, shuffle=True, random_state=0).split(train):
      fitted = make(settings).fit(dequantized(train[fit], _DRAWS))
      scores.append(fitted.score_samples(dequantized(train[held_out], 1)).mean())
    return np.mean(scores)

  best = max(grid, key=score)
  values = make(best).fit(dequantized(train, _DRAWS)).score_samples(dequantized(test, num_draws))
  return values.reshape(num_draws, len(test)).mean(0), best
