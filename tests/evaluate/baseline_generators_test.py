from absl.testing import absltest
import numpy as np

from diffusion_ebm.evaluate import baseline_generators


class BaselinesTest(absltest.TestCase):
  def test_gaussian_has_the_mean_and_the_covariance_of_the_examples(self):
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(500, 3)) @ rng.normal(size=(3, 3)) + [1, 2, 3]).astype(np.float32)
    samples = baseline_generators.gaussian(x, 40_000, 0)
    self.assertEqual((samples.dtype, samples.shape), (np.float32, (40_000, 3)))
    # Monte-Carlo error of a variance: sqrt(2 / 40,000) = 0.7 %.
    covariance = np.cov(x.T)
    np.testing.assert_allclose(np.cov(samples.T), covariance, atol=0.04 * np.abs(covariance).max())
    np.testing.assert_allclose(samples.mean(0), x.mean(0), atol=5 * np.sqrt(covariance.max() / 40_000))

  def test_mixture_finds_the_clusters(self):
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(10, 5)) * 20
    x = (np.repeat(centres, 60, 0) + rng.normal(size=(600, 5))).astype(np.float32)
    samples = baseline_generators.gaussian_mixture(x, 2000, 0)
    distance = np.linalg.norm(samples[:, None] - centres, axis=-1)
    self.assertLess(np.mean(distance.min(1) > 6), 0.05)  # radius sqrt(5), and a little is lost with 1 % of the variance
    share = np.bincount(distance.argmin(1), minlength=10) / 2000
    np.testing.assert_allclose(share, 0.1, atol=0.04)
    halves = [np.bincount(half.argmin(1), minlength=10) for half in np.array_split(distance, 2)]
    np.testing.assert_allclose(halves[0], halves[1], atol=60)  # shuffled

  def test_cross_validation_finds_the_number_of_clusters(self):
    # Thirty standard deviations apart: fewer components than clusters are far from them, more fit noise alone.
    rng = np.random.default_rng(0)
    x = (np.repeat(30 * np.eye(3), 60, 0) + rng.normal(size=(180, 3))).astype(np.float32)
    self.assertEqual(baseline_generators.cross_validated_size(x), 3)
    self.assertEqual(baseline_generators.cross_validated_size(x[:2]), 1)  # no more than there are examples

  def test_mixtures_of_one_and_of_more_components_than_examples(self):
    x = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    one = baseline_generators.gaussian_mixture(x, 4000, 0, 1)
    # The mixture's covariance is divided by N, not N - 1; Monte-Carlo error sqrt(2 / 4,000) = 2 %.
    np.testing.assert_allclose(np.cov(one.T), np.cov(x.T) * 19 / 20, atol=0.1 * np.cov(x.T).max())
    self.assertLen(baseline_generators.gaussian_mixture(x, 50, 0, 30), 50)

  def test_images_stay_images_and_seeds_count(self):
    images = np.random.default_rng(0).integers(0, 256, (60, 3, 3, 1)).astype(np.uint8)
    for generator in (baseline_generators.gaussian, baseline_generators.gaussian_mixture):
      first, same, other = (generator(images, 30, seed) for seed in (0, 0, 1))
      self.assertEqual((first.dtype, first.shape), (np.uint8, (30, 3, 3, 1)))
      self.assertEqual((first.min(), first.max()), (0, 255))  # clipped, not wrapped
      np.testing.assert_array_equal(first, same)
      self.assertTrue(np.any(first != other))


if __name__ == '__main__':
  absltest.main()
