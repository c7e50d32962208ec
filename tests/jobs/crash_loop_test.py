"""The crash loop in its short form; `python -m tests.jobs.crash_loop` has the long one."""

import subprocess
import sys

from absl.testing import absltest

from tests import testing


class CrashLoopTest(absltest.TestCase):
  @testing.long
  def test_killed_five_times_at_random_moments_a_run_ends_as_if_never_disturbed(self):
    result = subprocess.run(
      [sys.executable, '-m', 'tests.jobs.crash_loop', '--kills=5'],
      cwd=testing.ROOT,
      capture_output=True,
      text=True,
      check=False,
    )
    self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
    self.assertIn('5 times SIGKILL', result.stdout)
    self.assertIn('state and metrics are bit for bit those of the undisturbed run', result.stdout)


if __name__ == '__main__':
  absltest.main()
