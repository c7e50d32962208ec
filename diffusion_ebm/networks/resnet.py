"""The residual energy network of the paper for images."""

import dataclasses
from typing import Any

from flax import linen as nn
import jax.numpy as jnp

from diffusion_ebm.networks import layers
from diffusion_ebm.networks.base import EnergyNetwork

SHORTCUTS = ('conv', 'nin')


@dataclasses.dataclass(frozen=True)
class ResNetSettings:
  """What a `ResNet` is made of.

  Attributes:
    ch: width of the first resolution.
    ch_mult: width of each resolution, in units of `ch`; between resolutions the size is halved.
    num_res_blocks: residual blocks at each resolution.
    act: activation, 'lrelu' (slope 0.2) or 'swish' (or 'relu').
    final_act: activation of the head, 'relu', 'swish' or 'lrelu'.
    norm: 'none' or 'group' (32 groups).
    dropout: rate inside the blocks.
    use_scale: learned scale of each channel after each block's second convolution.
    zero_init: each block's second convolution starts at zero.
    level_act: what a block hears of the level passes through the activation once more, and the head's map has no bias.
    shortcut: 'conv' (3x3) or 'nin' (1x1) where a block changes the width.
    resample_with_conv: strided 3x3 convolution in place of average pooling.
    attention_resolutions: image sizes at which self-attention follows each block.
    remat: recompute each block's activations in the backward pass: less memory, more time.
    dtype: of the computation inside the body; parameters, level embedding and head are float32.
  """

  ch: int = 128
  ch_mult: tuple[int, ...] = (1, 2, 2, 2)
  num_res_blocks: int = 2
  act: str = 'lrelu'
  final_act: str = 'relu'
  norm: str = 'none'
  dropout: float = 0.0
  use_scale: bool = True
  zero_init: bool = True
  level_act: bool = False
  shortcut: str = 'conv'
  resample_with_conv: bool = False
  attention_resolutions: tuple[int, ...] = ()
  remat: bool = False
  dtype: Any = jnp.float32


class Block(nn.Module):
  """Residual block: norm, act, conv, + level, norm, act, dropout, conv that may start at zero."""

  features: int
  attention: bool
  settings: ResNetSettings

  @nn.compact
  def __call__(self, x, level, dropout_keys):
    s, act = self.settings, layers.ACTIVATIONS[self.settings.act]
    h = act(layers.norm(s.norm, x, 'norm_1'))
    h = layers.Conv(self.features, dtype=s.dtype, name='conv_1')(h)
    h = (h + level[:, None, None, :]).astype(s.dtype)
    h = act(layers.norm(s.norm, h, 'norm_2'))
    h = layers.dropout(h, s.dropout, dropout_keys)
    scale = 0.0 if s.zero_init else 1.0
    h = layers.Conv(self.features, init_scale=scale, use_scale=s.use_scale, dtype=s.dtype, name='conv_2')(h)
    if x.shape[-1] != self.features:
      if s.shortcut == 'conv':
        x = layers.Conv(self.features, dtype=s.dtype, name='shortcut')(x)
      else:
        x = layers.dense(self.features, 'shortcut', dtype=s.dtype)(x)
    x = x + h
    return layers.Attention(s.norm, s.dtype, name='attention')(x) if self.attention else x


class Body(nn.Module):
  """Everything that depends on the image."""

  settings: ResNetSettings

  @nn.compact
  def __call__(self, y, level, dropout_keys):
    s = self.settings
    block = nn.remat(Block) if s.remat else Block
    h = layers.Conv(s.ch, dtype=s.dtype, name='conv_in')(y)
    for i, mult in enumerate(s.ch_mult):
      for j in range(s.num_res_blocks):
        name = block_name(i, j)
        keys = layers.layer_keys(dropout_keys, i * s.num_res_blocks + j)
        h = block(s.ch * mult, h.shape[1] in s.attention_resolutions, s, name=name)(h, level[name], keys)
      if i < len(s.ch_mult) - 1:
        if s.resample_with_conv:
          h = layers.Conv(h.shape[-1], stride=2, dtype=s.dtype, name=f'level_{i}_downsample')(h)
        else:
          h = nn.avg_pool(h, (2, 2), (2, 2))
    h = layers.ACTIVATIONS[s.final_act](h).astype(jnp.float32)
    return jnp.sum(jnp.sum(h, (1, 2)) * level['head'], axis=1)


def block_name(resolution: int, block: int) -> str:
  return f'level_{resolution}_block_{block}'


class ResNet(EnergyNetwork):
  """The residual network of images (B, H, W, C); `settings` is a `ResNetSettings`.

  Source: Gao et al. 2021, appendix (network structure), and the published implementation.
  """

  def setup(self):
    s = self.settings
    blocks = tuple((block_name(i, j), s.ch * mult) for i, mult in enumerate(s.ch_mult) for j in range(s.num_res_blocks))
    outputs = (*blocks, ('head', s.ch * s.ch_mult[-1]))
    self.embedding = layers.LevelEmbedding(s.ch, outputs, s.act, self.coordinates, s.level_act, self.num_classes)
    self.body = Body(s)

  def learned(self, y, level, dropout_keys):
    return self.body(y, level, dropout_keys)
