from absl.testing import absltest
import numpy as np
from sklearn import datasets

from diffusion_ebm.data import made_images


def rng():
  return np.random.default_rng(0)


class MadeImagesTest(absltest.TestCase):
  def test_letters_reach_two_opposite_edges_and_are_white_on_black(self):
    made = made_images.letters((100, 8, 8, 1), rng())[..., 0]
    inked = made > 0
    as_high = inked[:, 0].any(1) & inked[:, -1].any(1)
    as_wide = inked[:, :, 0].any(1) & inked[:, :, -1].any(1)
    self.assertTrue(np.all(as_high | as_wide))
    self.assertGreater(np.mean(as_high), 0.5)
    self.assertGreater(len(np.unique(made.reshape(100, -1), axis=0)), 70)
    self.assertGreater(np.mean(made == 0), 0.2)

  def test_a_letter_in_colour_mixes_two_colours(self):
    for image in made_images.letters((5, 16, 16, 3), rng()).reshape(5, -1, 3).astype(float):
      _, spread, _ = np.linalg.svd(image - image.mean(0))
      self.assertGreater(spread[0], 20 * spread[1])

  def test_patches_are_parts_of_the_photographs(self):
    photographs = datasets.load_sample_images().images
    # As large as the photographs are high: no part is smaller, so that the pixels are theirs.
    (patch,) = made_images.patches((1, 427, 427, 3), rng())
    found = [
      np.array_equal(patch, photograph[:, left : left + 427]) for photograph in photographs for left in range(640 - 426)
    ]
    self.assertEqual(sum(found), 1)
    grey = made_images.patches((300, 8, 8, 1), rng())
    self.assertAlmostEqual(grey.mean(), np.mean([each @ [0.299, 0.587, 0.114] for each in photographs]), delta=15)

  def test_a_grating_has_one_frequency(self):
    made = made_images.gratings((20, 64, 64, 1), rng()).astype(float)[..., 0]
    windowed = (made - made.mean((1, 2), keepdims=True)) * np.outer(np.hanning(64), np.hanning(64))
    power = np.sort((np.abs(np.fft.rfft2(windowed)) ** 2).reshape(20, -1), axis=1)
    self.assertGreater(np.min(power[:, -32:].sum(1) / power.sum(1)), 0.95)

  def test_the_amplitudes_of_pink_noise_fall_as_one_over_the_frequency(self):
    made = made_images.pink_noise((200, 32, 32, 3), rng()).astype(float)
    self.assertAlmostEqual(made.mean(), 127.5, delta=0.5)
    self.assertAlmostEqual(made.std(), 50, delta=1.5)
    power = np.mean(np.abs(np.fft.fft(made - 127.5, axis=1)) ** 2, axis=(0, 2, 3))
    expected = np.array(
      [sum(1 / (k**2 + m**2) for m in range(-16, 16) if k or m) for k in range(17)]
    )  # of all waves with k periods from top to bottom
    slope = np.polyfit(np.log(expected[1:]), np.log(power[1:17]), 1)[0]
    self.assertAlmostEqual(slope, 1, delta=0.05)


if __name__ == '__main__':
  absltest.main()
