from absl.testing import absltest
import numpy as np

from diffusion_ebm.data import corruptions


class CorruptionsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.images = np.random.default_rng(0).integers(100, size=(50, 8, 6, 3), dtype=np.uint8)

  def test_all_keep_shape_and_type_and_follow_the_seed(self):
    for name in corruptions.NAMES:
      made = corruptions.corrupt(name, self.images, 1)
      self.assertEqual((made.shape, made.dtype), (self.images.shape, np.uint8))
      self.assertTrue(np.any(made != self.images))
      np.testing.assert_array_equal(made, corruptions.corrupt(name, self.images, 1))
      fixed = name in ('inversion', 'flip', 'shift', 'blur')
      self.assertEqual(fixed, np.all(made == corruptions.corrupt(name, self.images, 2)))

  def test_grey_images_have_the_grey_levels_of_the_data(self):
    grey = np.random.default_rng(0).integers(100, size=(50, 8, 8, 1), dtype=np.uint8)
    levels = np.round(np.arange(17) * 255 / 16).astype(np.uint8)
    for name in corruptions.NAMES:
      made = corruptions.corrupt(name, grey, 0, grey_levels=17)
      self.assertEqual(made.shape, grey.shape)
      self.assertContainsSubset(np.unique(made), levels)
      self.assertGreater(len(np.unique(made)), 3)

  def test_noise_is_uniform(self):
    noise = corruptions.corrupt('noise', np.zeros((100, 16, 16, 3), np.uint8), 0)
    # Standard errors of 0.27 and 0.16.
    self.assertAlmostEqual(noise.mean(), 127.5, delta=1.5)
    self.assertAlmostEqual(noise.std(), np.sqrt((256**2 - 1) / 12), delta=1.0)

  def test_inversion_turns_black_white(self):
    np.testing.assert_array_equal(corruptions.corrupt('inversion', self.images, 0).astype(int) + self.images, 255)

  def test_shuffled_images_have_the_same_pixels_in_an_order_of_their_own(self):
    same = np.repeat(self.images[:1], 2, axis=0)
    shuffled = corruptions.corrupt('shuffle', same, 0).reshape(2, -1, 3)
    for each in shuffled:
      self.assertCountEqual(map(tuple, each), map(tuple, same[0].reshape(-1, 3)))
    self.assertTrue(np.any(shuffled[0] != shuffled[1]))

  def test_constants_have_one_colour_each(self):
    constant = corruptions.corrupt('constant', self.images, 0)
    np.testing.assert_array_equal(constant, np.broadcast_to(constant[:, :1, :1], constant.shape))
    self.assertGreater(len(np.unique(constant[:, 0, 0], axis=0)), 40)

  def test_flips_and_shifts_by_hand(self):
    image = np.arange(8, dtype=np.uint8).reshape(1, 2, 4, 1)
    for name, expected in (('flip', [[4, 5, 6, 7], [0, 1, 2, 3]]), ('shift', [[3, 0, 1, 2], [7, 4, 5, 6]])):
      np.testing.assert_array_equal(corruptions.corrupt(name, image, 0)[0, ..., 0], expected)

  def test_a_point_is_blurred_to_the_gaussian(self):
    point = np.zeros((1, 32, 32, 1), np.uint8)
    point[0, 16, 16] = 255
    blurred = corruptions.corrupt('blur', point, 0)[0, ..., 0] / 255
    square = (np.arange(32) - 16) ** 2
    expected = np.exp(-(square[:, None] + square) / (2 * 4**2)) / (2 * np.pi * 4**2)
    np.testing.assert_allclose(blurred, expected, atol=0.51 / 255 + 1e-4)
    self.assertEqual(blurred.max() * 255, np.round(255 / (2 * np.pi * 4**2)))


if __name__ == '__main__':
  absltest.main()
