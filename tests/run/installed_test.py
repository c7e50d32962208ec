"""A package that was upgraded under the running process."""

from importlib import metadata
import subprocess
import sys
from unittest import mock

from absl.testing import absltest, parameterized
import numpy as np

import diffusion_ebm
from diffusion_ebm.run import installed
from tests import testing


class InstalledTest(parameterized.TestCase):
  def test_what_is_installed_is_in_use(self):
    installed.check()

  @parameterized.parameters('numpy', 'jax', 'jaxlib', 'scipy')
  def test_another_version_asks_for_a_restart(self, name):
    version = metadata.version

    def upgraded(package):
      return '99.1' if package == name else version(package)

    __import__(name)
    with mock.patch.object(metadata, 'version', upgraded):
      with self.assertRaisesRegex(
        diffusion_ebm.UserError, rf'\A{name} \S+ is in use, but 99\.1 .*: restart the runtime'
      ):
        installed.check()
      with self.assertRaisesRegex(Exception, 'restart the runtime'):
        diffusion_ebm.load  # noqa: B018 (the attribute is the point)

  def test_builds_of_one_version_and_what_is_not_installed_are_fine(self):
    with mock.patch.object(metadata, 'version', side_effect=metadata.PackageNotFoundError):
      installed.check()
    with (
      mock.patch.object(np, '__version__', '2.9.1+cuda'),
      mock.patch.object(
        metadata, 'version', lambda name: '2.9.1' if name == 'numpy' else sys.modules[name].__version__
      ),
    ):
      installed.check()

  def test_it_comes_before_the_imports_that_would_fail(self):
    code = (
      'import numpy, diffusion_ebm\n'
      'numpy.__version__ = "1.26.4"\n'
      'try:\n'
      '  diffusion_ebm.load\n'
      'except Exception as error:\n'
      '  import sys; print(type(error).__name__, "restart" in str(error), "jax" in sys.modules)'
    )
    done = subprocess.run([sys.executable, '-c', code], cwd=testing.ROOT, capture_output=True, text=True, check=True)
    self.assertEqual(done.stdout.split(), ['UserError', 'True', 'False'])


if __name__ == '__main__':
  absltest.main()
