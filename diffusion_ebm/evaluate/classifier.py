"""A small convolutional classifier, whose features stand in for Inception's where images are small and grey."""

from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffusion_ebm.run.errors import UserError
from diffusion_ebm.run.progress import Progress

NUM_FEATURES = 128
# Changes of anything below change every score: they belong to the name of the cached weights.
VERSION = 1
_SEED, _BATCH, _STEPS, _LEARNING_RATE, _DROPOUT = 0, 128, 2000, 2e-3, 0.3
_SCALE_EXAMPLES = 1000


class Classifier(nn.Module):
  """Two convolutions at each resolution down to 4 x 4, then a layer of features.

  Attributes:
    num_classes: C.
  """

  num_classes: int

  @nn.compact
  def __call__(self, images, dropout: bool = False):
    """Evaluates the network.

    Args:
      images: uint8 (B, H, W, channels).
      dropout: whether to train with dropout.

    Returns:
      `(features, logits)`: (B, 128) and (B, C), float32.
    """
    x = images.astype(jnp.float32) / 127.5 - 1
    width = 32
    while True:
      x = nn.relu(nn.Conv(width, (3, 3))(x))
      x = nn.relu(nn.Conv(width, (3, 3))(x))
      if min(x.shape[1:3]) < 8:
        break
      x, width = nn.max_pool(x, (2, 2), (2, 2)), 2 * width
    features = nn.relu(nn.Dense(NUM_FEATURES)(x.reshape(len(x), -1)))
    return features, nn.Dense(self.num_classes)(nn.Dropout(_DROPOUT, deterministic=not dropout)(features))


@jax.default_matmul_precision('highest')
def train(source, test_source):
  """Trains the classifier of a data set; the same data give the same classifier.

  Args:
    source: the training split, with labels.
    test_source: the test split, with labels, or None.

  Returns:
    `(params, num_classes, scale, accuracy)`: the scale is the root mean square of the features of training examples,
    the accuracy that on the test split, None without one.

  Raises:
    UserError: the data have no labels.
  """
  if source.labels is None:
    raise UserError(
      'the classifier needs labels, and these data have none: set --config.eval.extractor=inception or pixels'
    )
  num_classes = int(np.max(source.labels)) + 1
  network = Classifier(num_classes)
  optimizer = optax.adam(optax.cosine_decay_schedule(_LEARNING_RATE, _STEPS))

  @jax.jit
  def step(params, opt_state, images, labels, key):
    def loss(params):
      _, logits = network.apply({'params': params}, images, True, rngs={'dropout': key})
      return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state)
    return optax.apply_updates(params, updates), opt_state

  key = jax.random.key(_SEED)
  params = jax.jit(network.init)(key, jnp.zeros((1, *source.shape), jnp.uint8))['params']
  opt_state = optimizer.init(params)
  rng = np.random.default_rng(_SEED)
  progress = Progress('training the classifier', _STEPS)
  for number in range(_STEPS):
    index = rng.integers(len(source), size=_BATCH)
    params, opt_state = step(
      params, opt_state, source.read(index), source.labels[index], jax.random.fold_in(key, number)
    )
    progress.update(1)
    progress.line(always=False)
  progress.close()
  accuracy = None
  if test_source is not None and test_source.labels is not None:
    accuracy = _accuracy(network, params, test_source)
  few = source.read(np.arange(min(len(source), _SCALE_EXAMPLES)))
  features, _ = network.apply({'params': params}, few)
  return jax.device_get(params), num_classes, float(jnp.sqrt(jnp.mean(features**2))), accuracy


def _accuracy(network, params, source):
  logits = jax.jit(lambda images: network.apply({'params': params}, images)[1])
  right = 0
  for first in range(0, len(source), 1000):
    index = np.arange(first, min(first + 1000, len(source)))
    right += int(np.sum(np.argmax(logits(source.read(index)), 1) == source.labels[index]))
  return right / len(source)


def to_arrays(params) -> dict[str, np.ndarray]:
  """The parameters as a flat dictionary, for a file."""
  return traverse_util.flatten_dict(params, sep='/')


def from_arrays(arrays):
  """The parameters from what `to_arrays` gave."""
  return traverse_util.unflatten_dict(dict(arrays), sep='/')
