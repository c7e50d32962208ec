"""Progressive sampling: from white noise down the levels.

Source: Gao et al. 2021, algorithm 2.
"""

from typing import NamedTuple

from jax import lax
import jax.numpy as jnp
import numpy as np

from diffusion_ebm import flow_sampling, langevin, marginal_density, noise_levels, random_keys, recovery
from diffusion_ebm.ebm import Ebm
from diffusion_ebm.noise_levels import NoiseLevels
from diffusion_ebm.proposal import NormalProposal


class Settings(NamedTuple):
  """How samples are drawn.

  Attributes:
    num_steps: K, Langevin steps at each level; 0 for the proposal's samples as they are or, without a proposal, the
      normal approximation.
    noise_scale: eta, factor of the Langevin noise; 0.99 in the published evaluation.
    full_noise_levels: at so many of the noisiest levels, the factor is 1.
    denoised: remove the little noise that is left at level 0, by `denoise`.
    denoise_factor: of that step.
    flow_steps: steps along the probability flow in the place of all chains (`flow_sampling`); 0 for chains.
  """

  num_steps: int
  noise_scale: float = 1.0
  full_noise_levels: int = 0
  denoised: bool = False
  denoise_factor: float = 1.0
  flow_steps: int = 0


def shown_levels(num_models: int) -> tuple[int, ...]:
  """The levels worth looking at, from the data (0) to white noise: all of a few, eleven of many."""
  return tuple(sorted({int(t) for t in np.linspace(0, num_models, min(num_models, 10) + 1)}))


def sample(
  ebm: Ebm, keys, shape, settings: Settings, keep: tuple[int, ...] = (), proposal: NormalProposal | None = None
):
  """Draws one sample for each key.

  Args:
    ebm: the model.
    keys: one key for each sample, (B,); sample i depends on `keys[i]` alone.
    shape: of one sample.
    settings: how they are drawn.
    keep: levels, in 0..T, whose samples are returned too.
    proposal: where the chains of each level start, if not at the sample of the level above.

  Returns:
    `(x, path)`: the samples (B, *shape), float32, unclipped, and those at the levels of `keep`,
    (len(keep), B, *shape); level T is the white noise, level 0 the samples themselves.
  """
  white, noise = trajectory_noise(ebm.levels, keys, shape, settings)
  return descend(ebm, white, noise, settings, keep, proposal)


def noise_scale(settings: Settings, levels: NoiseLevels, t):
  """Factor of the Langevin noise at levels `t`, like `t`."""
  return jnp.where(t < levels.num_models - settings.full_noise_levels, settings.noise_scale, 1.0)


def trajectory_noise(levels: NoiseLevels, keys, shape, settings: Settings):
  """All the noise of a trajectory, which is a function of nothing else.

  Args:
    levels: the levels.
    keys: one key for each sample, (B,).
    shape: of one sample.
    settings: factors of the Langevin noise.

  Returns:
    `(white, noise)`: the white noise `x_T`, (B, *shape), and a function from a level to the function from a Langevin
    step to its noise, as `descend` takes them; what follows the last step is the proposal's.
  """

  def noise(t):
    return langevin.normal_noise(random_keys.fold_in(keys, t), shape, noise_scale(settings, levels, t))

  return langevin.normal_noise(keys, shape)(levels.num_models), noise


def descend(
  ebm: Ebm, white, noise, settings: Settings, keep: tuple[int, ...] = (), proposal: NormalProposal | None = None
):
  """From white noise down the levels: a deterministic map of the noise of the whole trajectory.

  Args:
    ebm: the model.
    white: `x_T`, (B, ...).
    noise: from a level (traced) to a function from a Langevin step to its noise, like `white`.
    settings: as of `sample`; the factor of the noise is in `noise` already.
    keep: as of `sample`.
    proposal: as of `sample`.

  Returns:
    As of `sample`.
  """

  if settings.flow_steps:
    return finish(ebm, *flow_sampling.descend(ebm, white, settings.flow_steps, keep), keep, settings)

  def step_down(x, t):
    return recovery.sample_conditional(ebm.at(jnp.full(len(x), t)), x, noise(t), settings.num_steps, proposal), None

  x, path, _ = down_the_levels(step_down, white, ebm.levels.num_models, keep)
  return finish(ebm, x, path, keep, settings)


def down_the_levels(step_down, white, num_models: int, keep: tuple[int, ...]):
  """Calls `step_down` for each level, the noisiest first.

  Args:
    step_down: `(x, t) -> (x, info)`, from samples of the level above, (B, ...), to those of level t.
    white: at the top, (B, ...).
    num_models: T.
    keep: levels, in 0..T, whose samples are returned too.

  Returns:
    `(x, path, infos)`: of level 0; of `keep`, (len(keep), B, ...); and what else was returned, by level.
  """
  slot = np.full(num_models + 1, len(keep))  # where a level is kept; the last slot is for those that are not
  slot[list(keep)] = range(len(keep))
  slot = jnp.asarray(slot)

  def body(carry, t):
    x, path = carry
    x, info = step_down(x, t)
    return (x, path.at[slot[t]].set(x)), info

  path = jnp.zeros((len(keep) + 1, *white.shape)).at[slot[num_models]].set(white)
  (x, path), infos = lax.scan(body, (white, path), jnp.arange(num_models), reverse=True)
  return x, path[:-1], infos


def finish(ebm: Ebm, x, path, keep: tuple[int, ...], settings: Settings):
  """`(x, path)` of `down_the_levels`, without the noise of level 0 if the settings ask for that."""
  if settings.denoised:
    x = denoise(ebm, x, settings.denoise_factor)
    if 0 in keep:
      path = path.at[keep.index(0)].set(x)
  return x, path


def denoise(ebm: Ebm, x, factor: float = 1.0):
  """The expected data behind samples of level 0, which are `x_0 = a_0 x + sigma_0 eps`, by Tweedie's formula.

  `E[x | x_0] = (x_0 + sigma_0^2 score(x_0)) / a_0`, where the score of `x_0` is `a_1` times that of `y_0 = a_1 x_0`,
  whose density the model of level 0 gives.

  Args:
    ebm: the model.
    x: (B, ...).
    factor: of the step along the score; Zhu et al. 2024 take 2 in their code.

  Returns:
    Like `x`.

  Source: Efron 2011, Tweedie's formula and selection bias, equation 1.4.
  """
  score = marginal_density.score(ebm, x, jnp.zeros(len(x), int))
  return (x + factor * float(ebm.levels.sigma_cum[0] ** 2) * score) / float(ebm.levels.a_cum[0])


def diffused(levels: NoiseLevels, x, keys, keep: tuple[int, ...]):
  """Data `x` (B, ...) diffused to the levels of `keep`, to set beside the path of `sample`: (len(keep), B, ...)."""
  eps = langevin.normal_noise(keys, x.shape[1:])
  return jnp.stack([noise_levels.diffuse(levels, x, jnp.full(len(x), t), eps(t)) for t in keep])
