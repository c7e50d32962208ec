"""Checkpoints of the training state and of the position in the data, by Orbax."""

import os

import jax
import orbax.checkpoint as ocp

from diffusion_ebm.errors import UserError


def directory(workdir) -> str:
  return os.path.join(os.path.abspath(workdir), 'checkpoints')


def steps(workdir) -> list[int]:
  """The steps of the checkpoints that are there now, whole."""
  try:
    return sorted(int(name) for name in os.listdir(directory(workdir)) if name.isdigit())
  except FileNotFoundError:
    return []


def open_for_writing(workdir, keep: int, keep_every: int) -> ocp.CheckpointManager:
  """The manager of a training run: keeps the newest `keep` checkpoints and each at a multiple of `keep_every`."""
  options = ocp.CheckpointManagerOptions(
      max_to_keep=keep, keep_period=keep_every or None, cleanup_tmp_directories=True)
  return ocp.CheckpointManager(directory(workdir), options=options)


def open_for_reading(workdir) -> ocp.CheckpointManager:
  """The manager of a job that only reads.

  Raises:
    UserError: there is no checkpoint.
  """
  if os.path.isdir(directory(workdir)):
    manager = ocp.CheckpointManager(directory(workdir), options=ocp.CheckpointManagerOptions(
        read_only=True, create=False, save_interval_steps=0))
    if manager.all_steps():
      return manager
  raise UserError(f'{workdir} has no checkpoint: train first, with --mode=train and the same --workdir')


def save(manager: ocp.CheckpointManager, state, batches_read: int):
  """Saves the state, and the number of global batches that have been read. Returns before all is written."""
  manager.save(
      int(state.step), force=True,
      args=ocp.args.Composite(state=ocp.args.StandardSave(state), data=ocp.args.JsonSave({'batches': batches_read})))


def restore(manager: ocp.CheckpointManager, state, step: int | None = None):
  """Reads a checkpoint.

  Args:
    manager: of `open_for_writing` or `open_for_reading`.
    state: the state, or like it in shapes, dtypes and shardings.
    step: the checkpoint's, or None for the newest.

  Returns:
    `(state, batches_read)`.

  Raises:
    UserError: there is no checkpoint of that step.
  """
  steps = sorted(manager.all_steps())
  step = steps[-1] if step is None else step
  if step not in steps:
    raise UserError(f'no checkpoint of step {step} in {manager.directory}; there are {", ".join(map(str, steps))}')
  abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
  restored = manager.restore(
      step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore()))
  return restored.state, restored.data['batches']
