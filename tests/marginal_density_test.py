from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from diffusion_ebm import marginal_density, noise_levels
from tests import testing

_COVARIANCE = np.array([[0.25, 0.2], [0.2, 0.25]])


class MarginalTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.levels = noise_levels.make_levels(6, 0.06, 'conditional')
    self.ebm = testing.gaussian_ebm(self.levels, _COVARIANCE)

  def exact(self, t):
    """The law of x_t."""
    levels = self.levels
    return stats.multivariate_normal(
      np.zeros(2), levels.a_cum[t] ** 2 * _COVARIANCE + levels.sigma_cum[t] ** 2 * np.eye(2)
    )

  def test_with_the_normaliser_of_y_it_is_the_log_density_of_x(self):
    x, t = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32), np.arange(6)
    ours = marginal_density.log_density(self.ebm, x, t) - self.ebm.network.log_z()
    # The quadratic form is of the order of 100 nats, in float32.
    np.testing.assert_allclose(ours, [self.exact(t).logpdf(row) for t, row in enumerate(x)], rtol=1e-5, atol=1e-4)

  def test_the_score_is_that_of_x(self):
    x, t = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32), np.arange(6)
    exact = [-np.linalg.solve(self.exact(t).cov, row) for t, row in enumerate(x)]
    np.testing.assert_allclose(marginal_density.score(self.ebm, x, t), exact, rtol=1e-4, atol=1e-4)

  def test_diffused_data_are_averaged_over_the_given_noise(self):
    x = jnp.array([[0.3, 0.1], [-0.5, 0.7], [1.0, 1.0]])
    eps = jax.random.normal(jax.random.key(0), (4, 2))
    ours = marginal_density.diffused_log_density(self.ebm, x, (0, 3), eps)
    levels = self.levels
    expected = [
      [
        np.mean(
          [
            marginal_density.log_density(
              self.ebm, levels.a_cum[t] * row + levels.sigma_cum[t] * e[None], np.array([t])
            )[0]
            for e in eps
          ]
        )
        for t in (0, 3)
      ]
      for row in x
    ]
    self.assertEqual(ours.shape, (3, 2))
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)

  def test_norms_of_scores_are_those_of_the_diffused_gaussian(self):
    x = jnp.array([[0.3, 0.1], [-0.5, 0.7], [1.0, 1.0]])
    eps = jnp.concatenate([jax.random.normal(jax.random.key(0), (3, 2)), jnp.zeros((1, 2))])
    log_density, norm = marginal_density.diffused_statistics(self.ebm, x, (0, 3), eps)
    self.assertEqual((log_density.shape, norm.shape), ((3, 2, 4), (3, 2, 4)))
    np.testing.assert_allclose(
      jnp.mean(log_density, axis=-1), marginal_density.diffused_log_density(self.ebm, x, (0, 3), eps), rtol=1e-5
    )
    for i, t in enumerate((0, 3)):
      sigma = self.levels.sigma_cum[t]
      x_t = self.levels.a_cum[t] * x[:, None] + sigma * eps
      exact = sigma * np.linalg.norm(np.einsum('ij,brj->bri', np.linalg.inv(self.exact(t).cov), x_t), axis=-1)
      np.testing.assert_allclose(norm[:, i], exact, rtol=1e-4)


if __name__ == '__main__':
  absltest.main()
