import itertools

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_ebm import interpolation, noise_levels, sampling
from tests import testing

_COVARIANCE = np.array([[0.25, 0.2], [0.2, 0.25]])


class InterpolationTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.levels = noise_levels.make_levels(6, 0.06, 'conditional')
    self.ebm = testing.gaussian_ebm(self.levels, _COVARIANCE)

  def draw(self, keys_a, keys_b, fraction, num_steps):
    fraction = jnp.full(len(keys_a), fraction)
    return interpolation.interpolate(self.ebm, keys_a, keys_b, fraction, (2,), sampling.Settings(num_steps))

  def test_the_ends_are_the_samples(self):
    keys = jax.random.split(jax.random.key(0), 4)
    samples, _ = sampling.sample(self.ebm, keys, (2,), sampling.Settings(3))
    for fraction, expected in ((0.0, samples[:2]), (1.0, samples[2:])):
      np.testing.assert_allclose(self.draw(keys[:2], keys[2:], fraction, 3), expected, rtol=1e-5, atol=1e-6)

  @testing.long
  def test_what_is_in_between_has_the_law_of_the_data_and_of_its_ends(self):
    keys = jax.random.split(jax.random.key(0), 20_000)
    x, _ = sampling.sample(self.ebm, keys[:10_000], (2,), sampling.Settings(100))
    between = self.draw(keys[:10_000], keys[10_000:], 1 / 3, 100)
    # Monte-Carlo error sqrt(2 / n) = 1.4 %, the unadjusted chain's bias at most 2 %. The energies are quadratic, so the
    # map is linear: the correlation with an end is the weight of its noise, cos(pi / 6).
    np.testing.assert_allclose(np.cov(between.T), _COVARIANCE, rtol=0.09)
    self.assertAlmostEqual(np.corrcoef(x[:, 0], between[:, 0])[0, 1], np.cos(np.pi / 6), delta=0.02)

  def test_the_ends_of_a_mixture_are_exact(self):
    a, b = jnp.array([[1.0, 2.0]]), jnp.array([[-3.0, 0.1]])
    np.testing.assert_array_equal(interpolation.mix(a, b, jnp.zeros(1)), a)
    np.testing.assert_array_equal(interpolation.mix(a, b, jnp.ones(1)), b)

  def test_path_lengths_are_root_mean_squares(self):
    strips = np.zeros((1, 3, 2, 2, 1), np.uint8)
    strips[0, 1], strips[0, 2, 0] = 3, 9
    np.testing.assert_allclose(interpolation.path_lengths(strips), [[3, np.sqrt((2 * 6**2 + 2 * 3**2) / 4)]])

  def test_a_steep_path_is_refined_where_it_is_steep_and_its_frames_are_evenly_apart(self):
    def path(u):  # rises by 0.9 within 0.02
      return np.where(u < 0.5, 0.1 * u, 0.1 * u + 0.9 * np.clip((u - 0.5) / 0.02, 0, 1))[..., None]

    u = np.tile(np.linspace(0, 1, 9), (2, 1))
    self.assertGreater(np.max(interpolation.path_lengths(path(u))), 0.9)
    for _ in range(30):
      u = np.sort(np.concatenate([u, interpolation.halfway(u, interpolation.path_lengths(path(u)), 4)], 1))
    for images in path(u):
      even = interpolation.even_steps(images, 9)
      self.assertEqual((even[0], even[-1]), (0, u.shape[1] - 1))
      np.testing.assert_allclose(interpolation.path_lengths(images[None, even]), 1 / 8, rtol=0.15)

  def test_steps_are_as_even_as_any_choice_of_frames_makes_them(self):
    images = np.random.default_rng(0).normal(size=(9, 2, 2, 1)).cumsum(0)
    chosen = tuple(interpolation.even_steps(images, 5))
    lengths = {
      indices: interpolation.path_lengths(images[None, indices])[0]
      for indices in ((0, *between, 8) for between in itertools.combinations(range(1, 8), 3))
    }
    longest = min(steps.max() for steps in lengths.values())
    allowed = {indices: np.sum((steps - longest) ** 2) for indices, steps in lengths.items() if steps.max() <= longest}
    self.assertGreater(len(allowed), 1)
    self.assertEqual(chosen, min(allowed, key=allowed.get))

  def test_detours_are_left_out(self):
    images = np.array([0.0, 1, 2, 5, 5, 2, 2, 3, 4])[:, None]  # to 5 and back
    even = interpolation.even_steps(images, 5)
    np.testing.assert_array_equal(images[even, 0], [0, 1, 2, 3, 4])

  def test_what_float32_cannot_part_is_not_refined(self):
    u = np.array([[0, 0.5, 0.5 + 1e-7, 1.0]])
    np.testing.assert_allclose(interpolation.halfway(u, np.array([[1.0, 9.0, 2.0]]), 2), [[0.75, 0.25]], rtol=1e-6)
    np.testing.assert_allclose(interpolation.halfway(u, np.array([[1.0, 9.0, 2.0]]), 3), [[0.75, 0.25, 0.5]], rtol=1e-6)

  def test_a_path_that_stands_still_keeps_its_frames_in_order(self):
    np.testing.assert_array_equal(interpolation.even_steps(np.zeros((3, 2)), 3), [0, 1, 2])


if __name__ == '__main__':
  absltest.main()
