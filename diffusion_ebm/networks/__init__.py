"""Networks: f(y, t), the negative energy up to the level's temperature, and where chains start."""

import dataclasses

import jax.numpy as jnp

from diffusion_ebm.networks.mlp import MLP, MLPSettings, ProposalMLP, ProposalMLPSettings
from diffusion_ebm.networks.normal_factor import NormalFactor
from diffusion_ebm.networks.resnet import ResNet, ResNetSettings
from diffusion_ebm.networks.unet import EnergyUNet, ProposalUNet, UNetSettings

_KINDS = {'resnet': (ResNet, ResNetSettings), 'unet': (EnergyUNet, UNetSettings), 'mlp': (MLP, MLPSettings)}
NETWORKS = tuple(_KINDS)
PROPOSALS = ('unet', 'mlp')
LEVEL_EMBEDDINGS = ('index', 'log_snr', 'angle')
_ANGLES = 1000.0  # of `NoiseLevels.angle`, so that the embedding sees numbers as large as those of a thousand levels
DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}
PRECISIONS = ('default', 'high', 'highest')  # of products of float32; all the same on a CPU


def make_network(model, levels):
  """The Flax module that the configuration's `model` section describes.

  Args:
    model: the section; `name` is one of `NETWORKS`.
    levels: the noise levels.

  Returns:
    A module with `init(key, y, t)`, `apply(params, y, t)` and the two halves `embed` and `f`.
  """
  log_snr = tuple(levels.log_snr[:-1].tolist())
  coordinates = {'index': (), 'log_snr': log_snr, 'angle': tuple((_ANGLES * levels.angle[:-1]).tolist())}
  terms = {'quadratic': model.quadratic, 'coordinates': coordinates[model.level_embedding]}
  terms['num_classes'] = model.num_classes
  if model.normal_factor:
    terms['normal_factor'] = NormalFactor(model.normal_factor, log_snr, tuple(levels.a_y.tolist()))
  kind, settings = _KINDS[model.name]
  return kind(_settings(settings, model, model.dtype), **terms)


def make_proposal_network(proposal, levels, dtype: str, num_classes: int = 0):
  """The Flax module of the configuration's `proposal` section; its `name` is one of `PROPOSALS`.

  Args:
    proposal: the section.
    levels: the noise levels.
    dtype: of the computation, the name of one.
    num_classes: classes that it is told; 0 for none.

  Returns:
    A module with `init(key, x_next, t)` and `apply(params, x_next, t, dropout_keys)`, the mean of `y_t`.
  """
  kind, settings = (ProposalMLP, ProposalMLPSettings) if proposal.name == 'mlp' else (ProposalUNet, UNetSettings)
  return kind(_settings(settings, proposal, dtype), tuple((_ANGLES * levels.angle[1:]).tolist()), num_classes)


def _settings(kind, section, dtype):
  """What a network is made of: the fields have the names of keys."""
  names = (field.name for field in dataclasses.fields(kind) if field.name != 'dtype')
  values = {name: section[name] for name in names if name in section}  # a proposal's section lacks what is fixed
  values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
  return kind(**values, dtype=DTYPES[dtype])
