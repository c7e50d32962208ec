"""Progress of long work: a bar on a terminal, plain log lines elsewhere, with the time left in both."""

import contextlib
import logging
import sys
import threading
import time

import tqdm

_log = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES, _SECONDS_TO_FIRST_LINE = 10.0, 3.0
_SECONDS_BEFORE_BAR = 1.0  # what is done at once needs none
_WATCH = 'progress'  # the thread that sees to it
_LONGEST = 100  # characters of a line that is said again
_watched = []  # the last line of each `never_silent`
_open = []  # the `Progress` objects whose work goes on


class Progress:
  """Counts work done out of a known total.

  Attributes:
    moved: when it last did, on the monotonic clock.
    silent: whether nothing has been said of it yet.
  """

  def __init__(self, what: str, total: int, done: int = 0, unit: str = 'step', shown: bool = True):
    self._what, self._total, self._start, self._done, self._unit = what, total, done, done, unit
    self._bar = tqdm.tqdm(
      desc=what,
      total=total,
      initial=done,
      unit=unit,
      dynamic_ncols=True,
      disable=not (shown and sys.stderr.isatty()),
      delay=_SECONDS_BEFORE_BAR,
    )
    self._began = self._last_line = self.moved = time.monotonic()
    self.silent = True
    _open.append(self)

  def update(self, count: int, **notes: str):
    """Adds work done; `notes` are shown beside it."""
    self._done += count
    self.moved = time.monotonic()
    self._bar.update(count)
    if notes:
      self._bar.set_postfix(notes, refresh=False)

  @property
  def done(self) -> int:
    """How much of the total is done."""
    return self._done

  def line(self, text: str = '', always: bool = True):
    """Where there is no bar, logs how far the work is; unless `always`, not more often than every ten seconds."""
    now = time.monotonic()
    if not self._bar.disable or not always and now - self._last_line < _SECONDS_BETWEEN_LINES:
      return
    self._last_line, self.silent = now, False
    seconds, done = now - self._began, self._done - self._start
    clock = tqdm.tqdm.format_interval(seconds / done * (self._total - self._done) if done else seconds)
    unit = f' {text}' if text else f' {self._unit}s'
    _log.info('%s %d/%d%s, %s %s', self._what, self._done, self._total, unit, clock, 'left' if done else 'so far')

  @property
  def has_bar(self) -> bool:
    return not self._bar.disable

  def say(self):
    """Shows that the work goes on: the bar's clock, or a line."""
    if self.has_bar:
      self._bar.refresh()
    else:
      self.line()

  def close(self):
    self._bar.close()
    if self in _open:
      _open.remove(self)


class _LastLine(logging.Handler):
  """Remembers when the last line was logged, and what the work that goes on has said."""

  def __init__(self, text):
    super().__init__()
    self.text, self.of_progress = text, False
    self.since = self.when = time.monotonic()

  def emit(self, record):
    self.when = time.monotonic()
    if threading.current_thread().name != _WATCH:
      self.text, self.since, self.of_progress = record.getMessage(), self.when, record.name == __name__


def doing(what: str):
  """Names work that is only worth a line where it takes long."""
  for last in _watched:
    last.text, last.since, last.of_progress = what, time.monotonic(), False


@contextlib.contextmanager
def never_silent(what: str):
  """Says, whenever there has been no line for ten seconds, what is being done and for how long.

  Compilations and other calls that do not come back for a while are silent by themselves. On a terminal, a bar's clock
  goes on instead.

  Args:
    what: is done until something else is logged; said after three seconds.
  """
  logger, stopped, last = logging.getLogger('diffusion_ebm'), threading.Event(), _LastLine(what)

  def watch():
    wait = _SECONDS_TO_FIRST_LINE
    while not stopped.wait(wait / 10):
      now = time.monotonic()
      if now - last.when < wait:
        continue
      wait = _SECONDS_BETWEEN_LINES
      counted = _open[-1] if _open else None
      if counted and (last.of_progress or counted.has_bar or counted.moved >= last.since):
        counted.say()
      else:
        _log.info('%s: %.0f s so far', last.text.partition('\n')[0][:_LONGEST], now - last.since)

  thread = threading.Thread(target=watch, name=_WATCH, daemon=True)
  logger.addHandler(last)
  _watched.append(last)
  thread.start()
  try:
    yield
  finally:
    stopped.set()
    thread.join()
    logger.removeHandler(last)
    _watched.remove(last)
