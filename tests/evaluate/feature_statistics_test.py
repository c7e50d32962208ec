import os
import tempfile
from unittest import mock

from absl.testing import absltest, parameterized
import numpy as np

from diffusion_ebm.data.source import ArraySource
from diffusion_ebm.evaluate import feature_statistics, features
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

  @parameterized.parameters(
    ({'mu': np.zeros(5), 'sigma': np.eye(5)}, r'for other features: mu is \(5,\).* have 4 dimensions'),
    ({'mu': np.zeros(4), 'sigma': np.eye(3)}, r'sigma \(3, 3\)'),
    ({'mean': np.zeros(4)}, 'cannot be read .*mu'),
    ({'mu': np.zeros(4), 'sigma': np.eye(4) * np.nan}, 'not finite'),
    ({'mu': np.zeros(4), 'sigma': np.triu(np.ones((4, 4)))}, 'not symmetric'),
    ({'mu': np.array([{}]), 'sigma': np.eye(4)}, 'cannot be read'),
  )  # a pickle
  def test_given_statistics_of_another_kind_are_refused_in_one_line(self, arrays, message):
    path = self.path + '.npz'
    np.savez(path, **arrays)
    with self.assertRaisesRegex(UserError, message) as caught:
      feature_statistics.load_given(path, 4)
    self.assertNotIn('\n', str(caught.exception))

  def test_no_file_is_refused(self):
    with self.assertRaisesRegex(UserError, r'--config\.eval\.statistics=.*cannot be read'):
      feature_statistics.load_given(self.path, 4)


if __name__ == '__main__':
  absltest.main()
