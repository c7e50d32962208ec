"""One training step as a pure function of the state and a batch."""

from collections.abc import Callable
import dataclasses
from typing import Any

from flax import struct
import jax
from jax import lax
import jax.numpy as jnp
import optax

from diffusion_ebm import dual_score_matching, langevin, noise_levels, optimizer, preprocessing, random_keys, recovery
from diffusion_ebm.ebm import Ebm
from diffusion_ebm.networks import spectral_norm

OBJECTIVES = ('recovery', 'dsm')


class TrainState(struct.PyTreeNode):
  """All that a training step changes.

  Attributes:
    step: number of updates done, int32.
    params: the network's raw parameters.
    ema_params: their exponential moving average.
    opt_state: the optimiser's.
    spectral: vectors of the power iteration; empty without spectral normalisation.
    bad_steps: how many updates in a row have been skipped up to now, int32.
  """

  step: Any
  params: Any
  ema_params: Any
  opt_state: Any
  spectral: Any
  bad_steps: Any


@dataclasses.dataclass(frozen=True)
class StepSettings:
  """Constants of the training step.

  Attributes:
    seed: of all random numbers.
    num_langevin_steps: K.
    ema_decay: of the parameters' moving average.
    random_flip: mirror each image with probability 1/2.
    objective: 'recovery', or 'dsm' for denoising score matching.
    time_score: weight of the time score's loss, which ties the levels together; 0 for none.
    score_matching: weight of denoising score matching between the levels; 0 for none.
    grey_width: distance between two grey levels in [-1, 1], over which images are dequantised; 0 for not at all.
    micro_batches: parts of the device's batch whose gradients are computed one after another.
    max_bad_steps: after as many skipped updates in a row, the state stays as it is.
  """

  seed: int
  num_langevin_steps: int
  ema_decay: float
  random_flip: bool
  objective: str = 'recovery'
  time_score: float = 0.0
  score_matching: float = 0.0
  grey_width: float = 0.0
  micro_batches: int = 1
  max_bad_steps: int = 10


def init_state(key, network, tx: optax.GradientTransformation, example, use_spectral_norm: bool) -> TrainState:
  """The state before the first step.

  Args:
    key: a random key.
    network: of `networks.make_network`.
    tx: the optimiser.
    example: one example, (H, W, C) or (D,).
    use_spectral_norm: normalise the kernels by their spectral norm.

  Returns:
    The state.
  """
  init_key, spectral_key = jax.random.split(key)
  y = jnp.zeros((1, *example.shape), jnp.float32)
  params = network.init(init_key, y, jnp.zeros(1, jnp.int32))['params']
  return TrainState(
    step=jnp.zeros([], jnp.int32),
    params=params,
    ema_params=jax.tree.map(jnp.copy, params),
    opt_state=tx.init(params),
    spectral=spectral_norm.init(spectral_key, params) if use_spectral_norm else {},
    bad_steps=jnp.zeros([], jnp.int32),
  )


def train_step(
  state: TrainState,
  batch,
  index,
  *,
  make_ebm: Callable[[Any], Ebm],
  tx: optax.GradientTransformation,
  settings: StepSettings,
  axis_name: str | None = None,
):
  """One update from a batch of data.

  Every random number depends on the seed, the step and the example's index in the global batch alone. Where the loss
  or the gradient's norm is not finite, the update is skipped: all but the step's number stays as it was.

  Args:
    state: before the step.
    batch: data, (B, H, W, C) uint8 or (B, D) float32.
    index: each example's index in the global batch, int (B,).
    make_ebm: from the network's normalised parameters to the model.
    tx: the optimiser.
    settings: constants of the step.
    axis_name: of the devices over which gradients are averaged, if any.

  Returns:
    `(state, metrics)`: the state after the step, and for the global batch `loss`, `grad_norm`, `grad_max`, `bad_steps`
    (updates skipped in a row up to this one; 0 if it was not), and the sums over the examples of each level (T,)
    `level_count`, `level_loss` (absolute), `level_f` (absolute, of the data), `level_displacement` (distance that
    the chain moved) and, where they are trained, `level_time_score` and `level_score_matching` (those parts of the
    loss, without their weights).

  Source: Gao et al. 2021, algorithm 1.
  """
  step_key = jax.random.fold_in(random_keys.seed_key(settings.seed), state.step)
  spectral = spectral_norm.iterate(state.params, state.spectral)
  ebm = make_ebm(spectral_norm.normalise(state.params, spectral))  # once, for all steps of all chains

  def gradient(batch, index):
    keys = random_keys.example_keys(step_key, index)
    return _gradient(
      state.params, lambda params: make_ebm(spectral_norm.normalise(params, spectral)), ebm, keys, batch, settings
    )

  mean, grads, by_level = _accumulate(gradient, settings.micro_batches, batch, index)
  if axis_name is not None:
    mean, grads = lax.pmean((mean, grads), axis_name)
    by_level = lax.psum(by_level, axis_name)
  return _update(state, mean, grads, spectral, by_level, tx, settings)


def _accumulate(gradient, parts: int, batch, index):
  """`gradient` of the batch, one of `parts` equal parts after another: less memory for the same result."""
  if parts == 1:
    return gradient(batch, index)
  batch, index = (x.reshape(parts, -1, *x.shape[1:]) for x in (batch, index))
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(gradient, batch[0], index[0]))
  (mean, grads, by_level), _ = lax.scan(
    lambda total, part: (jax.tree.map(jnp.add, total, gradient(*part)), None), zeros, (batch, index)
  )
  mean, grads = jax.tree.map(lambda x: x / parts, (mean, grads))
  return mean, grads, by_level


def _gradient(params, make_ebm, ebm, keys, batch, settings):
  """Mean loss of a batch, its gradient with respect to `params`, and the sums of each level.

  Args:
    params: raw parameters.
    make_ebm: from them to the model.
    ebm: the model of these parameters, for the chains.
    keys: one for each example, (B,).
    batch: data, as of `train_step`.
    settings: constants of the step.
  """
  level_keys, flip_keys, now_keys, next_keys, chain_keys, dropout_keys = random_keys.split(keys, 6)

  # Data at a random level, and at the next one.
  x = preprocessing.to_unit_range(batch)
  if settings.random_flip:
    x = preprocessing.random_flip(flip_keys, x)
  if settings.grey_width:
    x = preprocessing.dequantize(random_keys.fold_in(keys, 6), x, settings.grey_width)
  shape, levels = x.shape[1:], ebm.levels
  t = jax.vmap(lambda key: jax.random.randint(key, (), 0, levels.num_models))(level_keys)
  normal = jax.vmap(lambda key: jax.random.normal(key, shape))
  eps, noise = normal(now_keys), langevin.normal_noise(chain_keys, shape)
  if settings.objective == 'recovery' and settings.num_langevin_steps == 0:
    x_pos, x_next = recovery.coupled_pair(levels, x, t, normal(next_keys), noise(0))
  else:
    x_pos, x_next = noise_levels.diffuse_pair(levels, x, t, eps, normal(next_keys))

  # Negatives: the chain from the noisier data. Score matching has none.
  x_neg = x_next
  if settings.objective == 'recovery':
    x_neg = lax.stop_gradient(
      recovery.sample_conditional(ebm.at(t, dropout_keys), x_next, noise, settings.num_langevin_steps)
    )

  # Loss and gradient.
  def mean_loss(params):
    ebm = make_ebm(params)
    if settings.objective == 'recovery':
      loss, f_pos = recovery.recovery_loss(ebm, x_pos, x_neg, t, dropout_keys)
    else:
      loss, f_pos = recovery.score_matching_loss(ebm, x_pos, eps, t, dropout_keys)
    total, by_level = _add_dual_score(loss, ebm, x, t, eps, keys, dropout_keys, settings)
    return jnp.mean(total), by_level | {'level_loss': jnp.abs(loss), 'level_f': jnp.abs(f_pos)}

  (mean, by_level), grads = jax.value_and_grad(mean_loss, has_aux=True)(params)
  moved = jnp.sqrt(jnp.sum((x_neg - x_next) ** 2, axis=tuple(range(1, x.ndim))))
  by_level |= {'level_count': jnp.ones_like(moved), 'level_displacement': moved}
  return mean, grads, {name: jax.ops.segment_sum(value, t, levels.num_models) for name, value in by_level.items()}


def _add_dual_score(loss, ebm, x, t, eps, keys, dropout_keys, settings):
  """Adds the losses of the dual score at levels between these and the next, where they have a weight.

  Returns:
    `(total, terms)`: (B,), and name to the loss that was added, without its weight, (B,).
  """
  losses = {'time_score': dual_score_matching.time_score_loss, 'score_matching': dual_score_matching.score_loss}
  weights = {name: getattr(settings, name) for name in losses if getattr(settings, name)}
  terms = {}
  if weights:
    fraction = jax.vmap(jax.random.uniform)(random_keys.fold_in(keys, 7))
    between = jnp.minimum(t, ebm.levels.num_models - 2) + fraction  # the last level has none above it
  for name, weight in weights.items():
    terms[f'level_{name}'] = losses[name](ebm, x, between, eps, dropout_keys)
    loss = loss + weight * terms[f'level_{name}']
  return loss, terms


def _update(state, mean, grads, spectral, by_level, tx, settings):
  """The state after an update and the step's metrics; where something is not finite, the update is skipped."""
  updates, opt_state = tx.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  grad_norm = optax.tree.norm(grads)
  finite = jnp.isfinite(mean) & jnp.isfinite(grad_norm)
  updated = state.replace(
    params=params,
    ema_params=optimizer.ema_update(state.ema_params, params, settings.ema_decay),
    opt_state=opt_state,
    spectral=spectral,
    bad_steps=jnp.zeros_like(state.bad_steps),
  )
  sound = finite & (state.bad_steps < settings.max_bad_steps)
  skipped = state.replace(bad_steps=state.bad_steps + ~finite)
  state = jax.tree.map(lambda new, old: jnp.where(sound, new, old), updated, skipped)
  metrics = by_level | {
    'loss': mean,
    'grad_norm': grad_norm,
    'grad_max': jnp.max(jnp.stack([jnp.max(jnp.abs(g)) for g in jax.tree.leaves(grads)])),
    'bad_steps': jnp.where(finite, 0, state.bad_steps),
  }
  return state.replace(step=state.step + 1), metrics
