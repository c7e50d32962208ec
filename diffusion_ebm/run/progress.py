"""Progress of long work: a bar on a terminal, plain log lines elsewhere, with the time left in both."""

import logging
import sys
import time

import tqdm

_SECONDS_BETWEEN_LINES = 10.0
_SECONDS_BEFORE_BAR = 1.0  # what is done at once needs none


class Progress:
  """Counts work done out of a known total."""

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
    self._began = self._last_line = time.monotonic()

  def update(self, count: int, **notes: str):
    """Adds work done; `notes` are shown beside it."""
    self._done += count
    self._bar.update(count)
    if notes:
      self._bar.set_postfix(notes, refresh=False)

  def line(self, text: str = '', always: bool = True):
    """Where there is no bar, logs how far the work is; unless `always`, not more often than every ten seconds."""
    now = time.monotonic()
    if not self._bar.disable or not always and now - self._last_line < _SECONDS_BETWEEN_LINES:
      return
    self._last_line = now
    done = max(self._done - self._start, 1)
    left = tqdm.tqdm.format_interval((now - self._began) / done * (self._total - self._done))
    logging.getLogger(__name__).info(
      '%s %d/%d%s, %s left', self._what, self._done, self._total, f' {text}' if text else f' {self._unit}s', left
    )

  def close(self):
    self._bar.close()
