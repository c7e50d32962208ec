"""Compiler options and the cache of compiled programs."""

import os
from unittest import mock

from absl.testing import absltest
import jax
import jax.numpy as jnp

from diffusion_ebm.run import compilation


class CompilationTest(absltest.TestCase):
  def test_options_reach_the_compiler(self):
    lowered = jax.jit(lambda x: x + 1).lower(jnp.ones(3))
    options = {jax.default_backend(): {'xla_cpu_enable_fast_math': 'perhaps'}}
    with mock.patch.dict(compilation._OPTIONS, options), self.assertRaisesRegex(Exception, 'perhaps'):
      compilation.compile_lowered(lowered)

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


if __name__ == '__main__':
  absltest.main()
