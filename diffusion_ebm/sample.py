"""The sampling job: samples of a trained workdir, as numbers and as pictures."""

import logging
import os

import numpy as np

from diffusion_ebm import config as config_lib
from diffusion_ebm import data, generate, parallel, pictures, sampling, trained
from diffusion_ebm import workdir as workdir_lib
from diffusion_ebm.errors import UserError
from diffusion_ebm.progress import Progress

_log = logging.getLogger(__name__)

_NUM_IN_LEVELS = 36


def sample(config, workdir: str, num_samples: int, seed: int, step: int | None = None):
  """Draws samples from the averaged parameters of a checkpoint.

  Writes `samples/samples_STEP.npz` (`samples`: uint8 (N, H, W, C), or float32 (N, D) for vectors), `samples_STEP.png`
  and, level by level beside diffused data, if these are at hand, `samples_STEP_levels.png`;
  `STEP_seedSEED` for seeds other than 0.

  Args:
    config: the configuration; the `train` section, the number of Langevin steps and eta need not be the workdir's.
    workdir: of a training job.
    num_samples: N.
    seed: sample number i depends on this seed and on i alone.
    step: the checkpoint's, or None for the newest.

  Raises:
    UserError: something that the user can mend.
  """
  trained.check_at_least('num_samples', num_samples)
  trained.check_seed(seed)
  config, model, state = trained.restore(config, workdir, step)
  workdir_lib.make(workdir)
  step = int(state.step)

  keep = sampling.shown_levels(model.levels.num_models)
  sampler = generate.Sampler(model, config, min(num_samples, config.sampling.batch_size), keep)
  _log.info('compiling the sampler')
  progress = Progress(f'sampling at step {step}', num_samples, unit='sample', shown=parallel.is_first())
  samples, paths = [], []
  for first in range(0, num_samples, sampler.batch_size):
    x, path = sampler(state, seed, first, min(sampler.batch_size, num_samples - first))
    samples.append(generate.finished(x))
    if not paths or config_lib.is_vector(config):
      paths.append(path)
    progress.update(len(x))
    progress.line(always=first == 0)
  progress.close()
  samples = np.concatenate(samples)
  trained.check_finite(samples, step)

  # All processes draw; the first writes.
  densities = generate.grid_densities(model, config)(state) if config_lib.is_vector(config) else None
  if not parallel.is_first():
    return
  base = os.path.join(workdir_lib.samples_dir(workdir), f'samples_{workdir_lib.label(step, seed)}')
  workdir_lib.save_npz(base + '.npz', samples=samples)
  pictures.save_png(base + '.png', generate.picture_of_samples(samples))
  path = np.concatenate(paths, axis=1)
  if not config_lib.is_vector(config):
    path = path[:, :_NUM_IN_LEVELS]
  try:
    source = data.load_source(config.data, 'train')
  except UserError as error:
    _log.warning('no picture of the levels, which would show data beside the samples: %s', error)
  else:
    examples = source.read(np.random.default_rng(seed).integers(len(source), size=path.shape[1]))
    pictures.save_png(base + '_levels.png', generate.picture_of_levels(model, path, examples, keep, densities))
  _log.info('%d samples (mean %.3f) in %s.npz, pictures beside it', len(samples), samples.mean(), base)
