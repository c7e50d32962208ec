"""Progressive sampling: from white noise down the levels.

Source: Gao et al. 2021, algorithm 2.
"""

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from diffusion_ebm import energy, langevin, noise_levels, recovery


def shown_levels(num_models: int) -> tuple[int, ...]:
  """The levels worth looking at, from the data (0) to white noise: all of a few, eleven of many."""
  return tuple(sorted({int(t) for t in np.linspace(0, num_models, min(num_models, 10) + 1)}))


def sample(
    levels: recovery.Levels, network, weights, keys, shape, num_steps: int, noise_scale: float,
    keep: tuple[int, ...] = ()):
  """Draws one sample for each key.

  Args:
    levels: the levels.
    network: the energy network.
    weights: its normalised parameters.
    keys: one key for each sample, (B,); sample i depends on `keys[i]` alone.
    shape: of one sample.
    num_steps: K, Langevin steps at each level.
    noise_scale: eta, factor of the Langevin noise; 0.99 in the published evaluation.
    keep: levels, in 0..T, whose samples are returned too.

  Returns:
    `(x, path)`: the samples (B, *shape), float32, unclipped, and those at the levels of `keep`,
    (len(keep), B, *shape); level T is the white noise, level 0 the samples themselves.
  """
  top = levels.num_models
  slot = np.full(top + 1, len(keep))  # where a level is kept; the last slot is for those that are not
  slot[list(keep)] = range(len(keep))
  slot = jnp.asarray(slot)

  def descend(carry, t):
    x, path = carry
    level = jnp.full(len(keys), t)
    f = energy.at_level(network, weights, level)
    noise = langevin.normal_noise(jax.vmap(jax.random.fold_in)(keys, level), shape, noise_scale)
    x = recovery.sample_conditional(levels, f, x, level, noise, num_steps)
    return (x, path.at[slot[t]].set(x)), None

  white = langevin.normal_noise(keys, shape)(top)
  path = jnp.zeros((len(keep) + 1, *white.shape)).at[slot[top]].set(white)
  (x, path), _ = lax.scan(descend, (white, path), jnp.arange(top), reverse=True)
  return x, path[:-1]


def diffused(levels: recovery.Levels, x, keys, keep: tuple[int, ...]):
  """Data `x` (B, ...) diffused to the levels of `keep`, to set beside the path of `sample`: (len(keep), B, ...)."""
  eps = langevin.normal_noise(keys, x.shape[1:])
  return jnp.stack([noise_levels.diffuse(levels.noise, x, jnp.full(len(x), t), eps(t)) for t in keep])


def to_uint8(x):
  """Images in [-1, 1] (clipped) to uint8 `(x + 1) * 127.5`, rounded to the nearest."""
  return jnp.round((jnp.clip(x, -1, 1) + 1) * 127.5).astype(jnp.uint8)
