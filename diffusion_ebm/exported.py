"""A trained model as one small file: what it takes to draw samples and to evaluate energies, and nothing else.

The file is an `.npz`: the networks' weights (averaged, with normalised kernels) as float16, `ebm/...` and
`proposal/...`, and `header`, JSON as bytes: the format, the configuration, the step, the names of the classes, each
level's log Z and the calibration of class probabilities where they are known, notes, and a SHA-256 of all the rest.
Numbers of a normal factor, some of which are too small for float16, stay float32.

Some files come with the package, in `pretrained/`, whose `SHA256SUMS` (for `sha256sum -c`) says which.
"""

import hashlib
import json
import os
from typing import Any, NamedTuple

from flax import traverse_util
import jax
import ml_collections
import numpy as np

from diffusion_ebm import config as config_lib
from diffusion_ebm import model as model_lib
from diffusion_ebm import older_versions
from diffusion_ebm.class_probabilities import Calibration
from diffusion_ebm.run import files, paths
from diffusion_ebm.run.errors import UserError

FORMAT = 1
PACKAGED = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'pretrained')
_SUMS = 'SHA256SUMS'
_HEADER, _ENDING = 'header', '.npz'
_EXACT = 'normal_factor'
# Unpacked; models of this size are shared in other ways.
_MAX_BYTES = 4 * 2**30


class Exported(NamedTuple):
  """A trained model.

  Attributes:
    config: the configuration.
    step: number of updates.
    weights: of the energy network, averaged, with normalised kernels, float32.
    proposal: of the proposal's network, averaged, float32; None without a proposal.
    classes: names of the data's classes, by number.
    log_z: log of each level's normaliser, (T,) in nats, NaN where it is not known; or None.
    calibration: of the class probabilities, or None.
    notes: what else is known of the model, as JSON can hold it: scores and their conditions.
  """

  config: ml_collections.ConfigDict
  step: int
  weights: Any
  proposal: Any = None
  classes: tuple[str, ...] = ()
  log_z: np.ndarray | None = None
  calibration: Calibration | None = None
  notes: dict[str, Any] = {}


def rounded(weights):
  """Weights as the file keeps them: float16, but for those of a normal factor."""

  def cast(path, leaf):
    exact = any(getattr(part, 'key', None) == _EXACT for part in path)
    with np.errstate(over='ignore'):  # `write` refuses infinity
      return np.asarray(leaf, np.float32 if exact else np.float16)

  return jax.tree_util.tree_map_with_path(cast, weights)


def write(path: str, model: Exported):
  """Writes the file, whole or not at all.

  Raises:
    UserError: a weight is too large for float16.
    OSError: it cannot be written.
  """
  arrays = {}
  for name, tree in (('ebm', model.weights), ('proposal', model.proposal or {})):
    flat = traverse_util.flatten_dict(rounded(tree), sep='/')
    arrays |= {f'{name}/{key}': array for key, array in flat.items()}
  for name, array in arrays.items():
    if not np.all(np.isfinite(array)):
      raise UserError(f'{name} holds numbers that float16 cannot: this model cannot be exported')
  header = {
    'format': FORMAT,
    'config': _without_places(model.config).to_dict(),
    'step': model.step,
    'classes': list(model.classes),
    'log_z': None if model.log_z is None else model.log_z.tolist(),
    'calibration': None
    if model.calibration is None
    else {
      'level': int(model.calibration.level),
      'scale': model.calibration.scale.tolist(),
      'bias': model.calibration.bias.tolist(),
    },
    'notes': model.notes,
  }
  header['sha256'] = _digest(header, arrays)
  files.write_npz(path, arrays | {_HEADER: np.frombuffer(files.to_json(header).encode(), np.uint8)})


def read(path: str) -> Exported:
  """Reads a file of `write`.

  Raises:
    UserError: it is not there, damaged, of a newer version, or of another kind.
  """
  try:
    arrays = files.read_npz(path, _MAX_BYTES)
  except FileNotFoundError as error:
    raise UserError(f'{path} is not there: name an exported model') from error
  except (OSError, ValueError) as error:
    raise UserError(f'{path} cannot be read ({error}): copy or download it again') from error
  header = _header(path, arrays)
  del arrays[_HEADER]
  given = header.pop('sha256', None)
  if given != _digest(header, arrays):
    raise UserError(f'{path} is damaged: its content is not that of its SHA-256; copy or download it again')
  config = older_versions.read_config(header['config'])
  trees = {'ebm': {}, 'proposal': {}}
  for name, array in arrays.items():
    part, _, key = name.partition('/')
    trees[part][key] = np.asarray(array, np.float32)
  weights, proposal = (traverse_util.unflatten_dict(tree, sep='/') for tree in trees.values())
  calibration = header['calibration'] and Calibration(
    header['calibration']['level'], *(_numbers(header['calibration'][key]) for key in ('scale', 'bias'))
  )
  return Exported(
    config,
    header['step'],
    weights,
    proposal or None,
    tuple(header['classes']),
    None if header['log_z'] is None else _numbers(header['log_z']),
    calibration,
    header['notes'],
  )


def is_one(path: str) -> bool:
  """Whether a file says that it is an exported model."""
  try:
    return _HEADER in files.read_npz(path, names=(_HEADER,))
  except (OSError, ValueError):
    return False


def config(name: str) -> ml_collections.ConfigDict | None:
  """The configuration of an exported model, by its path or the name of a packaged one; None if the file is another."""
  known = name in packaged()
  path = find(name) if known else os.path.abspath(paths.local(name, 'the model'))
  return read(path).config if known or is_one(path) else None


def packaged() -> dict[str, str]:
  """The models that come with the package: name to the SHA-256 of its file."""
  with open(os.path.join(PACKAGED, _SUMS), encoding='utf-8') as file:
    sums = dict(reversed(line.split()) for line in file if line.strip())
  return {name.removesuffix(_ENDING): digest for name, digest in sums.items()}


def find(name: str) -> str:
  """The path of an exported model: one that comes with the package, by its name, or the user's own.

  Raises:
    UserError: there is no such file, or the packaged one is not what the package came with.
  """
  known = packaged()
  if name not in known:
    path = os.path.abspath(paths.local(name, 'the model'))
    if os.path.isfile(path):
      return path
    raise UserError(f'{name} is no model: name {", ".join(known)}, or the path of an exported one')
  path = os.path.join(PACKAGED, name + _ENDING)
  try:
    digest = files.sha256(path)
  except OSError as error:
    raise UserError(f'{path} cannot be read ({error.strerror}): install diffusion_ebm again') from error
  if digest != known[name]:
    raise UserError(
      f'{path} is not the file that this version comes with (SHA-256 {digest[:12]}..., not {known[name][:12]}...): '
      'install diffusion_ebm again, or load your own file by a path of another name'
    )
  return path


def parts(model: Exported, path: str):
  """`(model.Model, Ebm, Proposal or None)` of a file.

  Raises:
    UserError: the weights are not those of the networks that the configuration describes.
  """
  config = config_lib.resolve(model.config)
  config_lib.check(config, 1)
  built = model_lib.build(config)
  if name := built.misfit(model.weights, model.proposal):
    raise UserError(f'{path} does not fit: its weights are not those of the network that config.{name} describes')
  return built, built.ebm(model.weights), None if model.proposal is None else built.proposal(model.proposal)


def _header(path, arrays):
  try:
    header = json.loads(arrays[_HEADER].tobytes())
    version = header['format']
  except (KeyError, ValueError, TypeError) as error:
    raise UserError(f'{path} is no exported model: it has no header that can be read') from error
  if version != FORMAT:
    raise UserError(f'{path} is of format {version}, but this version reads {FORMAT}: take a newer diffusion_ebm')
  return header


def _digest(header, arrays) -> str:
  """SHA-256 of the header without its own entry, and of each array's name, type, shape and numbers."""
  sha256 = hashlib.sha256(json.dumps(json.loads(files.to_json(header)), sort_keys=True).encode())
  for name, array in sorted(arrays.items()):
    sha256.update(f'{name} {array.dtype.str} {array.shape}'.encode())
    sha256.update(np.ascontiguousarray(array).tobytes())
  return sha256.hexdigest()


def _numbers(values) -> np.ndarray:
  """An array from JSON, which has null for NaN."""
  return np.array(values, object).astype(float)


def _without_places(config) -> ml_collections.ConfigDict:
  """The configuration without paths of the machine where the model was trained."""
  config = config.copy_and_resolve_references()
  for key, value in config_lib.flatten(config.to_dict()):
    if isinstance(value, str) and os.path.isabs(value):
      section, key = key.split('.')
      config[section][key] = ''
  config.ood.against = tuple(name for name in config.ood.against if os.sep not in name)
  return config
