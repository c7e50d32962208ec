"""Recovery likelihood: positives and negatives, and the loss that compares them.

Source: Gao et al. 2021, section 3 and algorithm 1.
"""

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_ebm import langevin, noise_levels
from diffusion_ebm.ebm import Ebm, LevelEbm, scale
from diffusion_ebm.noise_levels import Levels, at
from diffusion_ebm.proposal import NormalProposal


def sample_conditional(model: LevelEbm, x_next, noise_fn, num_steps: int, proposal: NormalProposal | None = None):
  """Langevin chains on `p(y_t | x_{t+1})` that start at the proposal or, without one, at `x_{t+1}`.

  Args:
    model: `ebm.at(t)`.
    x_next: the noisier variable, (B, ...).
    noise_fn: the noise of each step, as in `langevin.unadjusted_chain`; that of index K is the proposal's.
    num_steps: K; with 0, samples are the proposal's own or, without one, those of `normal_approximation`.
    proposal: where chains start, if not at `x_{t+1}`.

  Returns:
    Samples of `x_t = y_t / a_{t+1}`, like `x_next`.

  Source: Gao et al. 2021, algorithm 1, lines 4-6; with a proposal Zhu et al. 2024, algorithm 2.
  """
  if proposal is None and num_steps == 0:
    return normal_approximation(model, x_next, noise_fn(0))
  start = x_next if proposal is None else proposal.sample(x_next, model.t, noise_fn(num_steps))
  return model.levels.to_x(refine(model, start, x_next, noise_fn, num_steps), model.t)


def refine(model: LevelEbm, start, x_next, noise_fn, num_steps: int):
  """The ends of K Langevin steps on `p(y_t | x_{t+1})` from `start`, a `y_t` like `x_next`; see above."""
  step_size = at(np.sqrt(model.levels.step_variance), model.t, x_next)
  return langevin.unadjusted_chain(lambda y: model.conditional_score(y, x_next), start, step_size, noise_fn, num_steps)


def normal_approximation(model: LevelEbm, x_next, noise):
  """Samples of the normal approximation of `p(y_t | x_{t+1})` for little noise: one gradient.

  `y_t ~ N(x_{t+1} + sigma_{t+1}^2 score(x_{t+1}), sigma_{t+1}^2 I)`. At the last level, whose model is a marginal one,
  a Langevin step of size sigma_T from `x_T`, which leaves the marginal as it is up to the order of sigma_T^4.

  Args:
    model: `ebm.at(t)`.
    x_next: the noisier variable, (B, ...).
    noise: standard normal noise, like `x_next`.

  Returns:
    Samples of `x_t = y_t / a_{t+1}`, like `x_next`.

  Source: Gao et al. 2021, section 3.3, equation 10 and what follows.
  """
  levels, t = model.levels, model.t
  drift = at(0.5 * (1 + levels.is_recovery) * levels.sigma_y**2, t, x_next)
  y = x_next + drift * model.score(x_next) + at(levels.sigma_y, t, x_next) * noise
  return levels.to_x(y, t)


def coupled_pair(levels: Levels, x, t, eps, noise):
  """`(x_t, x_{t+1})` of data whose `x_t` shares the noise of a negative of `normal_approximation`.

  Neighbours have the distribution of `noise_levels.diffuse_pair`, drawn in the other order: `x_{t+1}` first, then `x_t`
  given it and the data. Each positive lies beside its negative, and the loss is left without the noise of both: its
  gradient has the same mean, and about the variance of score matching's.

  Args:
    levels: the levels.
    x: data, (B, ...).
    t: levels, int (B,) in 0..T-1.
    eps: standard normal noise of `x_{t+1}`, like `x`.
    noise: that of the negative, like `x`.

  Returns:
    `(x_t, x_{t+1})`, each like `x`.
  """
  x_next = noise_levels.diffuse(levels, x, t + 1, eps)
  return noise_levels.posterior(levels, x, x_next, t, noise), x_next


def contrastive_negatives(model: LevelEbm, x_t, x_next, keys, num_steps: int):
  """Metropolis-adjusted Langevin chains on `p(y_t | x_{t+1})` that start at the data: contrastive divergence.

  At the truth the data are a draw from that density, and the chain leaves it as it is: whatever its length and step
  size, the mean gradient of `recovery_loss` vanishes there. Positives and negatives move together, which takes most of
  the noise out of their difference. The price: what no chain crosses, such as the weights of distant modes, feels no
  force at all; the time score (`dual_score_matching.py`) sees to it.

  Args:
    model: `ebm.at(t)`.
    x_t: the data, neighbours of `x_next` in one trajectory, (B, ...).
    x_next: the noisier variable, like `x_t`.
    keys: one for each chain, (B,).
    num_steps: K.

  Returns:
    Samples of `x_t`, like it.

  Source: Hinton 2002, Training products of experts by minimizing contrastive divergence; Roberts and Tweedie 1996.
  """

  def target(y):
    return model.conditional_log_density(y, x_next)

  step_size = at(np.sqrt(model.levels.step_variance), model.t, model.t)
  start = langevin.init(target, model.levels.to_y(x_t, model.t))
  return model.levels.to_x(langevin.run(langevin.mala, target, start, keys, step_size, num_steps)[0].y, model.t)


def recovery_loss(ebm: Ebm, x_pos, x_neg, t):
  """The loss of each example, whose gradient is that of the negative recovery log likelihood, weighted by level.

  Args:
    ebm: the model; the gradient with respect to its weights is the one that counts.
    x_pos: diffused data `x_t`, (B, ...).
    x_neg: samples of `sample_conditional` or `contrastive_negatives`, held constant, like `x_pos`.
    t: levels, int (B,) in 0..T-1.

  Returns:
    `(loss, f_pos)`, each (B,): `w_t (log p(a_{t+1} x_neg) - log p(a_{t+1} x_pos))` with the level's weight, which is
    `(sigma_1 / sigma_{t+1}) (f(a_{t+1} x_neg) - f(a_{t+1} x_pos))` as published, and f of the data.

  Source: Gao et al. 2021, algorithm 1, line 7.
  """
  levels = ebm.levels
  both = ebm.at(jnp.tile(t, 2))
  f_pos, f_neg = jnp.split(both.f(jnp.concatenate([levels.to_y(x_pos, t), levels.to_y(x_neg, t)])), 2)
  return at(levels.weight, t, f_pos) * scale(levels, f_neg - f_pos, t), f_pos


def score_matching_loss(ebm: Ebm, x_pos, eps, t):
  """Denoising score matching, which the recovery likelihood's gradient tends to as sigma_{t+1} vanishes.

  Args:
    ebm: the model.
    x_pos: diffused data `x_t = abar_t x + sbar_t eps`, (B, ...).
    eps: their noise, like `x_pos`.
    t: levels, int (B,) in 0..T-1.

  Returns:
    `(loss, f_pos)`, each (B,): `sigma_{t+1}^2 / 2 |score(y_t) + eps / (a_{t+1} sbar_t)|^2` with the weight of
    `recovery_loss`, and f of the data.

  Source: Vincent 2011, equation 11; Gao et al. 2021, section 3.3.
  """
  levels, model = ebm.levels, ebm.at(t)

  def total(y):
    f = model.f(y)
    return jnp.sum(scale(levels, f, t)), f

  score, f_pos = jax.grad(total, has_aux=True)(levels.to_y(x_pos, t))
  error = score + eps / (at(levels.a_y, t, eps) * at(levels.sigma_cum, t, eps))
  squares = jnp.sum(error**2, axis=tuple(range(1, error.ndim)))
  return at(levels.weight, t, squares) * 0.5 * at(levels.sigma_y**2, t, squares) * squares, f_pos
