"""Energy networks f(y, t): the negative energy up to the level's temperature; higher is more likely."""

import jax.numpy as jnp

from diffusion_ebm.energy import conv
from diffusion_ebm.energy.mlp import MLP
from diffusion_ebm.energy.resnet import ResNet

DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}


def make_network(model, axis_name: str | None = None):
  """The Flax module that the configuration's `model` section describes.

  Args:
    model: the section; `name` is 'resnet' or 'mlp'.
    axis_name: of the devices, where the network will run under `pmap`.

  Returns:
    A module with `init(key, y, t)`, `apply(params, y, t)` and the two halves `embed` and `f`.
  """
  dtype = DTYPES[model.dtype]
  if model.name == 'mlp':
    return MLP(
        ch=model.ch, num_layers=model.num_layers, num_frequencies=model.num_frequencies, act=model.act,
        dropout=model.dropout, output_scale=model.output_scale, quadratic=model.quadratic, dtype=dtype)
  return ResNet(
      ch=model.ch, ch_mult=tuple(model.ch_mult), num_res_blocks=model.num_res_blocks, act=model.act,
      final_act=model.final_act, norm=model.norm, dropout=model.dropout, use_scale=model.use_scale,
      shortcut=model.shortcut, resample_with_conv=model.resample_with_conv,
      attention_resolutions=tuple(model.attention_resolutions), remat=model.remat, quadratic=model.quadratic,
      axis_name=axis_name, dtype=dtype)


def at_level(network, weights, t, dropout_keys=None):
  """f(., t) as a function of y alone; everything that depends on the level only is computed here, once.

  Args:
    network: of `make_network`.
    weights: its (normalised) parameters.
    t: levels, int (B,).
    dropout_keys: one key for each example, (B,), or None for no dropout.

  Returns:
    A function from (B, ...) to float32 (B,).
  """
  level = network.apply({'params': weights}, t, method='embed')
  variables = {'params': weights, conv.PREPARED: conv.prepare(weights)}
  return lambda y: network.apply(variables, y, level, dropout_keys, method='f')
