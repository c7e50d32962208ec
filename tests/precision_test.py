"""The precision of products of float32, read from the programs that are given to the compiler."""

import re
import tempfile
from unittest import mock

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_ebm import api, generate, langevin
from diffusion_ebm.density import ladder, quadrature
from diffusion_ebm.jobs import ood, sample, train
from diffusion_ebm.networks import convolution
from diffusion_ebm.run import compilation, parallel
from tests import testing


class Enough(Exception):
  """The program has been seen: it need not be compiled."""


def lowered(function):
  """The text of the first program that is compiled for the devices in a call."""
  texts = []

  def record(program, kind=None):
    del kind
    texts.append(program.as_text())
    raise Enough

  with mock.patch.object(compilation, 'compile_lowered', record):
    try:
      function()
    except Enough:
      return texts[0]
  raise AssertionError('nothing was compiled')


def precisions(text, operation='convolution|dot_general'):
  """Those of all convolutions and products of a lowered program, a set."""
  lines = re.findall(rf'stablehlo\.(?:{operation})\b.*', text)
  found = (re.search(r'\b(HIGHEST|HIGH)\b', line) for line in lines)
  return {match[1].lower() if match else 'default' for match in found}


def tiny(precision='default'):
  config = testing.jobs_config()
  config.model.precision = precision
  return config


class ParallelTest(parameterized.TestCase):
  @parameterized.parameters(({}, 'highest'), ({'precision': 'high'}, 'high'), ({'precision': 'default'}, 'default'))
  def test_exact_unless_asked_otherwise(self, asked, expected):
    gradient = jax.grad(lambda x: jnp.sum(convolution.conv2d(x, jnp.ones((3, 3, 2, 2))) ** 2))
    run = parallel.map_examples(lambda _, x: gradient(x), 2, **asked)
    self.assertEqual(precisions(lowered(lambda: run((), np.ones((2, 4, 4, 2), np.float32)))), {expected})


class JobsTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.workdir = cls.enterClassContext(tempfile.TemporaryDirectory())
    testing.save_first_state(tiny(), cls.workdir)

  @parameterized.parameters('default', 'highest')
  def test_plain_sampling_takes_what_the_configuration_asks_for(self, precision):
    self.assertEqual(precisions(lowered(lambda: sample.run(tiny(precision), self.workdir))), {precision})

  def test_a_run_may_be_sampled_in_another_dtype_and_says_so(self):
    config = tiny()
    self.assertNotIn('dtype', generate.inputs(config))
    config.model.dtype = 'bfloat16'
    self.assertIn('bf16', lowered(lambda: sample.run(config, self.workdir)))
    self.assertEqual(generate.inputs(config)['dtype'], 'bfloat16')
    self.assertEqual(generate.inputs(tiny('high'))['precision'], 'high')

  def test_corrected_sampling_is_exact(self):
    config = tiny()
    config.sampling.update({'corrected': 'mala', 'corrected_steps': 1})
    self.assertEqual(precisions(lowered(lambda: sample.run(config, self.workdir))), {'highest'})

  def test_ood_is_exact(self):
    self.assertEqual(precisions(lowered(lambda: ood.run(tiny(), self.workdir))), {'highest'})

  @parameterized.parameters('default', 'highest')
  def test_training(self, precision):
    config = tiny(precision)
    with tempfile.TemporaryDirectory() as workdir:
      text = lowered(lambda: train.run(config, workdir))
    self.assertEqual(precisions(text, 'convolution'), {precision})
    self.assertIn('highest', precisions(text, 'dot_general'))  # the power iteration

  def test_api(self):
    model = api.load(self.workdir)
    x, level, key = jnp.zeros((2, *model.shape)), jnp.zeros(2, int), jax.random.key(0)
    for name in ('_energy', '_score'):
      self.assertEqual(precisions(getattr(type(model), name).lower(model, x, level).as_text()), {'highest'})
    for asked in ('default', 'highest'):
      plain = model.replace(precision=asked)
      self.assertEqual(precisions(type(model)._sample.lower(plain, key, 2).as_text()), {asked})


class OutsideOfParallelTest(absltest.TestCase):
  """Programs that a process compiles for itself."""

  def test_densities(self):
    config = testing.toy2d_config()
    with tempfile.TemporaryDirectory() as workdir:
      testing.save_first_state(config, workdir)
      ebm = api.load(workdir).ebm
    x, keys = jnp.zeros((4, 2)), jax.random.split(jax.random.key(0), 4)
    programs = [quadrature._unnormalised.lower(ebm, (0,), x)]
    pilot = mock.Mock(num_steps=1, acceptance=0.5)
    differences, move, tune = ladder._pilot_steps(ebm, langevin.make_kernel('mala', 1), pilot)
    rung = ladder.Rungs(jnp.int32(0), jnp.float32(0.5))
    programs += [differences.lower(0, x), *(step.lower(rung, x, keys, 0.1, 0) for step in (move, tune))]
    self.assertEqual([precisions(program.as_text()) for program in programs], 4 * [{'highest'}])


if __name__ == '__main__':
  absltest.main()
