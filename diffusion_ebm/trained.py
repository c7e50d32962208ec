"""A trained model, from its workdir."""

import jax
import numpy as np

from diffusion_ebm import checkpoints, generate, parallel
from diffusion_ebm import config as config_lib
from diffusion_ebm import model as model_lib
from diffusion_ebm.density import results
from diffusion_ebm.errors import UserError


def restore(config, workdir: str, step: int | None = None):
  """Reads a checkpoint.

  Args:
    config: the configuration; the `train` section and how samples are drawn need not be the workdir's.
    workdir: of a training job.
    step: the checkpoint's, or None for the newest.

  Returns:
    `(config, model, state)`: the resolved configuration, the parts of `diffusion_ebm.model.build`, and the state, on
    all devices.

  Raises:
    UserError: something that the user can mend.
  """
  config = config_lib.resolve(config)
  config_lib.check(config, 1)
  config_lib.check_same_run(config, workdir, free=('seed', 'train', 'sampling.num_steps'))
  manager = checkpoints.open_for_reading(workdir)
  model = model_lib.build(config)
  state, _ = checkpoints.restore(manager, model.state, step)
  manager.close()
  return config, model, state


def load(config, workdir: str, step: int | None = None):
  """Reads a checkpoint for generation alone; arguments and errors as of `restore`.

  Returns:
    `(config, model, weights, step)`: the averaged and normalised parameters, on all devices, in place of the state, and
    the checkpoint's step.
  """
  config, model, state = restore(config, workdir, step)
  return config, model, parallel.replicate(jax.jit(generate.ema_weights)(state)), int(state.step)


def check_seed(seed: int):
  """Raises a `UserError` for a --seed that is none."""
  if not 0 <= seed < 2**32:
    raise UserError(f'--seed is {seed}, not in 0 .. 2^32 - 1')


def check_own_density(config, purpose: str):
  """Raises a `UserError` where an example's energy depends on others: then there is no density to follow, say."""
  if config.model.norm == 'batch':
    raise UserError(
        f"with model.norm='batch' an image's energy depends on its batch: there is no density to {purpose}")


def check_images(config, mode: str):
  """Raises a `UserError` for a mode that is for images where the data are vectors."""
  if config_lib.is_vector(config):
    raise UserError(f'--mode={mode} is for images, not for {config.data.name}: name the --workdir of an image run')


def check_at_least(name: str, value: int, low: int = 1):
  """Raises a `UserError` for a flag that is too small."""
  if value < low:
    raise UserError(f'--{name} is {value}, but must be at least {low}')


def check_finite(x: np.ndarray, step: int):
  """Raises a `UserError` for results that hold NaN or infinity."""
  if not np.all(np.isfinite(x)):
    raise UserError(f'the chains diverged at step {step}: try another --step or a smaller --config.sampling.step_size')


def log_z(workdir: str, step: int, num_models: int):
  """What `--mode=density` has found of a checkpoint.

  Args:
    workdir: of a training job.
    step: the checkpoint's.
    num_models: T.

  Returns:
    Log of the normaliser of each level's `y_t`, (T,) float64 in nats, NaN where it is not known; None if none is.

  Raises:
    UserError: the file cannot be read.
  """
  def by_level(record):
    if record['step'] != step:
      return None
    values = np.full(num_models, np.nan)
    for entry in record['log_z']:
      values[entry['level']] = entry['log_z']
    return values

  return results.read(workdir, by_level)
