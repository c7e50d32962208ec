"""What went into a training step whose gradient was not finite: a file from which the step can be done again."""

import json
import os

import jax
import numpy as np

from diffusion_ebm import config as config_lib
from diffusion_ebm import model as model_lib
from diffusion_ebm import older_versions
from diffusion_ebm.run import files, parallel
from diffusion_ebm.run.errors import UserError

_MAX_BYTES = 64 * 2**30


def _name(path):
  return 'state/' + jax.tree_util.keystr(path, simple=True, separator='/')


def dump(workdir, config, step: int, batch, state) -> str:
  """Writes `bad_step_STEP.npz`; with several processes all call it, and the first writes.

  Args:
    workdir: gets the file.
    config: the run's configuration.
    step: number of the step.
    batch: `(data, label)` on the devices, as of `parallel.prefetch`.
    state: any after the step, as it was skipped and so have been all since.

  Returns:
    The file's path.
  """
  path = os.path.join(workdir, f'bad_step_{step:08d}.npz')
  examples, label = jax.tree.map(parallel.gather, batch)
  if parallel.is_first():
    before = state.replace(step=np.asarray(step - 1, np.int32), bad_steps=np.asarray(0, np.int32))
    arrays = {_name(key): np.asarray(leaf) for key, leaf in jax.tree_util.tree_flatten_with_path(before)[0]}
    arrays |= {'config': np.asarray(json.dumps(config.to_dict())), 'batch': examples.reshape(-1, *examples.shape[2:])}
    if label is not None:
      arrays['label'] = label.ravel()
    files.write_npz(path, arrays, compress=False)
  return path


def load(path: str):
  """Reads a file of `dump`.

  Returns:
    `(config, model, state, batch)`: the configuration, what `model.build` makes of it, the state before the step on
    all devices, and the global batch `(data, label)`.

  Raises:
    UserError: it is no such file.
  """
  try:
    arrays = files.read_npz(path, _MAX_BYTES)
    config = older_versions.read_config(json.loads(str(arrays['config'])))
    config_lib.check(config, parallel.num_devices())
    model = model_lib.build(config)
    like, tree = jax.tree_util.tree_flatten_with_path(model.abstract_state)
    leaves = [arrays[_name(key)].reshape(leaf.shape).astype(leaf.dtype) for key, leaf in like]
    return config, model, parallel.replicate(jax.tree.unflatten(tree, leaves)), (arrays['batch'], arrays.get('label'))
  except (OSError, ValueError, KeyError) as error:
    raise UserError(f'{path} cannot be read as the inputs of a training step ({error})') from error
