"""Samples along the probability flow: a deterministic way from white noise to data, in a few steps.

Where the energies of all levels are log densities of one diffused density, their scores define an ODE whose solutions
from white noise are samples. In `lam = log(abar / sbar)` its part without the network is solved exactly, and the rest,
the expected data `D`, is taken to go on as it did from the last step to this one (DPM-Solver++(2M)):

  x_u = (sbar_u / sbar_t) x_t - abar_u (exp(-h) - 1) (D_t + (h / 2 h') (D_t - D_t')),   h = lam_u - lam_t

from level t to a cleaner level u, where t' and h' are those of the step before. The first step has none before it, and
the last one, to hardly any noise, is so long in lam that `D` is held: both are of first order. Each step takes one
score.

Source: Lu et al. 2022, DPM-Solver++, algorithm 2.
"""

from jax import lax
import jax.numpy as jnp
import numpy as np

from diffusion_ebm import marginal_density
from diffusion_ebm.ebm import Ebm
from diffusion_ebm.noise_levels import NoiseLevels, at


def grid(levels: NoiseLevels, num_steps: int) -> np.ndarray:
  """The levels where the score is taken, and level 0: from T down, at about equal steps of `levels.angle`.

  Args:
    levels: T noise levels.
    num_steps: N, from 1 to T.

  Returns:
    int (N + 1,), falling from T to 0.
  """
  top, want = levels.num_models, np.linspace(levels.angle[-1], levels.angle[0], num_steps + 1)
  found = [top]
  for number, angle in enumerate(want[1:], start=1):
    nearest = int(np.argmin(np.abs(levels.angle - angle)))
    # Each level once, and one left for each of the steps to come.
    found.append(int(np.clip(nearest, num_steps - number, found[-1] - 1)))
  return np.array(found)


def descend(ebm: Ebm, white, num_steps: int, keep: tuple[int, ...] = ()):
  """From white noise to level 0 along the flow.

  Args:
    ebm: the model.
    white: `x_T`, (B, ...).
    num_steps: N, from 1 to T; each takes one score.
    keep: levels, in 0..T, whose states are returned too.

  Returns:
    `(x, path)`: the samples, like `white`, with the noise of level 0; and the states at the levels of `keep`,
    (len(keep), B, ...).
  """
  levels, chosen = ebm.levels, grid(ebm.levels, num_steps)
  now = chosen[:-1]
  step = np.diff(levels.log_snr[chosen])
  ahead = np.zeros(num_steps)  # of the last change of D
  ahead[1:-1] = step[1:-1] / (2 * step[:-2])
  goals = np.array([[end, *keep] for end in chosen[1:]])  # of each step: where it ends, and what is kept on the way
  reached = (chosen[1:, None] <= goals) & (goals < now[:, None])
  length = levels.log_snr[goals] - levels.log_snr[now][:, None]
  of_state = levels.sigma_cum[goals] / levels.sigma_cum[now][:, None]
  of_data = -levels.a_cum[goals] * np.expm1(-length)

  def body(carry, k):
    x, data_before, path = carry
    level = jnp.minimum(jnp.asarray(now)[k], levels.num_models - 1)  # white noise has the last model
    score = marginal_density.score(ebm, x, jnp.full(len(x), level))
    data = (x + at(levels.sigma_cum[now] ** 2, k, x) * score) / at(levels.a_cum[now], k, x)
    toward = data + at(ahead, k, x) * (data - data_before)
    states = [at(of_state[:, i], k, x) * x + at(of_data[:, i], k, x) * toward for i in range(goals.shape[1])]
    if keep:
      path = jnp.where(at(reached[:, 1:], k, path), jnp.stack(states[1:]), path)
    return (states[0], data, path), None

  path = jnp.broadcast_to(white, (len(keep), *white.shape))
  (x, _, path), _ = lax.scan(body, (white, white, path), jnp.arange(num_steps))
  return x, path
