from absl.testing import absltest
import jax.numpy as jnp
import numpy as np

from diffusion_ebm import recovery
from diffusion_ebm.data import toy
from diffusion_ebm.density import grid


class Round:
  """A stand-in for a network: a normal density of the given precision at every level."""

  def __init__(self, levels, precision):
    self._half = jnp.asarray(0.5 * precision * levels.step_variance, jnp.float32)

  def apply(self, variables, *args, method):
    return self._half[args[0]] if method == 'embed' else -args[1] * jnp.sum(args[0]**2, axis=1)


ALL = tuple(range(6))


class GridTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.levels = recovery.make_levels(6, 0.06, 'conditional')
    self.points, self.area = grid.make_grid()

  def test_kl_of_normal_densities_is_the_closed_form(self):
    # KL(N(0, I / p) || N(0, I / q)) = q / p - 1 + log(p / q) in two dimensions.
    p, q = 4.0, 2.0
    exact, model = (
        grid.model_log_densities(self.levels, Round(self.levels, precision), {}, self.points, self.area, ALL)
        for precision in (p, q))
    np.testing.assert_allclose(grid.kl(exact, model, self.area), q / p - 1 + np.log(p / q), rtol=1e-3)
    np.testing.assert_allclose(grid.kl(exact, exact, self.area), 0, atol=1e-9)

  def test_densities_are_normalised(self):
    model = grid.model_log_densities(self.levels, Round(self.levels, 3.0), {}, self.points, self.area, ALL)
    exact = grid.exact_log_densities(self.levels, toy.distribution('eight_gaussians'), self.points, ALL)
    np.testing.assert_allclose(np.sum(np.exp(model), axis=1) * self.area, 1, rtol=1e-9)
    np.testing.assert_allclose(np.sum(np.exp(exact), axis=1) * self.area, 1, rtol=1e-4)

  def test_exact_densities_are_those_of_y(self):
    noise = self.levels.noise
    exact = grid.exact_log_densities(self.levels, toy.distribution('eight_gaussians'), self.points, ALL)
    # E |x|^2 of the eight Gaussians is 1 + 2 * 0.1^2.
    square = np.sum(np.exp(exact) * np.sum(self.points**2, axis=1), axis=1) * self.area
    expected = noise.a_y[1:]**2 * (noise.a_cum[:-1]**2 * 1.02 + 2 * noise.sigma_cum[:-1]**2)
    np.testing.assert_allclose(square, expected, rtol=1e-3)


if __name__ == '__main__':
  absltest.main()
