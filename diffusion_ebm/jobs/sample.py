"""The sampling job: samples of a trained workdir, as numbers and as pictures."""

import logging

import numpy as np

from diffusion_ebm import config as config_lib
from diffusion_ebm import data, generate, level_pictures, preprocessing, sampling, trained
from diffusion_ebm.run import files, parallel
from diffusion_ebm.run import workdir as workdir_lib
from diffusion_ebm.run.errors import UserError
from diffusion_ebm.run.progress import Progress

_log = logging.getLogger(__name__)

_NUM_IN_LEVELS = 36


def run(config, workdir: str, seed: int = 0, step: int | None = None) -> np.ndarray:
  """Draws `config.sampling.num_samples` samples from the averaged parameters of a checkpoint.

  Writes `samples/samples_STEP.npz` (`samples`: uint8 (N, H, W, C), or float32 (N, D) for vectors), `samples_STEP.json`
  (`inputs`), `samples_STEP.png` and, level by level beside diffused data, if these are at hand,
  `samples_STEP_levels.png`; `STEP_seedSEED` for seeds other than 0, and a number where results of other inputs have
  that name.

  Args:
    config: the configuration; the `train` section, the number of Langevin steps and eta need not be the workdir's.
    workdir: of a training job.
    seed: sample number i depends on this seed and on i alone.
    step: the checkpoint's, or None for the newest.

  Returns:
    The samples, as they are written.

  Raises:
    UserError: something that the user can mend.
  """
  trained.check_seed(seed)
  config, ebm, proposal, shape, step = trained.load(config, workdir, step)
  workdir_lib.make(workdir)
  keep = sampling.shown_levels(ebm.levels.num_models)
  samples, path = _draw(config, ebm, proposal, shape, seed, step, keep)

  # All processes draw; the first writes.
  densities = level_pictures.grid_densities(ebm, config.data.distribution) if config_lib.is_vector(config) else None
  if not parallel.is_first():
    return samples
  inputs = {'step': step, 'seed': seed, 'num_samples': len(samples), 'sampling': generate.inputs(config)}
  name, folder = f'samples_{workdir_lib.label(step, seed)}', workdir_lib.samples_dir(workdir)
  base = workdir_lib.claim(folder, name, inputs, ('.npz', '.png', '_levels.png'))
  files.write_npz(base + '.npz', {'samples': samples})
  files.write_png(base + '.png', level_pictures.samples(samples, generate.columns(config)))
  try:
    shown = data.load_some(
      config.data, 'train', lambda count: np.random.default_rng(seed).integers(count, size=path.shape[1])
    )
  except UserError as error:
    _log.warning('no picture of the levels, which would show data beside the samples: %s', error)
  else:
    files.write_png(base + '_levels.png', level_pictures.levels(ebm.levels, path, shown.examples, keep, densities))
  _log.info('%d samples (mean %.3f) in %s.npz, pictures beside it', len(samples), samples.mean(), base)
  return samples


def _draw(config, ebm, proposal, shape, seed, step, keep):
  """`(samples, path)`: as they are stored, and what the picture shows of their way down the levels."""
  count = config.sampling.num_samples
  num_shown = count if config_lib.is_vector(config) else _NUM_IN_LEVELS
  batch_size = parallel.up_to_devices(min(count, config.sampling.batch_size))
  sampler = generate.make_sampler(config, shape, batch_size, keep)
  _log.info('compiling the sampler')
  progress = Progress(f'sampling at step {step}', count, unit='sample', shown=parallel.is_first())
  samples, paths = [], []
  for first in range(0, count, batch_size):
    x, path = sampler(ebm, proposal, seed, first, min(batch_size, count - first))
    trained.check_finite(x, step)
    samples.append(preprocessing.to_stored(x))
    if first < num_shown:  # whatever the size of the batches
      paths.append(path[:, : num_shown - first])
    progress.update(len(x))
    progress.line(always=first == 0)
  progress.close()
  return np.concatenate(samples), np.concatenate(paths, axis=1)
