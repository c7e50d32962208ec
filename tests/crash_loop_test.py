"""The crash loop in its short form; `python -m tests.crash_loop` has the long one."""

import subprocess
import sys

from absl.testing import absltest

from tests import testing


class CrashLoopTest(absltest.TestCase):

  def assert_survives(self, *args):
    result = subprocess.run(
        [sys.executable, '-m', 'tests.crash_loop', *args], cwd=testing.ROOT, capture_output=True, text=True,
        check=False)
    self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
    self.assertIn('state and metrics are bit for bit those of the undisturbed run', result.stdout)
    return result.stdout

  def test_killed_five_times_at_random_moments_a_run_ends_as_if_never_disturbed(self):
    self.assertIn('5 times SIGKILL', self.assert_survives('--kills=5'))

  def test_terminated_in_training_and_while_saving_it_loses_no_step(self):
    self.assertRegex(self.assert_survives('--kills=2', '--signal=TERM'), r'2 times SIGTERM(.*\n)+0 of \d+ steps')


if __name__ == '__main__':
  absltest.main()
