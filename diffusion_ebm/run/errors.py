"""The exceptions that are meant for the user's eyes: one line, printed without a traceback."""

import contextlib
import errno
import sys

# What stands in the way of writing anything: the disk, not the program.
_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE)


def printable(text: str) -> str:
  """Text without what a terminal would obey or cannot show: such characters as escapes."""
  return ''.join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class UserError(Exception):
  """A mistake that the user can mend: one line that names the cause and the remedy. Exit code 2."""

  exit_code = 2

  def __init__(self, message: str):
    super().__init__(printable(message))


class UnknownDataSetError(UserError):
  """A name that no data set has."""


class DivergedError(UserError):
  """A run whose numbers have gone wrong: one line that names the level and what to try. Exit code 3."""

  exit_code = 3


class SaveError(UserError):
  """Something could not be written, as on a full disk; what was there before is whole. Exit code 4."""

  exit_code = 4


class InterruptedRun(UserError):
  """A run that was stopped by Ctrl-C, and has saved its state. Exit code 130, as shells give."""

  exit_code = 130


class PreemptedRun(InterruptedRun):
  """A run that was stopped by SIGTERM, and has saved its state: start it again. Exit code 143, as shells give."""

  exit_code = 143


@contextlib.contextmanager
def shown():
  """Prints the one line of an exception that is meant for the user's eyes, and exits with its code."""
  try:
    yield
  except UserError as error:
    stopped = isinstance(error, InterruptedRun)
    print(error if stopped else f'error: {error}', file=sys.stderr)
    sys.exit(error.exit_code)
  except (MemoryError, RuntimeError) as error:
    if not isinstance(error, MemoryError) and 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    cause = ' '.join(str(error).split())[:300]
    print(
      f'error: not enough memory ({cause}): try a smaller --config.train.batch_size, --config.sampling.batch_size '
      'or --config.model.ch, --config.model.remat=True, or more devices',
      file=sys.stderr,
    )
    sys.exit(2)
  except OSError as error:
    if error.errno not in _CANNOT_WRITE:
      raise
    print(
      f'error: {error.filename or "a file"} could not be written ({error.strerror}): make room for it; what was '
      'written before is whole, and the same command goes on from there',
      file=sys.stderr,
    )
    sys.exit(2)
  except KeyboardInterrupt:  # before there is anything to save, or by a second Ctrl-C
    print('interrupted: what was saved is whole', file=sys.stderr)
    sys.exit(130)
