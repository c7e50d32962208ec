"""Out-of-distribution detection from energies: scores of examples, and how well they tell two sets apart."""

from typing import NamedTuple
import warnings

import numpy as np
from sklearn import covariance, exceptions, mixture, model_selection

LOW, TYPICALITY, GRADIENT = 'low density', 'typicality', 'gradient norm'
MEASURES = ('auroc', 'aupr', 'fpr95')
# Of the mixture: numbers of components that cross-validation chooses from, and its folds.
_SIZES, _FOLDS = (1, 2, 3, 5, 8), 5
_NUM_RESAMPLES, _PERCENTILES = 1000, (2.5, 97.5)


class Statistics(NamedTuple):
  """What is known of N examples at L levels, each (N, L).

  Attributes:
    log_density: of the diffused examples, in nats.
    gradient_norm: the norm of its gradient, of the same diffused examples.
    score_norm: the norm of the gradient of the examples themselves, without noise.
  """

  log_density: np.ndarray
  gradient_norm: np.ndarray
  score_norm: np.ndarray


class Detector:
  """Scores of examples, higher for those that look less like the training data.

  Of each level: `low density` is minus the standardised log density; `typicality` its absolute value, as images may
  also be more likely than data ever are (Nalisnick et al. 2019, Detecting out-of-distribution inputs to deep generative
  models using typicality); `gradient norm` that of the log density, standardised (Grathwohl et al. 2020, Your
  classifier is secretly an energy based model, section 5.3).

  Of all levels: `sum`, of the `low density` ones; `Mahalanobis`, the squared distance of the vector of log densities
  from those of training data; `mixture`, minus its log density under a mixture of Gaussians. `MSMA` stands before the
  latter two for the vector of score norms (Mahmood, Oliva, Styner 2021, Multiscale score matching for
  out-of-distribution detection), `both` for the two vectors side by side.
  """

  def __init__(self, train: Statistics, names):
    """Fits means, covariances and mixtures.

    Args:
      train: of training data, N > 2 L.
      names: of the L levels.
    """
    self._names = list(names)
    train = [np.asarray(part, np.float64) for part in train]
    self._mean, self._std = ([part.mean(0) for part in train], [part.std(0) + 1e-12 for part in train])
    vectors = _vectors(self._standardised(train))
    self._gaussians = {name: covariance.EmpiricalCovariance().fit(vector) for name, vector in vectors.items()}
    self._mixtures = {name: _fit_mixture(vector) for name, vector in vectors.items()}

  def _standardised(self, statistics):
    return Statistics(*((part - m) / s for part, m, s in zip(statistics, self._mean, self._std, strict=True)))

  def scores(self, statistics: Statistics) -> dict[tuple[str, str], np.ndarray]:
    """The scores of examples.

    Returns:
      (level's name or 'all levels', kind) to float64 (N,).
    """
    z = self._standardised(statistics)
    scores = {}
    for kind, values in ((LOW, -z.log_density), (TYPICALITY, np.abs(z.log_density)), (GRADIENT, z.gradient_norm)):
      scores |= {(name, kind): values[:, i] for i, name in enumerate(self._names)}
    scores['all levels', 'sum'] = -z.log_density.sum(1)
    for name, vector in _vectors(z).items():
      scores['all levels', f'{name}Mahalanobis'] = self._gaussians[name].mahalanobis(vector)
      scores['all levels', f'{name}mixture'] = -self._mixtures[name].score_samples(vector)
    return scores


def _vectors(z):
  """What a kind of score begins with, to the vectors that it is a score of."""
  return {'': z.log_density, 'MSMA, ': z.score_norm, 'both, ': np.hstack([z.log_density, z.score_norm])}


def _fit_mixture(vectors):
  """The mixture, of the number of components that gives held-out vectors the highest likelihood."""
  folds = model_selection.KFold(_FOLDS, shuffle=True, random_state=0)
  search = model_selection.GridSearchCV(mixture.GaussianMixture(random_state=0), {'n_components': _SIZES}, cv=folds)
  with warnings.catch_warnings():
    warnings.simplefilter('ignore', exceptions.ConvergenceWarning)  # the best so far is a fit too
    return search.fit(vectors).best_estimator_


def resamples(num_inside: int, num_outside: int, seed: int) -> np.ndarray:
  """How often bootstrap samples hold each example: both sets are drawn from with replacement.

  Args:
    num_inside: N.
    num_outside: M.
    seed: of the random numbers.

  Returns:
    int (1000, N + M).
  """
  rng = np.random.default_rng(seed)
  draws = [rng.multinomial(n, np.full(n, 1 / n), _NUM_RESAMPLES) for n in (num_inside, num_outside)]
  return np.hstack(draws).astype(np.int32)


def detection(inside: np.ndarray, outside: np.ndarray, counts: np.ndarray) -> dict:
  """How well a score tells examples outside the distribution (the positives) from those inside.

  Args:
    inside: scores, (N,).
    outside: scores, (M,), higher if all is well.
    counts: of `resamples`; the same ones for several scores make their intervals comparable.

  Returns:
    `auroc`, `aupr`, and `fpr95`: the share of the inside that is rejected where 95 % of the outside are; in [0, 1].
    `intervals` has the 95 % bootstrap interval (percentiles) of each, `[lower, upper]`.

  Source: Hendrycks et al. 2019, Deep anomaly detection with outlier exposure, section 4.1.
  """
  (point,) = np.stack(_measures(inside, outside, np.ones((1, len(inside) + len(outside)), int)), axis=1)
  ends = np.percentile(_measures(inside, outside, counts), _PERCENTILES, axis=1).T
  return dict(zip(MEASURES, point.tolist(), strict=True)) | {
    'intervals': dict(zip(MEASURES, ends.tolist(), strict=True))
  }


def _measures(inside, outside, counts):
  """The three measures, (B,) each, where the examples are there `counts` times, (B, N + M)."""
  score = np.concatenate([inside, outside])
  order = np.argsort(-score, kind='stable')
  last = np.flatnonzero(np.diff(score[order], append=np.nan))  # of those with the same score
  counts, is_outside = counts[:, order], order >= len(inside)
  true, false = (np.cumsum(counts * mask, axis=1, dtype=counts.dtype)[:, last] for mask in (is_outside, ~is_outside))
  found, rejected = true / true[:, -1:], false / false[:, -1:]
  steps = np.diff(found, axis=1, prepend=0)
  auroc = np.sum(steps * (1 - rejected + np.diff(rejected, axis=1, prepend=0) / 2), axis=1)
  aupr = np.sum(steps * true / np.maximum(true + false, 1), axis=1)
  return auroc, aupr, np.take_along_axis(rejected, np.argmax(found >= 0.95, axis=1)[:, None], axis=1)[:, 0]


def table(results: dict[tuple[str, str], dict[str, dict]], measure: str) -> str:
  """A Markdown table: a row for each score, a column for each set, with intervals; the best of each column in bold.

  Several sets have a column for their mean.

  Args:
    results: score to set to measures, as of `detection`.
    measure: 'auroc', 'aupr' or 'fpr95'.
  """
  rows = {
    key: {name: (each[measure], '({:.3f}, {:.3f})'.format(*each['intervals'][measure])) for name, each in row.items()}
    for key, row in results.items()
  }
  sets = [name.replace('|', '\\|') for name in next(iter(rows.values()))]
  columns = [list(row.values()) for row in rows.values()]
  if len(sets) > 1:
    sets.append('mean')
    columns = [[*cells, (float(np.mean([value for value, _ in cells])), '')] for cells in columns]
  best = [(min if measure == 'fpr95' else max)(value for value, _ in column) for column in zip(*columns, strict=True)]
  lines = [f'| {" | ".join(["level", "score", *sets])} |', f'|{" --- |" * (len(sets) + 2)}']
  for (level, kind), cells in zip(rows, columns, strict=True):
    shown = [
      f'{f"**{value:.3f}**" if value == top else f"{value:.3f}"} {interval}'.rstrip()
      for (value, interval), top in zip(cells, best, strict=True)
    ]
    lines.append(f'| {" | ".join([level, kind, *shown])} |')
  return '\n'.join(lines)
