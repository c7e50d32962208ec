"""The energy-based model of all levels: network, noise levels and weights as one thing.

At level t the network f gives the density `p(y) ~ exp(f(y, t) / s_t^2)` of `y_t = a_{t+1} x_t`; the recovery likelihood
is that of `y_t` given the noisier `x_{t+1} = y_t + sigma_{t+1} eps`. Here alone f gets its scale.

What samples, trains or measures a model asks for `levels` and `at(t)`, and for nothing else.

Source: Gao et al. 2021, section 3.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp

from diffusion_ebm import terms
from diffusion_ebm.networks import convolution
from diffusion_ebm.noise_levels import Levels, at


def scale(levels: Levels, f, t):
  """The unnormalised log density `f / s_t^2`, in nats, of the network's output f (B,) at levels t (B,)."""
  return f / at(levels.temperature, t, f)


@dataclasses.dataclass(frozen=True)
class LevelEbm:
  """The model at some levels, one for each example; what depends on the level alone has been computed.

  Attributes:
    levels: the noise levels.
    t: levels, (B,) or (1,): integers in 0..T-1, or real numbers between two of them.
    f: from y (B, ...) to the network's output, float32 (B,).
  """

  levels: Levels
  t: Any
  f: Callable

  def log_density(self, y):
    """The unnormalised log density of `y_t` (B, ...): (B,), in nats."""
    return scale(self.levels, self.f(y), self.t)

  def score(self, y):
    """The gradient of `log_density`, like `y`."""
    return jax.grad(lambda y: jnp.sum(self.log_density(y)))(y)

  def conditional_log_density(self, y, x_next):
    """Unnormalised `log p(y_t | x_{t+1})`; at the last level, which has no quadratic term, `log p(y_t)`.

    Args:
      y: (B, ...).
      x_next: the noisier variable, like `y`.

    Returns:
      (B,), in nats.

    Source: Gao et al. 2021, equation 9.
    """
    squares = jnp.sum((y - x_next) ** 2, axis=tuple(range(1, y.ndim)))
    precision = at(self.levels.is_recovery / self.levels.sigma_y**2, self.t, squares)
    return self.log_density(y) - 0.5 * precision * squares

  def conditional_score(self, y, x_next):
    """The gradient of `conditional_log_density` in `y`, like `y`."""
    return jax.grad(lambda y: jnp.sum(self.conditional_log_density(y, x_next)))(y)


class AllLevels:
  """What a model of all levels does with its `levels` and `at(t)`."""

  def f(self, y, t):
    """The network's output, the negative energy up to the level's temperature, of `y_t` (B, ...): (B,)."""
    return self.at(t).f(y)

  def log_density(self, y, t):
    """The unnormalised log density of `y_t` (B, ...) at levels (B,): (B,), in nats."""
    return self.at(t).log_density(y)

  def score(self, y, t):
    """The gradient of `log_density` in `y`, like `y`."""
    return self.at(t).score(y)


class Ebm(AllLevels, struct.PyTreeNode):
  """An energy-based model at each of T levels; a tree whose leaves are the weights.

  A network that is told classes is a model of each class and, with the empty class 0, of all together. Weighted sums of
  these are models too, `f(y) = sum_m c_m f(y | label_m)`; the network evaluates all terms as one batch.

  Attributes:
    weights: the network's parameters, with normalised kernels.
    network: the Flax module, of `networks.make_network`.
    levels: noise levels and step sizes.
    labels: classes of the M terms, int (M, 1), or (M, B) where those of the examples differ; None for the empty class.
    coefficients: c, float32 (M,); None for one term of weight 1.
    dropout_keys: one for each example, (B,), to train with dropout; None for no dropout.
  """

  weights: Any
  network: Any = struct.field(pytree_node=False)
  levels: Levels = struct.field(pytree_node=False)
  labels: Any = None
  coefficients: Any = None
  dropout_keys: Any = None

  def at(self, t) -> LevelEbm:
    """The model at levels (B,), or at one for all examples, (1,).

    Where there are several times as many levels as labels or keys, as for positives and negatives side by side, these
    are repeated.
    """
    level = self.network.apply({'params': self.weights}, *terms.levels_and_labels(t, self.labels), method='embed')
    variables = {'params': self.weights, convolution.PREPARED: convolution.prepare(self.weights)}

    def of_all_terms(y):
      keys = None if self.dropout_keys is None else jnp.tile(self.dropout_keys, len(y) // len(self.dropout_keys))
      spread = jax.tree.map(lambda a: a if len(a) in (1, len(y)) else jnp.repeat(a, len(y) // len(a), axis=0), level)
      return self.network.apply(variables, y, spread, keys, method='f')

    return LevelEbm(self.levels, t, lambda y: terms.weighted_sum(of_all_terms, y, self.coefficients))
