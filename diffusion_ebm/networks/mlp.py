"""Multilayer perceptrons of vectors and of small images, pixel by pixel: the energy, and where chains start."""

import dataclasses
from typing import Any

from flax import linen as nn
import jax.numpy as jnp

from diffusion_ebm.networks import layers
from diffusion_ebm.networks.base import EnergyNetwork


@dataclasses.dataclass(frozen=True)
class MLPSettings:
  """What an `MLP` is made of.

  Attributes:
    ch: width of the hidden layers, and size of the level's embedding (at most 128).
    num_layers: hidden layers.
    num_frequencies: waves `sin` and `cos` of `2^k pi y / 4`, k = 0 .. num_frequencies - 1, beside each coordinate;
      the slowest does not repeat within [-4, 4], where diffused data lie.
    act: activation, 'swish', 'lrelu' or 'relu'.
    dropout: rate after each hidden activation.
    output_scale: factor of the output: about s_t^2, so that what is learned is of the order of nats.
    dtype: of the hidden layers; parameters, level embedding and head are float32.
  """

  ch: int = 128
  num_layers: int = 3
  num_frequencies: int = 0
  act: str = 'swish'
  dropout: float = 0.0
  output_scale: float = 1.0
  dtype: Any = jnp.float32


def _waves(y, num_frequencies):
  """`y` (B, D), and sines and cosines of `2^k pi y / 4` of each coordinate."""
  angles = (jnp.pi / 4 * 2.0 ** jnp.arange(num_frequencies) * y[..., None]).reshape(len(y), -1)
  return jnp.concatenate([y, jnp.sin(angles), jnp.cos(angles)], axis=1)


class Trunk(nn.Module):
  """Everything that depends on the vector or image."""

  settings: MLPSettings

  @nn.compact
  def __call__(self, y, level, dropout_keys):
    s, act = self.settings, layers.ACTIVATIONS[self.settings.act]
    y = y.reshape(len(y), -1)
    # Waves of the coordinates resolve detail that a plain network learns slowly (Tancik et al. 2020).
    h = _waves(y, s.num_frequencies).astype(s.dtype)
    h = layers.dense(s.ch, 'dense_in', dtype=s.dtype)(h)
    for i in range(s.num_layers):
      h = act((h + level[f'layer_{i}']).astype(s.dtype))
      h = layers.dropout(h, s.dropout, layers.layer_keys(dropout_keys, i))
      h = layers.dense(s.ch, f'dense_{i}', dtype=s.dtype)(h)
    return s.output_scale * jnp.sum(act(h).astype(jnp.float32) * level['head'], axis=1)


class MLP(EnergyNetwork):
  """A multilayer perceptron of vectors or small images; `settings` is an `MLPSettings`."""

  def setup(self):
    s = self.settings
    hidden = tuple((f'layer_{i}', s.ch) for i in range(s.num_layers))
    self.embedding = layers.LevelEmbedding(
      min(s.ch, 128), (*hidden, ('head', s.ch)), s.act, self.coordinates, num_classes=self.num_classes
    )
    self.trunk = Trunk(s)

  def learned(self, y, level, dropout_keys):
    return self.trunk(y, level, dropout_keys)


@dataclasses.dataclass(frozen=True)
class ProposalMLPSettings:
  """What a `ProposalMLP` is made of.

  Attributes:
    ch: width, and size of the level's embedding.
    num_layers: residual blocks.
    num_frequencies: as of `MLPSettings`.
    dropout: rate inside the blocks.
    dtype: of the computation; parameters, level embedding and output are float32.
  """

  ch: int = 64
  num_layers: int = 1
  num_frequencies: int = 0
  dropout: float = 0.1
  dtype: Any = jnp.float32


class ProposalMLP(nn.Module):
  """The mean of `y_t` given `x_{t+1}`: `x_{t+1}` itself and a learned difference; the counterpart of `ProposalUNet`.

  Attributes:
    settings: what it is made of.
    coordinates: the number that is embedded for the noise of `x_{t+1}`, for each t, (T,).
    num_classes: classes that it is told; 0 for none.

  Source: Zhu et al. 2024, the toy of their code: a residual network.
  """

  settings: ProposalMLPSettings
  coordinates: tuple[float, ...]
  num_classes: int = 0

  @nn.compact
  def __call__(self, x, t, dropout_keys=None, label=None):
    """Like `x`, (B, ...) at levels and of classes (B,), with a key for each where they are trained with dropout."""
    s, flat = self.settings, x.reshape(len(x), -1)
    level = layers.embed_noise(self.coordinates, t, s.ch, s.ch, label, self.num_classes)
    h = layers.dense(s.ch, 'dense_in', dtype=s.dtype)(_waves(flat, s.num_frequencies).astype(s.dtype))
    for i in range(s.num_layers):
      scale, shift = jnp.split(layers.dense(2 * s.ch, f'level_{i}', dtype=s.dtype)(level), 2, axis=1)
      middle = layers.dense(s.ch, f'block_{i}_0', dtype=s.dtype)(nn.silu(h)) * (1 + scale) + shift
      middle = layers.dropout(nn.silu(middle), s.dropout, layers.layer_keys(dropout_keys, i))
      h = h + layers.dense(s.ch, f'block_{i}_1', 0.0, s.dtype)(middle)
    difference = layers.dense(flat.shape[1], 'dense_out', 0.0, s.dtype)(nn.silu(h)).astype(jnp.float32)
    return x + difference.reshape(x.shape)
