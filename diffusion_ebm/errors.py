"""The exceptions that are meant for the user's eyes: `main.py` prints their one line without a traceback."""


class UserError(Exception):
  """A mistake that the user can mend: one line that names the cause and the remedy. Exit code 2."""
  exit_code = 2


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
