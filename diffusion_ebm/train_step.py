"""One training step as a pure function of the state and a batch."""

import dataclasses
from typing import Any

from flax import struct
import jax
from jax import lax
import jax.numpy as jnp
import optax

from diffusion_ebm import dual_score, energy, langevin, noise_levels, optimizer, recovery
from diffusion_ebm.energy import spectral_norm

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
    network: the energy network, not bound to devices.
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
      step=jnp.zeros([], jnp.int32), params=params, ema_params=jax.tree.map(jnp.copy, params),
      opt_state=tx.init(params), spectral=spectral_norm.init(spectral_key, params) if use_spectral_norm else {},
      bad_steps=jnp.zeros([], jnp.int32))


def to_unit_range(batch):
  """uint8 images to float32 in [-1, 1]; float vectors as they are."""
  return batch.astype(jnp.float32) / 127.5 - 1 if batch.dtype == jnp.uint8 else batch


def dequantize(keys, x, width: float):
  """Images as continuous data: uniform noise over the bin of each grey level, [-width / 2, width / 2).

  Args:
    keys: one key for each image, (B,).
    x: images in [-1, 1], (B, H, W, C).
    width: of a bin, 2 / (grey levels - 1).

  Returns:
    Like `x`.

  Source: Theis et al. 2016, A note on the evaluation of generative models, section 3.1.
  """
  return x + width * jax.vmap(lambda key: jax.random.uniform(key, x.shape[1:], minval=-0.5, maxval=0.5))(keys)


def _random_flip(keys, x):
  flip = jax.vmap(jax.random.bernoulli)(keys)
  return jnp.where(flip[:, None, None, None], x[:, :, ::-1], x)


def train_step(
    state: TrainState, batch, index, *, network, levels: recovery.Levels, tx: optax.GradientTransformation,
    settings: StepSettings, axis_name: str | None = None):
  """One update from a batch of data.

  Every random number depends on the seed, the step and the example's index in the global batch alone. Where the loss
  or the gradient's norm is not finite, the update is skipped: all but the step's number stays as it was.

  Args:
    state: before the step.
    batch: data, (B, H, W, C) uint8 or (B, D) float32.
    index: each example's index in the global batch, int (B,).
    network: the energy network.
    levels: the noise levels and step sizes.
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
  step_key = jax.random.fold_in(jax.random.key(settings.seed), state.step)
  spectral = spectral_norm.iterate(state.params, state.spectral)
  weights = spectral_norm.normalise(state.params, spectral)  # once, for all steps of all chains

  def gradient(batch, index):
    return _gradient(state.params, spectral, weights, step_key, batch, index, network, levels, settings)

  mean, grads, by_level = _accumulate(gradient, settings.micro_batches, batch, index)
  if axis_name is not None:
    mean, grads = lax.pmean((mean, grads), axis_name)
    by_level = lax.psum(by_level, axis_name)

  # Update, then the moving average.
  updates, opt_state = tx.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  grad_norm = optax.tree.norm(grads)
  finite = jnp.isfinite(mean) & jnp.isfinite(grad_norm)
  updated = state.replace(
      params=params, ema_params=optimizer.ema_update(state.ema_params, params, settings.ema_decay),
      opt_state=opt_state, spectral=spectral, bad_steps=jnp.zeros_like(state.bad_steps))
  sound = finite & (state.bad_steps < settings.max_bad_steps)
  skipped = state.replace(bad_steps=state.bad_steps + ~finite)
  state = jax.tree.map(lambda new, old: jnp.where(sound, new, old), updated, skipped)
  metrics = by_level | {
      'loss': mean, 'grad_norm': grad_norm,
      'grad_max': jnp.max(jnp.stack([jnp.max(jnp.abs(g)) for g in jax.tree.leaves(grads)])),
      'bad_steps': jnp.where(finite, 0, state.bad_steps)}
  return state.replace(step=state.step + 1), metrics


def _accumulate(gradient, parts: int, batch, index):
  """`gradient` of the batch, one of `parts` equal parts after another: less memory for the same result."""
  if parts == 1:
    return gradient(batch, index)
  batch, index = (x.reshape(parts, -1, *x.shape[1:]) for x in (batch, index))
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(gradient, batch[0], index[0]))
  (mean, grads, by_level), _ = lax.scan(
      lambda total, part: (jax.tree.map(jnp.add, total, gradient(*part)), None), zeros, (batch, index))
  mean, grads = jax.tree.map(lambda x: x / parts, (mean, grads))
  return mean, grads, by_level


def _gradient(params, spectral, weights, step_key, batch, index, network, levels, settings):
  """Mean loss of a batch, its gradient with respect to `params`, and the sums of each level."""
  # Random numbers of each example.
  example_keys = jax.vmap(lambda i: jax.random.fold_in(step_key, i))(index)
  keys = jax.vmap(lambda key: jax.random.split(key, 6))(example_keys)
  level_keys, flip_keys, now_keys, next_keys, chain_keys, dropout_keys = jnp.moveaxis(keys, 1, 0)

  # Data at a random level, and at the next one.
  x = to_unit_range(batch)
  if settings.random_flip:
    x = _random_flip(flip_keys, x)
  if settings.grey_width:
    x = dequantize(jax.vmap(lambda key: jax.random.fold_in(key, 6))(example_keys), x, settings.grey_width)
  shape = x.shape[1:]
  t = jax.vmap(lambda key: jax.random.randint(key, (), 0, levels.num_models))(level_keys)
  normal = jax.vmap(lambda key: jax.random.normal(key, shape))
  eps, noise = normal(now_keys), langevin.normal_noise(chain_keys, shape)
  if settings.objective == 'recovery' and settings.num_langevin_steps == 0:
    x_pos, x_next = recovery.coupled_pair(levels, x, t, normal(next_keys), noise(0))
  else:
    x_pos, x_next = noise_levels.diffuse_pair(levels.noise, x, t, eps, normal(next_keys))

  # Negatives: the chain from the noisier data.
  if settings.objective == 'recovery':
    f = energy.at_level(network, weights, t, dropout_keys)
    x_neg = lax.stop_gradient(
        recovery.sample_conditional(levels, f, x_next, t, noise, settings.num_langevin_steps))
  else:
    x_neg = x_next  # score matching has none

  # Loss and gradient.
  def mean_loss(params):
    weights = spectral_norm.normalise(params, spectral)
    if settings.objective == 'recovery':
      f = energy.at_level(network, weights, jnp.tile(t, 2), jnp.tile(dropout_keys, 2))
      loss, f_pos = recovery.recovery_loss(levels, f, x_pos, x_neg, t)
    else:
      f = energy.at_level(network, weights, t, dropout_keys)
      loss, f_pos = recovery.score_matching_loss(levels, f, x_pos, eps, t)
    by_level, total = {'level_loss': jnp.abs(loss), 'level_f': jnp.abs(f_pos)}, loss
    # The dual score at a level between this one and the next; the last one has none above it.
    terms = [('time_score', settings.time_score, dual_score.time_score_loss),
             ('score_matching', settings.score_matching, dual_score.score_loss)]
    if settings.time_score or settings.score_matching:
      fraction = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 7)))(example_keys)
      between = jnp.minimum(t, levels.num_models - 2) + fraction
    for name, weight, loss_fn in terms:
      if weight:
        value = loss_fn(levels, lambda t: energy.at_level(network, weights, t, dropout_keys), x, between, eps)
        by_level[f'level_{name}'], total = value, total + weight * value
    return jnp.mean(total), by_level

  (mean, by_level), grads = jax.value_and_grad(mean_loss, has_aux=True)(params)
  moved = jnp.sqrt(jnp.sum((x_neg - x_next)**2, axis=tuple(range(1, x.ndim))))
  by_level |= {'level_count': jnp.ones_like(moved), 'level_displacement': moved}
  return mean, grads, {name: jax.ops.segment_sum(value, t, levels.num_models) for name, value in by_level.items()}
