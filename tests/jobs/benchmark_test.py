"""The benchmark's counts and its one line of figures; no times."""

import contextlib
import io
import json
import os
import subprocess
import sys

from absl.testing import absltest
import numpy as np

from diffusion_ebm import config as config_lib
from diffusion_ebm import networks, noise_levels
from diffusion_ebm.jobs import benchmark
from diffusion_ebm.networks import flops
from tests import forks, testing

KEYS = {
  'train_step_s',
  'langevin_step_s',
  'images_per_s',
  'flops_per_step',
  'achieved_flops_per_s',
  'matmul_flops_per_s',
  'fraction_of_matmul',
  'compile_s',
  'peak_memory_bytes',
  'device',
}
LEVELS = noise_levels.make_levels(6, 1e-4)


class FlopsTest(absltest.TestCase):
  def test_a_networks_operations_are_those_counted_by_hand(self):
    config = config_lib.resolve(testing.convolutional(testing.digits_config()))  # width 8, one block, 8x8, one channel
    f, embedding = flops.forward(networks.make_network(config.model, LEVELS), (8, 8, 1))
    pixels = 64
    self.assertEqual(f, 2 * 9 * pixels * (1 * 8 + 8 * 8 + 8 * 8))
    self.assertEqual(embedding, 2 * (8 * 32 + 32 * 32 + 32 * 8 + 32 * 8))

  def test_wide_convolutions_count_as_direct_ones(self):
    network = networks.ResNet(networks.ResNetSettings(ch=64, ch_mult=(1,), num_res_blocks=1))
    f, _ = flops.forward(network, (8, 8, 3))
    self.assertEqual(f, 2 * 9 * 64 * (3 * 64 + 2 * 64 * 64))

  def test_recomputation_and_attention_count(self):
    config = config_lib.resolve(testing.convolutional(testing.digits_config()))
    plain = flops.forward(networks.make_network(config.model, LEVELS), (8, 8, 1))[0]
    config.model.remat = True
    self.assertEqual(flops.forward(networks.make_network(config.model, LEVELS), (8, 8, 1))[0], plain)
    config.model.attention_resolutions = (8,)
    attention = 2 * (4 * 64 * 8 * 8 + 2 * 64 * 64 * 8)
    self.assertEqual(flops.forward(networks.make_network(config.model, LEVELS), (8, 8, 1))[0], plain + attention)

  def test_a_step_is_k_gradients_and_two_of_the_parameters(self):
    network = networks.MLP(networks.MLPSettings(ch=8, num_layers=1))
    f, embedding = flops.forward(network, (2,))
    self.assertEqual(flops.train_step(network, (2,), 5, 10), 5 * (26 * f + 7 * embedding))

  def test_a_proposal_is_evaluated_and_its_gradient_taken(self):
    network = networks.MLP(networks.MLPSettings(ch=8, num_layers=1))
    proposal = networks.ProposalMLP(networks.ProposalMLPSettings(ch=8), tuple(range(6)))
    once = 2 * (2 * 8 * 8 + 2 * 8 + 8 * 16 + 2 * 8 * 8 + 8 * 2)
    plain = flops.train_step(network, (2,), 5, 10)
    self.assertEqual(flops.train_step(network, (2,), 5, 10, proposal), plain + 5 * 4 * once)


class BenchmarkTest(absltest.TestCase):
  def test_vectors_give_every_figure(self):
    with contextlib.redirect_stderr(io.StringIO()):
      result = benchmark.benchmark(testing.toy2d_config(), seconds=0.0)
    self.assertContainsSubset(KEYS, result)
    self.assertTrue(
      all(
        np.isfinite(value) and value > 0
        for key, value in result.items()
        if isinstance(value, float) and 'spread' not in key
      ),
      result,
    )
    self.assertAlmostEqual(result['achieved_flops_per_s'] * result['train_step_s'], result['flops_per_step'], delta=1)
    self.assertIn('Langevin step', benchmark._table(result))

  @testing.long
  def test_the_command_takes_its_options_and_ends_with_one_line(self):
    done = subprocess.run(
      [
        sys.executable,
        '-m',
        'diffusion_ebm.jobs.benchmark',
        '--config=configs/digits_classes.py',
        '--batch=4',
        '--width=8',
        '--blocks=1',
        '--K=1',
        '--config.model.ch_mult=(1,)',
        '--dtype=bfloat16',
        '--devices=2',
        '--seconds=0',
        '--config.sampling.generation_steps=1',
      ],
      cwd=testing.ROOT,
      env=os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': forks.QUICK},
      capture_output=True,
      text=True,
      check=False,
    )
    self.assertEqual(done.returncode, 0, done.stderr)
    result = json.loads(done.stdout.splitlines()[-1])
    self.assertEqual(
      [result[key] for key in ('batch', 'width', 'blocks', 'K', 'dtype', 'num_devices')], [4, 8, 1, 1, 'bfloat16', 2]
    )
    self.assertGreater(result['guidance_factor'], 0)

  def test_bad_options_are_one_line(self):
    done = subprocess.run(
      [sys.executable, '-m', 'diffusion_ebm.jobs.benchmark', '--config=configs/digits.py', '--batch=3', '--devices=2'],
      cwd=testing.ROOT,
      env=os.environ | {'JAX_PLATFORMS': 'cpu'},
      capture_output=True,
      text=True,
      check=False,
    )
    self.assertEqual(done.returncode, 2)
    self.assertRegex(done.stderr.strip().splitlines()[-1], '^error: .*train.batch_size is 3')


if __name__ == '__main__':
  absltest.main()
