"""Langevin dynamics: the pure kernel and its scan. The target's score is an argument; nothing here knows of levels."""

import jax
from jax import lax
import jax.numpy as jnp


def unadjusted_step(y, score, step_size, noise):
  """One step of the unadjusted Langevin algorithm: `y + (s^2 / 2) score(y) + s noise`.

  Args:
    y: state, (B, ...).
    score: gradient of the log density at `y`, like `y`.
    step_size: s, broadcastable against `y`.
    noise: standard normal noise, like `y`, or shrunk to sample at a lower temperature.

  Returns:
    The next state.

  Source: Gao et al. 2021, equation 16.
  """
  return y + 0.5 * step_size**2 * score + step_size * noise


def unadjusted_chain(score_fn, y, step_size, noise_fn, num_steps: int):
  """`num_steps` steps from `y`, each of which evaluates the score once.

  Args:
    score_fn: from (B, ...) to the score, like it.
    y: start, (B, ...).
    step_size: s, broadcastable against `y`.
    noise_fn: from the index of the step to its noise, like `y`: `normal_noise(...)`, or `lambda k: given[k]`.
    num_steps: K.

  Returns:
    The state after the last step, like `y`.
  """
  def body(y, k):
    return unadjusted_step(y, score_fn(y), step_size, noise_fn(k)), None

  return lax.scan(body, y, jnp.arange(num_steps))[0]


def normal_noise(keys, shape, scale: float = 1.0):
  """Standard normal noise for each step that depends on each chain's own key alone.

  Args:
    keys: one key for each chain, (B,).
    shape: of one chain's state, without the batch axis.
    scale: factor of the noise.

  Returns:
    A function from the index of the step to noise (B, *shape), float32.
  """
  def noise(k):
    return scale * jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, k), shape))(keys)

  return noise
