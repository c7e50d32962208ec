"""The U-Net that proposes where chains of images start: from the noisier image to a cleaner one, given the level."""

import dataclasses
from typing import Any

from flax import linen as nn
import jax.numpy as jnp

from diffusion_ebm.networks import layers

_NORM = 'group'


@dataclasses.dataclass(frozen=True)
class UNetSettings:
  """What a `UNet` is made of.

  Attributes:
    ch: width of the first resolution.
    ch_mult: width of each resolution, in units of `ch`; between resolutions the size is halved.
    num_res_blocks: residual blocks at each resolution on the way down; one more on the way up.
    attention_resolutions: image sizes at which self-attention follows each block; it stands in the middle anyway.
    dropout: rate inside the blocks.
    dtype: of the computation; parameters, level embedding and output are float32.
  """

  ch: int = 64
  ch_mult: tuple[int, ...] = (1, 1, 1)
  num_res_blocks: int = 3
  attention_resolutions: tuple[int, ...] = (16, 8)
  dropout: float = 0.1
  dtype: Any = jnp.float32


def _upsample(x):
  return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


def _downsample(x):
  return nn.avg_pool(x, (2, 2), (2, 2))


class Block(nn.Module):
  """Residual block: norm, act, (resampling,) conv, norm, scaled and shifted by the level, act, dropout, conv."""

  features: int
  settings: UNetSettings
  resample: Any = None

  @nn.compact
  def __call__(self, x, level, dropout_keys):
    s = self.settings
    h = nn.silu(layers.norm(_NORM, x, 'norm_1'))
    if self.resample is not None:
      h, x = self.resample(h), self.resample(x)
    h = layers.Conv(self.features, dtype=s.dtype, name='conv_1')(h)
    modulation = layers.dense(2 * self.features, 'level', dtype=s.dtype)(level)[:, None, None]
    scale, shift = jnp.split(modulation, 2, axis=-1)
    h = layers.norm(_NORM, h, 'norm_2') * (1 + scale) + shift
    h = layers.dropout(nn.silu(h), s.dropout, dropout_keys)
    h = layers.Conv(self.features, init_scale=0.0, dtype=s.dtype, name='conv_2')(h)
    if x.shape[-1] != self.features:
      x = layers.dense(self.features, 'shortcut', dtype=s.dtype)(x)
    return x + h


class UNet(nn.Module):
  """The mean of `y_t` given `x_{t+1}`: the image itself and a learned difference.

  Attributes:
    settings: what it is made of.
    coordinates: the number that is embedded for the noise of `x_{t+1}`, for each t, (T,).
    num_classes: classes that it is told; 0 for none.

  Source: Zhu et al. 2024, appendix (initialiser networks); Ho et al. 2020, appendix B; scale and shift, and resampling
  inside of blocks, as in Dhariwal and Nichol 2021.
  """

  settings: UNetSettings
  coordinates: tuple[float, ...]
  num_classes: int = 0

  @nn.compact
  def __call__(self, x, t, dropout_keys=None, label=None):
    """Images (B, H, W, C) at levels and of classes (B,), with a key for each where dropout is on; like `x`."""
    s = self.settings
    level = layers.embed_noise(self.coordinates, t, s.ch, 4 * s.ch, label, self.num_classes)
    count = 0

    def block(h, features, name, resample=None):
      nonlocal count
      keys, count = layers.layer_keys(dropout_keys, count), count + 1
      return Block(features, s, resample, name=name)(h, level, keys)

    def attend(h, name):
      return layers.Attention(_NORM, s.dtype, name=name)(h) if h.shape[1] in s.attention_resolutions else h

    h = layers.Conv(s.ch, dtype=s.dtype, name='conv_in')(x)
    kept, last = [h], len(s.ch_mult) - 1
    for i, mult in enumerate(s.ch_mult):
      for j in range(s.num_res_blocks):
        h = attend(block(h, s.ch * mult, f'down_{i}_block_{j}'), f'down_{i}_attention_{j}')
        kept.append(h)
      if i < last:
        h = block(h, s.ch * mult, f'down_{i}_resample', _downsample)
        kept.append(h)

    h = block(h, h.shape[-1], 'mid_block_0')
    h = layers.Attention(_NORM, s.dtype, name='mid_attention')(h)
    h = block(h, h.shape[-1], 'mid_block_1')

    for i, mult in reversed(list(enumerate(s.ch_mult))):
      for j in range(s.num_res_blocks + 1):
        h = jnp.concatenate([h, kept.pop()], axis=-1)
        h = attend(block(h, s.ch * mult, f'up_{i}_block_{j}'), f'up_{i}_attention_{j}')
      if i:
        h = block(h, s.ch * mult, f'up_{i}_resample', _upsample)

    h = nn.silu(layers.norm(_NORM, h, 'norm_out'))
    return x + layers.Conv(x.shape[-1], init_scale=0.0, dtype=s.dtype, name='conv_out')(h).astype(jnp.float32)
