"""Feature extractors behind one interface, and how they run on all devices."""

from collections.abc import Callable
import dataclasses
import os
from typing import Any

import jax.numpy as jnp
import numpy as np

from diffusion_ebm import npz, parallel
from diffusion_ebm.errors import UserError
from diffusion_ebm.evaluate import classifier, inception, inception_weights

CLASSIFIER_VERSION = classifier.VERSION


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
    UserError: there are none.
  """
  path = inception_weights.find(path)
  digest = inception_weights.sha256(path)
  notes = {} if digest == inception_weights.SHA256 else {'inception_weights': f'not the published ones: {digest[:8]}'}

  def apply(params, batch):
    batch = jnp.broadcast_to(batch, (*batch.shape[:3], 3))
    outputs = inception.Inception().apply({'params': params}, batch)
    return outputs['2048'], outputs['logits']

  params = inception_weights.load(path)
  return Extractor('inception', f'inception {digest}', inception.NUM_FEATURES, apply, params, notes)


def small_classifier(source, test_source, path: str) -> Extractor:
  """The classifier of a labelled data set, trained on the first call.

  Args:
    source: the training split.
    test_source: the test split, or None.
    path: the file that keeps the trained weights.

  Raises:
    UserError: the data have no labels.
  """
  kept = _load(path)
  if kept is None:
    params, num_classes, scale, accuracy = classifier.train(source, test_source)
    kept = {'num_classes': np.asarray(num_classes), 'scale': np.asarray(scale),
            'accuracy': np.asarray(np.nan if accuracy is None else accuracy)}
    kept |= {f'params/{name}': value for name, value in classifier.to_arrays(params).items()}
    with open(f'{path}.{os.getpid()}.tmp', 'wb') as file:
      np.savez(file, **kept)
    os.replace(f'{path}.{os.getpid()}.tmp', path)
  params = classifier.from_arrays(
      {name.removeprefix('params/'): value for name, value in kept.items() if name.startswith('params/')})
  network, scale = classifier.Classifier(int(kept['num_classes'])), float(kept['scale'])

  def apply(params, batch):
    features, logits = network.apply({'params': params}, batch)
    return features / scale, logits

  accuracy = float(kept['accuracy'])
  return Extractor('classifier', f'classifier {os.path.basename(path)}', classifier.NUM_FEATURES, apply, params,
                   {'classifier_accuracy': None if np.isnan(accuracy) else accuracy})


def _load(path):
  try:
    return npz.read(path)
  except (OSError, ValueError):
    return None


def compile_extractor(extractor: Extractor, shape, vector: bool, batch_size: int):
  """Compiles an extractor for all devices.

  Args:
    extractor: the extractor.
    shape: of one example.
    vector: whether the examples are float32 vectors, not uint8 images.
    batch_size: examples at once; rounded up to a multiple of the devices.

  Returns:
    A function from examples, uint8 (N, H, W, C) or float32 (N, D), to `(features, logits)` as float32 NumPy arrays,
    logits None where there are no classes. It raises a `UserError` for examples of another type or shape, and for
    values that are not finite.
  """
  batch_size = parallel.up_to_devices(batch_size)
  dtype = np.dtype(np.float32 if vector else np.uint8)
  params = parallel.replicate(extractor.params)
  blank = np.zeros((batch_size, *shape), dtype)
  compiled = parallel.compile_for(extractor.apply, params, parallel.split(blank), replicated=(0,), out_axes=0)

  def extract(examples):
    check_examples(examples, shape, vector)
    parts = []
    for first in range(0, len(examples), batch_size):
      part = examples[first:first + batch_size]
      padded = np.concatenate([part, blank[len(part):]])
      outputs = compiled(params, parallel.split(padded))
      parts.append([np.asarray(a).reshape(batch_size, -1)[:len(part)] for a in outputs])
    arrays = [np.concatenate(each) for each in zip(*parts, strict=True)]
    return arrays[0], arrays[1] if len(arrays) > 1 else None

  return extract


def check_examples(examples: np.ndarray, shape, vector: bool):
  """Raises a `UserError` for examples that no score would fit: another range, type or shape, or not finite."""
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
    raise UserError(f'{bad} of {len(examples)} samples hold NaN or infinity: the chains diverged; try another '
                    f'checkpoint or a smaller --config.sampling.step_size')
