import json
import os
import tempfile
from unittest import mock

from absl.testing import absltest
import numpy as np

from configs import digits, toy2d
from diffusion_ebm.jobs import grid_density, train
from diffusion_ebm.run.errors import UserError
from tests import testing


class GridDensityTest(absltest.TestCase):
  def test_a_model_that_knows_nothing_is_reported(self):
    config = testing.toy2d_config()
    config.model.output_scale = 1e-6  # uniform on the square of side 10, at any level
    workdir = self.enterContext(tempfile.TemporaryDirectory())
    testing.save_first_state(config, workdir, step=3)
    with mock.patch.object(grid_density, '_NUM_POINTS', 50):
      kl = grid_density.run(config, workdir, seed=1)
    # The most noisy level is nearly a standard normal density, of entropy 1 + log(2 pi).
    self.assertAlmostEqual(kl[-1], np.log(100) - 1 - np.log(2 * np.pi), delta=0.1)
    self.assertTrue(np.all(kl[:-1] > kl[-1]), kl)
    with open(os.path.join(workdir, 'density', 'grid.json'), encoding='utf-8') as file:
      written = json.load(file)
    self.assertEqual((written['step'], written['levels'], written['kl']), (3, [0, 1, 2, 3, 4, 5], kl.tolist()))
    self.assertEqual(written['inputs']['seed'], 1)
    self.assertTrue(os.path.exists(os.path.join(workdir, 'density', 'grid.png')))
    with mock.patch.object(grid_density, '_NUM_POINTS', 50):
      grid_density.run(config, workdir, seed=2)
    self.assertContainsSubset(['grid.png', 'grid_2.json', 'grid_2.png'], os.listdir(os.path.join(workdir, 'density')))
    with open(os.path.join(workdir, 'density', 'grid.json'), encoding='utf-8') as file:
      self.assertEqual(json.load(file), written)

  @testing.long
  def test_a_short_run_comes_closer_to_the_data_and_is_reported(self):
    config = toy2d.get_config()
    config.model.update({'ch': 32, 'num_layers': 2})
    config.sampling.num_steps = 10
    config.train.update(
      {
        'num_steps': 300,
        'batch_size': 128,
        'warmup_steps': 20,
        'learning_rate': 3e-3,
        'ema_decay': 0.95,
        'sample_every': 1000,
        'checkpoint_every': 1000,
        'log_every': 100,
      }
    )
    workdir = self.enterContext(tempfile.TemporaryDirectory())
    train.run(config, workdir)
    kl = grid_density.run(config, workdir)
    # A model that knows nothing is uniform on the square of side 10: log 100 nats less the entropy of the data.
    self.assertLess(kl[0], 3.0)
    self.assertLess(np.mean(kl[1:]), 0.6)
    self.assertGreater(np.min(kl), 0)
    with open(os.path.join(workdir, 'density', 'grid.json'), encoding='utf-8') as file:
      written = json.load(file)
    self.assertEqual((written['step'], written['kl']), (300, kl.tolist()))
    self.assertTrue(os.path.exists(os.path.join(workdir, 'density', 'grid.png')))

  def test_images_are_refused(self):
    with self.assertRaisesRegex(UserError, 'two-dimensional'):
      grid_density.run(digits.get_config(), 'unused')


if __name__ == '__main__':
  absltest.main()
