"""Ctrl-C and SIGTERM as a request that a loop honours between two steps."""

import contextlib
import signal
import threading


@contextlib.contextmanager
def requested():
  """Yields a function that tells whether a stop has been asked for; a second request interrupts at once."""
  asked = threading.Event()

  def handle(number, frame):
    if asked.is_set():
      signal.default_int_handler(number, frame)
    asked.set()

  if threading.current_thread() is not threading.main_thread():
    yield asked.is_set
    return
  previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
  try:
    yield asked.is_set
  finally:
    for number, handler in previous.items():
      signal.signal(number, handler)
