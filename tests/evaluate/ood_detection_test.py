from absl.testing import absltest
import numpy as np
from scipy import special

from diffusion_ebm.evaluate import ood_detection


class DetectionTest(absltest.TestCase):
  def test_shifted_normals_have_the_known_area(self):
    rng = np.random.default_rng(0)
    result = ood_detection.detection(rng.normal(size=20_000), rng.normal(1.5, size=20_000))
    # P(b > a) = Phi(1.5 / sqrt 2); 95 % of the positives lie above 1.5 - 1.645. Standard errors of 0.002 and 0.008.
    self.assertAlmostEqual(result['auroc'], special.ndtr(1.5 / np.sqrt(2)), delta=0.01)
    self.assertAlmostEqual(result['fpr95'], special.ndtr(1.645 - 1.5), delta=0.03)

  def test_few_scores_by_hand(self):
    # Pairs in order: 3 + 2 of 6. Precision 1 at recall 1/2, 2/3 at 1.
    result = ood_detection.detection(np.array([0.1, 0.2, 0.6]), np.array([0.5, 0.9]))
    self.assertAlmostEqual(result['auroc'], 5 / 6)
    self.assertAlmostEqual(result['aupr'], 0.5 * 1 + 0.5 * 2 / 3)
    self.assertAlmostEqual(result['fpr95'], 1 / 3)

  def test_scores_are_standardised_by_training_data(self):
    rng = np.random.default_rng(0)
    covariance = np.array([[4.0, 3.0], [3.0, 9.0]])
    train = rng.multivariate_normal([10, -20], covariance, 100_000)
    scores = ood_detection.Detector(train, ['level 0', 'level 1']).scores(np.array([[12.0, -20.0], [10.0, -17.0]]))
    # 100,000 examples: three digits.
    for key, expected in (
      (('level 0', ood_detection.LOW), [-1, 0]),
      (('level 1', ood_detection.LOW), [0, -1]),
      (('level 0', ood_detection.TWO_SIDED), [1, 0]),
      (('all levels', 'sum'), [-1, -1]),
      (('all levels', 'Mahalanobis'), [np.linalg.inv(covariance)[0, 0] * 4, np.linalg.inv(covariance)[1, 1] * 9]),
    ):
      np.testing.assert_allclose(scores[key], expected, atol=0.03, err_msg=str(key))

  def test_images_more_likely_than_data_are_found_by_the_two_sided_score_alone(self):
    rng = np.random.default_rng(0)
    detector = ood_detection.Detector(rng.normal(size=(1000, 1)), ['level 0'])
    inside, outside = (detector.scores(rng.normal(mean, size=(1000, 1))) for mean in (0, 5))
    area = {
      kind: ood_detection.detection(inside['level 0', kind], outside['level 0', kind])['auroc']
      for kind in (ood_detection.LOW, ood_detection.TWO_SIDED)
    }
    self.assertLess(area[ood_detection.LOW], 0.01)
    self.assertGreater(area[ood_detection.TWO_SIDED], 0.99)

  def test_the_best_of_a_column_is_bold(self):
    results = {
      ('level 0', 'a'): {'x': {'auroc': 0.5, 'fpr95': 0.1}},
      ('level 1', 'b'): {'x': {'auroc': 0.75, 'fpr95': 0.2}},
    }
    lines = ['| level | score | x |', '| --- | --- | --- |', '| level 0 | a | 0.500 |', '| level 1 | b | **0.750** |']
    self.assertEqual(ood_detection.table(results, 'auroc').splitlines(), lines)
    self.assertIn('**0.100**', ood_detection.table(results, 'fpr95'))


if __name__ == '__main__':
  absltest.main()
