"""Long work is never silent."""

import io
import logging
import sys
import time
from unittest import mock

from absl.testing import absltest

from diffusion_ebm.run import progress

_log = logging.getLogger('diffusion_ebm.jobs.some_job')


def wait_for(condition):
  """Returns once it holds; a machine may be busy."""
  until = time.monotonic() + 60
  while not condition():
    assert time.monotonic() < until
    time.sleep(0.01)


class NeverSilentTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.enter_context(mock.patch.object(progress, '_SECONDS_TO_FIRST_LINE', 0.05))
    self.enter_context(mock.patch.object(progress, '_SECONDS_BETWEEN_LINES', 0.1))
    self.logs = self.enter_context(self.assertLogs('diffusion_ebm', 'INFO')).output

  def said(self, *parts):
    return any(all(part in line for part in parts) for line in self.logs)

  def test_before_the_first_line_it_is_the_job(self):
    with progress.never_silent('density in runs/digits'):
      wait_for(lambda: self.said('density in runs/digits: 0 s so far'))

  def test_then_it_is_the_last_line_that_the_job_has_said(self):
    with progress.never_silent('density in runs/digits'):
      _log.info('compiling the sampler\n%s', 'of many lines')
      wait_for(lambda: sum('compiling the sampler: 0 s so far' in line for line in self.logs) > 1)
      _log.info('drawing')
      wait_for(lambda: self.said('drawing: 0 s so far'))
    self.assertFalse(self.said('so far: '))  # not its own lines

  def test_counted_work_says_how_far_it_is_and_when_it_will_be_done(self):
    with progress.never_silent('sample in runs/digits'):
      _log.info('drawing')
      work = progress.Progress('sampling', 4, unit='sample')
      wait_for(lambda: self.said('sampling 0/4 samples, 00:00 so far'))
      progress.doing('compiling')
      wait_for(lambda: self.said('compiling: 0 s so far'))
      work.update(1)
      wait_for(lambda: self.said('sampling 1/4 samples, 00:0', 'left'))
      work.update(1)
      wait_for(lambda: self.said('sampling 2/4 samples, 00:0', 'left'))
      work.close()
      _log.info('scores')
      wait_for(lambda: self.said('scores: 0 s so far'))

  def test_work_that_is_only_named_is_said_where_it_takes_long(self):
    progress.doing('nothing is watched')
    with progress.never_silent('density in runs/digits'):
      progress.doing('building the network')
      self.assertEmpty(self.logs)
      wait_for(lambda: self.said('building the network: 0 s so far'))

  def test_nothing_is_said_of_work_that_is_quick_and_nothing_afterwards(self):
    with mock.patch.object(progress, '_SECONDS_TO_FIRST_LINE', 5.0), progress.never_silent('sample'):
      _log.info('done')
    before = len(self.logs)
    time.sleep(0.3)
    self.assertEqual((before, len(self.logs)), (1, 1))

  def test_an_exception_ends_it(self):
    with self.assertRaises(ZeroDivisionError), progress.never_silent('sample'):
      _log.info('dividing')
      raise ZeroDivisionError
    before = len(self.logs)
    time.sleep(0.3)
    self.assertLen(self.logs, before)

  def test_on_a_terminal_the_clock_of_the_bar_goes_on(self):
    class Terminal(io.StringIO):
      def isatty(self):
        return True

    with mock.patch.object(sys, 'stderr', Terminal()) as terminal, progress.never_silent('sample'):
      _log.info('compiling the sampler')
      work = progress.Progress('sampling', 4, unit='sample')
      wait_for(lambda: terminal.getvalue().count('sampling:   0%') > 2)
      work.close()
    self.assertLen(self.logs, 1)


if __name__ == '__main__':
  absltest.main()
