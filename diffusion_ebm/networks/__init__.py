"""Networks f(y, t): the negative energy up to the level's temperature; higher is more likely."""

import dataclasses

import jax.numpy as jnp

from diffusion_ebm.networks.mlp import MLP, MLPSettings
from diffusion_ebm.networks.normal_factor import NormalFactor
from diffusion_ebm.networks.resnet import ResNet, ResNetSettings

NETWORKS = ('resnet', 'mlp')
LEVEL_EMBEDDINGS = ('index', 'log_snr')
DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}


def make_network(model, levels):
  """The Flax module that the configuration's `model` section describes.

  Args:
    model: the section; `name` is one of `NETWORKS`.
    levels: the noise levels.

  Returns:
    A module with `init(key, y, t)`, `apply(params, y, t)` and the two halves `embed` and `f`.
  """
  log_snr = tuple(levels.log_snr[:-1].tolist())
  terms = {'quadratic': model.quadratic, 'coordinates': log_snr if model.level_embedding == 'log_snr' else ()}
  if model.normal_factor:
    terms['normal_factor'] = NormalFactor(model.normal_factor, log_snr, tuple(levels.a_y.tolist()))
  kind, settings = (MLP, MLPSettings) if model.name == 'mlp' else (ResNet, ResNetSettings)
  return kind(_settings(settings, model), **terms)


def _settings(kind, model):
  """What a network is made of: the fields have the names of keys."""
  values = {field.name: getattr(model, field.name) for field in dataclasses.fields(kind)}
  values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
  return kind(**values | {'dtype': DTYPES[model.dtype]})
