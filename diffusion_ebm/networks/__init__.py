"""Networks f(y, t): the negative energy up to the level's temperature; higher is more likely."""

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
  dtype = DTYPES[model.dtype]
  if model.name == 'mlp':
    return MLP(
      MLPSettings(
        ch=model.ch,
        num_layers=model.num_layers,
        num_frequencies=model.num_frequencies,
        act=model.act,
        dropout=model.dropout,
        output_scale=model.output_scale,
        dtype=dtype,
      ),
      **terms,
    )
  return ResNet(
    ResNetSettings(
      ch=model.ch,
      ch_mult=tuple(model.ch_mult),
      num_res_blocks=model.num_res_blocks,
      act=model.act,
      final_act=model.final_act,
      norm=model.norm,
      dropout=model.dropout,
      use_scale=model.use_scale,
      shortcut=model.shortcut,
      resample_with_conv=model.resample_with_conv,
      attention_resolutions=tuple(model.attention_resolutions),
      remat=model.remat,
      dtype=dtype,
    ),
    **terms,
  )
