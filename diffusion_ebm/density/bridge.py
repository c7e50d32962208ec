"""Ratios of normalisers from samples of both densities: Bennett's acceptance ratio, the best bridge for two densities.

For unnormalised densities q_0 and q_1, `d = log q_1 - log q_0` and `c = log Z_1 / Z_0`, as many samples of each:

  E_0 sigmoid(d - c) = E_1 sigmoid(c - d).

Source: Bennett 1976, Efficient estimation of free energy differences from Monte Carlo data; Meng and Wong 1996.
"""

from typing import NamedTuple

import numpy as np
from scipy import special

_ITERATIONS = 60


class Ratios(NamedTuple):
  """Log normalisers along a sequence of densities, the first of which counts as normalised.

  Attributes:
    log_z: of each density after the first, (R,) float64, in nats.
    standard_error: of each, (R,): from the spread over independent runs, so that samples that depend on those before
      them in the same run, or on those at other densities, are allowed for.
  """

  log_z: np.ndarray
  standard_error: np.ndarray


def log_ratios(forward, reverse) -> Ratios:
  """Normalisers along a sequence of densities, from samples of all.

  Args:
    forward: `log q_{k+1} - log q_k` at samples of q_k, (B, N, R): N of each of B independent runs.
    reverse: the same difference at samples of q_{k+1}, likewise.

  Returns:
    The sums of the log ratios up to each density.

  Raises:
    ValueError: fewer than two runs.
  """
  forward, reverse = (np.asarray(each, np.float64) for each in (forward, reverse))
  if len(forward) < 2:
    raise ValueError(f'{len(forward)} independent run: there must be at least two')
  low, high = (f(np.stack([forward, reverse]), axis=(0, 1, 2)) for f in (np.min, np.max))
  for _ in range(_ITERATIONS):  # the left side falls in c, the right one rises
    middle = 0.5 * (low + high)
    above = _excess(forward, reverse, middle).mean(0) > 0
    low, high = np.where(above, middle, low), np.where(above, high, middle)
  ratio = 0.5 * (low + high)
  # By how much a run moves each ratio: the excess over its slope in c.
  at_ratio = special.expit(np.concatenate([forward, reverse], axis=1) - ratio)
  slope = 2 * np.mean(at_ratio * (1 - at_ratio), axis=(0, 1))
  influence = np.cumsum(_excess(forward, reverse, ratio) / np.maximum(slope, 1e-300), axis=1)
  return Ratios(np.cumsum(ratio), influence.std(0, ddof=1) / np.sqrt(len(forward)))


def from_both_ends(forward, reverse) -> tuple[float, float]:
  """The normaliser from the weights of both passes of annealed importance sampling, and its standard error, in nats.

  A pass is a draw of a whole path; the weights are the ratio of the densities of the same path in both directions.

  Args:
    forward: log weights of the forward pass, (N,).
    reverse: those of a reverse pass that starts at samples of the last density, (N,), as of `ais.reverse_estimate`.

  Source: Crooks 2000, Path-ensemble averages in systems driven far from equilibrium, section IV.
  """
  found = log_ratios(np.asarray(forward)[:, None, None], -np.asarray(reverse)[:, None, None])
  return float(found.log_z[0]), float(found.standard_error[0])


def _excess(forward, reverse, ratio):
  """By how much, in each run, the left side of Bennett's equation is above the right one, (B, R)."""
  return special.expit(forward - ratio).mean(1) - special.expit(ratio - reverse).mean(1)
