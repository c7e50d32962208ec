"""The workdir: where a run's results go."""

import os
import tempfile

import numpy as np

from diffusion_ebm.errors import UserError


def samples_dir(workdir) -> str:
  return os.path.join(workdir, 'samples')


def make(workdir, folder: str = 'samples') -> str:
  """Makes the workdir and a folder in it, and returns the folder.

  Raises:
    UserError: it cannot be written.
  """
  try:
    path = os.path.join(workdir, folder)
    os.makedirs(path, exist_ok=True)
    with tempfile.TemporaryFile(dir=path):
      return path
  except OSError as error:
    raise UserError(f'--workdir={workdir} cannot be written ({error.strerror}): choose another') from error


def save_npz(path: str, **arrays: np.ndarray):
  """Writes arrays to a compressed `.npz`, whole or not at all."""
  with open(path + '.tmp', 'wb') as file:
    np.savez_compressed(file, **arrays)
  os.replace(path + '.tmp', path)
