"""The grid job: how far the learned densities of a two-dimensional run are from the exact ones, level by level."""

import logging

import numpy as np

from diffusion_ebm import config as config_lib
from diffusion_ebm import data, generate, level_pictures, sampling, trained
from diffusion_ebm.run import files
from diffusion_ebm.run import workdir as workdir_lib
from diffusion_ebm.run.errors import UserError

_log = logging.getLogger(__name__)

_GRID = 500
_NUM_POINTS = 4000


def run(config, workdir: str, seed: int = 0, step: int | None = None) -> np.ndarray:
  """Normalises each level's density by quadrature and compares it with the exact diffused density.

  All levels of six, ten of a thousand. Writes `density/grid.json` (`step`, `levels` from the cleanest, `kl`: nats for
  each, `grid`: points on an axis, `inputs`) and `density/grid.png`; a number follows where results of other inputs have
  that name.

  Args:
    config: the configuration, of two-dimensional data.
    workdir: of a training job.
    seed: of the samples in the picture.
    step: the checkpoint's, or None for the newest.

  Returns:
    KL(data || model) of `y_t` for each of these levels, in nats.

  Raises:
    UserError: something that the user can mend.
  """
  if not config_lib.is_vector(config):
    raise UserError(f'--mode=grid is for two-dimensional data, not for {config.data.name}: use configs/toy2d.py')
  trained.check_seed(seed)
  config, ebm, proposal, shape, step = trained.load(config, workdir, step)

  _log.info('quadrature on %d x %d points', _GRID, _GRID)
  densities = level_pictures.grid_densities(ebm, config.data.distribution, _GRID)
  keep = sampling.shown_levels(ebm.levels.num_models)
  folder = workdir_lib.make(workdir, 'density')
  inputs = {'step': step, 'seed': seed, 'grid': _GRID, 'sampling': generate.inputs(config)}
  base = workdir_lib.claim(folder, 'grid', inputs, ('.png',))
  record = {'step': step, 'levels': keep[:-1], 'kl': densities.kl.tolist(), 'grid': _GRID, 'inputs': inputs}
  files.write_json(base + '.json', record)
  _, path = generate.make_sampler(config, shape, _NUM_POINTS, keep)(ebm, proposal, seed, 0, _NUM_POINTS)
  examples = data.load_source(config.data, 'test').read(np.arange(_NUM_POINTS))
  files.write_png(base + '.png', level_pictures.levels(ebm.levels, path, examples, keep, densities))
  _log.info(
    'KL(data || model) in nats at step %d, from the cleanest level: %s; picture in %s.png',
    step,
    ' '.join(f'{value:.3f}' for value in densities.kl),
    base,
  )
  return densities.kl
