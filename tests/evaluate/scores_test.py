"""Scores against closed forms and direct formulas in float64; 1e-6 relative everywhere."""

from absl.testing import absltest, parameterized
import numpy as np
from scipy import special, stats

from diffusion_ebm.evaluate import scores

RTOL = 1e-6


def rotation(dim, seed):
  return stats.ortho_group.rvs(dim, random_state=seed)


def covariance(values, basis):
  return basis * values @ basis.T


class FrechetTest(parameterized.TestCase):
  def assert_distance(self, expected, *gaussians, scale=0.0):
    actual = scores.frechet_distance(*gaussians)
    np.testing.assert_allclose(actual, expected, rtol=RTOL, atol=RTOL * scale)

  # Full rank; low rank; eigenvalues over 14 orders of magnitude; nothing at all.
  @parameterized.parameters(
    (np.linspace(1, 3, 40), np.linspace(5, 2, 40)),
    (np.r_[np.linspace(1, 2, 5), np.zeros(35)], np.r_[np.zeros(3), np.linspace(3, 4, 6), np.zeros(31)]),
    (np.logspace(-12, 2, 40), np.logspace(1, -13, 40)),
    (np.logspace(-12, 2, 40), np.logspace(-11, 3, 40)),
    (np.ones(40), np.zeros(40)),
  )
  def test_commuting_covariances(self, first, second):
    # With the same axes the distance is that of the standard deviations.
    basis, rng = rotation(40, 0), np.random.default_rng(1)
    means = rng.normal(size=(2, 40))
    expected = np.sum((means[0] - means[1]) ** 2) + np.sum((np.sqrt(first) - np.sqrt(second)) ** 2)
    self.assert_distance(expected, means[0], covariance(first, basis), means[1], covariance(second, basis))
    spread_only = np.sum((np.sqrt(first) - np.sqrt(second)) ** 2)
    self.assert_distance(spread_only, means[0], covariance(first, basis), means[0], covariance(second, basis))

  def test_two_dimensions_with_different_axes(self):
    # For 2 x 2 matrices tr (S_1 S_2)^(1/2) = (tr S_1 S_2 + 2 (det S_1 S_2)^(1/2))^(1/2).
    first, second = covariance([1.0, 4.0], rotation(2, 0)), covariance([0.3, 2.0], rotation(2, 5))
    product = first @ second
    self.assertGreater(np.abs(product - product.T).max(), 0.1)
    root = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    self.assert_distance(np.trace(first + second) - 2 * root, np.zeros(2), first, np.zeros(2), second)

  def test_rank_one_with_different_axes(self):
    # S = u u^T: the trace of the root is |u . v|.
    u, v = np.random.default_rng(0).normal(size=(2, 300))
    self.assert_distance(u @ u + v @ v - 2 * abs(u @ v), np.zeros(300), np.outer(u, u), np.zeros(300), np.outer(v, v))

  def test_nothing_lies_between_equals(self):
    values = covariance(np.logspace(-12, 2, 40), rotation(40, 0))
    self.assert_distance(0, np.ones(40), values, np.ones(40), values, scale=np.trace(values))

  def test_fewer_samples_than_features(self):
    # The covariances of samples that one orthogonal matrix turns into each other's negatives: equal.
    x = np.random.default_rng(0).normal(size=(20, 100))
    both = [scores.Moments(100) for _ in range(2)]
    both[0].add(x)
    both[1].add(3 * x)
    # Covariances C and 9 C: tr (1 + 9 - 6) C.
    expected = 4 * np.trace(np.cov(x.T)) + np.sum((2 * x.mean(0)) ** 2)
    self.assert_distance(expected, both[0].mean, both[0].covariance, both[1].mean, both[1].covariance)

  def test_what_is_no_covariance_is_refused(self):
    with self.assertRaisesRegex(ValueError, 'eigenvalue'):
      scores.frechet_distance(np.zeros(2), np.diag([1.0, -0.1]), np.zeros(2), np.eye(2))
    with self.assertRaises(ValueError):
      scores.frechet_distance(np.zeros(2), np.eye(2) * np.nan, np.zeros(2), np.eye(2))

  def test_covariances_of_low_rank_in_single_precision(self):
    # Commuting covariances; rounding leaves eigenvalues of zero at +-1e-8.
    basis, first, second = rotation(200, 0), np.r_[np.linspace(1, 2, 9), np.zeros(191)], np.linspace(0.5, 1, 200)
    rounded = covariance(first, basis).astype(np.float32)
    self.assertLess(np.linalg.eigvalsh(rounded.astype(np.float64))[0], -1e-9)
    zero = np.zeros(200)
    for other, values in ((covariance(second, basis), second), (covariance(4 * first, basis), 4 * first)):
      expected = np.sum((np.sqrt(first) - np.sqrt(values)) ** 2)
      self.assert_distance(expected, zero, rounded, zero, other)
      self.assert_distance(expected, zero, other, zero, rounded)
    self.assert_distance(0, zero, rounded, zero, rounded, scale=np.sum(first))

  def test_nothing_is_a_covariance_too(self):
    self.assert_distance(2, np.zeros(2), np.zeros((2, 2)), np.ones(2), np.zeros((2, 2)))


class MomentsTest(absltest.TestCase):
  def test_batches_give_what_all_rows_give_even_far_from_the_origin(self):
    rows = np.random.default_rng(0).normal(size=(9000, 7)) @ np.random.default_rng(1).normal(size=(7, 7)) + 1e4
    moments = scores.Moments(7)
    for part in (rows[:1], rows[1:5000], rows[5000:]):
      moments.add(part)
    self.assertEqual(moments.count, 9000)
    np.testing.assert_allclose(moments.mean, rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.covariance, np.cov(rows.T), rtol=1e-8, atol=1e-8)


class InceptionScoreTest(absltest.TestCase):
  def test_direct_formula(self):
    logits = np.random.default_rng(0).normal(size=(103, 9)) * 3
    values = []
    for part in np.array_split(special.softmax(logits, axis=1), 10):
      values.append(np.exp(np.mean([stats.entropy(p, part.mean(0)) for p in part])))
    np.testing.assert_allclose(
      scores.inception_score(logits.astype(np.float64)), (np.mean(values), np.std(values)), rtol=RTOL
    )

  def test_certain_and_even_classes_score_their_number(self):
    logits = 1000.0 * np.tile(np.eye(5, dtype=np.float32), (20, 1))
    np.testing.assert_allclose(scores.inception_score(logits), (5, 0), rtol=RTOL, atol=RTOL)
    np.testing.assert_allclose(scores.inception_score(np.zeros((50, 5))), (1, 0), rtol=RTOL, atol=RTOL)


class KernelDistanceTest(absltest.TestCase):
  def direct(self, x, y):
    def k(a, b):
      return (np.dot(a, b) / len(a) + 1) ** 3

    n, m = len(x), len(y)
    return (
      sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
      + sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
      - 2 * np.mean([k(a, b) for a in x for b in y])
    )

  def test_direct_formula(self):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(67, 6)), rng.normal(size=(41, 6)) + 0.5
    values = [self.direct(a, b) for a, b in zip(np.array_split(x, 10), np.array_split(y, 10), strict=True)]
    np.testing.assert_allclose(
      scores.kernel_distance(x, y), (np.mean(values), np.std(values, ddof=1) / np.sqrt(10)), rtol=RTOL
    )

  def test_it_is_unbiased_and_its_standard_error_honest(self):
    rng = np.random.default_rng(0)
    found = np.array([scores.kernel_distance(*rng.normal(size=(2, 60, 3))) for _ in range(300)])
    self.assertLess(abs(found[:, 0].mean()), 3 * found[:, 0].std() / np.sqrt(300))
    np.testing.assert_allclose(np.sqrt(np.mean(found[:, 1] ** 2)), found[:, 0].std(), rtol=0.15)


class NeighbourTest(absltest.TestCase):
  def test_direct_formula(self):
    rng = np.random.default_rng(0)
    fake, real = rng.normal(size=(80, 3)), rng.normal(size=(60, 3)) * 0.8 + 0.3

    def radius(rows, i, k):
      return sorted(np.linalg.norm(rows[i] - row) for row in rows)[k]  # 0 is the distance from itself

    real_3, fake_3 = ([radius(rows, i, 3) for i in range(len(rows))] for rows in (real, fake))
    real_5 = [radius(real, i, 5) for i in range(len(real))]
    d = [[np.linalg.norm(f - r) for r in real] for f in fake]
    expected = {
      'precision': np.mean([any(d[i][j] <= real_3[j] for j in range(60)) for i in range(80)]),
      'recall': np.mean([any(d[i][j] <= fake_3[i] for i in range(80)) for j in range(60)]),
      'density': sum(d[i][j] <= real_5[j] for i in range(80) for j in range(60)) / (5 * 80),
      'coverage': np.mean([any(d[i][j] <= real_5[j] for i in range(80)) for j in range(60)]),
    }
    # Far from the origin too, where distances from products lose their digits.
    for offset in (0, 1e6):
      actual = scores.neighbour_scores(fake + offset, real + offset)
      self.assertEqual(actual.keys(), expected.keys())
      for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, rtol=RTOL, err_msg=name)
        self.assertBetween(value, 0.1, 1.5)

  def test_strangers_and_twins(self):
    rows = np.random.default_rng(0).normal(size=(50, 4))
    self.assertEqual(set(scores.neighbour_scores(rows + 100, rows).values()), {0.0})
    twins = scores.neighbour_scores(rows, rows)
    self.assertEqual((twins['precision'], twins['recall'], twins['coverage']), (1, 1, 1))


class ScoreTest(absltest.TestCase):
  def test_one_call_gives_all_of_them(self):
    rng = np.random.default_rng(0)
    fake, real, logits = rng.normal(size=(90, 4)) + 1, rng.normal(size=(70, 4)), rng.normal(size=(90, 3))
    found = scores.score(fake.astype(np.float32), logits, real.mean(0), np.cov(real.T), real)
    self.assertCountEqual(
      found,
      [
        'fid',
        'inception_score',
        'inception_score_std',
        'kid',
        'kid_standard_error',
        'precision',
        'recall',
        'density',
        'coverage',
      ],
    )
    expected = scores.frechet_distance(fake.mean(0), np.cov(fake.T), real.mean(0), np.cov(real.T))
    np.testing.assert_allclose(found['fid'], expected, rtol=RTOL)
    self.assertIsNone(scores.score(fake, None, real.mean(0), np.cov(real.T), real)['inception_score'])


DIM, COPIES = 3, 10  # as many copies as parts of the kernel distance, so that all parts are equal


def axes(scale, shift=0.0):
  """Both ends of the axes, `COPIES` times, (60, 3): their mean is `shift`, their covariance `scale^2 / DIM 60 / 59`."""
  return np.tile(np.concatenate([np.eye(DIM), -np.eye(DIM)]) * scale + shift, (COPIES, 1))


def kid_of_axes(first, second):
  """Of two sets of `axes`, by counting pairs: the same end, the opposite one, and four at right angles."""

  def same(scale):
    return ((1 - scale**2 / DIM) ** 3 + 4) / 5

  across = ((1 + first * second / DIM) ** 3 + (1 - first * second / DIM) ** 3 + 4) / 6
  return same(first) + same(second) - 2 * across


AS_ONE = {'precision': 1, 'recall': 1, 'coverage': 1}
APART = {'precision': 0, 'recall': 0, 'density': 0, 'coverage': 0}
LINE = np.arange(60.0)[:, None]
UNIT = 60 / 59  # of the unbiased variance
ENDS = np.repeat([[1.0], [-1.0]], 30, axis=0)


class AwkwardSetsTest(parameterized.TestCase):
  """Each with the values that can be derived by hand."""

  @parameterized.named_parameters(
    ('identical', axes(2), axes(2), AS_ONE | {'fid': 0, 'kid': kid_of_axes(2, 2), 'density': COPIES / 5}),
    ('permuted', np.random.default_rng(0).permutation(axes(2)), axes(2), AS_ONE | {'fid': 0, 'density': COPIES / 5}),
    # Of 0 .. 59, whose variance is 305, one is missing and another there twice.
    (
      'duplicate',
      np.r_[LINE[:-1], [[0.0]]],
      LINE,
      AS_ONE | {'fid': (59 / 60) ** 2 + (np.sqrt(305 - 59 / 60) - np.sqrt(305)) ** 2},
    ),
    ('constant', np.full((60, 2), 3.0), np.full((60, 2), 3.0), AS_ONE | {'fid': 0, 'kid': 0, 'density': 60 / 5}),
    ('constants', np.full((60, 2), 3.0), np.ones((60, 2)), APART | {'fid': 8, 'kid': 10**3 + 2**3 - 2 * 4**3}),
    ('shifted', axes(2, 0.3), axes(2), APART | {'fid': 3 * 0.3**2}),
    ('scaled', axes(2), axes(3), APART | {'fid': (3 - 2) ** 2 * UNIT, 'kid': kid_of_axes(2, 3)}),
    # Along u = (3, 4) and v = (1, 0): |u|^2 + |v|^2 - 2 |u . v|.
    ('rank_one', ENDS * [3, 4], ENDS * [1, 0], APART | {'fid': (25 + 1 - 2 * 3) * UNIT}),
    # Corners of two simplices in 50 dimensions, one three times the other; all samples lie in all balls of the data.
    (
      'fewer_than_dimensions',
      np.eye(20, 50),
      3 * np.eye(20, 50),
      {'fid': 2**2 + 2**2 / 20, 'kid': 1 - 1.06**3, 'precision': 1, 'recall': 0, 'density': 20 / 5, 'coverage': 1},
    ),
    ('huge', axes(2e6), axes(3e6), APART | {'fid': 1e12 * UNIT, 'kid': kid_of_axes(2e6, 3e6)}),
    ('tiny', axes(2e-6), axes(3e-6), APART | {'fid': 1e-12 * UNIT}),
    ('far_apart', axes(1, 1e6), axes(1, -1e6), APART | {'fid': 3 * 4e12}),
    ('integers', axes(2).astype(np.int8), axes(100).astype(np.int16), APART | {'fid': 98**2 * UNIT}),
    ('half', axes(2).astype(np.float16), axes(300).astype('>f2'), APART | {'fid': 298**2 * UNIT}),
  )
  def test_scores(self, samples, data, expected):
    moments = scores.Moments(data.shape[1])
    moments.add(data)
    found = scores.score(samples, None, moments.mean, moments.covariance, data)
    self.assertTrue(all(np.isfinite(value) for value in found.values() if value is not None))
    for name, value in expected.items():
      scale = np.abs(data.astype(np.float64)).max() ** (6 if name == 'kid' else 2)
      np.testing.assert_allclose(found[name], value, rtol=RTOL, atol=1e-12 * scale, err_msg=name)


class TiesTest(parameterized.TestCase):
  """Distances that equal a radius: of duplicates, and of whole numbers, for which all can be counted exactly."""

  @parameterized.parameters(1.0, 1e3, 1e-3)
  def test_samples_that_are_the_data_lie_in_their_balls(self, scale):
    rows = scale * np.repeat(np.random.default_rng(0).normal(loc=3.0, size=(40, 64)), 6, axis=0).astype(np.float32)
    found = scores.neighbour_scores(rows, rows)
    self.assertEqual((found['precision'], found['recall'], found['coverage']), (1.0, 1.0, 1.0))
    self.assertEqual(found['density'], 6 / 5)  # each lies in the balls of the six that are the same
    self.assertEqual(scores.precision(rows, rows, 5), 1.0)

  def test_whole_numbers_are_counted_exactly(self):
    rng = np.random.default_rng(1)
    samples, data = rng.integers(0, 3, (150, 4)), rng.integers(0, 3, (130, 4))

    def squares(a, b):
      return np.sum((a[:, None] - b[None]) ** 2, axis=2)

    def radii(rows):
      others = squares(rows, rows) + 1000 * np.eye(len(rows), dtype=int)
      return np.sort(others, axis=1)[:, :5]

    distance, of_samples, of_data = squares(samples, data), radii(samples), radii(data)
    expected = {
      'precision': np.mean(np.any(distance <= of_data[:, 2], axis=1)),
      'recall': np.mean(np.any(distance <= of_samples[:, 2, None], axis=0)),
      'density': np.mean(np.sum(distance <= of_data[:, 4], axis=1)) / 5,
      'coverage': np.mean(np.any(distance <= of_data[:, 4], axis=0)),
    }
    for shift in (0, 1000):
      found = scores.neighbour_scores(samples + shift, data + shift)
      for name, value in expected.items():
        self.assertAlmostEqual(found[name], value, 12, name)
      self.assertAlmostEqual(
        scores.precision(samples + shift, data + shift, 5), np.mean(np.any(distance <= of_data[:, 4], axis=1)), 12
      )


if __name__ == '__main__':
  absltest.main()
