from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_ebm import noise_levels, sampling
from tests import testing


def gaussian(levels):
  """The exact model of normal data with standard deviation 0.5."""
  return testing.gaussian_ebm(levels, np.array([[0.25]]))


class SamplingTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.levels = noise_levels.make_levels(6, 0.06, 'conditional')
    self.ebm = gaussian(self.levels)

  def draw(self, keys, keep=(), num_steps=100, noise_scale=1.0):
    return sampling.sample(self.ebm, keys, (1,), sampling.Settings(num_steps, noise_scale), keep)

  def test_samples_have_the_distribution_of_the_data_at_every_level(self):
    n = 10_000
    x, path = self.draw(jax.random.split(jax.random.key(0), n), keep=tuple(range(7)))
    levels = self.levels
    # Monte-Carlo error sqrt(2 / n) = 1.4 %, the unadjusted chain's bias at most 2 %.
    np.testing.assert_allclose(np.var(path, axis=(1, 2)), 0.25 * levels.a_cum**2 + levels.sigma_cum**2, rtol=0.09)
    np.testing.assert_array_equal(x, path[0])

  @testing.long
  def test_a_thousand_levels_with_one_gradient_each_give_the_data_and_so_do_chains(self):
    levels = noise_levels.make_levels(1000, 0.2, 'conditional')
    n = 4000
    keys = jax.random.split(jax.random.key(0), n)
    for num_steps, own in ((0, 0.02), (40, 0.07)):
      x, _ = sampling.sample(gaussian(levels), keys, (1,), sampling.Settings(num_steps))
      # Monte-Carlo error sqrt(2 / n) = 2.2 %; the chains' own, of b^2 = 0.2, is 5 % in the noise of each level.
      np.testing.assert_allclose(
        np.var(x), 0.25 * levels.a_cum[0] ** 2 + levels.sigma_cum[0] ** 2, rtol=4 * np.sqrt(2 / n) + own
      )

  def test_a_hundred_levels_with_one_gradient_each_give_the_data_up_to_what_the_approximation_costs(self):
    n = 20_000
    keys = jax.random.split(jax.random.key(0), n)
    for num_levels, cost in ((50, 0.0327), (100, 0.0179)):  # of the standard deviation, from the linear recursion
      levels = noise_levels.make_levels(num_levels, 0.2, schedule='cosine')
      x, _ = sampling.sample(gaussian(levels), keys, (1,), sampling.Settings(0))
      truth = np.sqrt(0.25 * levels.a_cum[0] ** 2 + levels.sigma_cum[0] ** 2)
      # Monte-Carlo error of a standard deviation 1 / sqrt(2 n).
      np.testing.assert_allclose(np.std(x), (1 - cost) * truth, rtol=4 / np.sqrt(2 * n))

  def test_a_sample_depends_on_its_own_key_alone(self):
    keys = jax.random.split(jax.random.key(0), 4)
    np.testing.assert_allclose(self.draw(keys, num_steps=3)[0][2:], self.draw(keys[2:], num_steps=3)[0], rtol=1e-6)

  def test_kept_levels_are_those_asked_for(self):
    keys = jax.random.split(jax.random.key(0), 3)
    _, everything = self.draw(keys, tuple(range(7)), 2)
    _, some = self.draw(keys, (0, 2, 6), 2)
    np.testing.assert_array_equal(some, everything[np.array([0, 2, 6])])
    self.assertEqual(self.draw(keys, (), 2)[1].shape, (0, 3, 1))

  def test_less_noise_gives_less_spread(self):
    keys = jax.random.split(jax.random.key(0), 4000)
    spread = [float(np.std(self.draw(keys, noise_scale=s)[0])) for s in (0.5, 1.0)]
    self.assertLess(spread[0], 0.7 * spread[1])

  def test_the_noisiest_levels_keep_their_noise(self):
    keys = jax.random.split(jax.random.key(0), 3)
    _, full = self.draw(keys, tuple(range(7)), 2)
    x, path = sampling.sample(self.ebm, keys, (1,), sampling.Settings(2, 0.5, 4), tuple(range(7)))
    np.testing.assert_array_equal(path[2:], full[2:])
    self.assertGreater(np.min(np.abs(path[1] - full[1])), 1e-4)
    np.testing.assert_array_equal(sampling.sample(self.ebm, keys, (1,), sampling.Settings(2, 0.5, 7))[0], full[0])

  def test_denoising_gives_the_posterior_mean_of_normal_data(self):
    # Much noise at level 0, so that nothing is lost among float32's rounding; and other levels that must not matter.
    levels = noise_levels.with_steps(noise_levels.from_retention([0.8, 0.7, 0.5]), np.array([0.02, 0.3]))
    x = jnp.linspace(-2, 2, 9)[:, None]
    expected = 0.25 * 0.8 / (0.25 * 0.8**2 + 1 - 0.8**2) * x
    np.testing.assert_allclose(sampling.denoise(gaussian(levels), x), expected, rtol=1e-5, atol=1e-6)

  def test_denoised_samples_are_the_denoised_ones_and_their_own_level_0(self):
    keys = jax.random.split(jax.random.key(0), 3)
    noisy, _ = self.draw(keys, num_steps=2)
    x, path = sampling.sample(self.ebm, keys, (1,), sampling.Settings(2, denoised=True), (0, 3))
    np.testing.assert_allclose(x, sampling.denoise(self.ebm, noisy), rtol=1e-6)
    np.testing.assert_array_equal(path[0], x)

  def test_a_factor_lengthens_the_last_step(self):
    keys = jax.random.split(jax.random.key(0), 3)
    noisy, _ = self.draw(keys, num_steps=2)
    start = noisy / float(self.levels.a_cum[0])
    once, twice = (
      sampling.sample(self.ebm, keys, (1,), sampling.Settings(2, denoised=True, denoise_factor=factor))[0] - start
      for factor in (1.0, 2.0)
    )
    self.assertGreater(np.min(np.abs(once)), 1e-5)
    np.testing.assert_allclose(twice, 2 * once, rtol=1e-2, atol=1e-6)

  def test_diffused_data_have_each_levels_variance(self):
    keys = jax.random.split(jax.random.key(0), 20_000)
    x = sampling.diffused(self.levels, jnp.zeros((len(keys), 1)), keys, (0, 3, 6))
    np.testing.assert_allclose(np.std(x, axis=(1, 2)), self.levels.sigma_cum[[0, 3, 6]], rtol=0.03)

  def test_shown_levels_run_from_the_data_to_the_noise(self):
    self.assertEqual(sampling.shown_levels(6), tuple(range(7)))
    many = sampling.shown_levels(999)
    self.assertLen(many, 11)
    self.assertEqual((many[0], many[-1]), (0, 999))


if __name__ == '__main__':
  absltest.main()
