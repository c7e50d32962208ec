"""What is known of the data's features: moments of the whole split, and the features of a part; cached in files."""

import dataclasses
import hashlib
import json

import numpy as np

from diffusion_ebm.evaluate import scores
from diffusion_ebm.run import files, paths
from diffusion_ebm.run.errors import UserError
from diffusion_ebm.run.progress import Progress

# Features of more examples than these are not kept.
MAX_KEPT = 50_000


@dataclasses.dataclass(frozen=True)
class Statistics:
  """Features of one split.

  Attributes:
    mean: (D,) float64.
    covariance: (D, D) float64.
    count: examples behind them; None where a given file does not say.
    index: int (K,), the examples whose features are kept, shuffled: all of a split that is not too large.
    features: of these, (K, D) float32.
    logits: of these, (K, C) float32, or None.
  """

  mean: np.ndarray
  covariance: np.ndarray
  count: int | None
  index: np.ndarray
  features: np.ndarray
  logits: np.ndarray | None


def key(*parts) -> str:
  """A short name for whatever a cached file depends on."""
  return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def of_source(source, extract, dim: int, what: str, batch_size: int = 256, only_kept: bool = False) -> Statistics:
  """Streams a split through a feature extractor.

  Args:
    source: a `diffusion_ebm.data.source.Source`.
    extract: from examples to `(features, logits)`, as of `features.compile_extractor`.
    dim: D.
    what: named in the progress bar.
    batch_size: examples read at once.
    only_kept: leave out those whose features are not kept; the moments are theirs alone.
  """
  kept = np.arange(len(source))
  if len(source) > MAX_KEPT:
    kept = np.sort(np.random.default_rng(0).choice(len(source), MAX_KEPT, replace=False))
  chosen = np.zeros(len(source), bool)
  chosen[kept] = True
  order = kept if only_kept else np.arange(len(source))
  moments, features, logits = scores.Moments(dim), [], []
  progress = Progress(f'features of {what}', len(order), unit='example')
  for first in range(0, len(order), batch_size):
    index = order[first : first + batch_size]
    batch_features, batch_logits = extract(source.read(index))
    moments.add(batch_features)
    features.append(batch_features[chosen[index]])
    if batch_logits is not None:
      logits.append(batch_logits[chosen[index]])
    progress.update(len(index))
    progress.line(always=False)
  progress.close()
  shuffle = np.random.default_rng(0).permutation(len(kept))  # a split may be sorted by class
  return Statistics(
    moments.mean,
    moments.covariance,
    moments.count,
    kept[shuffle],
    np.concatenate(features)[shuffle],
    np.concatenate(logits)[shuffle] if logits else None,
  )


def save(statistics: Statistics, path: str):
  """Writes a file, whole or not at all."""
  arrays = {name: value for name, value in dataclasses.asdict(statistics).items() if value is not None}
  files.write_npz(path, arrays, compress=False)


def load(path: str) -> Statistics | None:
  """Reads a file of `save`; None if there is none."""
  try:
    file = files.read_npz(path)
    return Statistics(
      file['mean'], file['covariance'], int(file['count']), file['index'], file['features'], file.get('logits')
    )
  except (OSError, ValueError, KeyError, TypeError):  # what is damaged is computed again
    return None


def load_given(path: str, dim: int) -> tuple[np.ndarray, np.ndarray]:
  """Reads published statistics: a `.npz` with `mu` (D,) and `sigma` (D, D).

  Args:
    path: the file.
    dim: D, of the features at hand.

  Returns:
    `(mean, covariance)`, float64.

  Raises:
    UserError: the file is not such a one, or is for other features.
  """
  name = f'--config.eval.statistics={path}'
  try:
    file = files.read_npz(paths.local(path, '--config.eval.statistics'))
    mean, covariance = (np.asarray(file[key], np.float64) for key in ('mu', 'sigma'))
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise UserError(f'{name} cannot be read ({error}): give a .npz with the arrays mu and sigma') from error
  if mean.shape != (dim,) or covariance.shape != (dim, dim):
    raise UserError(
      f'{name} is for other features: mu is {mean.shape} and sigma {covariance.shape}, but the features '
      f'have {dim} dimensions; change --config.eval.extractor or the file'
    )
  if not (np.all(np.isfinite(mean)) and np.all(np.isfinite(covariance))):
    raise UserError(f'{name} holds numbers that are not finite: fetch it again')
  if not np.allclose(covariance, covariance.T, rtol=1e-4, atol=1e-6 * np.abs(covariance).max()):
    raise UserError(f'{name} holds a sigma that is not symmetric: fetch it again')
  return mean, (covariance + covariance.T) / 2
