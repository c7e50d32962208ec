"""Samples of a model and their features, as the jobs that compare samples with data need them."""

from collections.abc import Callable
import contextlib
import functools
import logging
import math
import time
from typing import NamedTuple

import numpy as np

from diffusion_ebm import data, generate, older_versions, preprocessing
from diffusion_ebm.evaluate import features, reference
from diffusion_ebm.run import parallel
from diffusion_ebm.run import workdir as workdir_lib
from diffusion_ebm.run.errors import InterruptedRun, UserError
from diffusion_ebm.run.progress import Progress
from diffusion_ebm.trained import Trained

_log = logging.getLogger(__name__)

# Keys of the `sampling` section that the samples do not depend on.
_NOT_OF_SAMPLES = ('batch_size', 'num_samples')


class Drawn(NamedTuple):
  """Samples that have been drawn.

  Attributes:
    features: of all, (N, D).
    logits: of all, (N, C), or None where there are no classes.
    samples: the first ones, as they are stored; None where none were to be kept.
    rates: `samples_per_s` and `features_per_s`, without the first batch, which compiles; None where it was all.
  """

  features: np.ndarray
  logits: np.ndarray | None
  samples: np.ndarray | None
  rates: dict[str, float | None]


def load_reference(config, workdir: str, check_stop: Callable) -> reference.Reference:
  """What the `eval` section compares samples with; what is known of the data is kept in the workdir's `cache/`."""
  cache = workdir_lib.make_cache(workdir)
  return reference.make(config.eval, config.data, functools.partial(_load_sources, config), cache, check_stop)


def _load_sources(config) -> dict:
  """Both splits; None for one that is neither there nor needed."""
  needed, sources = ('train', reference.split(config.eval, config.data)), {}
  for split in ('train', 'test'):
    try:
      sources[split] = data.load_source(config.data, split)
    except UserError as error:
      if split in needed:
        raise
      _log.info('no baseline of real data: %s', error)
      sources[split] = None
  return sources


def inputs(config, compared: reference.Reference, unused: tuple[str, ...] = ()) -> dict:
  """What scores depend on beside the checkpoint; the order is part of the name that older records have for it.

  Args:
    config: the configuration.
    compared: what samples are compared with.
    unused: further keys of the `sampling` section that the samples do not depend on.
  """
  skipped = (*_NOT_OF_SAMPLES, *unused)
  found = {
    'eval': reference.measure(config.eval),
    'sampling': older_versions.without_later(
      'sampling', {key: value for key, value in config.sampling.items() if key not in skipped}
    ),
    'features': compared.extractor.key,
    'data': features.data_key(config.data, {})[0],
  }
  if compared.fingerprints:  # sets that cannot change have none: their results stay valid
    found['fingerprints'] = compared.fingerprints
  return found


def batch_size(config) -> int:
  """Samples to draw at once."""
  return parallel.up_to_devices(min(config.eval.num_samples, config.sampling.batch_size))


def draw(
  config, compared: reference.Reference, sampler, generator, what: str, keep: int, check_stop: Callable
) -> Drawn:
  """Draws the samples that the `eval` section asks for, batch by batch, and keeps their features.

  Args:
    config: the configuration.
    compared: what samples are compared with.
    sampler: of `generate.make_sampler`, with the batch of `batch_size`.
    generator: model and proposal, as the sampler takes them.
    what: is done, for the line of progress.
    keep: at least so many of the first samples themselves; 0 for none.
    check_stop: raises an exception once a stop has been asked for.

  Raises:
    UserError: samples that hold NaN or infinity.
  """
  count, size = config.eval.num_samples, batch_size(config)
  parts, samples, seconds = [], [], [0.0, 0.0]
  with contextlib.closing(Progress(what, count, unit='sample')) as progress:
    for first in range(0, count, size):
      check_stop()
      began = time.monotonic()
      x, _ = sampler(*generator, config.eval.seed, first, min(size, count - first))
      features.check_finite(x)
      stored = preprocessing.to_stored(x)
      drawn = time.monotonic()
      parts.append(compared.extract(stored))
      if first:  # the first batch pays for the compilation
        seconds[0] += drawn - began
        seconds[1] += time.monotonic() - drawn
      if sum(map(len, samples)) < keep:
        samples.append(stored)
      progress.update(len(x))
      progress.line(always=first == 0)
  timed = max(count - size, 0)
  rates = {
    name: timed / spent if timed else None
    for name, spent in zip(('samples_per_s', 'features_per_s'), seconds, strict=True)
  }
  return Drawn(*reference.joined(parts), np.concatenate(samples) if samples else None, rates)


def score(model: Trained, compared: reference.Reference, what: str, keep: int, check_stop: Callable):
  """Draws samples as the model's configuration says, and scores them.

  Args:
    model: the model.
    compared: what samples are compared with.
    what: as of `draw`, like what follows.
    keep: likewise.
    check_stop: likewise.

  Returns:
    `(drawn, scores)`; None, with a warning, where the chains diverge.
  """
  sampler = generate.make_sampler(model.config, model.shape, batch_size(model.config))
  try:
    drawn = draw(model.config, compared, sampler, (model.ebm, model.proposal), what, keep, check_stop)
  except UserError as error:
    if isinstance(error, InterruptedRun):
      raise
    _log.warning('%s: %s', what, error)
    return None
  _log.info('%s: scores of %d samples', what, len(drawn.features))
  scores = compared.score(drawn.features, drawn.logits)
  if not math.isfinite(scores['fid']):
    _log.warning('%s: the Frechet distance is not finite', what)
    return None
  return drawn, scores
