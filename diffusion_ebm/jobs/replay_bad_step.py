"""Does a training step again whose gradient was not finite.

python -m diffusion_ebm.jobs.replay_bad_step WORKDIR/bad_step_STEP.npz
"""

import sys

import jax
import numpy as np

from diffusion_ebm import bad_step_file
from diffusion_ebm.jobs import train
from diffusion_ebm.run import errors, parallel


def replay(path: str) -> dict:
  """Does the step again.

  Args:
    path: a file of `bad_step.dump`.

  Returns:
    The metrics of `train_step`, as NumPy arrays.

  Raises:
    UserError: the file cannot be read.
  """
  config, model, state, batch = bad_step_file.load(path)
  batch = jax.tree.map(parallel.split, batch)
  _, metrics = train.compile_step(config, model, state, batch)(state, batch)
  return jax.device_get(metrics)


def main(argv):
  if len(argv) != 2:
    sys.exit('usage: python -m diffusion_ebm.jobs.replay_bad_step FILE')
  with errors.shown():
    metrics = replay(argv[1])
  print(
    f'loss {metrics["loss"]:.6g}, norm of the gradient {metrics["grad_norm"]:.6g}, '
    f'{"skipped" if metrics["bad_steps"] else "not skipped"}'
  )
  print('level  examples  |loss|        |f|           moved')
  for level in np.flatnonzero(metrics['level_count']):
    count = metrics['level_count'][level]
    print(
      f'{level:5d}  {count:8.0f}'
      + ''.join(f'  {metrics[name][level] / count:<12.6g}' for name in ('level_loss', 'level_f', 'level_displacement'))
    )


if __name__ == '__main__':
  main(sys.argv)
