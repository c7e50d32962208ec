"""Weights named as in the published implementation, brought into this project's networks."""

import re

from flax import traverse_util
import numpy as np

_EMBEDDING = {'temb_dense_0': 'dense_0', 'temb_dense_1': 'dense_1', 'temb_dense_out': 'head'}


def _path(layer: str) -> tuple[str, ...]:
  """Where a published layer lives among the parameters of `ResNet`."""
  if layer in _EMBEDDING:
    return 'embedding', _EMBEDDING[layer]
  if match := re.fullmatch(r'(level_\d+)/(block_\d+)/(\w+)', layer):
    block = f'{match[1]}_{match[2]}'
    if match[3] == 'temb_proj':
      return 'embedding', block
    return ('body', block, *(('attention',) if match[3].startswith('attn_') else ()), match[3])
  return 'body', layer.replace('/', '_')


def network_shape(shapes: dict[str, tuple[int, ...]], image_size: int) -> dict:
  """What the network is made of, from the shapes of its weights: entries of the `model` section.

  Args:
    shapes: by the names of `from_published`.
    image_size: of the images that it takes.

  Returns:
    The entries; without `shortcut`, if no block has one.

  Raises:
    ValueError: they are not those of such a network.
  """
  if len(shapes.get('conv_in/kernel', ())) != 4 or not all(shapes['conv_in/kernel']):
    raise ValueError('it has no conv_in/kernel (3, 3, C, ch), as the network has')
  ch = shapes['conv_in/kernel'][-1]
  resolutions, attention = {}, set()
  for name, shape in shapes.items():
    if match := re.fullmatch(r'level_(\d+)/block_(\d+)/(conv_1|attn_q)/kernel', name):
      if match[3] == 'conv_1':
        resolutions.setdefault(int(match[1]), []).append(shape[-1])
      else:
        attention.add(image_size // 2 ** int(match[1]))
  widths = [resolutions[i] for i in sorted(resolutions)]
  if len({len(group) for group in widths}) != 1 or any(len(set(group)) != 1 or group[0] % ch for group in widths):
    raise ValueError("the blocks of its network are not those of DRL's")
  shortcuts = {len(shape) for name, shape in shapes.items() if name.endswith('/shortcut/kernel')}
  return {
    'ch': ch,
    'ch_mult': tuple(group[0] // ch for group in widths),
    'num_res_blocks': len(widths[0]),
    'spectral_norm': any(name.endswith('/u') for name in shapes),
    'use_scale': any(name.endswith('/conv_2/scale') for name in shapes),
    'resample_with_conv': any(name.endswith('/downsample/kernel') for name in shapes),
    'attention_resolutions': tuple(sorted(attention, reverse=True)),
  } | ({'shortcut': 'conv' if 4 in shortcuts else 'nin'} if shortcuts else {})


def from_published(arrays: dict[str, np.ndarray]):
  """Turns a flat dictionary of published weights into parameters of `ResNet`.

  Args:
    arrays: `<layer>/kernel`, `<layer>/bias`, `<layer>/scale` and, for the spectrally normalised layers, `<layer>/u`;
      the layers are `temb_dense_0`, `temb_dense_1`, `temb_dense_out`, `conv_in`, `level_i/downsample` and
      `level_i/block_j/` followed by `conv_1`, `conv_2`, `temb_proj`, `shortcut`, `attn_q`, `attn_k`, `attn_v` or
      `attn_proj_out`. Kernels are HWIO or (in, out).

  Returns:
    `(params, spectral)`: the raw parameters, and the vectors of the power iteration (empty if there are none).

  Raises:
    ValueError: for an array whose name is none of these.
  """
  params, spectral = {}, {}
  for name, value in arrays.items():
    layer, _, kind = name.rpartition('/')
    if kind in ('kernel', 'bias', 'scale'):
      params[(*_path(layer), kind)] = np.asarray(value)
    elif kind == 'u':
      spectral[(*_path(layer), 'kernel')] = np.asarray(value)
    else:
      raise ValueError(f'{name} is not a weight: its last part is not one of kernel, bias, scale, u')
  return traverse_util.unflatten_dict(params), traverse_util.unflatten_dict(spectral)
