"""Scores of samples against data, from their features. Everything is computed in float64."""

import math

import numpy as np
from scipy import linalg, special
from sklearn import neighbors
from sklearn.metrics import pairwise

from diffusion_ebm.evaluate import MIN_SAMPLES

# Kernel matrices are summed over parts of at most this many examples.
_KERNEL_BLOCK = 1000
_MIN_BLOCKS = MIN_SAMPLES // 2
# Neighbours are searched among this many of each: a search among 50,000 takes minutes.
MAX_NEIGHBOURS = 10_000
# Squared distances are exact to so much of the largest squared norm; pairs computed again at once.
_ROUNDING, _PAIRS = 1e-11, 4096
# A matrix with an eigenvalue below so much of the largest is no covariance; less is due to rounding, in half precision.
_INDEFINITE = -1e-3
# Of precision and recall, and of density and coverage: as published.
_K_PRECISION, _K_DENSITY = 3, 5


def score(features, logits, mean, covariance, data_features) -> dict[str, float | None]:
  """All scores of samples.

  Args:
    features: of the samples, (N, D).
    logits: of the samples, (N, C), or None where the features come without classes.
    mean: of the data's features, (D,).
    covariance: of the data's features, (D, D).
    data_features: (M, D), of the data or of a part of them.

  Returns:
    `fid`, `inception_score`, `inception_score_std`, `kid`, `kid_standard_error`, `precision`, `recall`, `density`
    and `coverage`; None where there are no logits, or fewer than `MIN_SAMPLES` examples for what compares examples.
  """
  quality, spread = (None, None) if logits is None else inception_score(logits)
  kid, kid_error, near = None, None, dict.fromkeys(('precision', 'recall', 'density', 'coverage'))
  if min(len(features), len(data_features)) >= MIN_SAMPLES:
    kid, kid_error = kernel_distance(features, data_features)
    near = neighbour_scores(features, data_features)
  moments = Moments(features.shape[1])
  moments.add(features)
  return {
    'fid': frechet_distance(moments.mean, moments.covariance, mean, covariance),
    'inception_score': quality,
    'inception_score_std': spread,
    'kid': kid,
    'kid_standard_error': kid_error,
    **near,
  }


class Moments:
  """Mean and covariance of rows that come a batch at a time.

  Source: Chan, Golub, LeVeque 1983, on updating sums of squares.
  """

  _ROWS = 4096  # bounds the copy in float64

  def __init__(self, dim: int):
    self.count, self.mean, self._squares = 0, np.zeros(dim), np.zeros((dim, dim))

  def add(self, rows):
    """Takes more rows, (B, D)."""
    for first in range(0, len(rows), self._ROWS):
      part = np.asarray(rows[first : first + self._ROWS], np.float64)
      mean = part.mean(0)
      part = part - mean
      delta, total = mean - self.mean, self.count + len(part)
      self._squares += part.T @ part
      self._squares += np.outer(delta, delta * (self.count * len(part) / total))
      self.mean = self.mean + delta * (len(part) / total)
      self.count = total

  @property
  def covariance(self) -> np.ndarray:
    """The unbiased covariance, (D, D)."""
    return self._squares / (self.count - 1)


def check_eigenvalues(values):
  """Raises a `ValueError` for eigenvalues, ascending, that no covariance has, not even one that was rounded."""
  if values[0] < _INDEFINITE * max(values[-1], 0):
    raise ValueError(f'eigenvalues from {values[0]:.3g} to {values[-1]:.3g}: it is no covariance')


def _root(covariance):
  """R with R R^T = covariance, without the directions in which there is nothing but rounding: (D, rank).

  Rounding to a coarser type, such as float32, moves eigenvalues of zero as far up as down: the lowest shows how far.
  """
  values, vectors = linalg.eigh(covariance)
  check_eigenvalues(values)
  kept = values > max(len(values) * np.finfo(np.float64).eps * values[-1], -values[0])
  return vectors[:, kept] * np.sqrt(values[kept])


def frechet_distance(mean_1, covariance_1, mean_2, covariance_2) -> float:
  """The squared Frechet distance of two Gaussians, `|m_1 - m_2|^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2))`.

  The trace of the root is the sum of the singular values of `R_1^T R_2`, where `S = R R^T`: unlike the root of the
  matrix, it is exact to rounding for singular and ill-conditioned covariances too.

  Args:
    mean_1: (D,).
    covariance_1: (D, D).
    mean_2: (D,).
    covariance_2: (D, D).

  Returns:
    The distance, at least 0.

  Raises:
    ValueError: a covariance has negative eigenvalues, beyond what rounding leads to, or something is not finite.

  Source: Dowson and Landau 1982; Heusel et al. 2017, equation 6.
  """
  covariance_1, covariance_2 = (np.asarray(covariance, np.float64) for covariance in (covariance_1, covariance_2))
  roots = [_root(covariance) for covariance in (covariance_1, covariance_2)]
  overlap = linalg.svdvals(roots[0].T @ roots[1]).sum() if all(root.shape[1] for root in roots) else 0.0
  apart = np.sum((np.asarray(mean_1, np.float64) - mean_2) ** 2)
  return max(float(apart + np.trace(covariance_1) + np.trace(covariance_2) - 2 * overlap), 0.0)


def inception_score(logits, splits: int = 10) -> tuple[float, float]:
  """Mean and standard deviation over the splits of `exp(E KL(p(class | x) || p(class)))`.

  Args:
    logits: (N, C), in the order of the samples.
    splits: parts, each with a p(class) of its own.

  Source: Salimans et al. 2016 (arXiv 1606.03498).
  """
  values = []
  for part in np.array_split(logits, splits):
    log_p = special.log_softmax(np.asarray(part, np.float64), axis=1)
    log_marginal = special.logsumexp(log_p, axis=0) - np.log(len(part))
    values.append(np.exp(np.mean(np.sum(np.exp(log_p) * (log_p - log_marginal), axis=1))))
  return float(np.mean(values)), float(np.std(values))


def kernel_distance(x, y) -> tuple[float, float]:
  """The kernel Inception distance: the unbiased squared MMD of the kernel `(x.y / D + 1)^3`.

  Both sets are cut into as many parts, at least ten, of at most a thousand examples of the smaller set. The parts'
  estimates are independent, so that the standard error of their mean is honest.

  Args:
    x: (N, D).
    y: (M, D).

  Returns:
    `(kid, standard_error)`; negative values are possible.

  Source: Binkowski et al. 2018 (arXiv 1801.01401); Zaremba et al. 2013 (arXiv 1307.1954) on averaging over blocks.
  """
  blocks = max(_MIN_BLOCKS, math.ceil(min(len(x), len(y)) / _KERNEL_BLOCK))
  parts = zip(*(np.array_split(rows, blocks) for rows in (x, y)), strict=True)
  values = [_unbiased_mmd(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in parts]
  return float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(blocks))


def _unbiased_mmd(x, y):
  def kernel(a, b):
    return (a @ b.T / a.shape[1] + 1) ** 3

  def without_diagonal(a):
    k = kernel(a, a)
    return (k.sum() - np.trace(k)) / (len(a) * (len(a) - 1))

  return without_diagonal(x) + without_diagonal(y) - 2 * kernel(x, y).mean()


def neighbour_scores(features, data_features) -> dict[str, float]:
  """Precision, recall, density and coverage, from at most `MAX_NEIGHBOURS` (the first) of each set.

  Around each example lies the ball that reaches to its k-th nearest neighbour in its own set. Precision: the part of
  the samples in any ball of the data; recall: the part of the data in any ball of the samples (k = 3). Density: how
  many of the data's balls a sample lies in, over k; coverage: the part of the data's balls that hold a sample (k = 5).

  Args:
    features: of the samples, (N, D).
    data_features: (M, D).

  Source: Kynkaanniemi et al. 2019 (arXiv 1904.06991); Naeem et al. 2020 (arXiv 2002.09797).
  """
  samples, data = (np.asarray(rows[:MAX_NEIGHBOURS], np.float64) for rows in (features, data_features))
  of_samples, of_data = _radii(samples), _radii(data)
  in_data = np.zeros(len(samples), bool)
  in_samples, covered = np.zeros((2, len(data)), bool)
  balls = np.zeros(len(samples))
  for rows, inside in _distances(samples, data):
    in_data[rows] = np.any(inside(of_data[:, _K_PRECISION - 1]), axis=1)
    in_samples |= np.any(inside(of_samples[rows, _K_PRECISION - 1, None]), axis=0)
    dense = inside(of_data[:, _K_DENSITY - 1])
    balls[rows] = np.sum(dense, axis=1)
    covered |= np.any(dense, axis=0)
  return {
    'precision': float(in_data.mean()),
    'recall': float(in_samples.mean()),
    'density': float(balls.mean() / _K_DENSITY),
    'coverage': float(covered.mean()),
  }


def precision(features, data_features, k: int) -> float:
  """The part of the samples that lie in any ball of the data, as in `neighbour_scores`, for k of 1 to 5.

  Args:
    features: of the samples, (N, D).
    data_features: (M, D).
    k: a ball reaches to the k-th neighbour.

  Source: Kynkaanniemi et al. 2019 (arXiv 1904.06991), equation 2.
  """
  samples, data = np.asarray(features, np.float64), np.asarray(data_features, np.float64)
  radii = _radii(data)[:, k - 1]
  return float(np.mean(np.concatenate([np.any(inside(radii), axis=1) for _, inside in _distances(samples, data)])))


def _distances(samples, data):
  """Yields, a part of the samples after another, `(rows, inside)`.

  `inside(radii)` says which distances, (part, M), are at most `radii`, which broadcast against them. Distances come
  from products of matrices, whose rounding would decide where one equals a radius, as with duplicates or whole
  numbers: those near it are computed again as they are defined.
  """
  centre = data.mean(0)  # distances from products lose digits far from the origin
  near = _ROUNDING * max(np.sum((rows - centre) ** 2, axis=1).max() for rows in (samples, data))
  first = 0
  for distance in pairwise.pairwise_distances_chunked(samples - centre, data - centre, working_memory=128):
    rows = slice(first, first + len(distance))
    first += len(distance)

    def inside(radii, distance=distance, squares=distance**2, part=samples[rows]):
      found = distance <= radii
      i, j = np.nonzero(np.abs(squares - radii**2) <= near)
      radii = np.broadcast_to(radii, distance.shape)
      for start in range(0, len(i), _PAIRS):
        pairs = i[start : start + _PAIRS], j[start : start + _PAIRS]
        found[pairs] = np.linalg.norm(part[pairs[0]] - data[pairs[1]], axis=1) <= radii[pairs]
      return found

    yield rows, inside


def _radii(rows):
  """Distances to the nearest five others, (N, 5), as they are defined."""
  search = neighbors.NearestNeighbors(n_neighbors=_K_DENSITY, algorithm='brute').fit(rows - rows.mean(0))
  near = search.kneighbors(return_distance=False)
  distances = [np.linalg.norm(rows[each] - row, axis=1) for row, each in zip(rows, near, strict=True)]
  return np.sort(distances, axis=1)
