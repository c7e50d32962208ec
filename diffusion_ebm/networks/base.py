"""What all energy networks share: the embedding of the level apart from the rest, and closed terms of f."""

from typing import Any

from flax import linen as nn
import jax.numpy as jnp

from diffusion_ebm.networks.normal_factor import NormalFactor


class EnergyNetwork(nn.Module):
  """The negative energy f(y, t), up to the level's temperature; higher is more likely.

  A subclass makes `embedding`, a module of the levels, and defines `learned`, in its `setup`.

  Attributes:
    settings: of the subclass.
    quadratic: q >= 0, of the term `-q |y|^2 / 2`: with q > 0 the density is normalisable whatever a network of linear
      growth has learned.
    coordinates: the number that is embedded for each level, straight lines between them; () for the level itself.
    normal_factor: another term of f, if not None.
    num_classes: classes that the network is told; 0 for none.
  """

  settings: Any
  quadratic: float = 0.0
  coordinates: tuple[float, ...] = ()
  normal_factor: NormalFactor | None = None
  num_classes: int = 0

  def embed(self, t, label=None):
    """Everything that depends on the level, (B,), and the class, int (B,), alone; None for the empty class."""
    level = self.embedding(t, label)
    return level if self.normal_factor is None else level | {'t': t}

  def f(self, y, level, dropout_keys=None):
    """f of `y`, vectors (B, D) or images (B, H, W, C), given `level = embed(t)`: float32 (B,)."""
    f = self.learned(y, level, dropout_keys)
    if self.quadratic:
      f = f - 0.5 * self.quadratic * jnp.sum(y**2, axis=tuple(range(1, y.ndim)))
    return f if self.normal_factor is None else f + self.normal_factor(y, level['t'])

  def __call__(self, y, t, dropout_keys=None):
    """f(y, t) of `y` (B, ...) at levels (B,): float32 (B,)."""
    return self.f(y, self.embed(t), dropout_keys)
