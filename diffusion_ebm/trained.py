"""A trained model, from its workdir."""

import functools
import glob
import json
import logging
import os
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from diffusion_ebm import class_probabilities, composition, generate, older_versions
from diffusion_ebm import config as config_lib
from diffusion_ebm import model as model_lib
from diffusion_ebm.data import kept
from diffusion_ebm.ebm import Ebm
from diffusion_ebm.evaluate import results
from diffusion_ebm.networks import spectral_norm
from diffusion_ebm.proposal import NormalProposal, Proposal
from diffusion_ebm.run import checkpoints, files, parallel, paths
from diffusion_ebm.run.errors import UserError
from diffusion_ebm.run.progress import doing

_log = logging.getLogger(__name__)

# The parameters' average has no power iteration of its own: enough steps for it to converge again.
_POWER_ITERATIONS = 30


class Trained(NamedTuple):
  """A trained model.

  Attributes:
    config: the resolved configuration.
    ebm: the model with the averaged parameters, on all devices; of the class that is asked for, or the sum.
    proposal: likewise; None if it has none.
    shape: of one example.
    step: of the checkpoint.
  """

  config: ml_collections.ConfigDict
  ebm: Ebm
  proposal: NormalProposal | None
  shape: tuple[int, ...]
  step: int


def load(config, workdir: str, step: int | None = None) -> Trained:
  """Reads a checkpoint.

  Args:
    config: the configuration; the `train` section, how samples are drawn and the test split need not be the workdir's.
    workdir: of a training job.
    step: the checkpoint's, or None for the newest.

  Raises:
    UserError: something that the user can mend.
  """
  config = check(config, workdir)
  checkpoints.check_any(workdir, step)
  doing('building the network')
  model = model_lib.build(config)
  _log.info('reading the %s', 'newest checkpoint' if step is None else f'checkpoint of step {step}')
  found = Trained(config, *read(model, workdir, step))
  if config.sampling.compose:
    found = _composed(found, workdir)
  ebm, proposal = (generate.told(found.config, each) for each in (found.ebm, found.proposal))
  return found._replace(ebm=parallel.replicate(ebm), proposal=parallel.replicate(proposal))


def _composed(own: Trained, workdir: str) -> Trained:
  """The sum of `sampling.compose`, whose terms get absolute paths and the steps of other runs' checkpoints."""
  parts, proposals, labels, names = [], [], [], []
  for coefficient, what in generate.terms(own.config):
    folder, label = _other_model(what)
    model, of, name = own, workdir, what
    if folder:
      model, of = load(_for_sum(folder), folder), folder
      name = f'{os.path.abspath(folder)} at step {model.step}' + (label and f'@{label}')
      if model.shape != own.shape:
        raise UserError(f'models of shapes {own.shape} and {model.shape} cannot be added: {folder} is of the latter')
    number = 0  # of the empty class
    if label not in ('', 'none'):
      number = 1 + generate.class_number(model.config, label, classes(of), 'compose', "'none' or a workdir")
    ebm, proposal = (
      each and composition.of_class(each, number) if number else each for each in (model.ebm, model.proposal)
    )
    parts.append((ebm, coefficient))
    proposals.append((proposal, coefficient))
    labels.append((None if folder else number, coefficient))
    names.append(f'{coefficient:g}*{name}')
  config = own.config.copy_and_resolve_references()
  config.sampling.update({'compose': tuple(names), 'label': ''})
  one_network = all(label is not None for label, _ in labels)  # whose terms are evaluated as one batch
  try:
    ebm = composition.weighted(own.ebm, *labels) if one_network else composition.add(*parts)
  except ValueError as error:
    raise UserError(f'{error} (sampling.compose)') from error
  return own._replace(config=config, ebm=ebm, proposal=composition.add_proposals(*proposals))


def _other_model(what: str) -> tuple[str, str]:
  """`(workdir, class)` of a term; no workdir for a class of the run's own model, no class for none in particular."""
  before, _, after = what.rpartition('@')
  for folder, label in ((what, ''), (before, after)):
    if folder and config_lib.load(paths.workdir(folder)) is not None:
      return paths.workdir(folder), label
  if os.sep in what:
    raise UserError(f'sampling.compose names {what}, which holds no run: name a class, `none` or a workdir')
  return '', what


def _for_sum(folder: str):
  """The configuration of another run, without a class of its own."""
  config = config_lib.load(folder)
  config.sampling.update({'compose': (), 'label': '', 'guidance': 0.0})
  return config


def check(config, workdir: str) -> ml_collections.ConfigDict:
  """The resolved, numbered configuration; raises a `UserError` where it is wrong, or not that of the workdir."""
  config = config_lib.resolve(config)
  config_lib.check(config, 1)
  config_lib.check_same_run(config, workdir, free=('seed', 'train', 'sampling.num_steps', *config_lib.OF_ARITHMETIC))
  generate.terms(config)
  return generate.numbered(config, classes(workdir))


def classes(workdir: str) -> tuple[str, ...]:
  """The names of the classes of a run's data, by number; () if they are not known."""
  return kept.classes(os.path.join(workdir, 'data'))


def read(model: model_lib.Model, workdir: str, step: int | None = None):
  """`(ebm, proposal, shape, step)` of a checkpoint, as of `Trained`, for a model that has been built before."""
  state = _restore(workdir, step, model.abstract_state)
  return *averaged(model, state), model.shape, int(state.step)


def _restore(workdir, step, like):
  """The state in a checkpoint, like another one; step None for the newest."""
  manager = checkpoints.open_for_reading(workdir)
  try:
    return checkpoints.restore(manager, like, step, lacking=older_versions.LACKING)[0]
  finally:
    manager.close()


def _other_run(config):
  """`(workdir, step)` of the checkpoint that `train.init_from` names; step None for the newest."""
  folder, name = os.path.split(config.train.init_from)
  if name.isdecimal() and os.path.basename(folder) == 'checkpoints':
    return os.path.dirname(folder), int(name)
  return config.train.init_from, None


def check_start(config):
  """Raises a `UserError` if a new run cannot start from the checkpoint that `train.init_from` names."""
  workdir, step = _other_run(config)
  saved, known = config_lib.load(workdir), checkpoints.steps(workdir)
  if saved is None or not known:
    raise UserError(f'--config.train.init_from={workdir} holds no checkpoint: name the workdir of a trained run')
  if step not in (None, *known):
    raise UserError(f'--config.train.init_from: no checkpoint of step {step} in {workdir}; there are {known}')
  config_lib.check_same_network(config, saved.to_dict(), f'--config.train.init_from={workdir}')


def start(config, state):
  """A new run's first state, a `TrainState` on all devices, with the averaged weights that `train.init_from` names."""
  workdir, step = _other_run(config)
  other = _restore(workdir, step, state)
  _log.info('starting from the averaged weights of step %d in %s', int(other.step), workdir)
  # A copy: the training step takes over the memory of what it is given.
  copied = jax.jit(lambda weights: jax.tree.map(jnp.copy, weights))
  proposal = other.proposal and state.proposal.replace(
    params=other.proposal.ema_params, ema_params=copied(other.proposal.ema_params)
  )
  return state.replace(
    params=other.ema_params, ema_params=copied(other.ema_params), spectral=other.spectral, proposal=proposal
  )


def averaged(model: model_lib.Model, state) -> tuple[Ebm, Proposal | None]:
  """The model and its proposal with the averaged parameters of a `TrainState`, on all devices."""
  if model.raw_singular_vectors:
    weights = _normalised_by_raw(state.ema_params, state.spectral, state.params, model.zero_init)
  else:
    weights = normalised(state.ema_params, state.spectral, model.zero_init)
  ebm = model.ebm(parallel.replicate(weights))
  return ebm, model.proposal(parallel.replicate(state.proposal.ema_params)) if state.proposal else None


@functools.partial(jax.jit, static_argnums=2)
def normalised(params, u, zero_init: bool):
  """Parameters as the network takes them, from raw ones and vectors `u` that belong to similar ones."""
  return spectral_norm.normalise(params, spectral_norm.iterate(params, u, _POWER_ITERATIONS), zero_init)


@functools.partial(jax.jit, static_argnums=3)
def _normalised_by_raw(params, u, raw, zero_init: bool):
  return spectral_norm.normalise(params, u, zero_init, raw)


# What the density job keeps in `density/`, with a number behind it where there are results of other inputs.
DENSITY_RESULTS = 'results'


def log_z(workdir: str, step: int, num_models: int, asked: dict | None = None):
  """What `--mode=density` has found of a checkpoint, the last time.

  Args:
    workdir: of a training job.
    step: the checkpoint's.
    num_models: T.
    asked: the class or the sum that is asked for, of `generate.asked`; None for none.

  Returns:
    Log of the normaliser of each level's `y_t`, (T,) float64 in nats, NaN where it is not known; None if none is.

  Raises:
    UserError: the file cannot be read.
  """
  of = json.loads(files.to_json(asked or {}))
  pattern = os.path.join(glob.escape(workdir), 'density', f'{DENSITY_RESULTS}*.json')
  for path in sorted(glob.glob(pattern), key=os.path.getmtime, reverse=True):
    try:
      record = files.read_json(path)
      if (record.get('step'), record.get('of', {})) == (step, of):
        values = np.full(num_models, np.nan)
        for entry in record['log_z']:
          values[entry['level']] = entry['log_z']
        return values
    except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
      raise UserError(f'{path} cannot be read ({error}): remove it, and run --mode=density again') from error
  return None


def calibration(model: Trained, workdir: str) -> class_probabilities.Calibration | None:
  """The class probabilities' calibration, as the last evaluation of the checkpoint found it; None if there is none."""
  num_models, num_classes = model.ebm.levels.num_models, model.config.model.num_classes
  for record in reversed(results.read(os.path.join(workdir, 'eval', 'results.jsonl'))):
    if record.get('step') == model.step and 'classes' in record:
      level, unknown = record['classes']['level'], np.full((num_models, num_classes), np.nan)
      found = class_probabilities.Calibration(level, unknown[:, 0].copy(), unknown)
      for entry in record['classes']['levels']:
        found.scale[entry['level']], found.bias[entry['level']] = entry['scale'], entry['bias']
      return found
  return None


# What the jobs refuse alike.


def check_seed(seed: int):
  """Raises a `UserError` for a --seed that is none."""
  if not 0 <= seed < 2**32:
    raise UserError(f'--seed is {seed}, not in 0 .. 2^32 - 1')


def check_images(config, mode: str):
  """Raises a `UserError` for a mode that is for images where the data are vectors."""
  if config_lib.is_vector(config):
    raise UserError(f'--mode={mode} is for images, not for {config.data.name}: name the --workdir of an image run')


def check_finite(x: np.ndarray, step: int):
  """Raises a `UserError` for results that hold NaN or infinity."""
  if not np.all(np.isfinite(x)):
    raise UserError(f'the chains diverged at step {step}: try another --step or a smaller --config.sampling.step_size')
