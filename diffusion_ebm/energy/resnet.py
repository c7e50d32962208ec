"""The residual energy network of the paper for images."""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from diffusion_ebm.energy import layers
from diffusion_ebm.energy.normal_factor import NormalFactor


class Block(nn.Module):
  """Residual block: norm, act, conv, + level, norm, act, dropout, conv that starts at zero."""
  features: int
  act: str
  norm: str
  dropout: float
  use_scale: bool
  shortcut: str
  attention: bool
  axis_name: str | None
  dtype: Any

  @nn.compact
  def __call__(self, x, level, dropout_keys):
    act = layers.ACTIVATIONS[self.act]
    h = act(layers.norm(self.norm, x, 'norm_1', self.axis_name))
    h = layers.Conv(self.features, dtype=self.dtype, name='conv_1')(h)
    h = (h + level[:, None, None, :]).astype(self.dtype)
    h = act(layers.norm(self.norm, h, 'norm_2', self.axis_name))
    h = layers.dropout(h, self.dropout, dropout_keys)
    h = layers.Conv(self.features, init_scale=0.0, use_scale=self.use_scale, dtype=self.dtype, name='conv_2')(h)
    if x.shape[-1] != self.features:
      if self.shortcut == 'conv':
        x = layers.Conv(self.features, dtype=self.dtype, name='shortcut')(x)
      else:
        x = layers.dense(self.features, 'shortcut', dtype=self.dtype)(x)
    x = x + h
    if self.attention:
      x = layers.Attention(self.norm, self.axis_name, self.dtype, name='attention')(x)
    return x


class Body(nn.Module):
  """Everything that depends on the image. The fields are those of `ResNet`."""
  ch: int
  ch_mult: tuple[int, ...]
  num_res_blocks: int
  act: str
  final_act: str
  norm: str
  dropout: float
  use_scale: bool
  shortcut: str
  resample_with_conv: bool
  attention_resolutions: tuple[int, ...]
  remat: bool
  axis_name: str | None
  dtype: Any

  @nn.compact
  def __call__(self, y, level, dropout_keys):
    block = nn.remat(Block) if self.remat else Block
    h = layers.Conv(self.ch, dtype=self.dtype, name='conv_in')(y)
    for i, mult in enumerate(self.ch_mult):
      for j in range(self.num_res_blocks):
        name = block_name(i, j)
        keys = None if dropout_keys is None else jax.vmap(
            lambda key, n=i * self.num_res_blocks + j: jax.random.fold_in(key, n))(dropout_keys)
        h = block(
            self.ch * mult, self.act, self.norm, self.dropout, self.use_scale, self.shortcut,
            h.shape[1] in self.attention_resolutions, self.axis_name, self.dtype, name=name,
        )(h, level[name], keys)
      if i < len(self.ch_mult) - 1:
        if self.resample_with_conv:
          h = layers.Conv(h.shape[-1], stride=2, dtype=self.dtype, name=f'level_{i}_downsample')(h)
        else:
          h = nn.avg_pool(h, (2, 2), (2, 2))
    h = layers.ACTIVATIONS[self.final_act](h).astype(jnp.float32)
    return jnp.sum(jnp.sum(h, (1, 2)) * level['head'], axis=1)


def block_name(resolution: int, block: int) -> str:
  return f'level_{resolution}_block_{block}'


class ResNet(nn.Module):
  """The negative energy f(y, t) of images, up to the level's temperature; higher is more likely.

  Source: Gao et al. 2021, appendix (network structure), and the published implementation.

  Attributes:
    ch: width of the first resolution.
    ch_mult: width of each resolution, in units of `ch`; between resolutions the size is halved.
    num_res_blocks: residual blocks at each resolution.
    act: activation, 'lrelu' (slope 0.2) or 'swish' (or 'relu').
    final_act: activation of the head, 'relu', 'swish' or 'lrelu'.
    norm: 'none', 'batch', 'group' (32 groups) or 'instance'.
    dropout: rate inside the blocks.
    use_scale: learned scale of each channel after each block's second convolution.
    shortcut: 'conv' (3x3) or 'nin' (1x1) where a block changes the width.
    resample_with_conv: strided 3x3 convolution in place of average pooling.
    attention_resolutions: image sizes at which self-attention follows each block.
    remat: recompute each block's activations in the backward pass: less memory, more time.
    quadratic: q, of the term `-q |y|^2 / 2` of f.
    coordinates: of the levels, what is embedded; () for the levels themselves.
    normal_factor: another term of f, if not None.
    axis_name: of the devices, for batch normalisation across them.
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
  shortcut: str = 'conv'
  resample_with_conv: bool = False
  attention_resolutions: tuple[int, ...] = ()
  remat: bool = False
  quadratic: float = 0.0
  coordinates: tuple[float, ...] = ()
  normal_factor: NormalFactor | None = None
  axis_name: str | None = None
  dtype: Any = jnp.float32

  def setup(self):
    blocks = tuple(
        (block_name(i, j), self.ch * mult)
        for i, mult in enumerate(self.ch_mult) for j in range(self.num_res_blocks))
    self.embedding = layers.LevelEmbedding(
        self.ch, (*blocks, ('head', self.ch * self.ch_mult[-1])), self.act, self.coordinates)
    self.body = Body(
        self.ch, self.ch_mult, self.num_res_blocks, self.act, self.final_act, self.norm, self.dropout,
        self.use_scale, self.shortcut, self.resample_with_conv, self.attention_resolutions, self.remat,
        self.axis_name, self.dtype)

  def embed(self, t):
    """Everything that depends on the level alone; `t` is (B,)."""
    level = self.embedding(t)
    return level if self.normal_factor is None else level | {'t': t}

  def f(self, y, level, dropout_keys=None):
    """f of images `y` (B, H, W, C), given `level = embed(t)`: float32 (B,)."""
    f = layers.add_quadratic(self.body(y, level, dropout_keys), y, self.quadratic)
    return f if self.normal_factor is None else f + self.normal_factor(y, level['t'])

  def __call__(self, y, t, dropout_keys=None):
    """f(y, t) of images (B, H, W, C) at levels (B,): float32 (B,)."""
    return self.f(y, self.embed(t), dropout_keys)
