"""U-Nets, from an image to one like it: where chains of images start, and an energy, `f = <y, s(y)> / 2`."""

import dataclasses
from typing import Any

from flax import linen as nn
import jax.numpy as jnp

from diffusion_ebm.networks import layers
from diffusion_ebm.networks.base import EnergyNetwork


@dataclasses.dataclass(frozen=True)
class UNetSettings:
  """What a U-Net is made of; `ProposalUNet` leaves `act`, `norm` and `remat` at CDRL's.

  Attributes:
    ch: width of the first resolution.
    ch_mult: width of each resolution, in units of `ch`; between resolutions the size is halved.
    num_res_blocks: residual blocks at each resolution on the way down; one more on the way up.
    attention_resolutions: image sizes at which self-attention follows each block; it stands in the middle anyway.
    dropout: rate inside the blocks.
    act: activation, 'swish', 'lrelu' or 'relu'.
    norm: 'group' or 'none'.
    remat: recompute each block's activations in the backward pass: less memory, more time.
    dtype: of the computation; parameters, level embedding and output are float32.
  """

  ch: int = 64
  ch_mult: tuple[int, ...] = (1, 1, 1)
  num_res_blocks: int = 3
  attention_resolutions: tuple[int, ...] = (16, 8)
  dropout: float = 0.1
  act: str = 'swish'
  norm: str = 'group'
  remat: bool = False
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
    s, act = self.settings, layers.ACTIVATIONS[self.settings.act]
    h = act(layers.norm(s.norm, x, 'norm_1'))
    if self.resample is not None:
      h, x = self.resample(h), self.resample(x)
    h = layers.Conv(self.features, dtype=s.dtype, name='conv_1')(h)
    modulation = layers.dense(2 * self.features, 'level', dtype=s.dtype)(level)[:, None, None]
    scale, shift = jnp.split(modulation, 2, axis=-1)
    h = layers.norm(s.norm, h, 'norm_2') * (1 + scale) + shift
    h = layers.dropout(act(h), s.dropout, dropout_keys)
    h = layers.Conv(self.features, init_scale=0.0, dtype=s.dtype, name='conv_2')(h)
    if x.shape[-1] != self.features:
      x = layers.dense(self.features, 'shortcut', dtype=s.dtype)(x)
    return x + h


def _body(s: UNetSettings, x, level, dropout_keys):
  """From images (B, H, W, C) and what is known of their levels, (B, length), to float32 ones; zero at the start.

  The layers are those of the module that calls it.
  """
  make_block, count = nn.remat(Block, static_argnums=()) if s.remat else Block, 0

  def block(h, features, name, resample=None):
    nonlocal count
    keys, count = layers.layer_keys(dropout_keys, count), count + 1
    return make_block(features, s, resample, name=name)(h, level, keys)

  def attend(h, name):
    return layers.Attention(s.norm, s.dtype, name=name)(h) if h.shape[1] in s.attention_resolutions else h

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
  h = layers.Attention(s.norm, s.dtype, name='mid_attention')(h)
  h = block(h, h.shape[-1], 'mid_block_1')

  for i, mult in reversed(list(enumerate(s.ch_mult))):
    for j in range(s.num_res_blocks + 1):
      h = jnp.concatenate([h, kept.pop()], axis=-1)
      h = attend(block(h, s.ch * mult, f'up_{i}_block_{j}'), f'up_{i}_attention_{j}')
    if i:
      h = block(h, s.ch * mult, f'up_{i}_resample', _upsample)

  h = layers.ACTIVATIONS[s.act](layers.norm(s.norm, h, 'norm_out'))
  return layers.Conv(x.shape[-1], init_scale=0.0, dtype=s.dtype, name='conv_out')(h).astype(jnp.float32)


class ProposalUNet(nn.Module):
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
    return x + _body(s, x, level, dropout_keys)


class _Body(nn.Module):
  settings: UNetSettings

  @nn.compact
  def __call__(self, x, level, dropout_keys):
    return _body(self.settings, x, level, dropout_keys)


class EnergyUNet(EnergyNetwork):
  """`f(y, t) = <y, s(y, t)> / 2` of images (B, H, W, C) with a U-Net s; `settings` is a `UNetSettings`.

  Its gradient is `(s + (ds / dy)^T y) / 2`: of a linear s that is symmetric, s itself.

  Source: Salimans and Ho 2021, Should EBMs model the energy or the score?, section 3.
  """

  def setup(self):
    s = self.settings
    self.embedding = layers.LevelEmbedding(s.ch, (('body', 4 * s.ch),), s.act, self.coordinates, True, self.num_classes)
    self.body = _Body(s)

  def learned(self, y, level, dropout_keys):
    return 0.5 * jnp.sum(y * self.body(y, level['body'], dropout_keys), (1, 2, 3))
