from absl.testing import absltest
import jax.numpy as jnp
import numpy as np

from diffusion_ebm import noise_levels
from diffusion_ebm.data import toy
from diffusion_ebm.density import quadrature
from tests import testing


def round_ebm(levels, precision):
  """The model of a normal density of the given precision at every level."""
  halves = jnp.asarray(0.5 * precision * levels.step_variance, jnp.float32)
  return testing.function_ebm(levels, lambda y, t: -halves[t] * jnp.sum(y**2, axis=1))


ALL = tuple(range(6))


class GridTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.levels = noise_levels.make_levels(6, 0.06, 'conditional')
    self.points, self.area = quadrature.make_grid()

  def test_kl_of_normal_densities_is_the_closed_form(self):
    # KL(N(0, I / p) || N(0, I / q)) = q / p - 1 + log(p / q) in two dimensions.
    p, q = 4.0, 2.0
    exact, model = (
      quadrature.model_log_densities(round_ebm(self.levels, precision), self.points, self.area, ALL)
      for precision in (p, q)
    )
    np.testing.assert_allclose(quadrature.kl(exact, model, self.area), q / p - 1 + np.log(p / q), rtol=1e-3)
    np.testing.assert_allclose(quadrature.kl(exact, exact, self.area), 0, atol=1e-9)

  def test_densities_are_normalised(self):
    model = quadrature.model_log_densities(round_ebm(self.levels, 3.0), self.points, self.area, ALL)
    exact = quadrature.exact_log_densities(self.levels, toy.distribution('eight_gaussians'), self.points, ALL)
    np.testing.assert_allclose(np.sum(np.exp(model), axis=1) * self.area, 1, rtol=1e-9)
    np.testing.assert_allclose(np.sum(np.exp(exact), axis=1) * self.area, 1, rtol=1e-4)

  def test_exact_densities_are_those_of_y(self):
    levels = self.levels
    exact = quadrature.exact_log_densities(self.levels, toy.distribution('eight_gaussians'), self.points, ALL)
    # E |x|^2 of the eight Gaussians is 1 + 2 * 0.1^2.
    square = np.sum(np.exp(exact) * np.sum(self.points**2, axis=1), axis=1) * self.area
    expected = levels.a_y**2 * (levels.a_cum[:-1] ** 2 * 1.02 + 2 * levels.sigma_cum[:-1] ** 2)
    np.testing.assert_allclose(square, expected, rtol=1e-3)


if __name__ == '__main__':
  absltest.main()
