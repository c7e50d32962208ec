"""Signals as requests to stop, and what they end with."""

import os
import signal

from absl.testing import absltest, parameterized

from diffusion_ebm.run import interrupts
from diffusion_ebm.run.errors import InterruptedRun, PreemptedRun


class InterruptsTest(parameterized.TestCase):
  @parameterized.parameters((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129))
  def test_a_signal_is_a_request_whose_code_is_that_of_shells(self, number, code):
    with interrupts.requested() as request:
      self.assertEqual(request(), 0)
      os.kill(os.getpid(), number)
      self.assertEqual(request(), number)
    error = interrupts.stopped(request(), 'stopped')
    self.assertIsInstance(error, InterruptedRun)
    self.assertEqual(isinstance(error, PreemptedRun), number != signal.SIGINT)
    self.assertEqual(error.exit_code, code)

  def test_the_end_of_a_terminal_is_ignored_where_it_was_before_as_under_nohup(self):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
      with interrupts.requested() as request:
        os.kill(os.getpid(), signal.SIGHUP)
        self.assertEqual(request(), 0)
      self.assertEqual(signal.getsignal(signal.SIGHUP), signal.SIG_IGN)
    finally:
      signal.signal(signal.SIGHUP, before)


if __name__ == '__main__':
  absltest.main()
