"""How well a model that is told classes tells them apart, beside classifiers that do nothing else."""

import contextlib
import logging

import jax.numpy as jnp
import numpy as np

from diffusion_ebm import class_probabilities, preprocessing, sampling
from diffusion_ebm.run import parallel
from diffusion_ebm.run.progress import Progress

_log = logging.getLogger(__name__)

MAX_EXAMPLES = 5000  # of each split


def measure(ebm, train, test, num_classes: int, batch_size: int) -> dict:
  """Calibrates the class probabilities at each level on training data, and measures them on test data.

  Args:
    ebm: the model, with the empty class, on all devices.
    train: the training split, a source with labels.
    test: the test split, likewise.
    num_classes: C.
    batch_size: examples at once.

  Returns:
    `levels`: of each level its `level`, `scale`, `bias` (C,), and on the test split `accuracy`, a share, and
    `log_loss`, in nats; `level`: the one with the least log loss on the training split; `num_train`, `num_test`;
    `logistic_regression`: the accuracy of one on the pixels.
  """
  levels = sampling.shown_levels(ebm.levels.num_models)[:-1]

  def of_examples(ebm, x):
    return class_probabilities.log_densities(ebm, x, jnp.asarray(levels), num_classes)

  log_densities = parallel.map_examples(of_examples, batch_size)
  (x, labels), (x_test, labels_test) = (_some(source) for source in (train, test))
  with contextlib.closing(Progress('class probabilities', len(x) + len(x_test), unit='image')) as progress:
    values, values_test = (log_densities(ebm, each, progress=progress) for each in (x, x_test))
  found, losses = [], []
  for i, level in enumerate(levels):
    scale, bias = class_probabilities.fit(values[:, i], labels)
    logits, logits_test = (scale * each[:, i].astype(np.float64) + bias for each in (values, values_test))
    losses.append(class_probabilities.mean_log_loss(logits, labels))
    accuracy = float(np.mean(np.argmax(logits_test, axis=1) == labels_test))
    log_loss = class_probabilities.mean_log_loss(logits_test, labels_test)
    found.append({'level': level, 'scale': scale, 'bias': bias.tolist(), 'accuracy': accuracy, 'log_loss': log_loss})
  best = found[int(np.argmin(losses))]
  _log.info('classes told apart from energies: %.4g of the test split at level %d', best['accuracy'], best['level'])
  counts = {'num_train': len(x), 'num_test': len(x_test)}
  regression = _logistic_regression(x, labels, x_test, labels_test)
  return {'level': best['level'], 'levels': found, 'logistic_regression': regression, **counts}


def _some(source):
  """At most `MAX_EXAMPLES` examples, float32 in [-1, 1], and their labels."""
  index = np.sort(np.random.default_rng(0).permutation(len(source))[:MAX_EXAMPLES])
  return np.asarray(preprocessing.to_unit_range(source.read(index))), source.labels[index]


def _logistic_regression(x, labels, x_test, labels_test) -> float:
  from sklearn import linear_model

  model = linear_model.LogisticRegression(max_iter=1000).fit(x.reshape(len(x), -1), labels)
  return float(model.score(x_test.reshape(len(x_test), -1), labels_test))
