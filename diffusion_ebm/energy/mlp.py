"""An energy network for vectors and for small images, pixel by pixel."""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from diffusion_ebm.energy import layers
from diffusion_ebm.energy.normal_factor import NormalFactor


class Trunk(nn.Module):
  """Everything that depends on the vector or image. The fields are those of `MLP`."""
  ch: int
  num_layers: int
  num_frequencies: int
  act: str
  dropout: float
  output_scale: float
  dtype: Any

  @nn.compact
  def __call__(self, y, level, dropout_keys):
    act = layers.ACTIVATIONS[self.act]
    y = y.reshape(len(y), -1)
    # Waves of the coordinates resolve detail that a plain network learns slowly (Tancik et al. 2020).
    angles = (jnp.pi / 4 * 2.0 ** jnp.arange(self.num_frequencies) * y[..., None]).reshape(len(y), -1)
    h = jnp.concatenate([y, jnp.sin(angles), jnp.cos(angles)], axis=1).astype(self.dtype)
    h = layers.dense(self.ch, 'dense_in', dtype=self.dtype)(h)
    for i in range(self.num_layers):
      h = act((h + level[f'layer_{i}']).astype(self.dtype))
      keys = None if dropout_keys is None else jax.vmap(lambda key, n=i: jax.random.fold_in(key, n))(dropout_keys)
      h = layers.dropout(h, self.dropout, keys)
      h = layers.dense(self.ch, f'dense_{i}', dtype=self.dtype)(h)
    return self.output_scale * jnp.sum(act(h).astype(jnp.float32) * level['head'], axis=1)


class MLP(nn.Module):
  """The negative energy f(y, t) of vectors or small images, up to the level's temperature; higher is more likely.

  Attributes:
    ch: width of the hidden layers, and size of the level's embedding (at most 128).
    num_layers: hidden layers.
    num_frequencies: waves `sin` and `cos` of `2^k pi y / 4`, k = 0 .. num_frequencies - 1, beside each coordinate;
      the slowest does not repeat within [-4, 4], where diffused data lie.
    act: activation, 'swish', 'lrelu' or 'relu'.
    dropout: rate after each hidden activation.
    output_scale: factor of the output: about s_t^2, so that what is learned is of the order of nats.
    quadratic: q, of the term `-q |y|^2 / 2` of f.
    coordinates: of the levels, what is embedded; () for the levels themselves.
    normal_factor: another term of f, if not None.
    dtype: of the hidden layers; parameters, level embedding and head are float32.
  """
  ch: int = 128
  num_layers: int = 3
  num_frequencies: int = 0
  act: str = 'swish'
  dropout: float = 0.0
  output_scale: float = 1.0
  quadratic: float = 0.0
  coordinates: tuple[float, ...] = ()
  normal_factor: NormalFactor | None = None
  dtype: Any = jnp.float32

  def setup(self):
    hidden = tuple((f'layer_{i}', self.ch) for i in range(self.num_layers))
    self.embedding = layers.LevelEmbedding(min(self.ch, 128), (*hidden, ('head', self.ch)), self.act, self.coordinates)
    self.trunk = Trunk(
        self.ch, self.num_layers, self.num_frequencies, self.act, self.dropout, self.output_scale, self.dtype)

  def embed(self, t):
    """Everything that depends on the level alone; `t` is (B,)."""
    level = self.embedding(t)
    return level if self.normal_factor is None else level | {'t': t}

  def f(self, y, level, dropout_keys=None):
    """f of `y`, vectors (B, D) or images (B, H, W, C), given `level = embed(t)`: float32 (B,)."""
    f = layers.add_quadratic(self.trunk(y, level, dropout_keys), y, self.quadratic)
    return f if self.normal_factor is None else f + self.normal_factor(y, level['t'])

  def __call__(self, y, t, dropout_keys=None):
    """f(y, t) of `y` (B, ...) at levels (B,): float32 (B,)."""
    return self.f(y, self.embed(t), dropout_keys)
