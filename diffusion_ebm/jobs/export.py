"""The exporting job: a small file of a trained workdir's model, for others to use, and a draft of its model card."""

import logging
import os

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_ebm import exported, generate, langevin, marginal_density, noise_levels, random_keys, sampling, trained
from diffusion_ebm.evaluate import results
from diffusion_ebm.run import files, paths
from diffusion_ebm.run import workdir as workdir_lib
from diffusion_ebm.run.errors import UserError
from diffusion_ebm.run.progress import doing

_log = logging.getLogger(__name__)

_NUM_COMPARED = 32
# Of what an evaluation reports, what a card shows.
_SCORES = ('fid', 'kid', 'precision', 'recall', 'density', 'coverage')
_OF_SCORES = ('extractor', 'split', 'num_samples', 'num_data', 'classifier_accuracy')


def run(config, workdir: str, seed: int = 0, step: int | None = None) -> str:
  """Writes the averaged model of a checkpoint as one file, as of `exported`, and a model card beside it.

  With the model go the names of the classes, `log Z` of the levels where `--mode=density` has found it, the calibration
  of class probabilities and the scores of the last `--mode=eval` of this checkpoint. Nothing names a path of this
  machine. Says how far float16 moves the energies.

  Args:
    config: the configuration; `export.path` is the file, '' for `export/STEP.npz` in the workdir.
    workdir: of a training job.
    seed: of the samples on which both precisions are compared.
    step: the checkpoint's, or None for the newest.

  Returns:
    The file's path.

  Raises:
    UserError: something that the user can mend.
  """
  trained.check_seed(seed)
  config = trained.check(config, workdir)
  if config.sampling.compose:
    raise UserError('sampling.compose names a sum, but one model is exported: leave it out')
  path = _given_path(config)
  own = config.copy_and_resolve_references()
  own.sampling.label = ''  # the model of all classes
  found = trained.load(own, workdir, step)
  path = path or os.path.join(workdir_lib.make(workdir, 'export'), f'{found.step}.npz')
  weights, proposal = (
    each and jax.tree.map(np.asarray, jax.device_get(each.weights)) for each in (found.ebm, found.proposal)
  )
  model = exported.Exported(
    config,
    found.step,
    weights,
    proposal,
    trained.classes(workdir),
    trained.log_z(workdir, found.step, found.ebm.levels.num_models, generate.asked(own)),
    trained.calibration(found, workdir),
    _notes(workdir, found),
  )
  exported.write(path, model)
  doing('comparing with float32')
  moved = _rounding(found, seed)
  digest = files.sha256(path)
  size = os.path.getsize(path)
  card = os.path.splitext(path)[0] + '.md'
  files.write_text(card, _card(model, os.path.basename(path), size, digest))
  _log.info(
    'float16 moves the energies of %d samples, diffused to every level, by %.2g of their standard deviation at that '
    'level in the median, by %.2g at most',
    _NUM_COMPARED,
    np.median(moved),
    np.max(moved),
  )
  _log.info(
    'step %d in %s (%.2f MB, SHA-256 %s); a draft of its card in %s', found.step, path, size / 1e6, digest, card
  )
  return path


def _given_path(config):
  """That of the file, absolute; '' if none is given."""
  if not config.export.path:
    return ''
  path = os.path.abspath(paths.local(config.export.path, '--path'))
  if not path.endswith('.npz'):
    raise UserError(f'--path={config.export.path} does not end with .npz: the file is one')
  if not os.path.isdir(os.path.dirname(path)):
    raise UserError(f'--path={config.export.path}: there is no folder {os.path.dirname(path)}')
  return path


def _notes(workdir, found):
  """What is known of the model's quality, as JSON can hold it."""
  notes = {'parameters': sum(leaf.size for leaf in jax.tree.leaves(found.ebm.weights))}
  for record in reversed(results.read(os.path.join(workdir, 'eval', 'results.jsonl'))):
    if record.get('step') == found.step and 'fid' in record:
      return notes | {'scores': {key: record[key] for key in (*_SCORES, *_OF_SCORES) if record.get(key) is not None}}
  return notes


def _rounding(found, seed):
  """How far the energies of samples, diffused to L levels, move in float16, (L, N), in units of their spread there.

  What all samples of a level share does not count: it is a factor of the density.
  """
  levels, model = found.ebm.levels, generate.make_sampler(found.config, found.shape, _NUM_COMPARED)
  x, _ = model(found.ebm, found.proposal, seed, 0, _NUM_COMPARED)
  ebm = jax.device_put(found.ebm, jax.local_devices()[0])
  small = ebm.replace(weights=jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), exported.rounded(ebm.weights)))
  shown = np.asarray(sampling.shown_levels(levels.num_models)[:-1])
  eps = langevin.normal_noise(random_keys.sample_keys(seed, jnp.arange(len(x))), found.shape)(0)

  @jax.jit
  @jax.default_matmul_precision('highest')
  def log_densities(ebm, t):
    t = jnp.full(len(x), t)
    return marginal_density.log_density(ebm, noise_levels.diffuse(levels, x, t, eps), t)

  before, after = (np.stack([log_densities(each, t) for t in shown]) for each in (ebm, small))
  change = after - before
  return np.abs(change - np.median(change, axis=1, keepdims=True)) / np.std(before, axis=1, keepdims=True)


def _card(model, name, size, digest):
  """A model card in Markdown, with what the workdir knows; the rest is to be filled in."""
  config, notes = model.config, model.notes
  data, network, chain, train = config.data, config.model, config.sampling, config.train
  shape = '' if data.name == 'toy2d' else f', {data.image_size}x{data.image_size}x{data.num_channels}'
  levels = f'{config.diffusion.num_levels} levels ({config.diffusion.schedule})'
  lines = [
    f'# {os.path.splitext(name)[0]}',
    '',
    f'- Data: {data.distribution if data.name == "toy2d" else data.name}{shape}, split `{data.train_split}`; '
    'licence of the data: (fill in).',
    f'- Model: {network.name}, {notes["parameters"]:,} parameters, {levels}'
    + (f', {network.num_classes} classes' if network.num_classes else '')
    + (f', proposal {config.proposal.name}' if config.proposal.name else '')
    + '.',
    f'- Samples: K = {chain.generation_steps or chain.num_steps}, b^2 = {chain.step_size:g} ({chain.step_size_rule}), '
    f'eta = {chain.noise_scale:g}.',
    f'- Training: {model.step:,} steps of {train.batch_size}, learning rate {train.learning_rate:g}, '
    f'seed {config.seed}.',
    f'- Scores: {_of_scores(notes.get("scores"))}.',
    '- Not for: (fill in).',
    f'- File: `{name}`, {size:,} bytes, SHA-256 `{digest}`.',
  ]
  return '\n'.join(lines) + '\n'


def _of_scores(scores):
  if not scores:
    return 'none; run `--mode=eval` before the export'
  said = ', '.join(f'{key} {scores[key]:.4g}' for key in _SCORES if key in scores)
  accuracy = f', accuracy {scores["classifier_accuracy"]:.1%}' if 'classifier_accuracy' in scores else ''
  return (
    f'{said} ({scores["num_samples"]:,} samples against {scores["num_data"]:,} of the {scores["split"]} split, '
    f'features of {scores["extractor"]}{accuracy})'
  )
