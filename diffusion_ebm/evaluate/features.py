"""Feature extractors behind one interface, and how they run on all devices."""

from collections.abc import Callable
import dataclasses
import os
from typing import Any

import jax.numpy as jnp
import numpy as np

from diffusion_ebm.evaluate import classifier, feature_statistics, inception, inception_weights
from diffusion_ebm.run import files, parallel
from diffusion_ebm.run.errors import UserError

# Data of which a small classifier says something.
CLASSIFIED = ('digits', 'mnist')
# What features do not depend on.
_NOT_OF_FEATURES = ('random_flip', 'strict', 'max_memory_gb', 'num_workers', 'test_fraction')


def is_classified(data) -> bool:
  """Whether a small classifier says something of the data set that a `data` section names, whatever its version."""
  return data.name.partition(':')[0] in CLASSIFIED


@dataclasses.dataclass(frozen=True)
class Extractor:
  """From examples to features.

  Attributes:
    name: one of `evaluate.EXTRACTORS`.
    key: what the features depend on beside the examples.
    dim: D, of the features.
    apply: `(params, batch (B, ...)) -> (features (B, D), logits (B, C))`, or `(features,)` without classes; pure.
    params: its parameters.
    notes: name to value, reported with every score.
  """

  name: str
  key: str
  dim: int
  apply: Callable
  params: Any
  notes: dict[str, Any]


def dim(name: str, data) -> int:
  """D of an extractor's features, before there is one.

  Args:
    name: one of `evaluate.EXTRACTORS`.
    data: the `data` section of a configuration.
  """
  if name == 'inception':
    return inception.NUM_FEATURES
  if name == 'classifier':
    return classifier.NUM_FEATURES
  return 2 if data.name == 'toy2d' else data.image_size**2 * data.num_channels


def pixels(shape) -> Extractor:
  """The numbers of an example as they are: pixels in [0, 1], vectors unchanged."""

  def apply(params, batch):
    del params
    x = batch.astype(jnp.float32) / 255 if batch.dtype == jnp.uint8 else batch
    return (x.reshape(len(x), -1),)

  return Extractor('pixels', 'pixels', int(np.prod(shape)), apply, {}, {})


def inception_v3(path: str) -> Extractor:
  """The Inception network; grey images count as colour ones.

  Args:
    path: of the weights, '' for the published ones.

  Raises:
    UserError: there are none, or they do not fit.
  """
  path = inception_weights.find(path)
  params = inception_weights.load(path)
  digest = files.sha256(path)
  notes = {} if digest == inception_weights.SHA256 else {'inception_weights': f'not the published ones: {digest[:8]}'}

  def apply(params, batch):
    batch = jnp.broadcast_to(batch, (*batch.shape[:3], 3))
    outputs = inception.Inception().apply({'params': params}, batch)
    return outputs['2048'], outputs['logits']

  return Extractor('inception', f'inception {digest}', inception.NUM_FEATURES, apply, params, notes)


def data_key(data, sources) -> list:
  """What features of a data set depend on.

  Args:
    data: the `data` section of a configuration.
    sources: split to source, or None where there is none.
  """
  known = fingerprints(sources)
  return [
    {key: value for key, value in data.items() if key not in _NOT_OF_FEATURES},
    {split: len(source) for split, source in sources.items() if source is not None},
    *([known] if known else []),  # sets that cannot change have none: their results stay valid
  ]


def fingerprints(sources) -> dict[str, str]:
  """Split to what becomes another once its examples have changed, of those that can change."""
  return {split: source.fingerprint for split, source in sources.items() if source is not None and source.fingerprint}


def small_classifier(sources, cache: str, *key) -> Extractor:
  """The classifier of a labelled data set, trained on the first call.

  Args:
    sources: split to source, 'train' and 'test'; the latter may be None.
    cache: folder that keeps the trained weights.
    *key: what they depend on: `data_key`, and whatever has been done to the data.

  Raises:
    UserError: the data have no labels.
  """
  path = os.path.join(cache, f'classifier_{feature_statistics.key(classifier.VERSION, *key)}.npz')
  try:
    kept = files.read_npz(path)
  except (OSError, ValueError):
    params, num_classes, scale, accuracy = classifier.train(sources['train'], sources['test'])
    kept = {
      'num_classes': np.asarray(num_classes),
      'scale': np.asarray(scale),
      'accuracy': np.asarray(np.nan if accuracy is None else accuracy),
    }
    kept |= {f'params/{name}': value for name, value in classifier.to_arrays(params).items()}
    files.write_npz(path, kept, compress=False)
  params = classifier.from_arrays(
    {name.removeprefix('params/'): value for name, value in kept.items() if name.startswith('params/')}
  )
  network, scale = classifier.Classifier(int(kept['num_classes'])), float(kept['scale'])

  def apply(params, batch):
    features, logits = network.apply({'params': params}, batch)
    return features / scale, logits

  accuracy = float(kept['accuracy'])
  return Extractor(
    'classifier',
    f'classifier {os.path.basename(path)}',
    classifier.NUM_FEATURES,
    apply,
    params,
    {'classifier_accuracy': None if np.isnan(accuracy) else accuracy},
  )


def make(name: str, data, sources, cache: str, inception_path: str) -> Extractor:
  """An extractor by its name.

  Args:
    name: one of `evaluate.EXTRACTORS`.
    data: the `data` section of a configuration.
    sources: split to source.
    cache: folder of trained weights.
    inception_path: as of `inception_v3`.
  """
  if name == 'inception':
    return inception_v3(inception_path)
  if name == 'classifier':
    return small_classifier(sources, cache, data_key(data, sources))
  return pixels(sources['train'].shape)


def compile_extractor(extractor: Extractor, shape, batch_size: int):
  """An extractor on all devices.

  Args:
    extractor: the extractor.
    shape: of one example: (D,) of a vector, (H, W, C) of an image.
    batch_size: examples at once; rounded up to a multiple of the devices.

  Returns:
    A function from examples, uint8 (N, H, W, C) or float32 (N, D), to `(features, logits)` as float32 NumPy arrays,
    logits None where there are no classes. It raises a `UserError` for examples of another type or shape, and for
    values that are not finite.
  """
  params = parallel.replicate(extractor.params)
  apply = parallel.map_examples(extractor.apply, batch_size)

  def extract(examples):
    check_examples(examples, shape)
    features, *logits = apply(params, examples)
    return features, logits[0] if logits else None

  return extract


def check_examples(examples: np.ndarray, shape):
  """Raises a `UserError` for examples that no score would fit: another range, type or shape, or not finite."""
  vector = len(shape) == 1
  check_finite(examples)
  if examples.dtype != (np.float32 if vector else np.uint8):
    where = f' in [{examples.min():.3g}, {examples.max():.3g}]' if examples.size else ''
    expected = 'float32 vectors' if vector else 'uint8 images in 0 .. 255'
    raise UserError(f'scores are of {expected}, but these are {examples.dtype}{where}: convert them first')
  if examples.shape[1:] != tuple(shape):
    raise UserError(f'scores are of examples of shape {tuple(shape)}, but these have {examples.shape[1:]}')


def check_finite(examples: np.ndarray):
  """Raises a `UserError` for samples, before they are rounded, that hold NaN or infinity."""
  bad = int(np.sum(~np.all(np.isfinite(examples.reshape(len(examples), -1)), axis=1)))
  if bad:
    raise UserError(
      f'{bad} of {len(examples)} samples hold NaN or infinity: the chains diverged; try another '
      f'checkpoint or a smaller --config.sampling.step_size'
    )
