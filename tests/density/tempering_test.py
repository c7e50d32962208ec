"""Replica exchange on exact models, whose normalisers are known."""

import tempfile
from unittest import mock

from absl.testing import absltest
import jax
import numpy as np

from diffusion_ebm import composition, langevin, noise_levels
from diffusion_ebm.density import annealing, ladder, tempering
from diffusion_ebm.evaluate import chain_diagnostics
from diffusion_ebm.run.errors import DivergedError
from diffusion_ebm.run.unfinished import Unfinished
from tests import testing

LEVELS = noise_levels.make_levels(6, 0.06, 'conditional', temperature='one')
KERNEL = langevin.make_kernel('hmc', 3)
LOG_Z = 7.0
# Four standard deviations of the noisiest level apart, and a hundred of the cleanest.
MEANS, WEIGHTS, WIDTH = [[-0.7, 0.0], [0.7, 0.5]], [0.7, 0.3], 0.03


def make_ladder(width, fractions):
  """White noise, then each level by equal fractions; step sizes in proportion to the densities' widths."""
  fraction = np.tile(np.arange(1, fractions + 1, dtype=np.float32) / fractions, 6)
  level = np.repeat(np.arange(5, -1, -1, dtype=np.int32), fractions)
  sizes = 0.8 * np.sqrt(LEVELS.a_cum[level] ** 2 * width**2 + LEVELS.sigma_cum[level] ** 2)
  rungs = ladder.Rungs(np.append(np.int32(5), level), np.append(np.float32(0), fraction))
  return annealing.Ladder(rungs, np.append(0.8, sizes).astype(np.float32))


def run(ebm, dim, ladders, rounds, fractions, width=0.2, starts=None, unfinished=None, seed=0):
  starts = np.zeros((ladders, dim), np.float32) if starts is None else starts
  steps = make_ladder(width, fractions)
  return tempering.run(ebm, KERNEL, steps, starts, 1, rounds, (0, 3), 0.8, seed, unfinished)


def assert_normaliser(case, found, ebm, dim, exact=LOG_Z, within=3.5):
  for level in range(6):
    rung = found.ladder.reached(level)
    error = found.log_z[rung] + dim * np.log(ebm.levels.a_y[level]) - exact
    case.assertLess(abs(error), within * found.standard_error[rung] + 1e-3, f'level {level}')


class MixtureTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.ebm = testing.mixture_ebm(LEVELS, MEANS, WEIGHTS, WIDTH, LOG_Z)
    # All data are near the mode that holds less.
    cls.found = run(cls.ebm, 2, 32, 600, 3, WIDTH, np.tile(np.float32(MEANS[1]), (32, 1)))

  def test_every_level_has_its_normaliser(self):
    assert_normaliser(self, self.found, self.ebm, 2)
    self.assertLess(self.found.standard_error[-1], 0.1)

  def test_modes_have_their_weights_and_chains_forget_where_they_began(self):
    x = self.found.samples[0]
    self.assertEqual(x.shape, (50, 32, 2))
    nearer = np.argmin(np.sum((x[..., None, :] - np.float32(MEANS)) ** 2, -1), axis=-1)
    share = np.mean(nearer == 0, axis=0)  # of each ladder
    self.assertAlmostEqual(share.mean(), 0.7, delta=3.5 * share.std() / np.sqrt(len(share)))
    self.assertLess(share.std(), 0.25)
    self.assertAlmostEqual(np.std(x - np.float32(MEANS)[nearer]), np.hypot(WIDTH, 0.01), delta=0.002)
    mixing = chain_diagnostics.summarise(self.found.log_density[:, :, -1].astype(float), pooled=True)
    self.assertLess(mixing['r_hat'], 1.05)

  def test_neighbours_swap_and_step_sizes_settle(self):
    self.assertTrue(np.all((self.found.swapped > 0.02) & (self.found.swapped < 1.001)))
    np.testing.assert_allclose(self.found.acceptance[1:], 0.8, atol=0.1)


class OthersTest(absltest.TestCase):
  def test_a_normal_density_in_64_dimensions(self):
    ebm = testing.mixture_ebm(LEVELS, np.zeros((1, 64)), [1.0], 0.2, LOG_Z)
    found = run(ebm, 64, 16, 96, 6)
    assert_normaliser(self, found, ebm, 64)
    self.assertLess(found.standard_error[-1], 0.5)

  @testing.long
  def test_a_normal_density_in_1024_dimensions(self):
    ebm = testing.mixture_ebm(LEVELS, np.zeros((1, 1024)), [1.0], 0.2, LOG_Z)
    found = run(ebm, 1024, 8, 96, 16)
    assert_normaliser(self, found, ebm, 1024, within=5)  # seven degrees of freedom
    self.assertLess(found.standard_error[-1], 2)

  def test_a_product_of_two(self):
    # Of N(0, C_t) and the same: N(0, C_t / 2), without either's normaliser.
    ebm = testing.mixture_ebm(LEVELS, np.zeros((1, 2)), [1.0], 0.2)
    found = run(composition.add((ebm, 1.0), (ebm, 1.0)), 2, 32, 96, 2)
    variance = LEVELS.a_y**2 * (LEVELS.a_cum[:-1] ** 2 * 0.2**2 + LEVELS.sigma_cum[:-1] ** 2)
    for level in range(6):
      rung = found.ladder.reached(level)
      exact = np.log(np.pi * variance[level]) - 2 * np.log(2 * np.pi * variance[level])
      error = found.log_z[rung] + 2 * np.log(LEVELS.a_y[level]) - exact
      self.assertLess(abs(error), 3.5 * found.standard_error[rung] + 1e-3)

  @testing.long
  def test_four_times_the_rounds_halve_the_errors(self):
    ebm = testing.mixture_ebm(LEVELS, np.zeros((1, 8)), [1.0], 0.2, LOG_Z)
    few, many = (run(ebm, 8, 64, rounds, 3).standard_error[-1] for rounds in (96, 384))
    self.assertAlmostEqual(many / few, 0.5, delta=0.15)

  def test_a_killed_run_goes_on_to_the_same_result(self):
    ebm = testing.mixture_ebm(LEVELS, np.zeros((1, 2)), [1.0], 0.2)
    folder = self.enterContext(tempfile.TemporaryDirectory())

    def write(self, name, arrays, done):
      kept(self, name, arrays, True)
      if int(arrays['done']) == 2:
        raise KeyboardInterrupt

    kept = Unfinished.write
    with mock.patch.object(Unfinished, 'write', write), self.assertRaises(KeyboardInterrupt):
      run(ebm, 2, 4, 32, 1, unfinished=Unfinished(folder, {}))
    found, straight = run(ebm, 2, 4, 32, 1, unfinished=Unfinished(folder, {})), run(ebm, 2, 4, 32, 1)
    jax.tree.map(np.testing.assert_array_equal, found, straight)

  def test_chains_that_leave_the_numbers_name_the_level(self):
    bad = testing.function_ebm(LEVELS, lambda y, t: np.nan * y.sum(1))
    with self.assertRaisesRegex(DivergedError, 'the energies of level 5 are not finite'):
      run(bad, 2, 2, 8, 1)


if __name__ == '__main__':
  absltest.main()
