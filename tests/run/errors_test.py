"""What the user sees of an exception, and the exit code."""

import contextlib
import errno
import io
import os

from absl.testing import absltest, parameterized

from diffusion_ebm.run import errors


class ShownTest(parameterized.TestCase):
  def shown(self, error):
    """`(exit code, what was printed to stderr)`."""
    with (
      self.assertRaises(SystemExit) as caught,
      contextlib.redirect_stdout(io.StringIO()) as stdout,
      contextlib.redirect_stderr(io.StringIO()) as stderr,
      errors.shown(),
    ):
      raise error
    self.assertEqual(stdout.getvalue(), '')
    return caught.exception.code, stderr.getvalue()

  @parameterized.parameters(
    (errors.UserError, 2), (errors.UnknownDataSetError, 2), (errors.DivergedError, 3), (errors.SaveError, 4)
  )
  def test_a_mistake_is_one_line_and_has_its_code(self, kind, code):
    self.assertEqual(self.shown(kind('what is wrong: what to do')), (code, 'error: what is wrong: what to do\n'))

  @parameterized.parameters((errors.InterruptedRun, 130), (errors.PreemptedRun, 143))
  def test_a_run_that_was_stopped_is_no_error(self, kind, code):
    self.assertEqual(self.shown(kind('stopped at step 3')), (code, 'stopped at step 3\n'))

  @parameterized.parameters(
    MemoryError('Unable to allocate\n7 GiB'),
    RuntimeError('RESOURCE_EXHAUSTED: Out of memory\n  allocating 7 GiB' + ' of many' * 1000),
  )
  def test_no_memory_is_one_line_that_says_what_to_make_smaller(self, error):
    code, line = self.shown(error)
    self.assertEqual(code, 2)
    self.assertRegex(line, r'\Aerror: not enough memory \(.*7 GiB.*\): .*--config\.train\.batch_size.*\n\Z')  # one line
    self.assertLess(len(line), 600)

  @parameterized.parameters(errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EIO)
  def test_a_disk_that_takes_nothing_more_is_one_line_that_names_the_file(self, number):
    code, line = self.shown(OSError(number, os.strerror(number), 'run/samples.npz'))
    self.assertEqual(code, 2)
    self.assertRegex(line, rf'\Aerror: run/samples.npz could not be written \({os.strerror(number)}\): [^\n]*\n\Z')

  def test_ctrl_c_is_one_line(self):
    code, line = self.shown(KeyboardInterrupt())
    self.assertEqual(code, 130)
    self.assertRegex(line, r'\Ainterrupted: [^\n]*\n\Z')

  @parameterized.parameters(
    RuntimeError('INTERNAL: of XLA'), ValueError('a bug'), OSError(errno.ENOENT, 'a bug'), SystemExit(7)
  )
  def test_all_others_pass(self, error):
    with self.assertRaises(type(error)) as caught, contextlib.redirect_stderr(io.StringIO()) as stderr, errors.shown():
      raise error
    self.assertIs(caught.exception, error)
    self.assertEqual(stderr.getvalue(), '')

  def test_without_an_exception_nothing_happens(self):
    with contextlib.redirect_stderr(io.StringIO()) as stderr, errors.shown():
      pass
    self.assertEqual(stderr.getvalue(), '')


if __name__ == '__main__':
  absltest.main()
