"""The method against closed forms: for Gaussian data the optimal f at every level is a quadratic."""

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_ebm import ebm as ebm_lib
from diffusion_ebm import langevin, noise_levels, recovery
from tests import testing

DATA_STD = 0.5


def gaussian(levels, t, extra=0.0):
  """The model whose density at level t is exactly that of `y_t` for data of standard deviation `DATA_STD`.

  Returns:
    `(ebm, precision)`; `extra` is added to the precision.
  """
  precision = 1 / (levels.a_y[t] ** 2 * (DATA_STD**2 * levels.a_cum[t] ** 2 + levels.sigma_cum[t] ** 2)) + extra
  s2 = levels.step_variance[t]
  return testing.function_ebm(
    levels, lambda y, t: -0.5 * s2 * precision * jnp.sum(y**2, axis=tuple(range(1, y.ndim)))
  ), precision


class LangevinTest(absltest.TestCase):
  def test_unadjusted_chain_has_its_own_variance(self):
    # y' = (1 - s^2 lam / 2) y + s eps has variance (1 / lam) / (1 - s^2 lam / 4), not 1 / lam.
    lam, step_size, n = 4.0, 0.5, 100_000
    keys = jax.random.split(jax.random.key(0), n)
    y = langevin.unadjusted_chain(
      lambda y: -lam * y, jnp.zeros((n, 1)), step_size, langevin.normal_noise(keys, (1,)), 100
    )
    expected = 1 / lam / (1 - step_size**2 * lam / 4)
    np.testing.assert_allclose(np.var(y), expected, rtol=5 * np.sqrt(2 / n))
    self.assertGreater(abs(np.var(y) * lam - 1), 0.2)

  def test_noise_depends_on_the_chains_own_key_alone(self):
    keys = jax.random.split(jax.random.key(0), 5)
    all_of_them = langevin.normal_noise(keys, (2, 3))(7)
    np.testing.assert_array_equal(all_of_them[3:], langevin.normal_noise(keys[3:], (2, 3))(7))
    self.assertFalse(np.allclose(all_of_them, langevin.normal_noise(keys, (2, 3))(8)))

  def test_noise_scale_shrinks_the_noise(self):
    keys = jax.random.split(jax.random.key(0), 5)
    np.testing.assert_allclose(
      langevin.normal_noise(keys, (4,), 0.5)(0), 0.5 * langevin.normal_noise(keys, (4,))(0), rtol=1e-6
    )

  def test_the_score_is_evaluated_once_a_step(self):
    jaxpr = str(jax.make_jaxpr(lambda y: langevin.unadjusted_chain(jnp.sin, y, 0.1, lambda k: 0.0, 30))(1.0))
    self.assertEqual(jaxpr.count('sin '), 1)


class RecoveryTest(parameterized.TestCase):
  @parameterized.parameters(*range(6))
  def test_score_of_the_conditional_is_the_closed_form(self, t):
    levels = noise_levels.make_levels(6, 2e-4)
    ebm, precision = gaussian(levels, t)
    y, x_next = jax.random.normal(jax.random.key(0), (2, 4, 3))
    score = ebm.at(jnp.full(4, t)).conditional_score(y, x_next)
    pull = 0.0 if t == 5 else 1 / levels.sigma[t + 1] ** 2
    np.testing.assert_allclose(score, -precision * y - pull * (y - x_next), rtol=2e-4, atol=1e-4)

  @parameterized.parameters(*range(6))
  def test_long_chain_has_the_conditionals_mean_and_variance(self, t):
    levels = noise_levels.make_levels(6, 0.06, 'conditional')
    ebm, precision = gaussian(levels, t)
    n = 20_000
    x_next = jnp.tile(jnp.array([[0.7, -1.2]]), (n, 1))
    keys = jax.random.split(jax.random.key(t), n)
    x = recovery.sample_conditional(ebm.at(jnp.full(n, t)), x_next, langevin.normal_noise(keys, (2,)), 400)
    pull = 0.0 if t == 5 else 1 / levels.sigma[t + 1] ** 2
    total, a = precision + pull, levels.a_y[t]
    variance = 1 / total / (1 - levels.step_variance[t] * total / 4)
    np.testing.assert_allclose(np.var(x, axis=0), variance / a**2, rtol=5 * np.sqrt(2 / n))
    np.testing.assert_allclose(np.mean(x, axis=0), pull / total * x_next[0] / a, atol=5 * np.sqrt(variance / n) / a)

  @parameterized.parameters(*range(6))
  def test_gradient_vanishes_at_the_truth_and_points_to_it_elsewhere(self, t):
    # d/d lam of f = -s^2 lam |y|^2 / 2: with exact negatives its expectation is zero at the true precision.
    levels = noise_levels.make_levels(6, 2e-4)
    n = 100_000
    keys = jax.random.split(jax.random.key(t), 4)
    level = jnp.full(n, t)
    x = DATA_STD * jax.random.normal(keys[0], (n, 1))
    x_pos, x_next = noise_levels.diffuse_pair(
      levels, x, level, jax.random.normal(keys[1], x.shape), jax.random.normal(keys[2], x.shape)
    )
    pull = 0.0 if t == 5 else 1 / levels.sigma[t + 1] ** 2

    def gradient(extra):
      _, precision = gaussian(levels, t, extra)
      total = precision + pull
      y = pull / total * x_next + jax.random.normal(keys[3], x.shape) / np.sqrt(total)
      x_neg = y / levels.a_y[t]

      def loss(lam):
        f = lambda y, _: -0.5 * levels.step_variance[t] * lam * jnp.sum(y**2, axis=1)  # noqa: E731
        return recovery.recovery_loss(testing.function_ebm(levels, f), x_pos, x_neg, level)[0]

      losses = jax.jacfwd(loss)(precision)
      return np.mean(losses), np.std(losses) / np.sqrt(n)

    mean, error = gradient(0.0)
    self.assertLess(abs(mean), 4 * error)
    mean, error = gradient(2.0)  # too narrow a model: descent must lower lam
    self.assertGreater(mean, 4 * error)
    mean, error = gradient(-0.5)
    self.assertLess(mean, -4 * error)

  def test_levels_are_weighted_by_the_inverse_of_their_noise(self):
    levels = noise_levels.make_levels(6, 2e-4)
    sigma = levels.sigma
    t = jnp.arange(6)
    a = jnp.asarray(levels.a_y[:, None], jnp.float32)
    loss, f_pos = recovery.recovery_loss(testing.function_ebm(levels, lambda y, _: y[:, 0]), 1 / a, 3 / a, t)
    np.testing.assert_allclose(f_pos, 1.0, rtol=1e-6)
    np.testing.assert_allclose(loss, 2 * sigma[1] / sigma[1:], rtol=1e-6)

  def test_gradient_tends_to_that_of_denoising_score_matching_as_the_noise_vanishes(self):
    # Everything by quadrature: y = a x for normal x, x_next = y + sigma eps, and a quartic model F = -theta y^4 / 4.
    theta, step_variance = 1.5, 0.01
    nodes, weights = np.polynomial.hermite_e.hermegauss(24)
    weights = np.outer(weights, weights).ravel() / (2 * np.pi)
    differences = []
    for sigma in (0.2, 0.1, 0.05):
      noise = noise_levels.from_retention(np.sqrt(1 - np.array([0.01, sigma, 0.5]) ** 2))
      levels = noise_levels.with_steps(noise, np.full(2, step_variance))
      y, eps = (part.ravel()[:, None] for part in np.meshgrid(levels.a_y[0] * DATA_STD * nodes, nodes))
      x_next = y + sigma * eps

      def ebm(theta, levels=levels):
        return testing.function_ebm(levels, lambda z, _: -step_variance * theta * jnp.sum(z**4, axis=-1) / 4)

      # The conditional of each x_next on a grid of its own.
      grid = x_next + sigma * np.linspace(-7, 7, 401)
      log_density = jax.vmap(
        lambda y, ebm=ebm, x_next=x_next: (
          ebm(theta).at(jnp.zeros(len(y), int)).conditional_log_density(y[:, None], x_next)
        ),
        1,
        1,
      )(grid)
      density = jax.nn.softmax(log_density, axis=1)

      def recovery_loss(theta, ebm=ebm, y=y, grid=grid, density=density, a=levels.a_y[0]):
        def each(column):
          return recovery.recovery_loss(ebm(theta), y / a, column[:, None] / a, jnp.zeros(len(y), int))[0]

        return jnp.sum(weights * jnp.sum(density * jax.vmap(each, 1, 1)(grid), axis=1)) / step_variance

      def score_matching_loss(theta, y=y, x_next=x_next, sigma=sigma):
        score = -theta * x_next**3
        return jnp.sum(weights * jnp.sum((y - x_next - sigma**2 * score) ** 2, axis=1)) / (2 * sigma**2)

      ours, theirs = jax.grad(recovery_loss)(theta), jax.grad(score_matching_loss)(theta)
      differences.append(abs(float(ours / theirs) - 1))
    # Both are of order sigma^2; they differ by the next order.
    self.assertLess(differences[2], 0.02)
    np.testing.assert_array_less(differences[1:], 0.5 * np.array(differences[:-1]))

  @parameterized.parameters((0, 2.0), (500, 2.0), (998, 1.0))
  def test_normal_approximation_is_one_gradient_and_the_noise_of_the_level(self, t, drift):
    levels = noise_levels.make_levels(1000, 0.1, 'conditional')
    ebm, precision = gaussian(levels, t)
    x_next, noise = jax.random.normal(jax.random.key(0), (2, 5, 3))
    sigma, a = levels.sigma[t + 1], levels.a_y[t]
    x = recovery.sample_conditional(ebm.at(jnp.full(5, t)), x_next, lambda k: noise, 0)
    # A marginal, the last one, has the drift of a Langevin step of size sigma: half of it.
    np.testing.assert_allclose(
      x, (x_next - 0.5 * drift * sigma**2 * precision * x_next + sigma * noise) / a, rtol=1e-4, atol=1e-5
    )

  def test_normal_approximation_tends_to_the_conditional_as_the_noise_vanishes(self):
    # For a Gaussian: mean (1 - sigma^2 lam) x beside x / (1 + sigma^2 lam), variance sigma^2 beside the same over that.
    for t in (0, 100):
      levels = noise_levels.make_levels(1000, 0.1, 'conditional')
      ebm, precision = gaussian(levels, t)
      sigma, x_next = levels.sigma[t + 1], jnp.array([[1.3]])
      x = recovery.normal_approximation(ebm.at(jnp.array([t])), x_next, jnp.zeros((1, 1)))
      exact = x_next / (1 + sigma**2 * precision) / levels.a_y[t]
      np.testing.assert_allclose(x, exact, rtol=2 * (sigma**2 * precision) ** 2 + 1e-6)

  @parameterized.parameters(0, 100, 998)
  def test_coupled_pairs_have_the_law_of_pairs_and_less_noise_in_the_gradient(self, t):
    levels = noise_levels.make_levels(1000, 0.1, 'conditional', 'one', 'balanced')
    n, level = 100_000, jnp.full(100_000, t)
    x, eps, eps_next, noise, other = jax.random.normal(jax.random.key(t), (5, n, 1))
    x = DATA_STD * x
    pairs = {
      'coupled': recovery.coupled_pair(levels, x, level, eps, noise),
      'plain': noise_levels.diffuse_pair(levels, x, level, eps, eps_next),
    }
    ebm = lambda theta: testing.function_ebm(  # noqa: E731
      levels, lambda y, _: -0.5 * theta * jnp.sum(y**2, axis=1)
    )
    gradients = {}
    variance = DATA_STD**2 * levels.a_cum**2 + levels.sigma_cum**2
    covariance = levels.a[t + 1] * variance[t]
    _, precision = gaussian(levels, t)
    for name, (x_t, x_next) in pairs.items():
      np.testing.assert_allclose([np.var(x_t), np.var(x_next)], variance[t : t + 2], rtol=0.025)
      self.assertAlmostEqual(float(np.mean(x_next * x_t)) / covariance, 1, delta=0.025)
      # Of a wrong model, with respect to its precision.
      x_neg = recovery.normal_approximation(
        ebm(1.5 * precision).at(level), x_next, noise if name == 'coupled' else other
      )

      def loss(theta, x_t=x_t, x_neg=x_neg):
        return recovery.recovery_loss(ebm(theta), x_t, x_neg, level)[0]

      gradients[name] = np.asarray(jax.jacfwd(loss)(1.5 * precision), np.float64)
    error = np.sqrt(sum(np.var(g) / n for g in gradients.values()))
    self.assertLess(abs(gradients['coupled'].mean() - gradients['plain'].mean()), 4 * error)
    self.assertGreater(abs(gradients['coupled'].mean()), 4 * gradients['coupled'].std() / np.sqrt(n))
    self.assertLess(gradients['coupled'].std(), gradients['plain'].std() * (0.5 if t else 0.9))

  @parameterized.parameters(0, 2, 5)
  def test_contrastive_negatives_have_the_law_of_the_data_at_the_truth_whatever_the_step_size(self, t):
    levels = noise_levels.make_levels(6, 1.0, 'conditional', 'one')
    n = 20_000
    level, keys = jnp.full(n, t), jax.random.split(jax.random.key(t), n)
    x, eps, eps_next = jax.random.normal(jax.random.key(t + 1), (3, n, 1))
    x_t, x_next = noise_levels.diffuse_pair(levels, DATA_STD * x, level, eps, eps_next)
    _, precision = gaussian(levels, t)
    ebm = lambda theta: testing.function_ebm(  # noqa: E731
      levels, lambda y, _: -0.5 * theta * jnp.sum(y**2, axis=1)
    )

    def gradient(factor, x_neg):
      """Mean and standard error of the loss's derivative with respect to the precision, in units of it."""
      each = jax.jacfwd(lambda theta: recovery.recovery_loss(ebm(theta), x_t, x_neg, level)[0])(factor * precision)
      each = np.asarray(each, np.float64) * precision / levels.weight[t]
      return each.mean(), each.std() / np.sqrt(n)

    mean, error = gradient(1.0, recovery.contrastive_negatives(ebm(precision).at(level), x_t, x_next, keys, 2))
    self.assertLess(abs(mean), 4 * error)
    # The unadjusted chain of as many gradients, from the noisier data, is biased there.
    noise = langevin.normal_noise(keys, (1,))
    mean, plain_error = gradient(1.0, recovery.sample_conditional(ebm(precision).at(level), x_next, noise, 2))
    self.assertGreater(abs(mean), 8 * plain_error)
    self.assertLess(error, plain_error)
    # A model that is too narrow is told so: descent lowers the precision.
    mean, error = gradient(1.5, recovery.contrastive_negatives(ebm(1.5 * precision).at(level), x_t, x_next, keys, 2))
    self.assertGreater(mean, 8 * error)

  def test_balanced_weights_measure_the_score_in_units_of_the_noise(self):
    levels = noise_levels.make_levels(1000, 0.1, 'conditional', 'one', 'balanced')
    t = jnp.array([0, 1, 50, 998])
    x_pos, eps = jax.random.normal(jax.random.key(0), (2, 4, 3))
    loss, _ = recovery.score_matching_loss(testing.function_ebm(levels, lambda y, _: 0 * y[:, 0]), x_pos, eps, t)
    ratio = levels.sigma_cum[t + 1] / (levels.a_y[t] * levels.sigma_cum[t])
    np.testing.assert_allclose(loss, 0.5 * ratio**2 * np.sum(eps**2, axis=1), rtol=1e-4)
    with self.assertRaisesRegex(ValueError, 'heavy'):
      noise_levels.make_levels(6, 0.06, 'conditional', level_weight='heavy')

  @parameterized.parameters(0, 2, 5)
  def test_score_matching_is_least_at_the_truth(self, t):
    # Normal data and noise by Gauss-Hermite quadrature, exact for the square of a linear score.
    nodes, weights = np.polynomial.hermite_e.hermegauss(8)
    weights = np.outer(weights, weights).ravel() / (2 * np.pi)
    z, eps = (jnp.asarray(part.ravel()[:, None], jnp.float32) for part in np.meshgrid(nodes, nodes))
    for temperature in noise_levels.TEMPERATURES:
      levels = noise_levels.make_levels(6, 0.06, 'conditional', temperature)
      level = jnp.full(len(z), t)
      x_pos = noise_levels.diffuse(levels, DATA_STD * z, level, eps)
      _, truth = gaussian(levels, t)

      def loss(precision, levels=levels, level=level, x_pos=x_pos):
        f = lambda y, _: -0.5 * levels.temperature[t] * precision * jnp.sum(y**2, axis=1)  # noqa: E731
        return jnp.sum(weights * recovery.score_matching_loss(testing.function_ebm(levels, f), x_pos, eps, level)[0])

      slope, curvature = jax.grad(loss)(truth), jax.grad(jax.grad(loss))(truth)
      self.assertGreater(float(curvature), 0)
      self.assertLess(abs(float(slope / curvature)) / truth, 1e-3)  # where the parabola is least

  def test_gradients_of_both_objectives_agree_for_little_noise(self):
    # As below, with our own score matching; they differ by a term of the order of sigma^2.
    differences = []
    nodes, weights = np.polynomial.hermite_e.hermegauss(24)
    weights = np.outer(weights, weights).ravel() / (2 * np.pi)
    z, eps = (part.ravel()[:, None] for part in np.meshgrid(nodes, nodes))
    for sigma in (0.1, 0.05):
      noise = noise_levels.from_retention(np.sqrt(1 - np.array([0.2, sigma, 0.5]) ** 2))
      levels = noise_levels.with_steps(noise, np.full(2, 0.01))
      x_pos = levels.a_cum[0] * DATA_STD * z + levels.sigma_cum[0] * eps
      level = jnp.zeros(len(z), int)

      def loss(theta, levels=levels, x_pos=x_pos, level=level):
        ebm = testing.function_ebm(levels, lambda point, _: -0.01 * theta * jnp.sum(point**4, axis=-1) / 4)
        return jnp.sum(weights * recovery.score_matching_loss(ebm, x_pos, eps, level)[0])

      ours = jax.grad(loss)(1.5)
      # The recovery likelihood's: E grad f(y_neg) - E grad f(y), with the negatives from the exact conditional.
      y = np.linspace(-3, 3, 1501)
      data_y = levels.a_y[0] * DATA_STD * levels.a_cum[0]
      width = np.sqrt(data_y**2 + (levels.a_y[0] * levels.sigma_cum[0]) ** 2)
      x_next = np.sqrt(width**2 + sigma**2) * nodes
      log_p = -1.5 * y**4 / 4 - (y - x_next[:, None]) ** 2 / (2 * sigma**2)
      p = np.exp(log_p - log_p.max(1, keepdims=True))
      p /= p.sum(1, keepdims=True)
      line = np.polynomial.hermite_e.hermegauss(24)[1] / np.sqrt(2 * np.pi)
      theirs = 0.01 * (line @ (p @ (-(y**4) / 4)) - line @ (-((width * nodes) ** 4) / 4))
      differences.append(abs(float(ours / theirs) - 1))
    self.assertLess(differences[1], 0.05)
    self.assertLess(differences[1], 0.5 * differences[0])

  def test_another_temperature_changes_the_scale_of_f_but_not_the_weights_of_the_levels(self):
    published = noise_levels.make_levels(6, 0.06, 'conditional')
    plain = noise_levels.make_levels(6, 0.06, 'conditional', 'one')
    t, x = jnp.arange(6), jax.random.normal(jax.random.key(0), (2, 6, 1))
    s2 = jnp.asarray(published.step_variance, jnp.float32)
    log_density = lambda y: jnp.sin(3 * y[:, 0])  # noqa: E731
    theirs, _ = recovery.recovery_loss(
      testing.function_ebm(published, lambda y, _: jnp.tile(s2, 2) * log_density(y)), *x, t
    )
    ours, _ = recovery.recovery_loss(testing.function_ebm(plain, lambda y, _: log_density(y)), *x, t)
    np.testing.assert_allclose(ours, theirs / s2[0], rtol=1e-4)
    np.testing.assert_allclose(ebm_lib.scale(plain, s2, t), s2)
    with self.assertRaisesRegex(ValueError, 'warm'):
      noise_levels.make_levels(6, 0.06, 'conditional', 'warm')

  def test_ancestral_sampling_with_exact_energies_returns_the_data(self):
    levels = noise_levels.make_levels(6, 0.06, 'conditional')
    n = 10_000
    keys = jax.random.split(jax.random.key(0), n)
    x = jax.random.normal(jax.random.key(1), (n, 1))
    for t in reversed(range(6)):
      noise = langevin.normal_noise(jax.vmap(lambda key, t=t: jax.random.fold_in(key, t))(keys), (1,))
      x = recovery.sample_conditional(gaussian(levels, t)[0].at(jnp.full(n, t)), x, noise, 200)
    variance = DATA_STD**2 * levels.a_cum[0] ** 2 + levels.sigma_cum[0] ** 2
    # The unadjusted chain's own bias is 1 / (1 - s^2 lam / 4), at most 2.5 % here.
    np.testing.assert_allclose(np.var(x), variance, rtol=0.03 + 5 * np.sqrt(2 / n))
    self.assertLess(abs(np.mean(x)), 5 * DATA_STD / np.sqrt(n))


if __name__ == '__main__':
  absltest.main()
