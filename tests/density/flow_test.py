"""The flow's density of exact models, which is theirs."""

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np
from scipy import special, stats

from diffusion_ebm import noise_levels
from diffusion_ebm.density import flow
from tests import testing

LEVELS = noise_levels.make_levels(8, 0.06, 'conditional', temperature='one')
LOG_Z = 3.0


def exact(x, means, weights, width):
  """Log density of `x_0`."""
  a, sigma = LEVELS.a_cum[0], np.sqrt(LEVELS.a_cum[0] ** 2 * width**2 + LEVELS.sigma_cum[0] ** 2)
  parts = [
    np.log(w) + stats.norm.logpdf(x, a * np.asarray(m), sigma).sum(1) for m, w in zip(means, weights, strict=True)
  ]
  return special.logsumexp(parts, axis=0)


def flow_of(means, weights, width, x, rtol=1e-4, num_probes=0, log_z=LOG_Z):
  ebm = testing.mixture_ebm(LEVELS, means, weights, width, LOG_Z)
  keys = jax.random.split(jax.random.key(0), len(x))
  return jax.jit(lambda x: flow.log_density(ebm, x, keys, log_z, rtol, num_probes))(x)


class FlowTest(absltest.TestCase):
  def test_a_mixture_and_that_it_is_normalised(self):
    means, weights = [[-0.5, 0.0], [0.5, 0.2]], [0.7, 0.3]
    grid = np.stack(np.meshgrid(*2 * [np.linspace(-1.2, 1.2, 33)], indexing='ij'), -1).reshape(-1, 2).astype(np.float32)
    found, evaluations = flow_of(means, weights, 0.2, grid)
    np.testing.assert_allclose(found, exact(grid, means, weights, 0.2), atol=0.02)
    self.assertAlmostEqual(np.exp(found).sum() * (2.4 / 32) ** 2, 1, delta=0.01)
    self.assertTrue(np.all((evaluations > 10) & (evaluations < 1000)))

  def test_a_smaller_tolerance_has_a_smaller_error(self):
    x = 0.3 * jax.random.normal(jax.random.key(1), (20, 2))
    errors = [
      np.abs(flow_of(np.zeros((1, 2)), [1.0], 0.3, x, rtol)[0] - exact(x, np.zeros((1, 2)), [1.0], 0.3)).max()
      for rtol in (1e-2, 1e-5)
    ]
    self.assertLess(errors[1], 1e-3)
    self.assertLess(errors[1], 0.2 * errors[0])

  def test_normal_densities_in_64_and_1024_dimensions_with_random_probes(self):
    # For these the score is linear, its derivative a multiple of the identity, and one random sign exact.
    for dim in (64, 1024):
      x = 0.3 * jax.random.normal(jax.random.key(2), (4, dim))
      found, _ = flow_of(np.zeros((1, dim)), [1.0], 0.3, x, num_probes=1)
      np.testing.assert_allclose(found, exact(x, np.zeros((1, dim)), [1.0], 0.3), atol=2e-4 * dim)

  def test_random_probes_have_the_exact_mean(self):
    means, x = [[-0.5, 0.0], [0.5, 0.2]], np.tile(np.float32([[0.1, 0.1]]), (2000, 1))
    found, _ = flow_of(means, [0.7, 0.3], 0.2, x, num_probes=1)
    self.assertGreater(found.std(), 0.01)
    error = found.std() / np.sqrt(len(found))
    self.assertAlmostEqual(found.mean(), exact(x, means, [0.7, 0.3], 0.2)[0], delta=3.5 * error + 0.005)

  def test_the_normaliser_is_that_of_the_noisiest_level(self):
    x = jnp.zeros((1, 2))
    one, other = (flow_of(np.zeros((1, 2)), [1.0], 0.3, x, log_z=log_z)[0] for log_z in (LOG_Z, LOG_Z + 1))
    self.assertAlmostEqual(float(one[0] - other[0]), 1, places=5)


if __name__ == '__main__':
  absltest.main()
