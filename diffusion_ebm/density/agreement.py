"""Several estimates of the same log density: a table, and whether they agree within their errors."""

import itertools
from typing import NamedTuple

import numpy as np
from scipy import stats

_APART = 3.0  # standard errors of a difference beyond which two estimates disagree


class Route(NamedTuple):
  """One way to the mean log density of a data set.

  Attributes:
    name: for the table.
    log_prob: the mean, in nats.
    standard_error: of the estimate for these data, not over the data.
    log_z: that of level 0, in nats; None for the flow, which needs none.
    assumes: what must hold for it to be right.
  """

  name: str
  log_prob: float
  standard_error: float
  log_z: float | None
  assumes: str


def disagreements(routes: list[Route]) -> list[str]:
  """A sentence for each two routes that differ by more than three standard errors, with what they assume."""
  found = []
  for one, other in itertools.combinations(routes, 2):
    difference, error = one.log_prob - other.log_prob, np.hypot(one.standard_error, other.standard_error)
    if abs(difference) > _APART * error:
      found.append(
        f'{one.name} and {other.name} differ by {difference:.3f} nats, {abs(difference) / max(error, 1e-12):.1f} '
        f'standard errors: the first assumes that {one.assumes}, the second that {other.assumes}'
      )
  return found


def rank_correlation(first, second) -> float:
  """Spearman's, of two log densities (N,) of the same data."""
  return float(stats.spearmanr(first, second).statistic)


def table(routes: list[Route], bits_per_dim=None) -> str:
  """The routes as a Markdown table.

  Args:
    routes: the rows.
    bits_per_dim: from log densities to bits per dimension; None for vectors, which have none.
  """
  rows = ['| route | log Z of level 0 | log density (nats) |' + (' bits per dimension |' if bits_per_dim else '')]
  rows.append('| --- ' * (4 if bits_per_dim else 3) + '|')
  for route in routes:
    log_z = '' if route.log_z is None else f'{route.log_z:.3f}'
    cells = [route.name, log_z, f'{route.log_prob:.3f} +- {route.standard_error:.3f}']
    if bits_per_dim:
      cells.append(f'{bits_per_dim(route.log_prob):.4f} +- {bits_per_dim(0) - bits_per_dim(route.standard_error):.4f}')
    rows.append('| ' + ' | '.join(cells) + ' |')
  return '\n'.join(rows) + '\n'
