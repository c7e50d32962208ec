"""The model as one thing, against closed forms: Gaussian data have Gaussian conditionals."""

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from diffusion_ebm import noise_levels
from diffusion_ebm.ebm import Ebm
from diffusion_ebm.networks import mlp
from tests import testing

_COVARIANCE = np.array([[0.25, 0.2], [0.2, 0.25]])


class GaussianTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.levels = noise_levels.make_levels(6, 0.06, 'conditional')
    self.ebm = testing.gaussian_ebm(self.levels, _COVARIANCE)
    self.covariance = np.stack(
      [  # of y_t
        a_y**2 * (a_cum**2 * _COVARIANCE + sigma_cum**2 * np.eye(2))
        for a_y, a_cum, sigma_cum in zip(
          self.levels.a_y, self.levels.a_cum[:-1], self.levels.sigma_cum[:-1], strict=True
        )
      ]
    )
    self.t = np.arange(6)
    self.y = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)

  def test_f_over_the_temperature_is_the_log_density_up_to_the_normaliser(self):
    exact = np.array(
      [
        stats.multivariate_normal(np.zeros(2), c).logpdf(y) + 0.5 * np.linalg.slogdet(2 * np.pi * c)[1]
        for c, y in zip(self.covariance, self.y, strict=True)
      ]
    )
    # The quadratic form is of the order of 100 nats, in float32.
    np.testing.assert_allclose(self.ebm.log_density(self.y, self.t), exact, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(self.ebm.f(self.y, self.t), self.levels.step_variance * exact, rtol=1e-5, atol=1e-6)

  def test_the_score_is_the_gradient_of_the_log_density(self):
    exact = [-np.linalg.solve(c, y) for c, y in zip(self.covariance, self.y, strict=True)]
    np.testing.assert_allclose(self.ebm.score(self.y, self.t), exact, rtol=1e-4, atol=1e-4)

  @parameterized.parameters(*range(6))
  def test_the_conditional_is_the_exact_one_up_to_a_constant(self, t):
    x_next = np.array([0.3, -0.5], np.float32)
    # y_t given x_{t+1} = y_t + sigma_{t+1} eps; at the last level y_t alone.
    precision = np.linalg.inv(self.covariance[t])
    pull = 0.0 if t == 5 else 1 / self.levels.sigma[t + 1] ** 2
    covariance = np.linalg.inv(precision + pull * np.eye(2))
    law = stats.multivariate_normal(pull * covariance @ x_next, covariance)
    y = np.random.default_rng(t).multivariate_normal(law.mean, covariance, 50).astype(np.float32)
    model = self.ebm.at(jnp.full(50, t))
    ours = model.conditional_log_density(y, np.broadcast_to(x_next, y.shape))
    constant = ours - law.logpdf(y)
    np.testing.assert_allclose(constant, np.full(50, np.mean(constant)), atol=2e-4 + 1e-5 * np.max(np.abs(ours)))
    score = model.conditional_score(y, np.broadcast_to(x_next, y.shape))
    np.testing.assert_allclose(
      score, -(y - law.mean) @ np.linalg.inv(covariance), rtol=1e-4, atol=1e-5 * np.max(np.abs(precision))
    )

  def test_each_example_has_its_own_level_or_all_have_one(self):
    together = self.ebm.log_density(self.y, jnp.full(6, 2))
    np.testing.assert_allclose(self.ebm.at(jnp.array([2])).log_density(self.y), together, rtol=1e-6)
    each = [self.ebm.log_density(self.y[i : i + 1], self.t[i : i + 1])[0] for i in range(6)]
    np.testing.assert_allclose(self.ebm.log_density(self.y, self.t), each, rtol=1e-6)


class EbmTest(absltest.TestCase):
  def test_between_two_levels_the_temperature_and_the_pull_run_straight(self):
    levels = noise_levels.make_levels(6, 0.06, 'conditional')
    ebm = testing.function_ebm(levels, lambda y, t: t * y[:, 0])
    t, grid = np.array([0.0, 1.25, 3.5, 5.0], np.float32), np.arange(6)
    y, x_next = np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32)
    model = ebm.at(jnp.asarray(t))
    density = t * y[:, 0] / np.interp(t, grid, levels.temperature)
    np.testing.assert_allclose(model.log_density(y), density, rtol=1e-5)
    pull = np.interp(t, grid, levels.is_recovery / levels.sigma_y**2)
    np.testing.assert_allclose(
      model.conditional_log_density(y, x_next),
      density - 0.5 * pull * np.sum((y - x_next) ** 2, 1),
      rtol=1e-4,
      atol=1e-4,
    )

  def test_jit_takes_it_as_an_argument_and_its_leaves_are_the_weights_alone(self):
    levels = noise_levels.make_levels(6, 0.06, 'conditional')
    network = mlp.MLP(mlp.MLPSettings(ch=8, num_layers=1))
    y, t = jnp.ones((3, 2)), jnp.array([0, 2, 5])
    ebms = [Ebm(network.init(jax.random.key(i), y, t)['params'], network, levels) for i in range(2)]
    for ebm in ebms:
      for leaf, weight in zip(jax.tree.leaves(ebm), jax.tree.leaves(ebm.weights), strict=True):
        self.assertIs(leaf, weight)
    traces = []

    @jax.jit
    def log_density(ebm, y, t):
      traces.append(ebm)
      return ebm.log_density(y, t)

    for ebm in ebms:
      np.testing.assert_allclose(log_density(ebm, y, t), ebm.log_density(y, t), rtol=1e-5)
    self.assertLen(traces, 1)  # other weights of the same network are no other program
    self.assertGreater(np.max(np.abs(log_density(ebms[0], y, t) - log_density(ebms[1], y, t))), 1e-3)

  def test_the_gradient_in_it_is_one_in_its_weights(self):
    levels = noise_levels.make_levels(6, 0.06, 'conditional', 'one')
    ebm = testing.function_ebm(levels, lambda y, t, weights: weights['slope'] * y[:, 0], {'slope': jnp.array(2.0)})
    y = jnp.array([[1.0], [3.0]])
    gradient = jax.grad(lambda ebm: jnp.sum(ebm.log_density(y, jnp.array([0, 5]))))(ebm)
    self.assertEqual(float(gradient.weights['slope']), 4.0)


if __name__ == '__main__':
  absltest.main()
