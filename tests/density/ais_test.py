"""Annealed importance sampling against normalisers known in closed form."""

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_ebm import langevin
from diffusion_ebm.density import ais


def spread(dim):
  """Standard deviations from 0.2 to 1."""
  return jnp.asarray(np.geomspace(0.2, 1.0, dim), jnp.float32)


def target_of(dim):
  """From the standard normal density to a shifted Gaussian; at fraction 1, Z is `exp(3)` times its own."""

  def of(fraction):
    def log_density(x):
      base = -0.5 * jnp.sum(x**2, axis=1) - 0.5 * dim * np.log(2 * np.pi)
      last = -0.5 * jnp.sum(((x - 0.3) / spread(dim)) ** 2, axis=1) + 3.0
      return (1 - fraction) * base + fraction * last

    return log_density

  return of


def log_z(dim):
  return 3.0 + 0.5 * dim * np.log(2 * np.pi) + float(np.sum(np.log(spread(dim))))


def both_passes(dim, num_rungs, n, num_leapfrog, step_size, power=3):
  """`(forward, reverse)` estimates; the rungs are denser where the density is wide."""
  kernel = langevin.make_kernel('hmc', num_leapfrog)
  fractions = jnp.linspace(0, 1, num_rungs + 1) ** power
  precision = 1 + fractions / spread(dim)[0] ** 2
  keys = jax.random.split(jax.random.key(0), n)
  white = jax.random.normal(jax.random.key(1), (n, dim))
  exact = 0.3 + spread(dim) * jax.random.normal(jax.random.key(2), (n, dim))
  run = jax.jit(lambda rungs, steps, x: ais.anneal(target_of(dim), kernel, rungs, steps, x, keys, 1)[1])
  steps = step_size / jnp.sqrt(precision)
  forward = np.sum(np.asarray(run(fractions, steps, white)), axis=0, dtype=np.float64)
  reverse = np.sum(np.asarray(run(fractions[::-1], steps[::-1], exact)), axis=0, dtype=np.float64)
  return ais.estimate(forward), ais.reverse_estimate(reverse)


class AnnealTest(parameterized.TestCase):
  # `python -m tests.density.ais_test figures` gives the figures of docs/results.md, of more rungs.
  @parameterized.parameters((2, 60, 500, 0.05), (64, 300, 100, 0.5))
  def test_the_truth_is_between_the_two_ends(self, dim, num_rungs, n, gap):
    forward, reverse = both_passes(dim, num_rungs, n, 5, 0.5)
    self.assertBetween(log_z(dim), *ais.bracket(forward, reverse))
    self.assertLess(abs(reverse.log_z - forward.log_z), gap)
    self.assertGreater(forward.ess, 0.1 * n)

  def test_without_moves_it_is_importance_sampling(self):
    x = jnp.array([[0.1], [0.5], [-0.2]])
    never = lambda target, state, keys, step_size: (  # noqa: E731
      state,
      langevin.Info(jnp.zeros(len(state.y)), jnp.zeros(len(state.y))),
    )
    keys = jax.random.split(jax.random.key(0), 3)
    fractions = jnp.array([0.0, 0.3, 1.0])
    after, gains, _ = ais.anneal(target_of(1), never, fractions, jnp.ones(3), x, keys, 1)
    np.testing.assert_array_equal(after, x)
    difference = target_of(1)(1.0)(x) - target_of(1)(0.0)(x)
    np.testing.assert_allclose(gains, [0.3 * difference, 0.7 * difference], rtol=1e-5)

  def test_the_mean_weight_is_unbiased_even_with_few_rungs(self):
    # Seven rungs and one step: the chains lag behind, and the weights make up for it. 200,000 of them.
    forward, _ = both_passes(1, 7, 200_000, 1, 0.5, power=1)
    self.assertAlmostEqual(forward.log_z, log_z(1), delta=4 * forward.standard_error)
    self.assertLess(forward.standard_error, 0.01)


class EstimateTest(absltest.TestCase):
  def test_mean_error_and_effective_samples(self):
    weights = np.random.default_rng(0).lognormal(1.0, 0.5, 1000)
    found = ais.estimate(np.log(weights) + 1000)
    self.assertAlmostEqual(found.log_z, 1000 + np.log(weights.mean()), places=9)
    self.assertAlmostEqual(found.standard_error, weights.std() / weights.mean() / np.sqrt(999), places=9)
    self.assertAlmostEqual(found.ess, weights.sum() ** 2 / np.sum(weights**2), places=6)
    self.assertAlmostEqual(ais.reverse_estimate(-np.log(weights)).log_z, -np.log(np.mean(1 / weights)), places=9)

  def test_the_bracket_holds_both_ends_and_their_errors(self):
    low, high = ais.Estimate(1.0, 0.1, 50.0), ais.Estimate(1.5, 0.2, 50.0)
    np.testing.assert_allclose(ais.bracket(low, high), (0.8, 1.9))
    np.testing.assert_allclose(ais.bracket(high, low), (0.8, 1.9))

  def test_the_next_rung_is_where_the_effective_samples_are(self):
    # For normal log ratios of variance v, a move by b leaves exp(-b^2 v) of the samples.
    differences = 4.0 * np.random.default_rng(0).standard_normal(200_000)
    fraction = ais.next_fraction(differences, 0.99)
    self.assertAlmostEqual(fraction, np.sqrt(-np.log(0.99)) / 4, delta=2e-4)
    self.assertAlmostEqual(ais.increment_ess(differences, fraction), 0.99, places=6)
    self.assertEqual(ais.next_fraction(differences / 1000, 0.99), 1.0)


def figures():
  for dim, num_rungs, n in ((2, 200, 2000), (64, 1000, 200), (1024, 20_000, 32)):
    import time

    began = time.monotonic()
    forward, reverse = both_passes(dim, num_rungs, n, 5, 0.5)
    print(dim, f'{log_z(dim):.4f}', forward, reverse, f'{time.monotonic() - began:.0f} s')


if __name__ == '__main__':
  import sys

  figures() if sys.argv[1:] == ['figures'] else absltest.main()
