"""Weights named as in CDRL's published implementation (PyTorch), brought into this project's networks.

Source: Zhu et al. 2024, their code: `models/ebm.py` and `models/unet.py`.
"""

import re

from flax import traverse_util
import numpy as np

_EMBEDDING = {'temb_map1': 'dense_0', 'temb_map2': 'dense_1', 'temb_final': 'head', 'y_map': 'label'}
_ENERGY_LAYERS = {'conv1': 'conv_1', 'conv2': 'conv_2', 'short_cut': 'shortcut'}
_BLOCK_LAYERS = {
  'norm1': 'norm_1',
  'norm2': 'norm_2',
  'conv1': 'conv_1',
  'conv2': 'conv_2',
  'mlp.1': 'level',
  'res_conv': 'shortcut',
}
_UNET_LAYERS = {
  'init_conv': ('conv_in',),
  'time_mlp.1': ('dense_0',),
  'time_mlp.3': ('dense_1',),
  'y_mlp.0': ('label',),
  'norm': ('norm_out',),
  'final_conv': ('conv_out',),
}
# Of spectral normalisation, beside the parameters; the second follows from the others.
_BUFFERS = ('.weight_u', '.weight_v')


def averaged(weights: dict, averages: list) -> dict:
  """Gives the moving averages of torch-ema, a list in the order of the network's parameters, their names.

  Args:
    weights: all of the network, by their names, in their order there; spectral normalisation's vectors among them.
    averages: one for each that is a parameter.

  Returns:
    The averages, by the parameters' names.

  Raises:
    ValueError: there are more or fewer.
  """
  names = [name for name in weights if not name.endswith(_BUFFERS)]
  if len(names) != len(averages):
    raise ValueError(f'it has {len(averages)} averages (shadow_params) for {len(names)} weights')
  return dict(zip(names, averages, strict=True))


def _kernel(value):
  """OIHW to HWIO, or (out, in) to (in, out); a 1x1 convolution becomes a linear map."""
  value = np.asarray(value, np.float32)
  if value.ndim == 4:
    value = value.transpose(2, 3, 1, 0)
    return value[0, 0] if value.shape[:2] == (1, 1) else value
  return value.T


# The energy.


def energy_shape(shapes: dict[str, tuple[int, ...]]) -> dict:
  """What the energy network is made of, from the shapes of its weights: entries of the `model` section.

  Raises:
    ValueError: they are not those of such a network.
  """
  if not any(name.startswith('module_list.') for name in shapes):
    raise ValueError('it has no module_list, as the energy network has')
  suffix = '_orig' if 'module_list.0.weight_orig' in shapes else ''
  ch = _width(shapes, f'module_list.0.weight{suffix}')
  widths = [
    {_width(shapes, f'module_list.{number}.conv1.weight{suffix}') for number in group} for group in _blocks(shapes)
  ]
  counts = {len(group) for group in _blocks(shapes)}
  if len(counts) != 1 or any(len(group) != 1 or min(group) % ch for group in widths):
    raise ValueError('the blocks of its energy network are not those of CDRL')
  return {
    'ch': ch,
    'ch_mult': tuple(min(group) // ch for group in widths),
    'num_res_blocks': counts.pop(),
    'spectral_norm': bool(suffix),
    'num_classes': _num_classes(shapes, f'y_map.weight{suffix}'),
    'use_scale': True,
    'shortcut': 'conv',
    'resample_with_conv': False,
    'attention_resolutions': (),
  }


def _num_classes(shapes, name):
  """How many classes a map of the label knows beside the empty one."""
  if name not in shapes:
    return 0
  if len(shapes[name]) != 2 or shapes[name][1] < 2:
    raise ValueError(f'{name} is not a map of classes')
  return shapes[name][1] - 1


def _width(shapes, name):
  """How many channels a layer's weight gives."""
  if not shapes.get(name) or shapes[name][0] < 1:
    raise ValueError(f'{name} is missing or empty')
  return shapes[name][0]


def _blocks(shapes):
  """Numbers of the energy's blocks, by resolution: between two resolutions a pooling has a number, but no weights."""
  numbers = sorted({int(match[1]) for name in shapes if (match := re.match(r'module_list\.(\d+)\.conv1\.', name))})
  groups = []
  for number in numbers:
    if groups and groups[-1][-1] == number - 1:
      groups[-1].append(number)
    else:
      groups.append([number])
  return groups


def energy(arrays: dict[str, np.ndarray]):
  """Turns weights of the energy into parameters of `ResNet`.

  Args:
    arrays: by their names there, such as `module_list.1.conv1.weight_orig` (or `weight`, without spectral
      normalisation); kernels are OIHW or (out, in).

  Returns:
    `(params, spectral)`: the raw parameters, and the vectors of the power iteration (empty if there are none).

  Raises:
    ValueError: an array has a name that is none of these.
  """
  names = {number: f'level_{i}_block_{j}' for i, group in enumerate(_blocks(arrays)) for j, number in enumerate(group)}
  params, spectral = {}, {}
  for name, value in arrays.items():
    path, _, kind = name.rpartition('.')
    layer = _energy_layer(path, names)
    if layer is None:
      raise ValueError(f'{name} is unknown')
    if kind in ('weight', 'weight_orig'):
      params[(*layer, 'kernel')] = _kernel(value)
    elif kind == 'bias':
      params[(*layer, 'bias')] = np.asarray(value, np.float32)
    elif kind == 'g':
      params[(*layer, 'conv_2', 'scale')] = np.asarray(value, np.float32).ravel()
    elif kind == 'weight_u':
      spectral[(*layer, 'kernel')] = np.asarray(value, np.float32)
    elif kind != 'weight_v':  # follows from the others
      raise ValueError(f'{name} is unknown')
  return traverse_util.unflatten_dict(params), traverse_util.unflatten_dict(spectral)


def _energy_layer(path, names):
  if path in _EMBEDDING:
    return 'embedding', _EMBEDDING[path]
  if path == 'module_list.0':
    return 'body', 'conv_in'
  match = re.fullmatch(r'module_list\.(\d+)(?:\.(\w+))?', path)
  if not match or int(match[1]) not in names:
    return None
  block, layer = names[int(match[1])], match[2]
  if layer is None:
    return 'body', block
  if layer == 'temb_map':
    return 'embedding', block
  return ('body', block, _ENERGY_LAYERS[layer]) if layer in _ENERGY_LAYERS else None


# The initialiser.


def proposal_shape(shapes: dict[str, tuple[int, ...]], image_size: int) -> dict:
  """What the initialiser is made of, from the shapes of its weights: entries of the `proposal` section.

  Raises:
    ValueError: they are not those of such a network.
  """
  ch = _width(shapes, 'init_conv.weight')
  downs = _resolutions(shapes, 'downs')
  widths, counts, attention = [], set(), []
  for i, kinds in enumerate(downs):
    blocks = [number for number, kind in kinds if kind == 'block']
    widths.append({_width(shapes, f'downs.{i}.{number}.conv1.weight') for number in blocks})
    counts.add(len(blocks) - (i < len(downs) - 1))
    if len(blocks) < len(kinds):
      attention.append(image_size // 2**i)
  if len(counts) != 1 or min(counts) < 1 or any(len(group) != 1 or min(group) % ch for group in widths):
    raise ValueError('the blocks of its initialiser are not those of CDRL')
  return {
    'name': 'unet',
    'ch': ch,
    'ch_mult': tuple(min(group) // ch for group in widths),
    'num_res_blocks': counts.pop(),
    'attention_resolutions': tuple(attention),
  }


def _resolutions(shapes, way):
  """Of each resolution of `way` ('downs' or 'ups'), number and kind ('block', 'attention') of its layers, in order."""
  found = {}
  for name in shapes:
    if match := re.match(rf'{way}\.(\d+)\.(\d+)\.(conv1|to_qkv)\.weight', name):
      found.setdefault(int(match[1]), []).append((int(match[2]), 'block' if match[3] == 'conv1' else 'attention'))
  return [sorted(found[i]) for i in sorted(found)]


def proposal(arrays: dict[str, np.ndarray]):
  """Turns weights of the initialiser into parameters of `ProposalUNet`.

  Args:
    arrays: by their names there, such as `downs.0.0.conv1.weight`; kernels are OIHW or (out, in).

  Returns:
    The parameters.

  Raises:
    ValueError: an array has a name that is none of these.
  """
  names = _unet_names(arrays)
  params = {}
  for name, value in arrays.items():
    path, _, kind = name.rpartition('.')
    layers = _unet_layers(path, names)
    if layers is None or kind not in ('weight', 'bias'):
      raise ValueError(f'{name} is unknown')
    for layer, part in zip(layers, np.split(np.asarray(value, np.float32), len(layers)), strict=True):
      if part.ndim == 1:
        kind_here = 'scale' if kind == 'weight' else 'bias'
        params[(*layer, kind_here)] = part
      else:
        params[(*layer, 'kernel')] = _kernel(part)
  return traverse_util.unflatten_dict(params)


def _unet_names(arrays):
  """Layers such as `downs.0.1` to their names here; the way up is numbered from the smallest resolution there."""
  names = {'mid_block1': 'mid_block_0', 'mid_block2': 'mid_block_1', 'mid_attn': 'mid_attention'}
  for way, direction in (('downs', 'down'), ('ups', 'up')):
    resolutions = _resolutions(arrays, way)
    for i, kinds in enumerate(resolutions):
      here = i if way == 'downs' else len(resolutions) - 1 - i
      resampled = i < len(resolutions) - 1
      counts = {'block': 0, 'attention': 0}
      for number, kind in kinds:
        last = resampled and (number, kind) == kinds[-1]
        names[f'{way}.{i}.{number}'] = (
          f'{direction}_{here}_resample' if last else f'{direction}_{here}_{kind}_{counts[kind]}'
        )
        counts[kind] += 1
  return names


def _unet_layers(path, names):
  """The layers here of one there: three for the attention's joint map, one otherwise; None for an unknown one."""
  if path in _UNET_LAYERS:
    return [_UNET_LAYERS[path]]
  match = re.fullmatch(r'((?:downs|ups)\.\d+\.\d+|mid_\w+?)\.(.+)', path)
  if not match or match[1] not in names:
    return None
  block, layer = names[match[1]], match[2]
  if 'attention' in block:
    attention = {'norm': ['norm'], 'to_qkv': ['attn_q', 'attn_k', 'attn_v'], 'to_out': ['attn_proj_out']}
    return [(block, name) for name in attention[layer]] if layer in attention else None
  return [(block, _BLOCK_LAYERS[layer])] if layer in _BLOCK_LAYERS else None
