"""The exceptions that are meant for the user's eyes: `main.py` prints their one line without a traceback."""


class UserError(Exception):
  """A mistake that the user can mend: one line that names the cause and the remedy. Exit code 2."""
  exit_code = 2


class DivergedError(UserError):
  """A run whose numbers have gone wrong: one line that names the level and what to try. Exit code 3."""
  exit_code = 3


class InterruptedRun(UserError):
  """A run that was asked to stop, and has saved its state. Exit code 130, as after Ctrl-C."""
  exit_code = 130
