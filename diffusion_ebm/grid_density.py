"""The grid job: how far the learned densities of a two-dimensional run are from the exact ones, level by level."""

import json
import logging
import os

import numpy as np

from diffusion_ebm import config as config_lib
from diffusion_ebm import data, generate, pictures, sampling, trained
from diffusion_ebm import workdir as workdir_lib
from diffusion_ebm.errors import UserError

_log = logging.getLogger(__name__)

_GRID = 500
_NUM_POINTS = 4000


def grid_density(config, workdir: str, seed: int, step: int | None = None) -> np.ndarray:
  """Normalises each level's density by quadrature and compares it with the exact diffused density.

  All levels of six, ten of a thousand. Writes `density/grid.json` (`step`, `levels` from the cleanest, `kl`: nats for
  each, `grid`: points on an axis) and `density/grid.png`.

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
  config, model, state = trained.restore(config, workdir, step)

  _log.info('quadrature on %d x %d points', _GRID, _GRID)
  densities = generate.grid_densities(model, config, _GRID)(state)
  kl = densities[2]
  keep = sampling.shown_levels(model.levels.num_models)

  folder = workdir_lib.make(workdir, 'density')
  with open(os.path.join(folder, 'grid.json'), 'w', encoding='utf-8') as file:
    json.dump({'step': int(state.step), 'levels': keep[:-1], 'kl': kl.tolist(), 'grid': _GRID}, file)
  _, path = generate.Sampler(model, config, _NUM_POINTS, keep)(state, seed, 0, _NUM_POINTS)
  examples = data.load_source(config.data, 'test').read(np.arange(_NUM_POINTS))
  pictures.save_png(
      os.path.join(folder, 'grid.png'), generate.picture_of_levels(model, path, examples, keep, densities))
  _log.info('KL(data || model) in nats at step %d, from the cleanest level: %s; picture in %s', int(state.step),
            ' '.join(f'{value:.3f}' for value in kl), os.path.join(folder, 'grid.png'))
  return kl
