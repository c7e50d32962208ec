"""What every checkpoint is compared with: the data's features and statistics, and the scores of simple generators."""

from collections.abc import Callable
import dataclasses
import functools
import logging
import os
from typing import Any

import numpy as np

from diffusion_ebm.evaluate import MIN_SAMPLES, baseline_generators, feature_statistics, features, scores
from diffusion_ebm.run import files
from diffusion_ebm.run.errors import UserError
from diffusion_ebm.run.progress import Progress, doing

_log = logging.getLogger(__name__)

_FEW_SAMPLES = (
  '%d samples for %d features: the covariance is singular, and the Frechet distance comparable only with others of as '
  'many samples'
)
# Keys of the `eval` section that scores do not depend on.
_NOT_OF_SCORES = ('batch_size', 'save_samples', 'max_wait_minutes', 'baselines')


@dataclasses.dataclass(frozen=True)
class Reference:
  """What every checkpoint is compared with.

  Attributes:
    extractor: of the features.
    extract: it, on all devices.
    split: the data to compare with.
    real: their statistics; mean and covariance may be given ones.
    train_source: the training split.
    test_source: the test split; None if it is not at hand.
    train: its statistics.
    baselines: name to scores.
    fingerprints: split to its own, of data that can change.
  """

  extractor: features.Extractor
  extract: Callable
  split: str
  real: feature_statistics.Statistics
  train_source: Any
  test_source: Any
  train: feature_statistics.Statistics
  baselines: dict[str, dict]
  fingerprints: dict[str, str]

  def score(self, rows, logits) -> dict:
    """The scores of samples from their features (N, D) and logits (N, C) or None."""
    real = self.real
    return {'num_samples': len(rows), **scores.score(rows, logits, real.mean, real.covariance, real.features)}


def extractor_name(evaluation, data) -> str:
  """The extractor that the sections `eval` and `data` of a configuration ask for, or that suits the data."""
  if evaluation.extractor:
    return evaluation.extractor
  return 'pixels' if data.name == 'toy2d' else 'classifier' if features.is_classified(data) else 'inception'


def split(evaluation, data) -> str:
  """The data to compare with, likewise."""
  return evaluation.split or ('train' if extractor_name(evaluation, data) == 'inception' else 'test')


def measure(evaluation) -> dict:
  """What scores depend on of the `eval` section."""
  return {key: value for key, value in evaluation.items() if key not in _NOT_OF_SCORES}


def make(evaluation, data, load_sources: Callable, cache: str, check_stop: Callable) -> Reference:
  """Computes everything once, or reads it from the cache.

  Args:
    evaluation: the `eval` section of a configuration.
    data: its `data` section.
    load_sources: gives split to source; None for one that is neither there nor needed.
    cache: folder for what is computed.
    check_stop: called now and then; may raise.

  Raises:
    UserError: weights or given statistics do not fit, or there is a single image to compare with.
  """
  given, sources, extractor = _inputs(evaluation, data, load_sources, cache)
  compared, shape, data_key = split(evaluation, data), sources['train'].shape, features.data_key(data, sources)
  on_devices = features.compile_extractor(extractor, shape, evaluation.batch_size)

  def extract(examples):
    check_stop()
    return on_devices(examples)

  def split_statistics(name, source):
    only_kept = bool(given) and name == compared
    path = os.path.join(cache, f'{name}_{feature_statistics.key(data_key, extractor.key, name, only_kept)}.npz')
    found = feature_statistics.load(path)
    if found is None:
      found = feature_statistics.of_source(
        source, extract, extractor.dim, f'the {name} split', evaluation.batch_size, only_kept
      )
      feature_statistics.save(found, path)
    return found

  known = {name: split_statistics(name, source) for name, source in sources.items() if source is not None}
  real = known[compared]
  if given:
    real = dataclasses.replace(real, mean=given[0], covariance=given[1], count=None)
  if evaluation.num_samples <= extractor.dim:
    _log.warning(_FEW_SAMPLES, evaluation.num_samples, extractor.dim)
  fingerprints = features.fingerprints(sources)
  splits = (sources['train'], sources['test'])
  reference = Reference(extractor, extract, compared, real, *splits, known['train'], {}, fingerprints)
  if not evaluation.baselines:
    return reference
  key = feature_statistics.key(baseline_generators.VERSION, measure(evaluation), extractor.key, data_key)
  path = os.path.join(cache, f'baselines_{key}.json')
  others = [found for name, found in known.items() if name != compared]
  return dataclasses.replace(reference, baselines=_cached_baselines(evaluation, reference, others, path))


def _inputs(evaluation, data, load_sources, cache):
  """`(given, sources, extractor)`: files that the user names come before what takes long, data and a classifier."""
  name, weights = extractor_name(evaluation, data), evaluation.inception_weights
  given = evaluation.statistics and feature_statistics.load_given(evaluation.statistics, features.dim(name, data))
  inception = features.inception_v3(weights) if name == 'inception' and weights else None
  doing('reading the data')
  sources = load_sources()
  if len(sources[compared := split(evaluation, data)]) < 2:
    raise UserError(
      f'the {compared} split has a single image, and no covariance: add more, or set --config.eval.split to the other'
    )
  return given, sources, inception or features.make(name, data, sources, cache, weights)


def _cached_baselines(evaluation, reference, others, path):
  try:
    found = files.read_json(path)
  except ValueError:  # what is damaged is computed again
    found = None
  if found is None:
    found = _baselines(evaluation, reference, others)
    files.write_json(path, found)
  return found


def _baselines(evaluation, reference, others):
  """Scores of other real data and of the simple generators."""
  count, source, found = evaluation.num_samples, reference.train_source, {}
  if others and len(others[0].features) >= MIN_SAMPLES:
    other = others[0]
    found['real'] = reference.score(other.features[:count], None if other.logits is None else other.logits[:count])
  index = np.random.default_rng(0).permutation(len(source))[: baseline_generators.MAX_EXAMPLES]
  examples = source.read(np.sort(index))
  _log.info('choosing the size of a mixture of Gaussians by cross-validation')
  size = baseline_generators.cross_validated_size(examples)
  generators = {
    'gaussian': baseline_generators.gaussian,
    'gaussian_mixture': baseline_generators.gaussian_mixture,
    'cross_validated_mixture': functools.partial(baseline_generators.gaussian_mixture, num_components=size),
  }
  for name, generator in generators.items():
    _log.info('baseline: %s', name.replace('_', ' '))
    drawn = generator(examples, count, evaluation.seed)
    found[name] = reference.score(*_features(reference, drawn, name.replace('_', ' '), evaluation.batch_size))
  found['gaussian_mixture']['num_components'] = min(baseline_generators.COMPONENTS, len(examples))
  found['cross_validated_mixture']['num_components'] = size
  return found


def _features(reference, examples, name, batch_size):
  progress, parts = Progress(f'features of the {name}', len(examples), unit='sample'), []
  for first in range(0, len(examples), batch_size):
    parts.append(reference.extract(examples[first : first + batch_size]))
    progress.update(len(parts[-1][0]))
    progress.line(always=False)
  progress.close()
  return joined(parts)


def joined(parts):
  """`(features, logits)` of several pairs that `Reference.extract` gave."""
  rows, logits = zip(*parts, strict=True)
  return np.concatenate(rows), None if logits[0] is None else np.concatenate(logits)
