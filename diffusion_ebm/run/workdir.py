"""The workdir: where a run's results go."""

import contextlib
import errno
import fcntl
import itertools
import json
import logging
import os
import re
import socket
import tempfile

from diffusion_ebm.run import files
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


def file_name(*parts: str) -> str:
  """What files are called after: the parts, without what shells and file systems take for something else, cut short."""
  return re.sub(r'[^\w.+-]+', '_', '_'.join(parts)).encode()[:160].decode(errors='ignore')


def claim(folder: str, name: str, inputs: dict, suffixes: tuple[str, ...] = ()) -> str:
  """`FOLDER/NAME` with the number of `claim_number` behind it: a job's results are this and their suffixes."""
  return os.path.join(folder, name + claim_number(folder, name, inputs, suffixes))


def claim_number(folder: str, name: str, inputs: dict, suffixes: tuple[str, ...] = ()) -> str:
  """Numbers the files of a job's results, so that those of other inputs are never overwritten.

  Args:
    folder: made by `make`.
    name: what the results are called after.
    inputs: all that they depend on, as JSON can hold it.
    suffixes: of the files that the job writes beside `.json`.

  Returns:
    '', or '_2' and so on, with a line in the log, where files of results of other inputs have that name. `.json` holds
    `inputs` under this name: who writes more keeps them there.
  """
  inputs = json.loads(json.dumps(inputs))
  with _locked(folder):
    first = _inputs(os.path.join(folder, name))
    for count in itertools.count(1):
      number = f'_{count}' if count > 1 else ''
      base = os.path.join(folder, name + number)
      if not any(os.path.exists(base + suffix) for suffix in ('.json', *suffixes)):
        files.write_json(f'{base}.json', {'inputs': inputs})
      if _inputs(base) == inputs:
        break
  if number:
    differing = ', '.join(key for key in inputs if first.get(key) != inputs[key]) if first else 'not known'
    _log.info('%s holds results of other inputs (%s): these are in %s%s', name, differing, name, number)
  return number


@contextlib.contextmanager
def _locked(folder):
  """Keeps other jobs from choosing names in a folder at the same moment, where its file system has locks."""
  descriptor = os.open(folder, os.O_RDONLY)
  try:
    with contextlib.suppress(OSError):
      fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield
  finally:
    os.close(descriptor)


def _inputs(base):
  """The inputs of which there are results; None where it does not say."""
  try:
    return dict(files.read_json(f'{base}.json')['inputs'])
  except (OSError, ValueError, LookupError, TypeError):
    return None


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
