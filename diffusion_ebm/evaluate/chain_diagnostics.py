"""Diagnostics of Markov chains, by ArviZ."""

import numpy as np


def summarise(traces, pooled: bool) -> dict[str, float | None]:
  """Effective sample size, split R-hat and autocorrelation of a scalar along chains.

  Args:
    traces: (N, K), K >= 4 kept states of each of N chains.
    pooled: whether all chains have the same target; otherwise each has its own, as on `p(y | x)` with an x of its own,
      and is judged by itself: its two halves are compared.

  Returns:
    `ess`, of all chains together or the median over chains, of K; `r_hat`, likewise; `r_hat_max`, the largest;
    `autocorrelation`, between neighbouring kept states, averaged over chains. None where there are too few states or
    where nothing moves.

  Source: Vehtari et al. 2021, Rank-normalization, folding, and localization: an improved R-hat.
  """
  if traces.shape[1] < 4:
    return dict.fromkeys(('ess', 'r_hat', 'r_hat_max', 'autocorrelation'))
  from arviz_stats.base import array_stats  # takes seconds

  groups = [traces] if pooled else [trace[None] for trace in traces]
  ess = np.array([array_stats.ess(group) for group in groups], float)
  halves = [traces] if pooled else [trace[: len(trace) // 2 * 2].reshape(2, -1) for trace in traces]
  r_hat = np.array([array_stats.rhat(group) for group in halves], float)
  autocorrelation = np.mean([array_stats.autocorr(trace)[1] for trace in traces])
  found = {
    'ess': np.median(ess),
    'r_hat': np.median(r_hat),
    'r_hat_max': np.max(r_hat),
    'autocorrelation': autocorrelation,
  }
  return {name: float(value) if np.isfinite(value) else None for name, value in found.items()}
