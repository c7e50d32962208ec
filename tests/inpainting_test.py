from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_ebm import inpainting, noise_levels, sampling
from tests import testing

_COVARIANCE = np.array([[0.25, 0.2], [0.2, 0.25]])


class InpaintTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.levels = noise_levels.make_levels(6, 0.06, 'conditional')
    self.ebm = testing.gaussian_ebm(self.levels, _COVARIANCE)

  def draw(self, n, image=(0.6, 5.0), mask=(False, True), num_repeats=1, num_steps=100):
    image, mask = (np.broadcast_to(np.array(a), (n, 2)) for a in (image, mask))
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(np.arange(n))
    draw = jax.jit(
      lambda keys: inpainting.inpaint(
        self.ebm, keys, jnp.asarray(image, jnp.float32), jnp.asarray(mask), sampling.Settings(num_steps), num_repeats
      )
    )
    return np.asarray(draw(keys))

  @testing.long
  def test_with_repeats_the_hidden_part_has_the_exact_conditional_law(self):
    # At level 0 a repeat forgets all but 1 / (1 + 0.09 / 0.117) = 0.57 of where it was: 0.57^8 = 1 % is left.
    x = self.draw(10_000, num_repeats=8)
    np.testing.assert_array_equal(x[:, 0], np.float32(0.6))
    # N(0.2 / 0.25 * 0.6, 0.25 - 0.2^2 / 0.25), and Monte-Carlo errors of 0.003 and 1.4 %; the chain's bias is 1 to 2 %.
    self.assertAlmostEqual(np.mean(x[:, 1]), 0.48, delta=0.02)
    np.testing.assert_allclose(np.var(x[:, 1]), 0.09, rtol=0.07)

  def test_all_hidden_are_samples(self):
    x = self.draw(10_000, mask=(True, True))
    np.testing.assert_allclose(np.cov(x.T), _COVARIANCE, rtol=0.09)  # as in sampling_test

  def test_what_is_hidden_does_not_count(self):
    np.testing.assert_array_equal(self.draw(4, (0.6, 5.0), num_steps=3), self.draw(4, (0.6, -7.0), num_steps=3))

  def test_what_is_known_stays_exactly(self):
    np.testing.assert_array_equal(
      self.draw(4, mask=(False, False), num_steps=3), np.broadcast_to(np.float32([0.6, 5.0]), (4, 2))
    )

  def test_a_completion_depends_on_its_own_key_alone(self):
    np.testing.assert_allclose(
      self.draw(5, num_steps=3, num_repeats=2)[:3], self.draw(3, num_steps=3, num_repeats=2), rtol=1e-5
    )


class MaskTest(absltest.TestCase):
  def test_halves_and_the_middle(self):
    for name, rows, columns in (
      ('left', slice(8), slice(0, 3)),
      ('right', slice(8), slice(3, 6)),
      ('top', slice(0, 4), slice(6)),
      ('bottom', slice(4, 8), slice(6)),
      ('centre', slice(2, 6), slice(1, 5)),
    ):
      expected = np.zeros((8, 6), bool)
      expected[rows, columns] = True
      np.testing.assert_array_equal(inpainting.make_mask(name, (8, 6, 3)), expected, name)

  def test_random_is_half_of_the_pixels_and_follows_the_seed(self):
    mask = inpainting.make_mask('random', (100, 100), 1)
    self.assertAlmostEqual(mask.mean(), 0.5, delta=0.02)  # 4 standard errors of 0.005
    np.testing.assert_array_equal(mask, inpainting.make_mask('random', (100, 100), 1))
    self.assertTrue(np.any(mask != inpainting.make_mask('random', (100, 100), 2)))

  def test_another_name_is_refused(self):
    with self.assertRaisesRegex(ValueError, "'middle', not one of left"):
      inpainting.make_mask('middle', (8, 8))


if __name__ == '__main__':
  absltest.main()
