"""Out-of-distribution detection from log densities: scores of examples, and how well they tell two sets apart."""

import numpy as np
from sklearn import metrics

LOW, TWO_SIDED = 'low density', 'two-sided'


class Detector:
  """Scores of examples, higher for those that look less like the training data, from their log densities.

  `low density` at level t is minus the standardised log density; `two-sided` its absolute value, as images may also be
  more likely than data ever are (Nalisnick et al. 2019). Their combinations over the levels are `sum`, of the `low
  density` ones, and `Mahalanobis`, the distance of all levels' log densities from those of training data, squared.
  """

  def __init__(self, train: np.ndarray, names):
    """Fits mean and covariance.

    Args:
      train: log densities of training data, (N, L), N > L, in nats.
      names: of the L levels.
    """
    self._names = list(names)
    self._mean, self._std = train.mean(0), train.std(0) + 1e-12
    z = self._standardised(train)
    self._precision = np.linalg.pinv(np.cov(z, rowvar=False).reshape(z.shape[1], -1), hermitian=True)

  def _standardised(self, log_density):
    return (log_density - self._mean) / self._std

  def scores(self, log_density: np.ndarray) -> dict[tuple[str, str], np.ndarray]:
    """The scores of examples.

    Args:
      log_density: (N, L), in nats.

    Returns:
      (level's name or 'all levels', kind) to float64 (N,).
    """
    z = self._standardised(np.asarray(log_density, np.float64))
    single = {}
    for kind, values in ((LOW, -z), (TWO_SIDED, np.abs(z))):
      single |= {(name, kind): values[:, i] for i, name in enumerate(self._names)}
    return single | {
      ('all levels', 'sum'): -z.sum(1),
      ('all levels', 'Mahalanobis'): np.einsum('ni,ij,nj->n', z, self._precision, z),
    }


def detection(inside: np.ndarray, outside: np.ndarray) -> dict[str, float]:
  """How well a score tells examples outside the distribution (the positives) from those inside.

  Args:
    inside: scores, (N,).
    outside: scores, (M,), higher if all is well.

  Returns:
    `auroc`, `aupr`, and `fpr95`: the share of the inside that is rejected where 95 % of the outside are; in [0, 1].

  Source: Hendrycks et al. 2019, Deep anomaly detection with outlier exposure, section 4.1.
  """
  score = np.concatenate([inside, outside])
  label = np.repeat([0, 1], [len(inside), len(outside)])
  false, true, _ = metrics.roc_curve(label, score)
  return {
    'auroc': float(metrics.roc_auc_score(label, score)),
    'aupr': float(metrics.average_precision_score(label, score)),
    'fpr95': float(false[np.argmax(true >= 0.95)]),
  }


def table(results: dict[tuple[str, str], dict[str, dict[str, float]]], measure: str) -> str:
  """A Markdown table: a row for each score, a column for each set; the best of each column in bold.

  Args:
    results: score to set to measures, as of `detection`.
    measure: 'auroc', 'aupr' or 'fpr95'.
  """
  sets = list(next(iter(results.values())))
  best = {name: (min if measure == 'fpr95' else max)(row[name][measure] for row in results.values()) for name in sets}
  shown = [name.replace('|', '\\|') for name in sets]
  lines = [f'| {" | ".join(["level", "score", *shown])} |', f'|{" --- |" * (len(sets) + 2)}']
  for (level, kind), row in results.items():
    cells = [
      f'**{row[name][measure]:.3f}**' if row[name][measure] == best[name] else f'{row[name][measure]:.3f}'
      for name in sets
    ]
    lines.append(f'| {" | ".join([level, kind, *cells])} |')
  return '\n'.join(lines)
