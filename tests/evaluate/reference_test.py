import os
import tempfile
from unittest import mock

from absl.testing import absltest, parameterized
import numpy as np

from configs import digits, toy2d
from diffusion_ebm import data
from diffusion_ebm.evaluate import classifier, features, inception_weights, reference
from diffusion_ebm.run import files
from diffusion_ebm.run.errors import UserError


def not_yet(*_, **__):
  raise AssertionError('this is work, and there is an error to tell')


class GivenFilesTest(parameterized.TestCase):
  """Files that the user names are checked before anything that takes long."""

  def setUp(self):
    super().setUp()
    self.folder = self.enterContext(tempfile.TemporaryDirectory())
    self.path = os.path.join(self.folder, 'file')
    self.enterContext(mock.patch.object(classifier, 'train', not_yet))
    self.enterContext(mock.patch.object(inception_weights, '_download', not_yet))
    self.enterContext(mock.patch.dict(os.environ, {'XDG_CACHE_HOME': self.folder}))

  def make(self, load_sources, **changes):
    config = digits.get_config()
    config.eval.update(changes)
    return reference.make(config.eval, config.data, load_sources, self.folder, lambda: None)

  @parameterized.parameters(('classifier', 128), ('inception', 2048), ('pixels', 64))
  def test_statistics_first(self, extractor, dim):
    with self.assertRaisesRegex(UserError, 'statistics=.* cannot be read'):
      self.make(not_yet, extractor=extractor, statistics=self.path, inception_weights=self.path)
    np.savez(self.path + '.npz', mu=np.zeros(3), sigma=np.eye(3))
    with self.assertRaisesRegex(UserError, rf'for other features: mu is \(3,\).* have {dim} dimensions'):
      self.make(not_yet, extractor=extractor, statistics=self.path + '.npz', inception_weights=self.path)

  def test_weights_before_data_and_data_before_the_download(self):
    with self.assertRaisesRegex(UserError, 'is no file'):
      self.make(not_yet, extractor='inception', inception_weights=self.path)
    with open(self.path, 'wb') as file:
      file.write(b'<html>')
    with mock.patch.object(files, 'sha256', not_yet), self.assertRaisesRegex(UserError, 'web page'):
      self.make(not_yet, extractor='inception', inception_weights=self.path)
    with self.assertRaisesRegex(UserError, 'no data'):
      self.make(mock.Mock(side_effect=UserError('no data')), extractor='inception')

  @parameterized.parameters((digits, 'pixels', 64), (digits, 'classifier', 128), (toy2d, 'pixels', 2))
  def test_the_dimension_is_known_beforehand(self, module, name, dim):
    config = module.get_config()
    self.assertEqual(features.dim(name, config.data), dim)
    if name == 'pixels':
      self.assertEqual(features.pixels(data.load_source(config.data, 'test').shape).dim, dim)


if __name__ == '__main__':
  absltest.main()
