"""The workdir: where a run's results go."""

import contextlib
import errno
import fcntl
import logging
import os
import socket
import tempfile

from diffusion_ebm.run.errors import UserError

_log = logging.getLogger(__name__)

_LOCK = 'train.lock'


def samples_dir(workdir) -> str:
  return os.path.join(workdir, 'samples')


def is_one(files, folders) -> bool:
  """Whether a folder with such files and folders in it is the workdir of a run."""
  return 'config.json' in files and (_LOCK in files or 'checkpoints' in folders)


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


def make_cache(workdir) -> str:
  """Makes the folder for what is known of the data, whatever the checkpoint, and returns it; errors as of `make`."""
  return make(workdir, os.path.join('eval', 'cache'))


def label(step: int, seed: int) -> str:
  """What the files of a job are called after: the step, and the seed where it is not the default, 0."""
  return f'{step}_seed{seed}' if seed else str(step)


def lock(workdir) -> contextlib.ExitStack:
  """Keeps other trainers off the workdir until the result is closed or the process ends, however it ends.

  Raises:
    UserError: another one trains there.
  """
  path = os.path.join(workdir, _LOCK)
  with contextlib.ExitStack() as stack:
    try:
      file = stack.enter_context(open(path, 'a+', encoding='utf-8'))
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      file.seek(0)
      holder = ' '.join(file.read(200).split()) or 'another process'
      raise UserError(
        f'{workdir} is being trained by {holder}: wait for it, stop it, or use another --workdir'
      ) from error
    except OSError as error:
      if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL):
        raise UserError(f'{path} cannot be written ({error.strerror}): choose another --workdir') from error
      _log.warning(
        '%s: its file system has no locks (%s): see yourself that nobody else trains there', workdir, error.strerror
      )
      return stack.pop_all()
    file.truncate(0)
    file.write(f'process {os.getpid()} on {socket.gethostname()}\n')
    file.flush()
    return stack.pop_all()


def check_shared(workdir):
  """Raises a `UserError` on a process that does not see the workdir which the first has locked."""
  if not os.path.exists(os.path.join(workdir, _LOCK)):
    raise UserError(f'--workdir={workdir} is not that of the first process: put it where all hosts share a file system')
