"""The workdir: where a run's results go."""

import os
import tempfile

from diffusion_ebm.errors import UserError


def samples_dir(workdir) -> str:
  return os.path.join(workdir, 'samples')


def make(workdir):
  """Makes the workdir and its `samples` folder.

  Raises:
    UserError: it cannot be written.
  """
  try:
    os.makedirs(samples_dir(workdir), exist_ok=True)
    with tempfile.TemporaryFile(dir=workdir):
      pass
  except OSError as error:
    raise UserError(f'--workdir={workdir} cannot be written ({error.strerror}): choose another') from error
