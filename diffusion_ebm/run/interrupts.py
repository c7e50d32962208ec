"""Ctrl-C, SIGTERM and the end of a terminal (SIGHUP) as a request that a loop honours between two steps."""

import contextlib
import signal
import threading

from diffusion_ebm.run.errors import InterruptedRun, PreemptedRun, UserError


@contextlib.contextmanager
def requested():
  """Yields a function that gives the signal by which a stop has been asked for, or 0.

  A second request interrupts at once.
  """
  asked = []

  def handle(number, frame):
    if asked:
      signal.default_int_handler(number, frame)
    asked.append(int(number))

  def request():
    return asked[0] if asked else 0

  if threading.current_thread() is not threading.main_thread():
    yield request
    return
  numbers = [signal.SIGINT, signal.SIGTERM]
  if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as under nohup
    numbers.append(signal.SIGHUP)
  previous = {number: signal.signal(number, handle) for number in numbers}
  try:
    yield request
  finally:
    for number, handler in previous.items():
      signal.signal(number, handler)


@contextlib.contextmanager
def checked(message: str):
  """Yields a function that raises the exception of `stopped`, with the message, once a stop has been asked for."""
  with requested() as stop_requested:

    def check_stop():
      if number := stop_requested():
        raise stopped(number, message)

    yield check_stop


def stopped(number: int, message: str) -> UserError:
  """The exception to raise after a stop that a signal has asked for: its exit code tells which."""
  error = InterruptedRun(message) if number == signal.SIGINT else PreemptedRun(message)
  error.exit_code = 128 + number  # as shells give
  return error
