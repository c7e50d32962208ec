"""From a configuration to its parts: the model, its optimiser, and the state before the first step."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import optax

from diffusion_ebm import config as config_lib
from diffusion_ebm import networks, noise_levels, optimizer, random_keys, train_step
from diffusion_ebm.ebm import Ebm
from diffusion_ebm.networks import spectral_norm
from diffusion_ebm.proposal import Proposal
from diffusion_ebm.run import compilation, parallel


@dataclasses.dataclass(frozen=True)
class Model:
  """What a configuration describes.

  Attributes:
    shape: of one example.
    levels: the noise levels and step sizes.
    network: the energy network.
    tx: its optimiser.
    schedule: its learning rate as a function of the step.
    seed: of the initial parameters.
    spectral_norm: whether the kernels are normalised by their spectral norm.
    zero_init: whether the last convolution of each block starts at zero.
    raw_singular_vectors: whether averaged kernels are normalised with the singular vectors of the raw ones.
    proposal_network: the network of the proposal; None for no proposal.
    proposal_tx: its optimiser.
  """

  shape: tuple[int, ...]
  levels: noise_levels.Levels
  network: Any
  tx: optax.GradientTransformation
  schedule: optax.Schedule
  seed: int
  spectral_norm: bool
  zero_init: bool
  raw_singular_vectors: bool
  proposal_network: Any
  proposal_tx: optax.GradientTransformation | None

  @functools.cached_property
  def state(self) -> train_step.TrainState:
    """The initial training state, on all devices; computed when it is first asked for, which takes a while."""
    return parallel.replicate(compilation.once(self._init)(random_keys.seed_key(self.seed)))

  @functools.cached_property
  def abstract_state(self) -> train_step.TrainState:
    """Like `state`, but shapes, types and devices alone: what reading a checkpoint needs, known at once."""
    return parallel.replicated_like(self.described_state)

  @property
  def described_state(self) -> train_step.TrainState:
    """Shapes and types alone: for compiling where nothing can be put on the devices."""
    return jax.eval_shape(self._init, random_keys.seed_key(self.seed))

  def _init(self, key):
    return train_step.init_state(
      key, self.network, self.tx, np.zeros(self.shape), self.spectral_norm, self.proposal_network, self.proposal_tx
    )

  def ebm(self, weights) -> Ebm:
    """The energy-based model with these (normalised) parameters of the network."""
    return Ebm(weights, self.network, self.levels)

  def proposal(self, weights) -> Proposal:
    """The proposal with these parameters of its network."""
    return Proposal(weights, self.proposal_network, self.levels)

  def misfit(self, params, proposal) -> str | None:
    """Which of two trees is not that of its network by names and shapes, 'model' or 'proposal'; None if both fit."""
    state = self.described_state
    pairs = {'model': (state.params, params), 'proposal': (state.proposal.params if state.proposal else None, proposal)}
    return next(
      (name for name, (a, b) in pairs.items() if jax.tree.map(np.shape, a) != jax.tree.map(np.shape, b)), None
    )

  @property
  def trainable(self) -> train_step.Trainable:
    """What the training step needs to know of the model."""
    return train_step.Trainable(
      lambda params, spectral: self.ebm(spectral_norm.normalise(params, spectral, self.zero_init)),
      self.tx,
      self.proposal if self.proposal_network is not None else None,
      self.proposal_tx,
    )


def build(config) -> Model:
  """Builds the parts that a resolved, checked configuration describes.

  Raises:
    UserError: JAX has no device, or computes in double precision.
  """
  compilation.check_jax()
  size = config.data.image_size
  shape = (2,) if config_lib.is_vector(config) else (size, size, config.data.num_channels)
  levels = noise_levels.make_levels(
    config.diffusion.num_levels,
    config.sampling.step_size,
    config.sampling.step_size_rule,
    config.diffusion.temperature,
    config.train.level_weight,
    config.diffusion.schedule,
    (config.diffusion.log_snr_max, config.diffusion.log_snr_min),
  )
  network = networks.make_network(config.model, levels)
  tx, schedule = optimizer.make_optimizer(config.train)
  proposal_network = proposal_tx = None
  if config.proposal.name:
    proposal_network = networks.make_proposal_network(
      config.proposal, levels, config.model.dtype, config.model.num_classes
    )
    proposal_tx = optimizer.make_proposal_optimizer(config.proposal, config.train)
  return Model(
    shape,
    levels,
    network,
    tx,
    schedule,
    config.seed,
    config.model.spectral_norm,
    config.model.zero_init,
    config.model.raw_singular_vectors,
    proposal_network,
    proposal_tx,
  )
