"""What is compiled for accelerators that are not there: memory, time, types and collectives."""

import importlib.util
import math
import subprocess
import sys
import unittest
from unittest import mock

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp

from configs import digits_classes
from diffusion_ebm import config as config_lib
from diffusion_ebm import model as model_lib
from diffusion_ebm.jobs import foretell
from diffusion_ebm.networks import flops
from diffusion_ebm.run import accelerators, compiled_cost, parallel
from diffusion_ebm.run.errors import UserError
from tests import testing

needs_libtpu = unittest.skipUnless(
  importlib.util.find_spec('libtpu'), "XLA's compiler for TPUs is not there: pip install libtpu"
)


def small_config(**changes):
  config = digits_classes.get_config()
  config.model.update({'ch': 8, 'ch_mult': (1,)} | changes)
  config.proposal.ch = 8
  config.sampling.update({'num_steps': 3, 'generation_steps': 3, 'batch_size': 8})
  return config


V5E, H100 = accelerators.TPUS['v5e'], accelerators.GPUS['h100']
_TEXT = """HloModule m

ENTRY %main (p: f32[8,8]) -> f32[8,8] {
  %p = f32[8,8]{1,0} parameter(0)
  %product = f32[8,8]{1,0} dot(%p, %p), backend_config={"estimated_cycles":"3000000"}
  ROOT %sum = f32[8,8]{1,0} all-reduce(%product), to_apply=%add
}
"""


def compiled(temporary=2**20):
  """As if XLA had compiled it."""
  memory = mock.Mock(
    argument_size_in_bytes=1000,
    output_size_in_bytes=500,
    alias_size_in_bytes=400,
    generated_code_size_in_bytes=50,
    temp_size_in_bytes=temporary,
  )
  return mock.Mock(memory_analysis=lambda: memory, as_text=lambda: _TEXT)


def measure(chip, compile_function=compiled, count=8, flops=1e9):
  program = foretell.Program('it', compile_function, flops, 'default', 'less of it')
  return foretell._measure(chip, count, 'bfloat16', program)


class RefusedTest(parameterized.TestCase):
  @parameterized.parameters('v9:2x2', 'v5e', 'v5e:2y2', '', 'v5e:2x2x2', 'v4:2x2')
  def test_topologies_that_there_are_not(self, topology):
    with self.assertRaisesRegex(UserError, f'--topology={topology} is unknown: give one of v4, v5e'):
      accelerators.tpu(topology)

  def test_what_is_not_installed(self):
    with mock.patch.object(importlib.util, 'find_spec', return_value=None):
      with self.assertRaisesRegex(UserError, 'not installed: pip install libtpu'):
        accelerators.tpu('v5e:2x2')
      with self.assertRaisesRegex(UserError, f'not installed: pip install .*jax-cuda12-plugin=={jax.__version__}'):
        accelerators.gpu('h100')

  def test_gpus_that_are_not_known(self):
    with self.assertRaisesRegex(UserError, '--gpu=h900 is unknown: give one of h100'):
      accelerators.gpu('h900')

  def test_what_does_not_fit(self):
    full = jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: 20G of 16G hbm')
    with self.assertRaisesRegex(UserError, r'it does not fit .*20G of 16G hbm\): take less of it'):
      measure(V5E, mock.Mock(side_effect=full))
    with self.assertRaisesRegex(UserError, r'it does not fit .*20.0 GiB of 16.0\): take less of it'):
      measure(V5E, lambda: compiled(20 * 2**30))


class CommandTest(parameterized.TestCase):
  def run_main(self, *arguments):
    return subprocess.run(
      [sys.executable, '-m', 'diffusion_ebm.jobs.foretell', *arguments],
      capture_output=True,
      text=True,
      cwd=testing.ROOT,
    )

  @parameterized.parameters(
    ((), 'name one of --topology=v5e:2x4'),
    (('--gpu=h100', '--config.model.nothere=1'), "no such configuration key: 'nothere'"),
    (('--gpu=h100', '--config=configs/nothere.py'), 'No such file'),
  )
  def test_one_line_for_mistakes(self, arguments, expected):
    done = self.run_main(*arguments)
    self.assertEqual(done.returncode, 2)
    self.assertRegex(done.stderr, r'\Aerror: [^\n]*' + expected + r'[^\n]*\n\Z')


class EstimateTest(absltest.TestCase):
  def test_on_tpus_the_cycles_and_the_links(self):
    found = measure(V5E)
    self.assertEqual(found['link_s'], 2 * 256 * 7 / 8 / V5E.network)
    self.assertEqual(found['seconds'], 3e6 / V5E.clock + found['link_s'])
    self.assertEqual(found['peak'], 1000 + 100 + 50 + 2**20)
    self.assertEqual(found['collectives'], 256)

  def test_on_gpus_operations_and_traffic_one_after_the_other(self):
    found = measure(H100, count=1)
    traffic = 3 * 256 + 2 * 256  # the product reads its operand twice
    self.assertAlmostEqual(found['seconds'], 1e9 / (0.69 * H100.flops) + traffic / H100.bandwidth)

  def test_rates(self):
    self.assertEqual(H100.rate('bfloat16', 'highest'), H100.flops)
    self.assertEqual(H100.rate('float32', 'default'), H100.flops / 2)
    self.assertAlmostEqual(H100.rate('float32', 'highest'), 67e12)
    self.assertEqual(V5E.rate('float32', 'default'), V5E.flops)
    self.assertAlmostEqual(V5E.rate('float32', 'highest'), V5E.flops / 6)

  def test_the_operations_of_a_sampler(self):
    config = config_lib.resolve(small_config())
    model = model_lib.build(config)
    f, embedding = flops.forward(model.network, model.shape)
    plain = foretell._sampler_flops(config, model)
    proposal = plain - 6 * (3 * 2 * f + embedding)  # of six levels with three gradients each
    self.assertGreater(proposal, 0)
    config.sampling.guidance = 0.5
    self.assertEqual(foretell._sampler_flops(config, model), 2 * plain)
    config.sampling.update({'guidance': 0.0, 'corrected': 'hmc', 'corrected_steps': 7})
    self.assertEqual(foretell._sampler_flops(config, model), 6 * (7 * 5 * 2 * f + embedding))
    config.sampling.update({'guidance': 0.5, 'corrected': '', 'flow_steps': 4})
    self.assertEqual(foretell._sampler_flops(config, model), 2 * 4 * (2 * f + embedding))

  def test_the_table(self):
    step = measure(V5E) | {
      'share_of_peak': 0.5,
      'images_per_s': 1234.5,
      'num_steps': 100,
      'hours': 2.0,
      'chip_hours': 16.0,
      'largest_batch': 4096,
    }
    text = foretell.table('v5e:2x4', {'num_devices': 8, 'batch': 64, 'dtype': 'bfloat16', 'step': step}, V5E)
    for line in (
      r'\Av5e:2x4 \(8 chips\), batch 64, bfloat16: estimates',
      r'temporary +0.000977 GiB',
      r'products of float32 +1 of 1 in the program',
      r'time: products +2 ms \(100%\)',
      r'share of the published rate +50.0%',
      r'images a second +1,23\d',
      r'100 steps +2 h \(16 chip-hours\)',
      r'largest batch, about +4,096 over all chips',
    ):
      self.assertRegex(text, line)


@testing.long
@needs_libtpu
class TpuTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.devices, cls.chip = accelerators.tpu('v5e:2x2')
    cls.one, _ = accelerators.tpu('v5e:1x1')

  def test_a_step_and_a_sampler(self):
    config = small_config(dtype='bfloat16')
    found = foretell.foretell(config, self.devices, self.chip)
    for name in ('step', 'sampler'):
      part = found[name]
      self.assertGreater(part['cycles']['convolutions'], 0)
      self.assertGreater(part['peak'], part['arguments'])
      self.assertLess(part['peak'], self.chip.memory)
      self.assertGreater(part['seconds'], part['flops'] / self.chip.flops)
      self.assertEqual(list(part['types']['convolutions']), ['bf16'])
    state = model_lib.build(config_lib.resolve(config)).described_state
    params = sum(math.prod(a.shape) for a in jax.tree.leaves((state.params, state.proposal.params)))
    # Gradients in float32 and the metrics; biases that are added to each other have one gradient.
    self.assertBetween(found['step']['collectives'], 4 * params * 0.98, 4 * params + 2000)
    self.assertEqual(found['sampler']['collectives'], 0)
    alone = foretell.foretell(config, self.one, self.chip, sampler=False)['step']
    self.assertEqual(alone['collectives'], 0)
    self.assertAlmostEqual(alone['flops'], 4 * found['step']['flops'])
    self.assertIn('images', foretell.table('v5e:2x2', found, self.chip))

  def test_the_sum_over_two_chips_takes_in_what_each_has(self):
    described = self.devices[:2]
    with parallel.described_devices(described):
      x = parallel.split_like(jax.ShapeDtypeStruct((2, 256), jnp.float32))
      compiled = parallel.compile_for(
        lambda scale, x: jax.lax.psum(scale * x, parallel.AXIS),
        jax.ShapeDtypeStruct((), jnp.float32),
        x,
        replicated=(0,),
        out_axes=None,
      )
    self.assertEqual(sum(compiled_cost.cost(compiled.as_text()).collectives.values()), 4 * 256)

  def test_a_large_product_comes_close_to_the_published_peak(self):
    size = 8192
    with parallel.described_devices(self.one):
      a = parallel.split_like(jax.ShapeDtypeStruct((1, size, size), jnp.bfloat16))
      compiled = parallel.compile_for(
        lambda b, a: a[0] @ b, jax.ShapeDtypeStruct((size, size), jnp.bfloat16), a, replicated=(0,), out_axes=0
      )
    seconds = sum(compiled_cost.cost(compiled.as_text()).cycles.values()) / self.chip.clock
    self.assertBetween(2 * size**3 / seconds / self.chip.flops, 0.85, 1.0)


if __name__ == '__main__':
  absltest.main()
