"""Ratios of normalisers of normal densities, which are known."""

from absl.testing import absltest
import numpy as np

from diffusion_ebm.density import bridge


def samples(sigmas, runs, draws, dim, seed):
  """Differences of log densities `-|x|^2 / 2 sigma^2` at exact samples of both, as of `bridge.log_ratios`."""
  sigmas = np.asarray(sigmas)
  x = np.random.default_rng(seed).standard_normal((2, runs, draws, len(sigmas) - 1, dim))
  squares = np.sum(x**2, -1) * np.stack([sigmas[:-1], sigmas[1:]])[:, None, None] ** 2
  return 0.5 * (1 / sigmas[:-1] ** 2 - 1 / sigmas[1:] ** 2) * squares


class BridgeTest(absltest.TestCase):
  def test_ratios_of_normal_densities_in_64_and_1024_dimensions(self):
    for dim, sigmas in ((64, np.geomspace(1, 0.5, 9)), (1024, np.geomspace(1, 0.5, 33))):
      found = bridge.log_ratios(*samples(sigmas, 16, 20, dim, 0))
      exact = dim * np.log(sigmas[1:])
      np.testing.assert_array_less(np.abs(found.log_z - exact), 3.5 * found.standard_error)
      self.assertLess(found.standard_error[-1], 0.3)

  def test_errors_are_the_spread_and_are_halved_by_four_times_the_runs(self):
    sigmas = (1.0, 0.8, 0.6)
    few = [bridge.log_ratios(*samples(sigmas, 16, 5, 8, seed)) for seed in range(200)]
    many = bridge.log_ratios(*samples(sigmas, 64 * 16, 5, 8, 1))
    spread = np.std([each.log_z for each in few], axis=0)
    np.testing.assert_allclose(np.mean([each.standard_error for each in few], axis=0), spread, rtol=0.15)
    np.testing.assert_allclose(many.standard_error, spread / 8, rtol=0.15)

  def test_copies_of_samples_within_a_run_do_not_make_the_error_smaller(self):
    once = samples((1.0, 0.7), 16, 5, 4, 0)
    found, again = bridge.log_ratios(*once), bridge.log_ratios(*np.repeat(once, 10, axis=2))
    np.testing.assert_allclose(again.log_z, found.log_z, rtol=1e-9)
    np.testing.assert_allclose(again.standard_error, found.standard_error, rtol=1e-6)

  def test_one_run_has_no_spread(self):
    with self.assertRaisesRegex(ValueError, 'there must be at least two'):
      bridge.log_ratios(np.zeros((1, 3, 2)), np.zeros((1, 3, 2)))


if __name__ == '__main__':
  absltest.main()
