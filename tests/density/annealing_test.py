"""Passes on all devices against the exact model of normal data, whose normalisers are known."""

import tempfile
from unittest import mock

from absl.testing import absltest
import numpy as np
from scipy import stats

from diffusion_ebm import langevin, noise_levels
from diffusion_ebm.data.source import ArraySource
from diffusion_ebm.density import ais, annealing, bridge, dataset_log_prob, ladder
from diffusion_ebm.run import unfinished
from diffusion_ebm.run.errors import DivergedError
from tests import testing

COVARIANCE = np.array([[0.25, 0.1], [0.1, 0.16]])
DIM, CHAINS = 2, 400


def source(count):
  """Examples of normal data."""
  rng = np.random.default_rng(0)
  return ArraySource(rng.multivariate_normal(np.zeros(DIM), COVARIANCE, count).astype(np.float32))


class LadderTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.steps = annealing.Ladder(
      ladder.Rungs(np.array([1, 1, 1, 0, 0], np.int32), np.array([0, 0.5, 1, 0.3, 1], np.float32)),
      np.array([0.5, 0.4, 0.3, 0.2, 0.1], np.float32),
    )

  def assert_holds(self, steps, numbers):
    np.testing.assert_array_equal(steps.rungs.level, self.steps.rungs.level[numbers], strict=True)
    np.testing.assert_array_equal(steps.rungs.fraction, self.steps.rungs.fraction[numbers], strict=True)
    np.testing.assert_array_equal(steps.step_sizes, self.steps.step_sizes[numbers], strict=True)

  def test_the_rung_of_a_level_is_the_one_that_is_its_model(self):
    self.assertEqual((self.steps.reached(1), self.steps.reached(0)), (2, 4))

  def test_the_way_back_ends_at_the_first_rung(self):
    self.assert_holds(self.steps.back_from(4), [4, 3, 2, 1, 0])
    self.assert_holds(self.steps.back_from(2), [2, 1, 0])

  def test_a_part_has_one_rung_more_than_moves_and_repeats_the_last(self):
    self.assert_holds(self.steps.part(0, 2), [0, 1, 2])
    self.assert_holds(self.steps.part(2, 2), [2, 3, 4])
    self.assert_holds(self.steps.part(3, 4), [3, 4, 4, 4, 4])
    self.assert_holds(self.steps.back_from(2).part(1, 3), [1, 0, 0, 0])


class AnnealingTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.levels = noise_levels.make_levels(6, 0.06, 'conditional')
    cls.ebm = testing.gaussian_ebm(cls.levels, COVARIANCE)
    cls.log_z = cls.ebm.network.log_z() - DIM * np.log(cls.levels.a_y)  # of the densities of x_t
    cls.kernel = staticmethod(langevin.make_kernel('hmc', 4))
    cls.steps = annealing.choose_ladder(cls.ebm, (DIM,), cls.kernel, ladder.Pilot(1, 0.999, 0.8), 200, 0)
    cls.annealing = annealing.Annealing(cls.ebm, (DIM,), cls.kernel, 1, CHAINS, 1)

  def test_both_ends_bracket_the_normaliser_of_each_level(self):
    forward, acceptance = self.annealing.forward(self.steps)
    self.assertEqual((forward.shape, acceptance.shape), ((len(self.steps.step_sizes), CHAINS), (len(forward),)))
    np.testing.assert_array_equal(forward[0], 0)
    self.assertGreater(acceptance.min(), 0.4)
    for level in (5, 2, 0):
      up = ais.estimate(forward[self.steps.reached(level)])
      x = self.annealing.near_data(self.steps, level, source(5000), 0.0, 64)
      reverse = self.annealing.reverse(self.steps, level, x)
      self.assertEqual(reverse.shape, (CHAINS,))
      down = ais.reverse_estimate(reverse)
      self.assertBetween(self.log_z[level], *ais.bracket(up, down))
      both, error = bridge.from_both_ends(forward[self.steps.reached(level)], reverse)
      self.assertAlmostEqual(both, self.log_z[level], delta=4 * error + 1e-3)
      self.assertLess(error, 1.05 * min(up.standard_error, down.standard_error))
      for end in (up, down):
        self.assertAlmostEqual(end.log_z, self.log_z[level], delta=4 * end.standard_error + 1e-3)
        self.assertLess(end.standard_error, 0.05)

  @mock.patch.object(annealing, '_CHUNK', 16)
  def test_a_killed_pass_goes_on_to_the_same_weights(self):
    folder = self.enterContext(tempfile.TemporaryDirectory())

    def forward(folder):
      kept = unfinished.Unfinished(folder, {})
      chains = annealing.Annealing(self.ebm, (DIM,), self.kernel, 1, CHAINS, 1, kept)
      return chains.forward(self.steps)[0]

    with (
      mock.patch.object(unfinished, '_SECONDS', 0.0),
      mock.patch.object(annealing.Progress, 'line', side_effect=KeyboardInterrupt),
      self.assertRaises(KeyboardInterrupt),
    ):
      forward(folder)
    with mock.patch.object(ais, 'anneal', wraps=ais.anneal) as anneal:
      found = forward(folder)
    self.assertEqual(anneal.call_count, 1)  # compiled
    np.testing.assert_array_equal(found, forward(None))

  def test_a_pass_is_the_same_again_and_another_with_another_seed(self):
    another = annealing.Annealing(self.ebm, (DIM,), self.kernel, 1, CHAINS, 2)
    first, again, other = (each.forward(self.steps)[0][-1] for each in (self.annealing, self.annealing, another))
    np.testing.assert_array_equal(first, again)
    self.assertTrue(np.any(first != other))

  def test_chains_that_leave_the_numbers_name_the_level(self):
    bad = testing.function_ebm(self.levels, lambda y, t: np.nan * y.sum(1))
    with self.assertRaisesRegex(DivergedError, 'the energies of level 5 are not finite'):
      annealing.choose_ladder(bad, (DIM,), self.kernel, ladder.Pilot(1, 0.99, 0.8), 4, 0)
    with self.assertRaisesRegex(DivergedError, 'the energies of level 5 are not finite'):
      annealing.Annealing(bad, (DIM,), self.kernel, 1, 4, 0).forward(self.steps)

  def test_log_densities_are_the_closed_form_whatever_the_batch(self):
    # The model at the data themselves is that of data with the noise of level 0.
    noise = self.levels.sigma[0] / self.levels.a[0]
    exact = stats.multivariate_normal(np.zeros(DIM), COVARIANCE + noise**2 * np.eye(DIM))
    data = source(50)
    found = [
      dataset_log_prob.make_log_densities(0.0, 3, batch_size, 0)(self.ebm, data, self.ebm.network.log_z()[0], limit)
      for batch_size, limit in ((64, None), (7, None), (7, 20))
    ]
    for values in found:
      self.assertCountEqual(values, ['clean', 'noisy', 'white'])
      for name, each in values.items():
        np.testing.assert_allclose(each, found[0][name][: len(each)], rtol=1e-5, atol=1e-5)
    self.assertEqual([len(values['clean']) for values in found], [50, 50, 20])
    np.testing.assert_allclose(found[0]['clean'], exact.logpdf(data.read(np.arange(50))), rtol=1e-4, atol=1e-4)
    self.assertLess(found[0]['white'].mean(), found[0]['clean'].mean() - 1)
    self.assertLess(np.abs(found[0]['noisy'] - found[0]['clean']).max(), 0.5)


if __name__ == '__main__':
  absltest.main()
