from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_ebm import preprocessing


class PreprocessingTest(absltest.TestCase):
  def test_uint8_becomes_the_unit_range_and_floats_stay(self):
    np.testing.assert_allclose(preprocessing.to_unit_range(jnp.array([0, 255], jnp.uint8)), [-1, 1])
    np.testing.assert_array_equal(preprocessing.to_unit_range(jnp.array([7.0])), [7.0])

  def test_images_are_clipped_and_rounded(self):
    x = jnp.array([-2.0, -1.0, 0.001, 1.0, 3.0])
    np.testing.assert_array_equal(preprocessing.to_uint8(x), [0, 0, 128, 255, 255])

  def test_images_are_spread_over_the_bins_of_their_grey_levels(self):
    keys = jax.random.split(jax.random.key(0), 500)
    moved = preprocessing.dequantize(keys, jnp.full((500, 4, 4, 1), -1.0), 0.125) + 1
    self.assertBetween(float(moved.min()), -0.0625, -0.062)
    self.assertBetween(float(moved.max()), 0.062, 0.0625)
    self.assertAlmostEqual(float(moved.var()), 0.125**2 / 12, delta=0.125**2 / 12 * 0.05)
    np.testing.assert_allclose(  # each by its own key
      preprocessing.dequantize(keys[3:4], jnp.zeros((1, 4, 4, 1)), 0.125), moved[3:4], atol=1e-6
    )

  def test_about_half_of_the_images_are_mirrored(self):
    x = jax.random.normal(jax.random.key(0), (400, 2, 3, 1))
    y = preprocessing.random_flip(jax.random.split(jax.random.key(1), 400), x)
    same = np.all(y == x, axis=(1, 2, 3))
    mirrored = np.all(y == x[:, :, ::-1], axis=(1, 2, 3))
    self.assertTrue(np.all(same | mirrored))
    self.assertBetween(np.mean(mirrored), 0.4, 0.6)  # 4 standard errors


if __name__ == '__main__':
  absltest.main()
