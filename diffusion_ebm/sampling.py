"""Progressive sampling: from white noise down the levels.

Source: Gao et al. 2021, algorithm 2.
"""

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from diffusion_ebm import energy, langevin, marginal, noise_levels, recovery


def shown_levels(num_models: int) -> tuple[int, ...]:
  """The levels worth looking at, from the data (0) to white noise: all of a few, eleven of many."""
  return tuple(sorted({int(t) for t in np.linspace(0, num_models, min(num_models, 10) + 1)}))


def sample(
    levels: recovery.Levels, network, weights, keys, shape, num_steps: int, noise_scale: float,
    keep: tuple[int, ...] = (), denoised: bool = False):
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
    denoised: remove the little noise that is left at level 0, by `denoise`.

  Returns:
    `(x, path)`: the samples (B, *shape), float32, unclipped, and those at the levels of `keep`,
    (len(keep), B, *shape); level T is the white noise, level 0 the samples themselves.
  """
  white, noise = trajectory_noise(levels, keys, shape, noise_scale)
  return descend(levels, network, weights, white, noise, num_steps, keep, denoised)


def trajectory_noise(levels: recovery.Levels, keys, shape, noise_scale: float):
  """All the noise of a trajectory, which is a function of nothing else.

  Args:
    levels: the levels.
    keys: one key for each sample, (B,).
    shape: of one sample.
    noise_scale: eta, factor of the Langevin noise.

  Returns:
    `(white, noise)`: the white noise `x_T`, (B, *shape), and a function from a level to the function from a Langevin
    step to its noise, as `descend` takes them.
  """
  def noise(t):
    return langevin.normal_noise(jax.vmap(lambda key: jax.random.fold_in(key, t))(keys), shape, noise_scale)

  return langevin.normal_noise(keys, shape)(levels.num_models), noise


def descend(
    levels: recovery.Levels, network, weights, white, noise, num_steps: int, keep: tuple[int, ...] = (),
    denoised: bool = False):
  """From white noise down the levels: a deterministic map of the noise of the whole trajectory.

  Args:
    levels: the levels.
    network: the energy network.
    weights: its normalised parameters.
    white: `x_T`, (B, ...).
    noise: from a level (traced) to a function from a Langevin step to its noise, like `white`.
    num_steps: K, Langevin steps at each level.
    keep: as of `sample`.
    denoised: as of `sample`.

  Returns:
    As of `sample`.
  """
  top = levels.num_models
  slot = np.full(top + 1, len(keep))  # where a level is kept; the last slot is for those that are not
  slot[list(keep)] = range(len(keep))
  slot = jnp.asarray(slot)

  def step_down(carry, t):
    x, path = carry
    level = jnp.full(len(x), t)
    f = energy.at_level(network, weights, level)
    x = recovery.sample_conditional(levels, f, x, level, noise(t), num_steps)
    return (x, path.at[slot[t]].set(x)), None

  path = jnp.zeros((len(keep) + 1, *white.shape)).at[slot[top]].set(white)
  (x, path), _ = lax.scan(step_down, (white, path), jnp.arange(top), reverse=True)
  if denoised:
    x = denoise(levels, network, weights, x)
    path = path.at[slot[0]].set(x)
  return x, path[:-1]


def denoise(levels: recovery.Levels, network, weights, x):
  """The expected data behind samples of level 0, which are `x_0 = a_0 x + sigma_0 eps`, by Tweedie's formula.

  `E[x | x_0] = (x_0 + sigma_0^2 score(x_0)) / a_0`, where the score of `x_0` is `a_1` times that of `y_0 = a_1 x_0`,
  whose density the model of level 0 gives.

  Args:
    levels: the levels.
    network: the energy network.
    weights: its normalised parameters.
    x: (B, ...).

  Returns:
    Like `x`.

  Source: Efron 2011, Tweedie's formula and selection bias, equation 1.4.
  """
  noise = levels.noise
  score = marginal.score(levels, network, weights, x, jnp.zeros(len(x), int))
  return (x + float(noise.sigma_cum[0]**2) * score) / float(noise.a_cum[0])


def diffused(levels: recovery.Levels, x, keys, keep: tuple[int, ...]):
  """Data `x` (B, ...) diffused to the levels of `keep`, to set beside the path of `sample`: (len(keep), B, ...)."""
  eps = langevin.normal_noise(keys, x.shape[1:])
  return jnp.stack([noise_levels.diffuse(levels.noise, x, jnp.full(len(x), t), eps(t)) for t in keep])


def to_uint8(x):
  """Images in [-1, 1] (clipped) to uint8 `(x + 1) * 127.5`, rounded to the nearest."""
  return jnp.round((jnp.clip(x, -1, 1) + 1) * 127.5).astype(jnp.uint8)
