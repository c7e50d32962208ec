"""Compiler options and the cache of compiled programs."""

import glob
import os
import tempfile
from unittest import mock
import warnings

from absl.testing import absltest
import jax
from jax.experimental.compilation_cache import compilation_cache
import jax.numpy as jnp
import numpy as np

from diffusion_ebm.run import compilation
from tests import testing


class CompilationTest(absltest.TestCase):
  def test_options_reach_the_compiler(self):
    lowered = jax.jit(lambda x: x + 1).lower(jnp.ones(3))
    options = {jax.default_backend(): {'xla_cpu_enable_fast_math': 'perhaps'}}
    with mock.patch.dict(compilation._OPTIONS, options), self.assertRaisesRegex(Exception, 'perhaps'):
      compilation.compile_lowered(lowered)

  def test_large_images_have_options_of_their_own(self):
    options = {jax.default_backend(): {'xla_cpu_enable_fast_math': 'perhaps'}}
    with mock.patch.dict(compilation._LARGE_OPTIONS, options):
      small, large = (jax.jit(lambda x: x + 1).lower(jnp.ones((1, size, size, 3))) for size in (64, 128))
      compilation.compile_lowered(small)
      with self.assertRaisesRegex(Exception, 'perhaps'):
        compilation.compile_lowered(large)

  def test_what_runs_once_is_compiled_with_its_options_and_computes_the_same(self):
    x = jnp.arange(6.0)
    np.testing.assert_allclose(compilation.once(jnp.sin)(x), jnp.sin(x), rtol=1e-6)
    options = {jax.default_backend(): {'xla_backend_optimization_level': 'perhaps'}}
    with mock.patch.dict(compilation._ONCE_OPTIONS, options), self.assertRaisesRegex(Exception, 'perhaps'):
      compilation.once(jnp.cos)(x)
    with mock.patch.dict(compilation._ONCE_OPTIONS, clear=True):
      np.testing.assert_allclose(compilation.once(jnp.cos)(x), jnp.cos(x), rtol=1e-6)

  def test_options_of_another_version_are_left_out(self):
    lowered = jax.jit(lambda x: x + 1).lower(jnp.ones(3))
    options = {'xla_of_yesterday': 1, 'xla_cpu_enable_fast_math': False}
    with (
      mock.patch.dict(compilation._OPTIONS, {jax.default_backend(): options}),
      self.assertLogs('diffusion_ebm', 'WARNING') as logs,
    ):
      self.assertEqual(compilation.compile_lowered(lowered)(jnp.ones(3)).tolist(), [2, 2, 2])
    self.assertLen(logs.output, 1)
    self.assertIn('xla_of_yesterday', logs.output[0])

  def test_the_cache_is_the_users_unless_another_is_named(self):
    before = jax.config.jax_compilation_cache_dir
    self.addCleanup(jax.config.update, 'jax_compilation_cache_dir', before)
    with mock.patch.dict(os.environ, {'XDG_CACHE_HOME': '/of/the/user'}):
      jax.config.update('jax_compilation_cache_dir', '/elsewhere')
      compilation.use_cache()
      self.assertEqual(jax.config.jax_compilation_cache_dir, '/elsewhere')
      jax.config.update('jax_compilation_cache_dir', None)
      compilation.use_cache()
      self.assertStartsWith(jax.config.jax_compilation_cache_dir, '/of/the/user/diffusion_ebm/jax-')

  def compile_beside(self, folder):
    """Compiles and runs a program with the cache in a folder, as a new process would."""
    changes = {'jax_compilation_cache_dir': folder, 'jax_persistent_cache_min_compile_time_secs': 0.0}
    before = {name: getattr(jax.config, name) for name in changes}
    try:
      for name, value in changes.items():
        jax.config.update(name, value)
      compilation_cache.reset_cache()
      jax.clear_caches()
      compiled = compilation.compile_lowered(jax.jit(lambda x: jnp.sin(x) * 2).lower(jnp.ones(3)))
      np.testing.assert_allclose(compiled(jnp.arange(3.0)), 2 * np.sin(np.arange(3)), rtol=1e-6)
    finally:
      for name, value in before.items():
        jax.config.update(name, value)
      compilation_cache.reset_cache()

  def test_a_cache_whose_files_are_cut_off_or_full_of_something_else_does_no_harm(self):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    with warnings.catch_warnings(action='error'):
      self.compile_beside(folder)
      self.compile_beside(folder)
    paths = glob.glob(os.path.join(folder, '*-cache'))
    self.assertNotEmpty(paths)
    for content in (b'', None, bytes(range(256)) * 99):
      for path in paths:
        with open(path, 'rb') as file:
          cut = file.read()[:100]
        with open(path, 'wb') as file:
          file.write(cut if content is None else content)
      with self.assertWarnsRegex(UserWarning, 'Error reading persistent compilation cache'):
        self.compile_beside(folder)

  @testing.long
  def test_a_cache_that_cannot_be_written_does_no_harm(self):
    with self.assertWarnsRegex(UserWarning, 'persistent compilation cache'):
      self.compile_beside('/dev/null/cache')


if __name__ == '__main__':
  absltest.main()
