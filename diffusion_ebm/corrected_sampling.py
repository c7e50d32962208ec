"""Samples of each level's density itself, by Metropolis-corrected chains down the levels.

The chains of `sampling` follow the model's conditionals from level to level. Those of a sum of energies do not fit
together: what is noised and then composed is not what is composed and then noised. Here each level is only where the
next one's chains start; they leave that level's own density as it is, whatever the energies of the others.

Source: Du et al. 2023, Reduce, reuse, recycle, section 4.
"""

from typing import NamedTuple

from jax import lax
import jax.numpy as jnp

from diffusion_ebm import langevin, marginal_density, random_keys, sampling

NUM_TUNING_CHAINS = 64
_FIRST_STEP_SIZE = 0.3  # in units of the level's noise


class Settings(NamedTuple):
  """How the chains go.

  Attributes:
    kernel: 'mala' or 'hmc'.
    num_steps: of the kernel, at each level.
    num_leapfrog: of each step of 'hmc'.
    num_tuning_steps: by which step sizes are tuned at each level.
  """

  kernel: str = 'mala'
  num_steps: int = 100
  num_leapfrog: int = 5
  num_tuning_steps: int = 100


def tune(ebm, keys, shape, settings: Settings):
  """Step sizes whose acceptance is the best for the kernel, from chains that are thrown away.

  Args:
    ebm: the model, or a sum.
    keys: one for each of these chains, (B,); tens are enough.
    shape: of one example.
    settings: how the chains go.

  Returns:
    (T,), in units of `x_t`.
  """
  kernel = langevin.make_kernel(settings.kernel, settings.num_leapfrog)
  acceptance = langevin.TARGET_ACCEPTANCE[settings.kernel]

  def level(x, t):
    target, keys_ = _target(ebm, t), random_keys.fold_in(keys, t)
    first = _FIRST_STEP_SIZE * jnp.asarray(ebm.levels.sigma_cum, jnp.float32)[t]
    state = langevin.init(target, x)
    state, step_size = langevin.adapt_step_size(
      kernel, target, state, keys_, first, settings.num_tuning_steps, acceptance
    )
    return state.y, step_size

  x = langevin.normal_noise(keys, shape)(ebm.levels.num_models)
  return lax.scan(level, x, jnp.arange(ebm.levels.num_models), reverse=True)[1]


def sample(ebm, keys, shape, settings: Settings, step_sizes, keep: tuple[int, ...] = ()):
  """Draws one sample for each key.

  Args:
    ebm: the model, or a sum.
    keys: one for each sample, (B,); sample i depends on `keys[i]` and the step sizes alone.
    shape: of one sample.
    settings: how the chains go.
    step_sizes: of `tune`, (T,).
    keep: levels, in 0..T, whose samples are returned too.

  Returns:
    `(x, path, acceptance)`: the samples, (B, *shape), float32, unclipped, those at the levels of `keep`, and the mean
    acceptance of each level, (T,).
  """
  kernel = langevin.make_kernel(settings.kernel, settings.num_leapfrog)

  def level(x, t):
    target = _target(ebm, t)
    state, keys_ = langevin.init(target, x), random_keys.fold_in(keys, t)
    state, info = langevin.run(kernel, target, state, keys_, step_sizes[t], settings.num_steps)
    return state.y, jnp.mean(info.acceptance)

  num_models = ebm.levels.num_models
  return sampling.down_the_levels(level, langevin.normal_noise(keys, shape)(num_models), num_models, keep)


def _target(ebm, t):
  return lambda x: marginal_density.log_density(ebm, x, t[None])
