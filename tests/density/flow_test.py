"""The flow's density of exact models, which is theirs."""

import functools

from absl.testing import absltest
import jax
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


@functools.partial(jax.jit, static_argnames='num_probes')
def flow_of(x, means, weights, width, rtol=1e-4, log_z=LOG_Z, num_probes=0):
  ebm = testing.mixture_ebm(LEVELS, means, weights, width, LOG_Z)
  return flow.log_density(ebm, x, jax.random.split(jax.random.key(0), len(x)), log_z, rtol, num_probes)


GRID = np.stack(np.meshgrid(*2 * [np.linspace(-1.2, 1.2, 33)], indexing='ij'), -1).reshape(-1, 2).astype(np.float32)
MIXTURE = [[-0.5, 0.0], [0.5, 0.2]], [0.7, 0.3], 0.2


class FlowTest(absltest.TestCase):
  def test_a_mixture_and_that_it_is_normalised(self):
    found, evaluations = flow_of(GRID, *MIXTURE)
    np.testing.assert_allclose(found, exact(GRID, *MIXTURE), atol=0.02)
    self.assertAlmostEqual(np.exp(found).sum() * (2.4 / 32) ** 2, 1, delta=0.01)
    self.assertTrue(np.all((evaluations > 10) & (evaluations < 1000)))

  def test_a_smaller_tolerance_has_a_smaller_error(self):
    errors = [np.abs(flow_of(GRID, *MIXTURE, rtol)[0] - exact(GRID, *MIXTURE)).max() for rtol in (1e-2, 1e-5)]
    self.assertLess(errors[1], 2e-3)
    self.assertLess(errors[1], 0.2 * errors[0])

  def test_the_normaliser_is_that_of_the_noisiest_level(self):
    one, other = (flow_of(GRID, *MIXTURE, log_z=log_z)[0] for log_z in (LOG_Z, LOG_Z + 1))
    np.testing.assert_allclose(one - other, 1, atol=1e-4)

  def test_random_probes_have_the_exact_mean(self):
    x = np.tile(np.float32([[0.1, 0.1]]), (2000, 1))
    found, _ = flow_of(x, *MIXTURE, num_probes=1)
    self.assertGreater(found.std(), 0.01)
    error = found.std() / np.sqrt(len(found))
    self.assertAlmostEqual(found.mean(), exact(x, *MIXTURE)[0], delta=3.5 * error + 0.005)

  def test_a_normal_density_in_1024_dimensions_with_random_probes(self):
    # Its score is linear, the derivative a multiple of the identity, and one random sign exact.
    x = 0.3 * jax.random.normal(jax.random.key(2), (4, 1024))
    found, _ = flow_of(x, np.zeros((1, 1024)), [1.0], 0.3, num_probes=1)
    np.testing.assert_allclose(found, exact(x, np.zeros((1, 1024)), [1.0], 0.3), atol=0.5)


if __name__ == '__main__':
  absltest.main()
