"""Checkpoints of the training state and of the position in the data, by Orbax.

A checkpoint is a folder named after its step; it gets that name when all is written. Beside Orbax' files it holds
`SHA256SUMS` of them all (for `sha256sum -c`), by which damage is found, and in `data/metadata` its format, the
configuration, and the shape and type of each array.

Formats: 1 had neither sums nor configuration, 2 no proposal. 3 is the present one. To change what a state holds, raise
`FORMAT`; whoever restores says which fields older formats lack.
"""

import collections
import contextlib
import dataclasses
import errno
import json
import logging
import os
import re
import shutil
import time

import jax
import numpy as np
import orbax.checkpoint as ocp

from diffusion_ebm.run import files, parallel
from diffusion_ebm.run.errors import SaveError, UserError

_log = logging.getLogger(__name__)

FORMAT = 3
_SUMS = 'SHA256SUMS'
_FOREIGN = re.compile(r'\.DS_Store|\._.*|Thumbs\.db|desktop\.ini')
_ATTEMPTS, _PAUSE = 20, 0.1
_MAX_JSON_BYTES = 64 * 2**20  # a file that is read whole must not fill the memory

Restored = collections.namedtuple('Restored', ['state', 'batches_read'])


class DamagedError(UserError):
  """A checkpoint that cannot be read: the message names the file."""


def directory(workdir) -> str:
  return os.path.join(os.path.abspath(workdir), 'checkpoints')


def steps(workdir) -> list[int]:
  """The steps of the checkpoints that are there now, whole."""
  return _steps(directory(workdir))


def _steps(folder):
  try:
    return sorted(int(name) for name in os.listdir(folder) if name.isdecimal() and name.isascii())
  except (FileNotFoundError, NotADirectoryError):
    return []


# Writing.


class Saver:
  """Writes the checkpoints of a training run, in the background."""

  def __init__(self, workdir, keep: int, keep_every: int, config: dict | None = None):
    """Prepares; what a killed run left half written is removed.

    Args:
      workdir: of the run.
      keep: how many of the newest to keep.
      keep_every: each at a multiple of this step is kept too; 0 for none.
      config: the run's, written into each checkpoint.
    """
    self._folder, self._config = directory(workdir), config
    self._options = ocp.CheckpointManagerOptions(
      max_to_keep=keep,
      keep_period=keep_every or None,
      async_options=ocp.AsyncOptions(post_finalization_callback=self._write_sums),
    )
    self._saving = None
    self._open()

  def _open(self):
    def make_room():
      _check_regular(self._folder)
      _remove_unfinished(self._folder)

    parallel.together(make_room, first_only=True)
    try:
      self.manager = ocp.CheckpointManager(self._folder, options=self._options)
    except OSError as error:
      raise SaveError(
        f'{self._folder} cannot be written ({error.strerror or error}): free space, or choose another --workdir'
      ) from error

  def _write_sums(self):
    """Called by Orbax when all files are written and before their folder gets its name."""
    for name in os.listdir(self._folder):
      folder = os.path.join(self._folder, name)
      if not name.isdecimal() and os.path.isdir(os.path.join(folder, 'state')) and not name.startswith(_ASIDE):
        sums = ''.join(f'{files.sha256(os.path.join(folder, file))}  {file}\n' for file in _files(folder))
        with open(os.path.join(folder, _SUMS), 'w', encoding='utf-8') as file:
          file.write(sums)
          file.flush()
          os.fsync(file.fileno())

  def save(self, state, batches_read: int):
    """Saves the state, and the number of global batches that have been read. Returns before all is written.

    Raises:
      SaveError: this one, or the one before it, could not be written; those that are there stay whole.
    """
    self.wait()
    about = {'format': FORMAT, 'batches': batches_read, 'config': self._config, 'arrays': _describe(state)}
    step = int(state.step)
    try:
      self.manager.save(
        step, force=True, args=ocp.args.Composite(state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(about))
      )
    except Exception as error:  # of many kinds: of Python, of TensorStore, of the other processes
      self._failed(step, error)
    self._saving = step

  def check(self):
    """Raises the `SaveError` of the last save once it has failed; costs next to nothing."""
    if self._saving is not None and not self.manager.is_saving_in_progress():
      self.wait()

  def wait(self):
    """Waits until all is written.

    Raises:
      SaveError: it could not be.
    """
    step, self._saving = self._saving, None
    if step is None:
      return
    try:
      self.manager.wait_until_finished()
    except Exception as error:
      self._failed(step, error)
    if parallel.is_first() and step not in _steps(self._folder):
      self._failed(step, OSError('it is not there'))

  def _failed(self, step, error):
    self._saving = None
    code = re.search(r"os_error_code='(\d+)'", str(error))  # TensorStore says much more
    cause = os.strerror(int(code[1])) if code else ' '.join(str(error).split())[:300]
    if parallel.num_processes() == 1:  # with several, the others wait for this one: the run has to end
      with contextlib.suppress(Exception):  # it may say again what failed
        self.manager.close()
      self._open()
    raise SaveError(
      f'the checkpoint of step {step} could not be written ({cause}): free space in '
      f'{self._folder}; earlier checkpoints are whole'
    ) from error

  def close(self):
    """Waits until all is written.

    Raises:
      SaveError: it could not be.
    """
    try:
      self.wait()
    finally:
      self.manager.close()
      if parallel.is_first():  # threads of a save that failed may have written since it was removed
        _remove_unfinished(self._folder)


def _check_regular(folder):
  """Raises a `UserError` for a pipe or a device, which Orbax would wait for without end."""
  for path, _, names in os.walk(folder):
    for name in names:
      file = os.path.join(path, name)
      if os.path.exists(file) and not os.path.isfile(file):
        raise UserError(f'{file} is neither a file nor a folder: remove it')


def _remove_unfinished(folder):
  """Removes what there is of checkpoints that were not finished, so that the next one has their space and name."""
  for _ in range(_ATTEMPTS):  # threads of a save that has failed may still write
    left = [name for name in (os.listdir(folder) if os.path.isdir(folder) else ()) if re.match(r'\d+\.', name)]
    if not left:
      return
    for name in left:
      shutil.rmtree(os.path.join(folder, name), ignore_errors=True)
    time.sleep(_PAUSE)


def _describe(state):
  leaves, _ = jax.tree_util.tree_flatten_with_path(state)
  return {_name(path): f'{leaf.dtype}{list(leaf.shape)}' for path, leaf in leaves}


def _name(path):
  return jax.tree_util.keystr(path, simple=True, separator='/')


def _files(folder):
  """Every file of the state and of what is beside it; Orbax still writes into the folder itself.

  Those that file managers leave behind do not count.
  """
  return sorted(
    os.path.relpath(os.path.join(path, name), folder)
    for item in ('data', 'state')
    for path, _, names in os.walk(os.path.join(folder, item))
    for name in names
    if not _FOREIGN.fullmatch(name)
  )


# Reading.


def check_any(workdir, step: int | None = None):
  """Raises a `UserError` if there is no checkpoint, or none of that step."""
  known = steps(workdir)
  if not known:
    raise UserError(f'{workdir} has no checkpoint: train first, with --mode=train and the same --workdir')
  if step is not None:
    _check_step(step, known, directory(workdir))


def _check_step(step, known, folder):
  if step not in known:
    there = ', '.join(map(str, known)) or 'none'
    raise UserError(f'no checkpoint of step {step} in {folder}; steps that are there: {there}')


def open_for_reading(workdir) -> ocp.CheckpointManager:
  """The manager of a job that only reads.

  Raises:
    UserError: there is no checkpoint.
  """
  _check_regular(directory(workdir))
  check_any(workdir)
  with _orbax_silent():
    return ocp.CheckpointManager(
      directory(workdir), options=ocp.CheckpointManagerOptions(read_only=True, create=False, save_interval_steps=0)
    )


@contextlib.contextmanager
def _orbax_silent():
  """Orbax warns that a manager is read-only, also where just that was asked for."""
  logger = logging.getLogger('absl')
  level = logger.level
  logger.setLevel(max(level, logging.ERROR))
  try:
    yield
  finally:
    logger.setLevel(level)


def restore(
  manager: ocp.CheckpointManager,
  state,
  step: int | None = None,
  check=None,
  set_aside: bool = False,
  lacking: dict[int, tuple[str, ...]] | None = None,
) -> Restored:
  """Reads a checkpoint; where the newest is asked for and damaged, the one before it, with a warning.

  Args:
    manager: of `open_for_reading`, or a `Saver`'s.
    state: the state, or like it in shapes, dtypes and shardings.
    step: the checkpoint's, or None for the newest.
    check: a function of the configuration in the checkpoint and its name, which may refuse it.
    set_aside: rename damaged ones, so that new ones can take their place.
    lacking: format to the fields of the state that it lacks; zero when they are read.

  Returns:
    `(state, batches_read)`.

  Raises:
    UserError: there is no checkpoint of that step, or it is damaged, or of another version.
  """
  folder = str(manager.directory)
  known = parallel.together(lambda: _steps(folder), first_only=True)
  if step is not None:
    _check_step(step, known, folder)
  damaged = []
  for number in [step] if step is not None else known[::-1]:
    try:
      restored = _restore(manager, folder, state, number, check, lacking or {})
    except DamagedError as error:
      if step is not None:
        raise
      damaged.append((number, error))
      continue
    if damaged:
      _warn(folder, damaged, number, set_aside)
      manager.reload()
    return restored
  raise UserError(
    f'none of the checkpoints in {folder} can be read ({damaged[0][1] if damaged else "there is none"}): '
    f'bring them back from a copy, or start anew in another --workdir'
  )


_ASIDE = 'damaged_'


def _warn(folder, damaged, instead, aside):
  for number, error in damaged:
    where = ''
    if aside:
      where = f', kept as {_ASIDE}{number}'
      parallel.together(lambda number=number: _set_aside(folder, number), first_only=True)
    _log.warning('%s; using the one of step %d instead%s', error, instead, where)


def _set_aside(folder, number):
  name, count = f'{_ASIDE}{number}', 0
  while os.path.lexists(os.path.join(folder, name)):
    count += 1
    name = f'{_ASIDE}{number}_{count}'
  os.rename(os.path.join(folder, str(number)), os.path.join(folder, name))


def _restore(manager, folder, state, step, check, lacking):
  path = os.path.join(folder, str(step))
  problem, about = parallel.together(lambda: _inspect(path), first_only=True)
  if problem:
    raise DamagedError(f'the checkpoint of step {step} is damaged ({problem})')
  if about['format'] > FORMAT:
    raise UserError(
      f'{path} was written by a newer version (format {about["format"]}, here {FORMAT}): update '
      f'diffusion_ebm, or use another --workdir'
    )
  if check is not None and about['config'] is not None:
    check(about['config'], path)
  missing = lacking.get(about['format'], ())
  wanted = (
    {field.name: getattr(state, field.name) for field in dataclasses.fields(state) if field.name not in missing}
    if missing
    else state
  )
  if about['arrays'] is not None:
    _check_arrays(about['arrays'], _describe(wanted), path)
  abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, wanted)
  try:
    restored = manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))).state
  except Exception as error:  # Orbax raises whatever the damage leads to
    cause = ' '.join(str(error).split())[:300]
    raise DamagedError(f'the checkpoint of step {step} is damaged ({path}: {cause})') from error
  if missing:
    zeros = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), {name: getattr(state, name) for name in missing})
    restored = state.replace(**restored, **parallel.replicate(zeros))
  return Restored(restored, about['batches'])


def _inspect(path):
  """`[problem or None, what data/metadata says]` of a checkpoint's files."""
  problem, about = None, None
  try:
    sums = {}
    if os.path.exists(os.path.join(path, _SUMS)):  # format 1 has none
      lines = _read(os.path.join(path, _SUMS)).removesuffix('\n').split('\n')
      sums = dict(line.split('  ', 1)[::-1] for line in lines)
      for name in _files(path):
        if name not in sums:
          return [f'{os.path.join(path, _SUMS)} does not list {name}', None]
    for name, digest in sums.items():
      file = os.path.join(path, os.path.normpath(f'/{name}')[1:])  # nowhere else
      if not os.path.isfile(file):
        return [f'{file} is missing', None]
      if files.sha256(file) != digest:
        return [f'{file} is truncated or has changed: its SHA-256 is another', None]
    name = os.path.join(path, 'data', 'metadata')
    about = json.loads(_read(name))
    about = {
      'format': about.get('format', 1),
      'batches': about['batches'],
      'config': about.get('config'),
      'arrays': about.get('arrays'),
    }
    if not (
      all(isinstance(about[key], int) for key in ('format', 'batches'))
      and all(isinstance(about[key], dict | None) for key in ('config', 'arrays'))
    ):
      problem = f'{name} makes no sense'
    elif about['format'] >= 2 and not sums:
      problem = f'{os.path.join(path, _SUMS)} is missing or empty'
  except OSError as error:
    problem = f'{error.filename or path}: {error.strerror or error}'
  except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
    problem = f'{path} cannot be read: {" ".join(str(error).split())}'
  return [problem, about]


def _read(path):
  if not os.path.isfile(path):
    raise FileNotFoundError(errno.ENOENT, 'is missing', path)
  with open(path, encoding='utf-8') as file:
    text = file.read(_MAX_JSON_BYTES + 1)
  if len(text) > _MAX_JSON_BYTES:
    raise ValueError(f'{path} is too large')
  return text


def _check_arrays(there, here, path):
  """Raises a `UserError` that lists how the arrays of a checkpoint differ from those that are needed."""
  differing = [
    f'{name} ({there.get(name, "nothing")} there, {here.get(name, "nothing")} here)'
    for name in sorted(there.keys() | here.keys())
    if there.get(name) != here.get(name)
  ]
  if differing:
    more = f' and {len(differing) - 5} more' if len(differing) > 5 else ''
    raise UserError(f'{path} is of another network or version: {", ".join(differing[:5])}{more}; use another --workdir')
