"""One training step as a pure function of the state and a batch."""

from collections.abc import Callable
import dataclasses
from typing import Any

from flax import struct
import jax
from jax import lax
import jax.numpy as jnp
import optax

from diffusion_ebm import (
  dual_score_matching,
  langevin,
  noise_levels,
  optimizer,
  preprocessing,
  proposal,
  random_keys,
  recovery,
)
from diffusion_ebm.ebm import Ebm
from diffusion_ebm.networks import spectral_norm
from diffusion_ebm.proposal import Proposal

OBJECTIVES = ('recovery', 'contrastive', 'dsm')


class ProposalState(struct.PyTreeNode):
  """What a training step changes of the proposal.

  Attributes:
    params: the network's parameters.
    ema_params: their exponential moving average.
    opt_state: the optimiser's.
  """

  params: Any
  ema_params: Any
  opt_state: Any


class TrainState(struct.PyTreeNode):
  """All that a training step changes.

  Attributes:
    step: number of updates done, int32.
    params: the energy network's raw parameters.
    ema_params: their exponential moving average.
    opt_state: the optimiser's.
    spectral: vectors of the power iteration; empty without spectral normalisation.
    bad_steps: how many updates in a row have been skipped up to now, int32.
    proposal: a `ProposalState`; empty without a proposal.
  """

  step: Any
  params: Any
  ema_params: Any
  opt_state: Any
  spectral: Any
  bad_steps: Any
  proposal: Any


@dataclasses.dataclass(frozen=True)
class StepSettings:
  """Constants of the training step.

  Attributes:
    seed: of all random numbers.
    num_langevin_steps: K.
    ema_decay: of the parameters' moving average.
    random_flip: mirror each image with probability 1/2.
    objective: 'recovery'; 'contrastive', with chains from the data; or 'dsm' for denoising score matching.
    shared_noise: the data of both levels get the same noise.
    time_score: weight of the time score's loss, which ties the levels together; 0 for none.
    score_matching: weight of denoising score matching between the levels; 0 for none.
    label_dropout: probability with which an example counts as of the empty class.
    grey_width: distance between two grey levels in [-1, 1], over which images are dequantised; 0 for not at all.
    micro_batches: parts of the device's batch whose gradients are computed one after another.
    max_bad_steps: after as many skipped updates in a row, the state stays as it is.
    ema_warmup: the average forgets faster in the beginning.
  """

  seed: int
  num_langevin_steps: int
  ema_decay: float
  random_flip: bool
  objective: str = 'recovery'
  shared_noise: bool = False
  time_score: float = 0.0
  score_matching: float = 0.0
  label_dropout: float = 0.0
  grey_width: float = 0.0
  micro_batches: int = 1
  max_bad_steps: int = 10
  ema_warmup: bool = False


@dataclasses.dataclass(frozen=True)
class Trainable:
  """What is trained: the model and, beside it, perhaps a proposal.

  Attributes:
    make_ebm: from the energy network's raw parameters and vectors of the power iteration to the model.
    tx: the optimiser of these parameters.
    make_proposal: from the parameters of the proposal's network to the proposal; None for no proposal.
    proposal_tx: its optimiser.
  """

  make_ebm: Callable[[Any, Any], Ebm]
  tx: optax.GradientTransformation
  make_proposal: Callable[[Any], Proposal] | None = None
  proposal_tx: optax.GradientTransformation | None = None


def init_state(
  key, network, tx, example, use_spectral_norm: bool, proposal_network=None, proposal_tx=None
) -> TrainState:
  """The state before the first step.

  Args:
    key: a random key.
    network: of `networks.make_network`.
    tx: its optimiser.
    example: one example, (H, W, C) or (D,).
    use_spectral_norm: normalise the kernels by their spectral norm.
    proposal_network: of `networks.make_proposal_network`, or None.
    proposal_tx: its optimiser.

  Returns:
    The state.
  """
  init_key, spectral_key = jax.random.split(key)
  y, t = jnp.zeros((1, *example.shape), jnp.float32), jnp.zeros(1, jnp.int32)
  params, proposal = network.init(init_key, y, t)['params'], {}
  if proposal_network is not None:
    weights = proposal_network.init(jax.random.fold_in(key, 2), y, t)['params']
    proposal = ProposalState(weights, jax.tree.map(jnp.copy, weights), proposal_tx.init(weights))
  return TrainState(
    step=jnp.zeros([], jnp.int32),
    params=params,
    ema_params=jax.tree.map(jnp.copy, params),
    opt_state=tx.init(params),
    spectral=spectral_norm.init(spectral_key, params) if use_spectral_norm else {},
    bad_steps=jnp.zeros([], jnp.int32),
    proposal=proposal,
  )


def train_step(
  state: TrainState,
  batch,
  index,
  label=None,
  *,
  trainable: Trainable,
  settings: StepSettings,
  axis_name: str | None = None,
):
  """One update from a batch of data.

  Every random number depends on the seed, the step and the example's index in the global batch alone. Where a loss
  or a gradient's norm is not finite, the update is skipped: all but the step's number stays as it was.

  Args:
    state: before the step.
    batch: data, (B, H, W, C) uint8 or (B, D) float32.
    index: each example's index in the global batch, int (B,).
    label: classes, int (B,) in 1..num_classes; None where the networks are not told any.
    trainable: what is trained.
    settings: constants of the step.
    axis_name: of the devices over which gradients are averaged, if any.

  Returns:
    `(state, metrics)`: the state after the step, and for the global batch `loss`, `grad_norm`, `grad_max`, with a
    proposal `proposal_loss` and `proposal_grad_norm`, `bad_steps` (updates skipped in a row up to this one; 0 if it was
    not), and the sums over the examples of each level (T,) `level_count`, `level_loss` (absolute), `level_f` (absolute,
    of the data), `level_displacement` (distance that the chain moved) and, where they are trained, `level_time_score`
    and `level_score_matching` (those parts of the loss, without their weights).

  Source: Gao et al. 2021, algorithm 1; with a proposal Zhu et al. 2024, algorithm 1.
  """
  step_key = jax.random.fold_in(random_keys.seed_key(settings.seed), state.step)
  spectral = spectral_norm.iterate(state.params, state.spectral)
  ebm = trainable.make_ebm(state.params, spectral)  # once, for all steps of all chains

  def gradients(batch, index, label):
    keys = random_keys.example_keys(step_key, index)
    return _gradients(state, spectral, ebm, trainable, keys, batch, label, settings)

  losses, grads, by_level = _accumulate(gradients, settings.micro_batches, (batch, index, label))
  if axis_name is not None:
    losses, grads = lax.pmean((losses, grads), axis_name)
    by_level = lax.psum(by_level, axis_name)
  return _update(state, losses, grads, spectral, by_level, trainable, settings)


def _accumulate(gradients, parts: int, batch):
  """`gradients` of the arrays of a batch, one of `parts` equal parts after another: less memory for the same result."""
  if parts == 1:
    return gradients(*batch)
  batch = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), batch)
  first = jax.tree.map(lambda x: x[0], batch)
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(gradients, *first))
  (losses, grads, by_level), _ = lax.scan(
    lambda total, part: (jax.tree.map(jnp.add, total, gradients(*part)), None), zeros, batch
  )
  losses, grads = jax.tree.map(lambda x: x / parts, (losses, grads))
  return losses, grads, by_level


def _gradients(state, spectral, ebm, trainable, keys, batch, label, settings):
  """Mean losses of a batch, their gradients, and the sums of each level.

  Args:
    state: before the step.
    spectral: vectors of the power iteration, as of this step.
    ebm: the model of these parameters, for the chains.
    trainable: what is trained.
    keys: one for each example, (B,).
    batch: data, as of `train_step`.
    label: likewise.
    settings: constants of the step.

  Returns:
    `(losses, grads, by_level)`; the first two have an entry 'ebm' and, with a proposal, 'proposal'.
  """
  level_keys, flip_keys, now_keys, next_keys, chain_keys, dropout_keys = random_keys.split(keys, 6)

  if label is not None:
    dropped = jax.vmap(jax.random.uniform)(random_keys.fold_in(keys, 9)) < settings.label_dropout
    label = jnp.where(dropped, 0, label)[None]
  told = {'dropout_keys': dropout_keys, 'labels': label}  # to both networks
  ebm = ebm.replace(**told)

  # Data at a random level, and at the next one.
  x = preprocessing.to_unit_range(batch)
  if settings.random_flip:
    x = preprocessing.random_flip(flip_keys, x)
  if settings.grey_width:
    x = preprocessing.dequantize(random_keys.fold_in(keys, 6), x, settings.grey_width)
  shape, levels = x.shape[1:], ebm.levels
  t = jax.vmap(lambda key: jax.random.randint(key, (), 0, levels.num_models))(level_keys)
  normal = lambda keys: random_keys.draw(jax.random.normal, keys, shape)  # noqa: E731
  eps, noise = normal(now_keys), langevin.normal_noise(chain_keys, shape)
  if settings.shared_noise:
    x_pos, x_next = noise_levels.diffuse_together(levels, x, t, eps)
  elif settings.objective == 'recovery' and settings.num_langevin_steps == 0:
    x_pos, x_next = recovery.coupled_pair(levels, x, t, normal(next_keys), noise(0))
  else:
    x_pos, x_next = noise_levels.diffuse_pair(levels, x, t, eps, normal(next_keys))

  # Negatives: the chain from the noisier data, the proposal or the data. Score matching has none.
  x_start = x_neg = x_next
  losses, grads = {}, {}
  if state.proposal:
    start_noise = normal(random_keys.fold_in(keys, 8))
    start = trainable.make_proposal(state.proposal.params).replace(**told).sample(x_next, t, start_noise)
    y = recovery.refine(ebm.at(t), start, x_next, noise, settings.num_langevin_steps)
    x_start, x_neg = lax.stop_gradient((levels.to_x(start, t), levels.to_x(y, t)))
  elif settings.objective == 'recovery':
    x_neg = lax.stop_gradient(recovery.sample_conditional(ebm.at(t), x_next, noise, settings.num_langevin_steps))
  elif settings.objective == 'contrastive':
    x_start, steps = x_pos, settings.num_langevin_steps
    x_neg = lax.stop_gradient(recovery.contrastive_negatives(ebm.at(t), x_pos, x_next, chain_keys, steps))

  # Losses and gradients.
  def mean_loss(params):
    ebm = trainable.make_ebm(params, spectral).replace(**told)
    if settings.objective != 'dsm':
      loss, f_pos = recovery.recovery_loss(ebm, x_pos, x_neg, t)
    else:
      loss, f_pos = recovery.score_matching_loss(ebm, x_pos, eps, t)
    total, by_level = _add_dual_score(loss, ebm, x, t, eps, keys, settings)
    return jnp.mean(total), by_level | {'level_loss': jnp.abs(loss), 'level_f': jnp.abs(f_pos)}

  (losses['ebm'], by_level), grads['ebm'] = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
  if state.proposal:

    def mean_teaching_loss(params):
      made = trainable.make_proposal(params).replace(**told)
      return jnp.mean(proposal.teaching_loss(made, x_next, y, t, start_noise))

    losses['proposal'], grads['proposal'] = jax.value_and_grad(mean_teaching_loss)(state.proposal.params)
  moved = jnp.sqrt(jnp.sum((x_neg - x_start) ** 2, axis=tuple(range(1, x.ndim))))
  by_level |= {'level_count': jnp.ones_like(moved), 'level_displacement': moved}
  by_level = {name: jax.ops.segment_sum(value, t, levels.num_models) for name, value in by_level.items()}
  return losses, grads, by_level


def _add_dual_score(loss, ebm, x, t, eps, keys, settings):
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
    terms[f'level_{name}'] = losses[name](ebm, x, between, eps)
    loss = loss + weight * terms[f'level_{name}']
  return loss, terms


def _update(state, losses, grads, spectral, by_level, trainable, settings):
  """The state after an update and the step's metrics; where something is not finite, the update is skipped."""
  norms = {name: optax.tree.norm(each) for name, each in grads.items()}
  finite = jnp.all(jnp.isfinite(jnp.stack([*losses.values(), *norms.values()])))
  decay = settings.ema_decay
  if settings.ema_warmup:
    decay = optimizer.warm_decay(decay, state.step + 1)

  def descend(tx, part, grads):
    updates, opt_state = tx.update(grads, part.opt_state, part.params)
    params = optax.apply_updates(part.params, updates)
    return part.replace(
      params=params, ema_params=optimizer.ema_update(part.ema_params, params, decay), opt_state=opt_state
    )

  updated = descend(trainable.tx, state, grads['ebm']).replace(
    spectral=spectral, bad_steps=jnp.zeros_like(state.bad_steps)
  )
  if state.proposal:
    updated = updated.replace(proposal=descend(trainable.proposal_tx, state.proposal, grads['proposal']))
  sound = finite & (state.bad_steps < settings.max_bad_steps)
  skipped = state.replace(bad_steps=state.bad_steps + ~finite)
  state = jax.tree.map(lambda new, old: jnp.where(sound, new, old), updated, skipped)
  metrics = by_level | {
    'loss': losses['ebm'],
    'grad_norm': norms['ebm'],
    'grad_max': jnp.max(jnp.stack([jnp.max(jnp.abs(g)) for g in jax.tree.leaves(grads['ebm'])])),
    'bad_steps': jnp.where(finite, 0, state.bad_steps),
  }
  if state.proposal:
    metrics |= {'proposal_loss': losses['proposal'], 'proposal_grad_norm': norms['proposal']}
  return state.replace(step=state.step + 1), metrics
