"""Layers of the energy networks: convolution, normalisation, attention, dropout, the embedding of the level."""

from collections.abc import Callable
import math
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from diffusion_ebm import random_keys
from diffusion_ebm.networks.convolution import PREPARED, conv2d
from diffusion_ebm.noise_levels import between

# Not `nn.relu`: in programs that XLA gives to YNNPACK (for some sizes of batches on a CPU), max(NaN, 0) is 0.
ACTIVATIONS: dict[str, Callable] = {
  'lrelu': lambda x: nn.leaky_relu(x, 0.2),
  'swish': nn.swish,
  'relu': lambda x: jnp.where(x <= 0, 0, x),
}
NORMS = ('none', 'group')


def kernel_init(scale: float = 1.0):
  """Variance scaling, fan average, uniform; a scale of zero means nearly zero (variance 1e-10)."""
  return nn.initializers.variance_scaling(scale or 1e-10, 'fan_avg', 'uniform')


class Conv(nn.Module):
  """3x3 convolution with bias and, optionally, a learned scale of each channel after the bias.

  (B, H, W, C) to (B, H / stride, W / stride, features).
  """

  features: int
  stride: int = 1
  init_scale: float = 1.0
  use_scale: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x):
    kernel = self.param('kernel', kernel_init(self.init_scale), (3, 3, x.shape[-1], self.features))
    bias = self.param('bias', nn.initializers.zeros_init(), (self.features,))
    # Bias and scale are float32: whatever the dtype, their gradients are summed in float32.
    tiles = self.get_variable(PREPARED, 'tiles')
    x = conv2d(x.astype(self.dtype), kernel.astype(self.dtype), self.stride, tiles) + bias
    if self.use_scale:
      x = x * self.param('scale', nn.initializers.ones_init(), (self.features,))
    return x.astype(self.dtype)


def dense(features: int, name: str, init_scale: float = 1.0, dtype=jnp.float32, use_bias: bool = True) -> nn.Dense:
  """A linear map of the last axis with the network's initialisation."""
  return nn.Dense(features, use_bias, kernel_init=kernel_init(init_scale), dtype=dtype, name=name)


def norm(kind: str, x, name: str):
  """Normalises (B, H, W, C): `kind` is one of `NORMS`; the constants are the published ones.

  There are 32 groups, or as many as there are channels, or as many of 32 as can share the channels equally.
  """
  if kind == 'none':
    return x
  groups = min(32, x.shape[-1])
  if x.shape[-1] % groups:
    groups = math.gcd(32, x.shape[-1])
  return nn.GroupNorm(groups, epsilon=1e-6, dtype=x.dtype, name=name)(x)


class Attention(nn.Module):
  """Self-attention over the pixels with one head; its output starts at zero. (B, H, W, C) to the same."""

  norm: str = 'none'
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x):
    batch, height, width, channels = x.shape
    h = norm(self.norm, x, 'norm').reshape(batch, height * width, channels)
    q, k, v = (dense(channels, f'attn_{name}', dtype=self.dtype)(h) for name in 'qkv')
    logits = jnp.einsum('bic,bjc->bij', q, k) * channels**-0.5
    weights = nn.softmax(logits.astype(jnp.float32)).astype(self.dtype)
    h = jnp.einsum('bij,bjc->bic', weights, v)
    return x + dense(channels, 'attn_proj_out', 0.0, self.dtype)(h).reshape(x.shape)


def dropout(x, rate: float, keys):
  """Dropout whose mask depends on each example's own key alone.

  Args:
    x: (B, ...).
    rate: probability of a zero, in [0, 1).
    keys: one key for each example, (B,); None leaves `x` as it is.

  Returns:
    Like `x`.
  """
  if keys is None or rate == 0.0:
    return x
  keep = random_keys.draw(lambda key, shape: jax.random.bernoulli(key, 1 - rate, shape), keys, x.shape[1:])
  return jnp.where(keep, x / (1 - rate), 0)


def layer_keys(dropout_keys, layer: int):
  """The keys of one of several layers with dropout, from those of the examples, (B,) or None."""
  return None if dropout_keys is None else jax.vmap(lambda key: jax.random.fold_in(key, layer))(dropout_keys)


def sinusoidal_embedding(t, size: int):
  """Sines, then cosines, of the level at `size / 2` frequencies from 1 to 1e-4.

  Args:
    t: levels, (B,).
    size: length of the embedding, at least 4; an odd one ends with a zero.

  Returns:
    (B, size) float32.

  Source: Vaswani et al. 2017, section 3.5, in the variant of Ho et al. 2020.
  """
  half = size // 2
  frequencies = jnp.exp(-jnp.log(10000.0) * jnp.arange(half) / (half - 1))
  angles = t.astype(jnp.float32)[:, None] * frequencies
  embedding = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)
  return jnp.pad(embedding, ((0, 0), (0, size % 2)))


def embed_label(label, num_classes: int, h):
  """The embedding of the level `h`, (B, length), and a linear map of the class, a layer `label` of the caller.

  Args:
    label: classes, int (B,) in 0..num_classes, of which 0 is the empty one; None for the empty one everywhere.
    num_classes: n; with 0 there are no classes, and `h` is left as it is.
    h: what it is added to.

  Source: Zhu et al. 2024, their code.
  """
  if not num_classes:
    return h
  label = jnp.zeros(len(h), jnp.int32) if label is None else label
  return h + dense(h.shape[-1], 'label')(jax.nn.one_hot(label, num_classes + 1))


def embed_noise(coordinates: tuple[float, ...], t, size: int, width: int, label=None, num_classes: int = 0):
  """What a proposal knows of the noise of its input and of the class, (B, width).

  Its layers `dense_0`, `dense_1` and, with classes, `label` are the caller's.

  Args:
    coordinates: the number that is embedded for each level.
    t: levels, int (B,).
    size: of the sinusoidal embedding.
    width: of the layers.
    label: as of `embed_label`.
    num_classes: likewise.
  """
  h = sinusoidal_embedding(jnp.asarray(coordinates, jnp.float32)[t], size)
  h = dense(width, 'dense_1')(nn.silu(dense(width, 'dense_0')(h)))
  return nn.silu(embed_label(label, num_classes, h))


class LevelEmbedding(nn.Module):
  """What the network knows of the level: one vector for each layer that listens to it.

  Attributes:
    size: of the sinusoidal embedding; the hidden layers have four times as many units.
    outputs: name and length of each vector.
    act: name of the activation.
    coordinates: the number that is embedded for each level, straight lines between them; () for the level itself.
    activated: every vector but that of the head passes through the activation, and the head's has no bias.
    num_classes: classes that the network is told beside the level; 0 for none.
  """

  size: int
  outputs: tuple[tuple[str, int], ...]
  act: str = 'lrelu'
  coordinates: tuple[float, ...] = ()
  activated: bool = False
  num_classes: int = 0

  @nn.compact
  def __call__(self, t, label=None):
    """Levels, (B,), and classes, int (B,) with 0 for none, to a dictionary of float32 vectors (B, length)."""
    act = ACTIVATIONS[self.act]
    if self.coordinates:
      t = between(self.coordinates, t, t)
    h = dense(4 * self.size, 'dense_0')(sinusoidal_embedding(t, self.size))
    h = act(embed_label(label, self.num_classes, dense(4 * self.size, 'dense_1')(act(h))))
    if not self.activated:
      return {name: dense(length, name)(h) for name, length in self.outputs}
    return {
      name: dense(length, name, use_bias=False)(h) if name == 'head' else act(dense(length, name)(h))
      for name, length in self.outputs
    }
