"""The importing job: a workdir from an exported model, or from the weights of another implementation."""

import logging
import os
from typing import Any, NamedTuple
import zipfile

from flax import traverse_util
import jax
import numpy as np

from diffusion_ebm import config as config_lib
from diffusion_ebm import exported, train_step, trained
from diffusion_ebm import model as model_lib
from diffusion_ebm.data import kept
from diffusion_ebm.networks import cdrl_weights, published_weights, spectral_norm
from diffusion_ebm.run import checkpoints, files, parallel, paths, torch_file
from diffusion_ebm.run import workdir as workdir_lib
from diffusion_ebm.run.errors import UserError
from diffusion_ebm.run.progress import doing

_log = logging.getLogger(__name__)

_MAX_STEP = 2**31 - 1
_FAULTS_SHOWN = 2
_KINDS_OF_ARRAYS = ('kernel', 'bias', 'scale', 'u')

# What the weights cannot say, but the model must be.
_SAME = {'model.name': 'resnet', 'model.norm': 'none', 'model.normal_factor': 0, 'diffusion.temperature': 'step_size'}
_NEEDED = {
  'CDRL': _SAME
  | {
    'model.level_embedding': 'angle',
    'model.level_act': True,
    'model.zero_init': False,
    'model.raw_singular_vectors': True,
    'diffusion.schedule': 'cosine',
    'proposal.name': 'unet',
  },
  'DRL': _SAME
  | {
    'model.level_embedding': 'index',
    'model.level_act': False,
    'model.zero_init': True,
    'diffusion.schedule': 'linear',
    'proposal.name': '',
  },
}
_CONFIGS = {'CDRL': 'configs/cifar10_cdrl.py', 'DRL': 'configs/cifar10.py'}


class Weights(NamedTuple):
  """What a file holds.

  Attributes:
    kind: whose it is, 'CDRL', 'DRL' or 'diffusion_ebm'.
    sections: of the configuration: what the networks are made of.
    step: number of updates done.
    params: the energy network's raw parameters.
    ema_params: their moving average.
    spectral: vectors of the power iteration.
    proposal: the parameters of the proposal's network and their moving average; None without a proposal.
  """

  kind: str
  sections: dict[str, dict]
  step: int
  params: Any
  ema_params: Any
  spectral: Any
  proposal: tuple[Any, Any] | None = None


def run(config, workdir: str, seed: int = 0, step: int | None = None):
  """Makes a workdir, with one checkpoint, from the file that `config.import_weights.path` names.

  It is an exported model (`diffusion_ebm.exported`) or the name of a packaged one, whose configuration `main.py` takes;
  a checkpoint of CDRL's published implementation (`torch.save`); or an `.npz` of weights of DRL's, with the names of
  `published_weights.from_published`. Of the latter two, what the networks are made of is read from the file; the rest
  is the configuration's. Training has ended at the step of the file, which is 0 where it does not say it; the
  optimisers are new.

  Args:
    config: the configuration.
    workdir: a new one; gets `config.json` and `checkpoints/`.
    seed: of no use.
    step: likewise.

  Raises:
    UserError: something in the file, the configuration or the workdir that the user can mend.
  """
  del seed, step
  config = config_lib.resolve(config)
  path = _find(config)
  _check_new(workdir)
  doing(f'reading {path}')
  ours = exported.is_one(path)
  if ours:
    weights, classes = _own(path, config)
  else:
    trained.check_images(config, 'import')
    weights, classes = read(path, config.data.image_size), ()
    _configure(config, weights)
  config_lib.check(config, 1)
  doing('building the network')
  model = model_lib.build(config)
  state = _state(model, weights, path)
  _write(config, workdir, state, classes)
  _log.info('%s of %s, step %d: %s', path, weights.kind, weights.step, '; '.join(_overview(config, state)))
  _log.info(
    'imported into %s: draw samples with --mode=sample, score them with --mode=eval, train on with '
    '--config.train.num_steps=N above %d',
    workdir,
    weights.step,
  )


def prepare(config, workdir: str, name: str):
  """Makes the workdir of an exported model, as `run` does, unless it is that already.

  Args:
    config: the configuration.
    workdir: a new one, or one that this has made before.
    name: of a packaged model, or the path of an exported one.

  Raises:
    UserError: as of `run`, or the workdir holds another run.
  """
  saved = config_lib.load(workdir)
  config.import_weights.path = name
  path = name if name in exported.packaged() else exported.find(name)
  if saved is None:
    exported.read(exported.find(name))  # what is wrong with the file is said of it as one of ours
    run(config, workdir)
  elif saved.import_weights.path != path:
    raise UserError(f'{workdir} holds another run than --pretrained={name}: name another --workdir, or leave it out')


_FILES = 'an exported model (.npz), a checkpoint of CDRL (.pth.tar), or weights of DRL as .npz'


def _find(config):
  """The file's path, absolute, and so in the configuration too, which keeps the name of a packaged model."""
  path = config.import_weights.path
  if not path:
    raise UserError(f'--path is missing: name {", ".join(exported.packaged())}, which come with the package, {_FILES}')
  if path in exported.packaged():
    return exported.find(path)
  path = os.path.abspath(paths.local(path, '--path'))
  if not os.path.isfile(path):
    raise UserError(f'--path={path} is no file: name {", ".join(exported.packaged())}, {_FILES}')
  config.import_weights.path = path
  return path


def _own(path, config):
  """`(weights, names of the classes)` of an exported model; the configuration takes what it must be."""
  model = exported.read(path)
  config_lib.check_same_network(config, model.config.to_dict(), path)
  # The weights are normalised already: again, only by a few rounding errors, with vectors of their own.
  spectral = {}
  if config.model.raw_singular_vectors:  # otherwise than by their own
    config.model.update({'spectral_norm': False, 'raw_singular_vectors': False})
  if config.model.spectral_norm:
    spectral = spectral_norm.init(jax.random.key(0), model.weights)
  config.train.num_steps = model.step
  proposal = model.proposal and (model.proposal, model.proposal)
  return Weights('diffusion_ebm', {}, model.step, model.weights, model.weights, spectral, proposal), model.classes


def _check_new(workdir):
  if config_lib.load(workdir) is not None or checkpoints.steps(workdir):
    raise UserError(f'{workdir} holds a run already: import into another --workdir')


def _configure(config, weights):
  """Writes into the configuration what the weights say, and refuses what they contradict."""
  known = dict(config_lib.flatten(config.to_dict()))
  differing = [
    f'{key}={wanted!r} (here {known[key]!r})' for key, wanted in _NEEDED[weights.kind].items() if known[key] != wanted
  ]
  if differing:
    raise UserError(
      f'configuration: weights of {weights.kind} need {", ".join(differing)}: start from '
      f'--config={_CONFIGS[weights.kind]}'
    )
  if config.model.spectral_norm and not weights.sections['model']['spectral_norm'] and weights.kind == 'DRL':
    raise UserError(
      'the file has no vectors of spectral normalisation (LAYER/u): export these too, or, if the network has none, add '
      '--config.model.spectral_norm=False'
    )
  for name, section in weights.sections.items():
    config[name].update(section)
  config.train.num_steps = weights.step


# Reading.


def read(path: str, image_size: int) -> Weights:
  """What a file holds, whoever's it is; of which size its images are, it does not say.

  Raises:
    UserError: it is neither, or damaged.
  """
  try:
    return _read_drl(path, image_size) if _is_npz(path) else _read_cdrl(path, image_size)
  except Exception as error:  # a damaged file may lead to anything
    cause = torch_file.why_unreadable(path, error)
    raise UserError(
      f'{path} cannot be imported ({cause}): it should be a checkpoint of CDRL (.pth.tar), or weights of DRL as .npz'
    ) from error


def _is_npz(path):
  if not zipfile.is_zipfile(path):
    return False
  with zipfile.ZipFile(path) as archive:
    return any(name.endswith('.npy') for name in archive.namelist())


def _read_cdrl(path, image_size):
  with torch_file.opened(path, files.MAX_BYTES) as saved:
    names = {name: _entry(saved, f'{name}_state_dict', dict) for name in ('pi', 'p')}
    averages = {name: _entry(saved, f'{name}_ema_state_dict', dict) for name in ('pi', 'p')}
    step = _entry(averages['pi'], 'num_updates', int)
    if not 0 <= step <= _MAX_STEP:
      raise ValueError(f'num_updates is {step}')
    raw, ema = {}, {}
    for name, tensors in names.items():
      tensors = {key.removeprefix('module.'): tensor for key, tensor in tensors.items()}
      shadow = cdrl_weights.averaged(tensors, _entry(averages[name], 'shadow_params', list))
      raw[name], ema[name] = torch_file.read(tensors, files.MAX_BYTES), torch_file.read(shadow, files.MAX_BYTES)
  sections = {
    'model': cdrl_weights.energy_shape(_shapes(raw['pi'])),
    'proposal': cdrl_weights.proposal_shape(_shapes(raw['p']), image_size),
  }
  params, spectral = cdrl_weights.energy(raw['pi'])
  proposal = cdrl_weights.proposal(raw['p']), cdrl_weights.proposal(ema['p'])
  return Weights('CDRL', sections, step, params, cdrl_weights.energy(ema['pi'])[0], spectral, proposal)


def _entry(saved, name, kind):
  if not isinstance(saved, dict) or not isinstance(saved.get(name), kind):
    raise ValueError(f'it has no {name}, as checkpoints of CDRL have')
  return saved[name]


def _read_drl(path, image_size):
  arrays = files.read_npz(path)
  prefix = 'params/' if any(name.startswith('params/') for name in arrays) else ''
  arrays = {
    name.removeprefix(prefix): np.asarray(array, np.float32)
    for name, array in arrays.items()
    if name.startswith(prefix) and name.rpartition('/')[2] in _KINDS_OF_ARRAYS
  }
  params, spectral = published_weights.from_published(arrays)
  sections = {'model': published_weights.network_shape(_shapes(arrays), image_size)}
  return Weights('DRL', sections, 0, params, params, spectral)


def _shapes(arrays):
  return {name: array.shape for name, array in arrays.items()}


# The checkpoint.


def _state(model, weights, path):
  """The training state on all devices."""
  wanted, proposal = model.abstract_state, {}
  trees = {
    'energy network': (weights.params, wanted.params),
    'average of the energy network': (weights.ema_params, wanted.params),
    'spectral normalisation': (weights.spectral, wanted.spectral),
  }
  if weights.ema_params is weights.params:
    del trees['average of the energy network']
  if weights.proposal:
    params, ema_params = weights.proposal
    proposal = train_step.ProposalState(params, ema_params, model.proposal_tx.init(params))
    trees['initialiser'] = params, wanted.proposal.params
    trees['average of the initialiser'] = ema_params, wanted.proposal.params
  faults = [fault for what, (found, needed) in trees.items() for fault in _faults(what, found, needed)]
  if faults:
    more = f', and {len(faults) - _FAULTS_SHOWN} more' if len(faults) > _FAULTS_SHOWN else ''
    raise UserError(
      f'{path} does not fit ({", ".join(faults[:_FAULTS_SHOWN])}{more}): it is damaged, of another network, or of '
      f'other images than {"x".join(map(str, model.shape))} (--config.data.image_size, --config.data.num_channels)'
    )
  return parallel.replicate(
    train_step.TrainState(
      step=np.int32(weights.step),
      params=weights.params,
      ema_params=weights.ema_params,
      opt_state=model.tx.init(weights.params),
      spectral=weights.spectral,
      bad_steps=np.int32(0),
      proposal=proposal,
    )
  )


def _faults(what, found, wanted):
  """Yields in what way the arrays of a network are not as it needs them."""
  found, wanted = (traverse_util.flatten_dict(tree, sep='/') for tree in (found, wanted))
  for name in sorted(found.keys() | wanted.keys()):
    if name not in wanted:
      yield f'{what}: {name} is unknown'
    elif name not in found:
      yield f'{what}: {name} is missing'
    elif found[name].shape != wanted[name].shape:
      yield f'{what}: {name} has the shape {found[name].shape}, not {wanted[name].shape}'
    elif not np.all(np.isfinite(found[name])):
      yield f'{what}: {name} is not finite'


def _write(config, workdir, state, classes):
  """The configuration comes last: with it the folder is a run."""
  doing('writing the checkpoint')
  workdir_lib.make(workdir)
  with workdir_lib.lock(workdir):
    _check_new(workdir)
    saver = checkpoints.Saver(workdir, config.train.keep_checkpoints, config.train.keep_every, config.to_dict())
    saver.save(state, 0)
    saver.close()
    if classes:
      kept.keep_classes(workdir_lib.make(workdir, 'data'), config.data.name, classes)
    config_lib.save(config, workdir)


def _overview(config, state):
  """Yields what the networks are made of."""
  model, proposal = config.model, config.proposal
  normalised = 'with' if model.spectral_norm else 'without'
  yield f'energy network {_made_of(model, state.params)}, {normalised} spectral normalisation'
  if proposal.name:
    yield f'initialiser {_made_of(proposal, state.proposal.params)}'


def _made_of(section, params):
  count = sum(leaf.size for leaf in jax.tree.leaves(params))
  attention = f', attention at {section.attention_resolutions}' if section.attention_resolutions else ''
  return (
    f'of ch {section.ch}, ch_mult {section.ch_mult}, num_res_blocks {section.num_res_blocks}{attention} '
    f'({count:,} parameters)'
  )
