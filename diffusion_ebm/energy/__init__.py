"""Energy networks f(y, t): the negative energy up to the level's temperature; higher is more likely."""

import jax.numpy as jnp

from diffusion_ebm import noise_levels
from diffusion_ebm.energy import conv
from diffusion_ebm.energy.mlp import MLP
from diffusion_ebm.energy.normal_factor import NormalFactor
from diffusion_ebm.energy.resnet import ResNet

LEVEL_EMBEDDINGS = ('index', 'log_snr')
DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}


def make_network(model, num_levels: int, axis_name: str | None = None):
  """The Flax module that the configuration's `model` section describes.

  Args:
    model: the section; `name` is 'resnet' or 'mlp'.
    num_levels: of `noise_levels.make_noise_levels`.
    axis_name: of the devices, where the network will run under `pmap`.

  Returns:
    A module with `init(key, y, t)`, `apply(params, y, t)` and the two halves `embed` and `f`.
  """
  noise = noise_levels.make_noise_levels(num_levels)
  log_snr = tuple(noise.log_snr[:-1].tolist())
  factor = NormalFactor(model.normal_factor, log_snr, tuple(noise.a_y[1:].tolist())) if model.normal_factor else None
  common = {'ch': model.ch, 'act': model.act, 'dropout': model.dropout, 'quadratic': model.quadratic,
            'coordinates': log_snr if model.level_embedding == 'log_snr' else (), 'normal_factor': factor,
            'dtype': DTYPES[model.dtype]}
  if model.name == 'mlp':
    return MLP(num_layers=model.num_layers, num_frequencies=model.num_frequencies, output_scale=model.output_scale,
               **common)
  return ResNet(
      ch_mult=tuple(model.ch_mult), num_res_blocks=model.num_res_blocks, final_act=model.final_act, norm=model.norm,
      use_scale=model.use_scale, shortcut=model.shortcut, resample_with_conv=model.resample_with_conv,
      attention_resolutions=tuple(model.attention_resolutions), remat=model.remat, axis_name=axis_name, **common)


def at_level(network, weights, t, dropout_keys=None):
  """f(., t) as a function of y alone; everything that depends on the level only is computed here, once.

  Args:
    network: of `make_network`.
    weights: its (normalised) parameters.
    t: levels, (B,): integers, or real numbers between two of them.
    dropout_keys: one key for each example, (B,), or None for no dropout.

  Returns:
    A function from (B, ...) to float32 (B,).
  """
  level = network.apply({'params': weights}, t, method='embed')
  variables = {'params': weights, conv.PREPARED: conv.prepare(weights)}
  return lambda y: network.apply(variables, y, level, dropout_keys, method='f')
