"""From a configuration to its parts: network, levels, optimiser, and the state before the first step."""

import dataclasses
from typing import Any

import jax
import numpy as np
import optax

from diffusion_ebm import config as config_lib
from diffusion_ebm import energy, optimizer, parallel, recovery, train_step


@dataclasses.dataclass(frozen=True)
class Model:
  """What a configuration describes.

  Attributes:
    shape: of one example.
    levels: the noise levels and step sizes.
    network: the energy network, for use under `pmap` (batch normalisation spans the devices).
    tx: the optimiser.
    schedule: learning rate as a function of the step.
    state: the initial training state, on all devices.
  """
  shape: tuple[int, ...]
  levels: recovery.Levels
  network: Any
  tx: optax.GradientTransformation
  schedule: optax.Schedule
  state: train_step.TrainState


def build(config) -> Model:
  """Builds the parts that a resolved, checked configuration describes."""
  size = config.data.image_size
  shape = (2,) if config_lib.is_vector(config) else (size, size, config.data.num_channels)
  tx, schedule = optimizer.make_optimizer(config.train)
  network = energy.make_network(config.model, config.diffusion.num_levels)
  init = jax.jit(lambda key: train_step.init_state(
      key, network, tx, np.zeros(shape), config.model.spectral_norm))
  sampling = config.sampling
  return Model(
      shape=shape,
      levels=recovery.make_levels(
          config.diffusion.num_levels, sampling.step_size, sampling.step_size_rule, config.diffusion.temperature,
          config.train.level_weight),
      network=energy.make_network(config.model, config.diffusion.num_levels, parallel.AXIS),
      tx=tx, schedule=schedule, state=parallel.replicate(init(jax.random.key(config.seed))))
