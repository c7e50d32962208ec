from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_ebm import noise_levels


class NoiseLevelsTest(parameterized.TestCase):
  def test_t6_has_the_published_sigmas(self):
    sigma = noise_levels.make_noise_levels(6).sigma
    np.testing.assert_allclose(sigma, [0.0100, 0.3237, 0.5165, 0.6322, 0.7132, 0.7734, 0.9997], atol=5e-5)

  def test_t1k_takes_every_step_of_the_base(self):
    levels = noise_levels.make_noise_levels(1000)
    self.assertEqual(levels.num_models, 999)
    np.testing.assert_allclose(levels.sigma**2, np.linspace(1e-4, 0.02, 1000))

  def test_t6_and_t1k_share_their_cumulative_noise(self):
    few, many = noise_levels.make_noise_levels(6), noise_levels.make_noise_levels(1000)
    np.testing.assert_allclose(few.a_cum, many.a_cum[[0, 100, 200, 300, 400, 500, 999]])

  @parameterized.parameters(2, 5, 10, 999)
  def test_other_numbers_divide_the_noise_of_t6_evenly(self, num_levels):
    levels, few = noise_levels.make_noise_levels(num_levels), noise_levels.make_noise_levels(6)
    self.assertEqual(levels.num_models, num_levels)
    np.testing.assert_allclose(levels.sigma_cum[[0, -2, -1]], few.sigma_cum[[0, -2, -1]])
    np.testing.assert_allclose(np.diff(levels.log_snr[:-1]), (few.log_snr[5] - few.log_snr[0]) / (num_levels - 1))
    np.testing.assert_allclose(levels.a_cum**2 + levels.sigma_cum**2, 1)

  @parameterized.parameters(-1, 0, 1, 1001)
  def test_numbers_without_meaning_are_refused(self, num_levels):
    with self.assertRaisesRegex(ValueError, f'num_levels is {num_levels}, not in 2'):
      noise_levels.make_noise_levels(num_levels)
    with self.assertRaisesRegex(ValueError, f'num_levels is {num_levels}, not in 2'):
      noise_levels.make_cosine_levels(num_levels, 9.8, -5.1)

  @parameterized.parameters(2, 6, 1000)
  def test_equal_angles_between_the_two_ends(self, num_levels):
    levels = noise_levels.make_levels(num_levels, 4e-4, schedule='cosine', log_snr_range=(8.0, -4.0))
    self.assertEqual(levels.num_models, noise_levels.num_models(num_levels, 'cosine'))
    np.testing.assert_allclose(2 * levels.log_snr[[0, -1]], [8.0, -4.0])
    np.testing.assert_allclose(np.diff(levels.angle), (levels.angle[-1] - levels.angle[0]) / num_levels)
    np.testing.assert_allclose(np.tan(np.pi / 2 * levels.angle), levels.sigma_cum / levels.a_cum)

  def test_what_makes_no_levels_is_refused(self):
    with self.assertRaisesRegex(ValueError, r'log_snr_min is 3\.0, not below log_snr_max, 3\.0'):
      noise_levels.make_cosine_levels(6, 3.0, 3.0)
    with self.assertRaisesRegex(ValueError, "schedule is 'sine', not one of"):
      noise_levels.make_levels(6, 4e-4, schedule='sine')

  @parameterized.parameters(6, 999, 1000)
  def test_the_number_of_models_is_known_beforehand(self, num_levels):
    self.assertEqual(noise_levels.num_models(num_levels), noise_levels.make_noise_levels(num_levels).num_models)

  @parameterized.parameters(3, 6, 1000)
  def test_the_last_level_is_a_marginal_one(self, num_levels):
    levels = noise_levels.make_noise_levels(num_levels)
    self.assertEqual((levels.a_y[-1], levels.is_recovery[-1]), (1.0, 0.0))
    np.testing.assert_array_equal(levels.a_y[:-1], levels.a[1:-1])
    np.testing.assert_array_equal(levels.is_recovery[:-1], 1.0)

  def test_y_and_x_are_inverses_whose_log_volume_is_the_log_determinant(self):
    levels = noise_levels.make_noise_levels(6)
    t = jnp.array([0.0, 1.5, 4.25, 5.0])
    x = jax.random.normal(jax.random.key(0), (4, 2, 3))
    np.testing.assert_allclose(levels.to_x(levels.to_y(x, t), t), x, rtol=1e-6)
    for i in range(4):
      jacobian = jax.jacobian(lambda row, i=i: levels.to_y(row.reshape(1, 2, 3), t[i : i + 1]).ravel())(x[i].ravel())
      np.testing.assert_allclose(
        levels.log_volume(t[i : i + 1], 6), np.linalg.slogdet(np.asarray(jacobian, np.float64))[1], rtol=1e-5, atol=1e-6
      )

  def test_real_levels_are_on_straight_lines_between_the_levels(self):
    levels = noise_levels.make_levels(6, 2e-4)
    t = np.array([0.0, 0.25, 2.5, 5.0])
    for name in ('a_y', 'log_snr', 'step_variance'):
      values = getattr(levels, name)[:6]
      like = jnp.zeros((4, 2, 2))
      found = noise_levels.at(values, jnp.asarray(t, jnp.float32), like)
      self.assertEqual(found.shape, (4, 1, 1))
      np.testing.assert_allclose(found[:, 0, 0], np.interp(t, np.arange(6), values), rtol=1e-5)
      np.testing.assert_allclose(  # whole ones are the values themselves
        found[np.array([0, 3])], noise_levels.at(values, jnp.array([0, 5]), like), rtol=1e-6
      )
    powers = noise_levels.powers_between(levels.log_snr, jnp.array([0, 3, 6]), jnp.zeros(3))
    for found, expected in zip(powers, (levels.a_cum**2, levels.sigma_cum**2), strict=True):
      np.testing.assert_allclose(found, expected[[0, 3, 6]], rtol=1e-5)

  def test_pairs_have_the_marginals_and_the_covariance_of_the_forward_process(self):
    levels = noise_levels.make_noise_levels(6)
    n, t = 200_000, 2
    keys = jax.random.split(jax.random.key(0), 3)
    x = 0.5 * jax.random.normal(keys[0], (n, 1))
    x_t, x_next = noise_levels.diffuse_pair(
      levels, x, jnp.full(n, t), *(jax.random.normal(k, (n, 1)) for k in keys[1:])
    )
    variance = 0.25 * levels.a_cum**2 + levels.sigma_cum**2
    # A sample variance of n normal numbers has standard error sqrt(2 / n) = 0.3 %.
    np.testing.assert_allclose(np.var(x_t), variance[t], rtol=0.015)
    np.testing.assert_allclose(np.var(x_next), variance[t + 1], rtol=0.015)
    np.testing.assert_allclose(np.mean(x_t * x_next), levels.a[t + 1] * variance[t], rtol=0.015)
    np.testing.assert_allclose(np.var(x_next - levels.a[t + 1] * x_t), levels.sigma[t + 1] ** 2, rtol=0.015)

  def test_each_example_has_its_own_level(self):
    levels = noise_levels.make_noise_levels(6)
    x, t = jnp.ones((3, 2, 2, 1)), jnp.array([0, 3, 6])
    diffused = noise_levels.diffuse(levels, x, t, jnp.zeros_like(x))
    np.testing.assert_allclose(diffused[:, 0, 0, 0], levels.a_cum[[0, 3, 6]], rtol=1e-6)

  def test_the_way_back_of_known_data_has_the_law_of_the_way_there(self):
    levels = noise_levels.make_noise_levels(6)
    t, zero, one = np.arange(6), np.zeros((6, 1)), np.ones((6, 1))
    # A linear map of x, x_{t+1} and eps; (x_t, x_{t+1}) given x is normal with the moments of `diffuse_pair`.
    of_x, of_next, of_eps = (
      np.asarray(noise_levels.posterior(levels, *args)[:, 0], np.float64)
      for args in ((one, zero, t, zero), (zero, one, t, zero), (zero, zero, t, one))
    )
    variance = levels.sigma_cum**2
    np.testing.assert_allclose(of_x + of_next * levels.a_cum[1:], levels.a_cum[:-1], rtol=1e-5)
    np.testing.assert_allclose(of_next**2 * variance[1:] + of_eps**2, variance[:-1], rtol=1e-5)
    np.testing.assert_allclose(of_next * variance[1:], levels.a[1:] * variance[:-1], rtol=1e-5)


class LevelsTest(parameterized.TestCase):
  def test_published_rule(self):
    levels = noise_levels.make_levels(6, 2e-4)
    for t in range(6):
      c = levels.sigma_cum[t] / levels.sigma_cum[0]
      self.assertAlmostEqual(levels.step_variance[t], c * 2e-4 * levels.sigma[t + 1] ** 2, places=15)

  def test_conditional_rule(self):
    levels = noise_levels.make_levels(6, 0.06, 'conditional')
    np.testing.assert_allclose(levels.step_variance / levels.sigma[1:] ** 2, 0.06)

  def test_posterior_rule(self):
    # y_t given x_{t+1} and x is Gaussian: y_t = a_{t+1} (abar_t x + sbar_t eps), seen through the noise sigma_{t+1}. In
    # terms of the joint covariance of the two noises: var(y) - cov(y, x_next)^2 / var(x_next).
    levels = noise_levels.make_levels(6, 0.3, 'posterior')
    for t in range(5):
      variance = (levels.a[t + 1] * levels.sigma_cum[t]) ** 2
      posterior = variance - variance**2 / levels.sigma_cum[t + 1] ** 2
      np.testing.assert_allclose(levels.step_variance[t], 0.3 * posterior, rtol=1e-9)
    # The last level is a marginal one.
    np.testing.assert_allclose(levels.step_variance[5], 0.3 * levels.sigma_cum[5] ** 2)

  @parameterized.parameters('linear', 'cosine')
  def test_with_the_temperature_noise_the_gradient_of_f_is_minus_the_noise(self, schedule):
    levels = noise_levels.make_levels(50, 0.2, temperature='noise', schedule=schedule)
    t = jnp.array([0, 7, 49])
    x, eps = jnp.full((3, 2), 0.5), jax.random.normal(jax.random.key(0), (3, 2))
    y = levels.to_y(noise_levels.diffuse(levels, x, t, eps), t)

    def f(y):  # whose density is that of diffused data that are all the same
      a_y, a, sigma = (noise_levels.at(values, t, y) for values in (levels.a_y, levels.a_cum, levels.sigma_cum))
      log_density = -0.5 * jnp.sum((y - a_y * a * x) ** 2 / (a_y * sigma) ** 2, axis=1)
      return jnp.sum(log_density * noise_levels.at(levels.temperature, t, log_density))

    np.testing.assert_allclose(jax.grad(f)(y), -eps, atol=1e-3)

  def test_other_rules_are_refused(self):
    with self.assertRaisesRegex(ValueError, 'other'):
      noise_levels.make_levels(6, 0.06, 'other')


if __name__ == '__main__':
  absltest.main()
