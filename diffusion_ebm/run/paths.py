"""Paths, as the user gives them: taken literally, everywhere alike."""

import os
import re
from urllib import parse

from diffusion_ebm.run.errors import UserError

# Orbax takes these for patterns, and then does not find what it has written itself.
_PATTERNS = '[]*?\\'


def local(path: str, name: str) -> str:
  """A path of the local file system: `~` is expanded, `file://` taken away; relative to where the command runs.

  Args:
    path: as the user gave it; '' stays ''.
    name: of the option, for messages.

  Raises:
    UserError: it is on another kind of storage, or cannot be written in this locale.
  """
  if path.startswith('file://'):
    path = parse.unquote(path.removeprefix('file://').removeprefix('localhost'))
  elif scheme := re.match(r'([a-z][a-z0-9+.-]+)://', path):
    raise UserError(f'{name}={path}: {scheme[1]}:// is not supported: name a local folder, or mount the storage as one')
  try:
    path.encode()
  except UnicodeEncodeError as error:
    raise UserError(
      f'{name}={ascii(path)} holds characters that this locale cannot read: set LC_ALL=C.UTF-8 or PYTHONUTF8=1'
    ) from error
  return os.path.expanduser(path)


def user_cache() -> str:
  """The folder, which need not exist, for what the project keeps for all runs of a user."""
  home = os.environ.get('XDG_CACHE_HOME') or os.path.join(os.path.expanduser('~'), '.cache')
  return os.path.join(home, 'diffusion_ebm')


def workdir(path: str) -> str:
  """A workdir, as of `local`.

  Raises:
    UserError: as of `local`, or it holds characters with which checkpoints could not be read again.
  """
  path = local(path, '--workdir')
  bad = sorted(set(os.path.abspath(path)) & set(_PATTERNS)) if path else []
  if bad:
    raise UserError(
      f'--workdir={path} holds {" ".join(bad)}, with which checkpoints could not be read again: choose another name'
    )
  return path
