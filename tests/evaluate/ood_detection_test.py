from absl.testing import absltest
import numpy as np
from scipy import special, stats
from sklearn import metrics, mixture

from diffusion_ebm.evaluate import ood_detection


def detection(inside, outside):
  return ood_detection.detection(inside, outside, ood_detection.resamples(len(inside), len(outside), 0))


def same_statistics(values):
  """Examples all of whose statistics are alike."""
  return ood_detection.Statistics(values, values, values)


def near_two_points(rng, count):
  """Vectors near (2, 2) and (-2, -2)."""
  return rng.choice([-2.0, 2.0], (count, 1)) + 0.1 * rng.normal(size=(count, 2))


class DetectionTest(absltest.TestCase):
  def test_shifted_normals_have_the_known_area(self):
    rng = np.random.default_rng(0)
    result = detection(rng.normal(size=1500), rng.normal(1.5, size=1500))
    # P(b > a) = Phi(1.5 / sqrt 2); 95 % of the positives lie above 1.5 - 1.645. Standard errors of 0.006 and 0.03.
    self.assertAlmostEqual(result['auroc'], special.ndtr(1.5 / np.sqrt(2)), delta=0.025)
    self.assertAlmostEqual(result['fpr95'], special.ndtr(1.645 - 1.5), delta=0.1)

  def test_few_scores_by_hand(self):
    # Pairs in order: 3 + 2 of 6. Precision 1 at recall 1/2, 2/3 at 1.
    result = detection(np.array([0.1, 0.2, 0.6]), np.array([0.5, 0.9]))
    self.assertAlmostEqual(result['auroc'], 5 / 6)
    self.assertAlmostEqual(result['aupr'], 0.5 * 1 + 0.5 * 2 / 3)
    self.assertAlmostEqual(result['fpr95'], 1 / 3)

  def test_ties_and_resamples_agree_with_scikit_learn(self):
    rng = np.random.default_rng(0)
    inside, outside = rng.integers(10, size=40).astype(float), rng.integers(3, 13, size=30).astype(float)
    counts = ood_detection.resamples(40, 30, 0)
    ours = np.transpose(ood_detection._measures(inside, outside, counts))
    for i in range(10):
      score, label = np.repeat([*inside, *outside], counts[i]), np.repeat([*40 * [0], *30 * [1]], counts[i])
      false, true, _ = metrics.roc_curve(label, score, drop_intermediate=False)
      expected = metrics.roc_auc_score(label, score), metrics.average_precision_score(label, score)
      np.testing.assert_allclose(ours[i], [*expected, false[true >= 0.95][0]])
    self.assertEqual(
      {tuple(row) for row in (counts[:, :40].sum(1), counts[:, 40:].sum(1))}, {1000 * (40,), 1000 * (30,)}
    )

  def test_the_interval_of_the_area_is_as_wide_as_its_standard_error_says(self):
    rng = np.random.default_rng(0)
    inside, outside = rng.normal(size=200), rng.normal(1, size=300)
    result = detection(inside, outside)
    # DeLong et al. 1988: the variance is that of the two sets' mean placements.
    above = stats.rankdata([*outside, *inside])[:300] - stats.rankdata(outside)
    below = stats.rankdata([*inside, *outside])[:200] - stats.rankdata(inside)
    error = np.sqrt(np.var(above / 200, ddof=1) / 300 + np.var(below / 300, ddof=1) / 200)
    lower, upper = result['intervals']['auroc']
    # A thousand resamples: percentiles within some 7 % of the width.
    np.testing.assert_allclose((upper - lower) / (2 * 1.96 * error), 1, atol=0.15)
    np.testing.assert_allclose((upper + lower) / 2, result['auroc'], atol=0.2 * error)

  def test_scores_are_standardised_by_training_data(self):
    rng = np.random.default_rng(0)
    covariance = np.array([[4.0, 3.0], [3.0, 9.0]])
    train = rng.multivariate_normal([10, -20], covariance, 2000)
    detector = ood_detection.Detector(same_statistics(train), ['level 0', 'level 1'])
    scores = detector.scores(same_statistics(np.array([[12.0, -20.0], [10.0, -17.0]])))
    distances = np.diag(np.linalg.inv(covariance)) * [4, 9]
    for key, expected in (
      (('level 0', ood_detection.LOW), [-1, 0]),
      (('level 1', ood_detection.LOW), [0, -1]),
      (('level 0', ood_detection.TYPICALITY), [1, 0]),
      (('level 1', ood_detection.GRADIENT), [0, 1]),
      (('all levels', 'sum'), [-1, -1]),
      (('all levels', 'Mahalanobis'), distances),
      (('all levels', 'MSMA, Mahalanobis'), distances),
    ):
      np.testing.assert_allclose(scores[key], expected, rtol=0.1, atol=0.1, err_msg=str(key))

  def test_images_more_likely_than_data_are_found_by_the_two_sided_score_alone(self):
    rng = np.random.default_rng(0)
    detector = ood_detection.Detector(same_statistics(rng.normal(size=(200, 1))), ['level 0'])
    inside, outside = (detector.scores(same_statistics(rng.normal(mean, size=(200, 1)))) for mean in (0, 5))
    area = {
      kind: detection(inside['level 0', kind], outside['level 0', kind])['auroc']
      for kind in (ood_detection.LOW, ood_detection.TYPICALITY)
    }
    self.assertLess(area[ood_detection.LOW], 0.01)
    self.assertGreater(area[ood_detection.TYPICALITY], 0.99)

  def test_a_mixture_sees_what_is_between_the_clusters_and_single_levels_and_a_gaussian_do_not(self):
    rng = np.random.default_rng(0)
    train, inside = (near_two_points(rng, 300) for _ in range(2))
    outside = 0.1 * rng.normal(size=(300, 2))
    other = rng.normal(size=(3, 300, 2))  # statistics that tell nothing
    detector = ood_detection.Detector(ood_detection.Statistics(other[0], other[0], train), ['a', 'b'])
    scores = [
      detector.scores(ood_detection.Statistics(noise, noise, part))
      for noise, part in zip(other[1:], (inside, outside), strict=True)
    ]
    area = {key: detection(*(each[key] for each in scores))['auroc'] for key in scores[0]}
    self.assertLess(area['all levels', 'MSMA, Mahalanobis'], 0.3)
    self.assertGreater(area['all levels', 'MSMA, mixture'], 0.99)
    self.assertGreater(area['all levels', 'both, mixture'], 0.99)
    self.assertBetween(area['all levels', 'mixture'], 0.4, 0.6)
    # Its size is chosen; the rest is scikit-learn's.
    z = (train - train.mean(0)) / train.std(0)
    fitted = mixture.GaussianMixture(2, random_state=0).fit(z)
    expected = -fitted.score_samples((outside - train.mean(0)) / train.std(0))
    np.testing.assert_allclose(scores[1]['all levels', 'MSMA, mixture'], expected, rtol=1e-6)

  def test_the_best_of_a_column_is_bold(self):
    def measures(auroc, fpr95):
      return {'auroc': auroc, 'fpr95': fpr95, 'intervals': {'auroc': [0.25, 1.0], 'fpr95': [0.0, 0.5]}}

    results = {
      ('level 0', 'a'): {'x': measures(0.5, 0.1), 'y': measures(1.0, 0.1)},
      ('level 1', 'b'): {'x': measures(0.75, 0.2), 'y': measures(0.25, 0.2)},
    }
    lines = [
      '| level | score | x | y | mean |',
      '| --- | --- | --- | --- | --- |',
      '| level 0 | a | 0.500 (0.250, 1.000) | **1.000** (0.250, 1.000) | **0.750** |',
      '| level 1 | b | **0.750** (0.250, 1.000) | 0.250 (0.250, 1.000) | 0.500 |',
    ]
    self.assertEqual(ood_detection.table(results, 'auroc').splitlines(), lines)
    self.assertIn('**0.100** (0.000, 0.500)', ood_detection.table(results, 'fpr95'))
    one_set = {key: {'x': row['x']} for key, row in results.items()}
    self.assertEqual(ood_detection.table(one_set, 'auroc').splitlines()[0], '| level | score | x |')


if __name__ == '__main__':
  absltest.main()
