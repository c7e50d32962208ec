"""What is known of the data's features: moments of the whole split, and the features of a part; cached in files."""

import dataclasses
import hashlib
import json
import logging

import numpy as np
from scipy import linalg

from diffusion_ebm.evaluate import scores
from diffusion_ebm.run import files, paths
from diffusion_ebm.run.errors import UserError
from diffusion_ebm.run.progress import Progress

_log = logging.getLogger(__name__)

# Features of more examples than these are not kept.
MAX_KEPT = 50_000
# Rounding to float32 leaves no eigenvalue of a covariance below so much of the largest.
_COARSE = -1e-6


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
  """Reads published statistics, a `.npz`, and checks all that can be checked.

  It holds `mu` (D,) and `sigma` (D, D), as of pytorch-fid, EDM and the reference batches of guided-diffusion, or
  `pool_3` (N, D), the features themselves, as of score_sde. Anything else in it is not read.

  Args:
    path: the file.
    dim: D, of the features at hand.

  Returns:
    `(mean, covariance)`, float64.

  Raises:
    UserError: the file is not such a one, is for other features, or holds what is no mean or covariance.
  """
  name = f'--config.eval.statistics={path}'
  arrays = _read_given(paths.local(path, '--config.eval.statistics'), name)
  for key, array in arrays.items():
    if array.shape != {'mu': (dim,), 'sigma': (dim, dim), 'pool_3': (*array.shape[:1], dim)}[key]:
      raise UserError(
        f'{name} is for other features: {key} is {array.shape}, but the features have {dim} dimensions; change '
        '--config.eval.extractor or the file'
      )
    if not np.all(np.isfinite(array)):
      raise UserError(f'{name} holds a {key} that is not finite: fetch it again')
  if 'pool_3' in arrays:
    if len(arrays['pool_3']) < 2:
      raise UserError(f'{name} holds a pool_3 of fewer than two rows, which have no covariance: give more')
    moments = scores.Moments(dim)
    moments.add(arrays['pool_3'])
    return moments.mean, moments.covariance
  return arrays['mu'].astype(np.float64), _check_covariance(arrays['sigma'].astype(np.float64), name)


def _read_given(path, name):
  """`mu` and `sigma`, or `pool_3`: real numbers of any shape."""
  try:
    arrays = files.read_npz(path, names=('mu', 'sigma', 'pool_3'))
  except (OSError, ValueError) as error:
    remedy = 'give a .npz with the arrays mu and sigma'
    if files.PICKLE in str(error):  # of EDM2
      convert = f"numpy.savez({path + '.npz'!r}, **pickle.load(open({path!r}, 'rb'))['fid'])"
      remedy = f'if you trust it, give what this writes: python -c "import numpy, pickle; {convert}"'
    raise UserError(f'{name} cannot be read ({error}): {remedy}') from error
  for keys in (('mu', 'sigma'), ('pool_3',)):
    if all(key in arrays for key in keys):
      arrays = {key: arrays[key] for key in keys}
      break
  else:
    raise UserError(f'{name} holds neither mu and sigma nor pool_3: give a .npz of moments or features of the data')
  for key, array in arrays.items():
    if array.dtype.kind not in 'fiu':
      raise UserError(f'{name}: {key} is of type {array.dtype}, not of real numbers: give another file')
  return arrays


def _check_covariance(covariance, name):
  """It, symmetric to the last bit."""
  if not np.allclose(covariance, covariance.T, rtol=1e-4, atol=1e-6 * np.abs(covariance).max()):
    raise UserError(f'{name} holds a sigma that is not symmetric: fetch it again')
  covariance = covariance / 2 + covariance.T / 2
  try:
    values = linalg.eigvalsh(covariance)
    scores.check_eigenvalues(values)
  except ValueError as error:
    raise UserError(f'{name} holds a sigma with {error}; fetch it again') from error
  if values[0] < _COARSE * values[-1]:
    _log.warning('%s: sigma was rounded so coarsely that the Frechet distance may be wrong by a few per cent', name)
  return covariance
