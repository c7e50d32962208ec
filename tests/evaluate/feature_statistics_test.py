import os
import pickle
import re
import tempfile
from unittest import mock

from absl.testing import absltest, parameterized
import numpy as np

from diffusion_ebm.data.source import ArraySource
from diffusion_ebm.evaluate import feature_statistics, features, scores
from diffusion_ebm.run import files
from diffusion_ebm.run.errors import UserError


class StatisticsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = self.enterContext(tempfile.TemporaryDirectory())
    self.path = os.path.join(self.folder, 'file')
    self.images = np.random.default_rng(0).integers(0, 256, (50, 2, 2, 1)).astype(np.uint8)
    self.rows = self.images.reshape(50, 4) / 255
    self.extract = features.compile_extractor(features.pixels((2, 2, 1)), (2, 2, 1), 7)

  def stream(self, **kwargs):
    return feature_statistics.of_source(ArraySource(self.images), self.extract, 4, 'data', 16, **kwargs)

  def test_a_streamed_split_has_the_moments_of_all_its_examples(self):
    found = self.stream()
    self.assertEqual(found.count, 50)
    np.testing.assert_allclose(found.mean, self.rows.mean(0), rtol=1e-6)
    np.testing.assert_allclose(found.covariance, np.cov(self.rows.T), rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(found.features, self.rows[found.index], rtol=1e-6)
    self.assertCountEqual(found.index, range(50))
    self.assertNotEqual(found.index.tolist(), list(range(50)))  # shuffled: splits may be sorted by class

  def test_of_many_examples_some_are_kept_and_all_counted(self):
    with mock.patch.object(feature_statistics, 'MAX_KEPT', 20):
      found, only = self.stream(), self.stream(only_kept=True)
    self.assertEqual((found.count, len(found.features), len(set(found.index))), (50, 20, 20))
    np.testing.assert_allclose(found.mean, self.rows.mean(0), rtol=1e-6)
    np.testing.assert_allclose(found.features, self.rows[found.index], rtol=1e-6)
    self.assertEqual(only.count, 20)
    np.testing.assert_array_equal(only.index, found.index)

  def test_what_is_cached_comes_back(self):
    found = self.stream()
    feature_statistics.save(found, self.path)
    back = feature_statistics.load(self.path)
    for name in ('mean', 'covariance', 'count', 'index', 'features'):
      np.testing.assert_array_equal(getattr(back, name), getattr(found, name))
    self.assertIsNone(back.logits)
    self.assertIsNone(feature_statistics.load(self.path + '.none'))
    self.assertEqual(os.listdir(self.folder), ['file'])

  def test_given_statistics_are_read(self):
    path = self.path + '.npz'
    covariance = np.cov(self.rows.T)
    np.savez(path, mu=self.rows.mean(0).astype(np.float32), sigma=covariance)
    mean, back = feature_statistics.load_given(path, 4)
    np.testing.assert_allclose(mean, self.rows.mean(0), rtol=1e-6)
    np.testing.assert_array_equal(back, covariance)

  @parameterized.named_parameters(
    ('big_endian', lambda a: a.astype('>f8'), 0),
    ('fortran', lambda a: np.asfortranarray(a), 0),
    ('single', lambda a: a.astype(np.float32), 1e-7),
    ('half_big_endian', lambda a: a.astype('>f2'), 1e-3),
    ('quadruple', lambda a: a.astype(np.longdouble), 0),
    ('integers', lambda a: np.round(a * 100).astype(np.int16), 0.5),
  )
  def test_given_statistics_of_any_type_and_order_are_read(self, convert, error):
    path, mean, covariance = self.path + '.npz', self.rows.mean(0), np.cov(self.rows.T)
    unit = 100 if convert(mean).dtype == np.int16 else 1
    np.savez(path, mu=convert(mean), sigma=convert(covariance))
    for found, exact in zip(feature_statistics.load_given(path, 4), (mean, covariance), strict=True):
      self.assertTrue(found.dtype == np.float64 and found.dtype.isnative)
      np.testing.assert_allclose(found, unit * exact, rtol=error if unit == 1 else 0, atol=error if unit > 1 else 0)

  def test_of_a_reference_batch_only_the_moments_are_read(self):
    # The layout of guided-diffusion.
    path = self.path + '.npz'
    moments = {'mu': self.rows.mean(0), 'sigma': np.cov(self.rows.T)}
    np.savez(path, arr_0=self.images, mu_s=np.zeros(2023), sigma_s=np.array([{}]), pool_3=np.zeros(3), **moments)
    with self.assertRaises(ValueError):
      files.read_npz(path)
    found = feature_statistics.load_given(path, 4)
    np.testing.assert_array_equal(found[0], moments['mu'])
    np.testing.assert_array_equal(found[1], moments['sigma'])

  @parameterized.parameters(np.float64, np.float16)
  def test_moments_are_computed_of_given_features(self, dtype):
    path, rows = self.path + '.npz', self.rows.astype(dtype)
    np.savez_compressed(path, pool_3=rows, logits=np.zeros((50, 10)))
    mean, covariance = feature_statistics.load_given(path, 4)
    np.testing.assert_allclose(mean, rows.astype(float).mean(0), rtol=1e-12)
    np.testing.assert_allclose(covariance, np.cov(rows.T.astype(float)), rtol=1e-12)

  def test_a_covariance_of_low_rank_may_have_been_rounded(self):
    # The exact distance to C of 9 C is 4 tr C. Rounding has made some of its eigenvalues negative.
    path, rows = self.path + '.npz', np.random.default_rng(0).normal(size=(20, 100))
    mean, covariance = rows.mean(0), np.cov(rows.T)
    for dtype, accuracy in ((np.float64, 1e-12), (np.float32, 1e-6), (np.float16, 5e-3)):
      np.savez(path, mu=mean.astype(dtype), sigma=covariance.astype(dtype))
      with self.subTest(dtype=dtype), (self.assertNoLogs if dtype != np.float16 else self.assertLogs)(level='WARNING'):
        given = feature_statistics.load_given(path, 100)
        if dtype != np.float64:
          self.assertLess(np.linalg.eigvalsh(given[1])[0], -1e-9)
        for factor in (1, 3):
          found = scores.frechet_distance(*given, mean, factor**2 * covariance)
          expected = (factor - 1) ** 2 * np.trace(covariance)
          np.testing.assert_allclose(found, expected, rtol=accuracy, atol=accuracy * np.trace(covariance))

  @parameterized.parameters(
    ({'mu': np.zeros(5), 'sigma': np.eye(5)}, r'for other features: mu is \(5,\).* have 4 dimensions'),
    ({'mu': np.zeros(4), 'sigma': np.eye(3)}, r'for other features: sigma is \(3, 3\)'),
    ({'mu': np.array(0.5), 'sigma': np.eye(4)}, r'for other features: mu is \(\)'),
    ({'mean': np.zeros(4)}, 'holds neither mu and sigma nor pool_3: give'),
    ({'mu': np.zeros(4)}, 'holds neither mu and sigma nor pool_3'),
    ({'arr_0': np.zeros((5, 2, 2, 1), np.uint8)}, 'holds neither mu and sigma nor pool_3'),
    ({'mu': np.zeros(4), 'sigma': np.eye(4) * np.nan}, 'a sigma that is not finite'),
    ({'mu': np.full(4, np.inf, np.float16), 'sigma': np.eye(4)}, 'a mu that is not finite'),
    ({'mu': np.zeros(4), 'sigma': np.triu(np.ones((4, 4)))}, 'not symmetric'),
    ({'mu': np.zeros(4), 'sigma': -np.eye(4)}, 'a sigma with eigenvalues from -1 to -1: it is no covariance'),
    ({'mu': np.zeros(4), 'sigma': np.diag([1, 1, 1, -2e-3])}, r'eigenvalues from -0\.002 to 1: it is no covariance'),
    ({'mu': np.zeros(4), 'sigma': np.diag([1e200, 1, 1, -1e308])}, 'it is no covariance'),
    ({'mu': np.array([{}]), 'sigma': np.eye(4)}, 'cannot be read'),  # a pickle
    ({'mu': np.zeros(4, complex), 'sigma': np.eye(4)}, 'mu is of type complex128, not of real numbers'),
    ({'mu': np.zeros(4), 'sigma': np.full((4, 4), '1')}, 'sigma is of type <U1'),
    ({'pool_3': np.zeros((9, 5))}, r'for other features: pool_3 is \(9, 5\)'),
    ({'pool_3': np.zeros(4)}, r'for other features: pool_3 is \(4,\)'),
    ({'pool_3': np.zeros((1, 4))}, 'a pool_3 of fewer than two rows'),
    ({'pool_3': np.diag([1, np.nan, 1, 1])}, 'a pool_3 that is not finite'),
  )
  def test_given_statistics_of_another_kind_are_refused_in_one_line(self, arrays, message):
    path = self.path + '.npz'
    np.savez(path, **arrays)
    with self.assertRaisesRegex(UserError, message) as caught:
      feature_statistics.load_given(path, 4)
    self.assertNotIn('\n', str(caught.exception))

  def test_a_pickle_is_refused_with_what_converts_it(self):
    # The layout of EDM2.
    moments = {'mu': self.rows.mean(0), 'sigma': np.cov(self.rows.T)}
    with open(self.path, 'wb') as file:
      pickle.dump({'num_images': 50, 'fid': moments, 'fd_dinov2': {'mu': np.zeros(7), 'sigma': np.eye(7)}}, file)
    with self.assertRaisesRegex(UserError, 'it is a pickle, which is not read.* if you trust it') as caught:
      feature_statistics.load_given(self.path, 4)
    self.assertNotIn('\n', str(caught.exception))
    exec(re.search(r'python -c "(.*)"$', str(caught.exception))[1], {})
    mean, covariance = feature_statistics.load_given(self.path + '.npz', 4)
    np.testing.assert_array_equal(mean, moments['mu'])
    np.testing.assert_array_equal(covariance, moments['sigma'])

  @parameterized.parameters(
    (b'', 'it is empty'),
    (b'<html><head><title>404</title>', 'it is a web page'),
    (b'version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n', 'it is a pointer of Git LFS'),
    (b'\x93NUMPY\1\0v\0', 'it is a single array'),
    (b'\x89HDF\r\n\x1a\n', 'it is a file of HDF5'),
    (b'PK\3\4 cut short', 'not a zip file'),
  )
  def test_other_files_are_refused_in_one_line(self, content, message):
    with open(self.path, 'wb') as file:
      file.write(content)
    with self.assertRaisesRegex(UserError, rf'cannot be read \(.*{message}.*\): give a \.npz') as caught:
      feature_statistics.load_given(self.path, 4)
    self.assertNotIn('\n', str(caught.exception))

  def test_no_file_is_refused(self):
    with self.assertRaisesRegex(UserError, r'--config\.eval\.statistics=.*cannot be read'):
      feature_statistics.load_given(self.path, 4)


if __name__ == '__main__':
  absltest.main()
