"""A workdir of an older version, with keys that are gone: sampled, scored and continued as by that version.

`tests/fixtures/old_workdir.zip` holds a tiny run at step 2 of `testing.convolutional(testing.digits_config())`, and in
`expected.npz` what that version (commit a14b486) made of it: five samples, a score, and the parameters after two more
steps.
"""

import json
import os
import tempfile
import zipfile

from absl.testing import absltest
import jax
import numpy as np

import diffusion_ebm
from diffusion_ebm import config as config_lib
from diffusion_ebm import preprocessing, random_keys
from diffusion_ebm.jobs import evaluate, sample, train
from tests import testing

_PATH = os.path.join(testing.ROOT, 'tests', 'fixtures', 'old_workdir.zip')


class OldWorkdirTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.workdir = self.enterContext(tempfile.TemporaryDirectory())
    with zipfile.ZipFile(_PATH) as archive:
      archive.extractall(self.workdir)
    with open(os.path.join(self.workdir, 'config.json'), encoding='utf-8') as file:
      self.assertEqual(json.load(file)['train']['optimizer'], 'adam')  # a key that is gone
    with np.load(os.path.join(self.workdir, 'expected.npz')) as file:
      self.expected = dict(file)
    self.config = testing.convolutional(testing.digits_config(num_steps=2))
    self.config.model.update({'ch': 4, 'num_layers': 3})
    self.assertEqual(config_lib.load(self.workdir).model.to_dict(), self.config.model.to_dict())

  def test_it_is_sampled(self):
    self.config.sampling.num_samples = 5
    sample.run(self.config, self.workdir)
    with np.load(os.path.join(self.workdir, 'samples', 'samples_2.npz')) as file:
      difference = file['samples'].astype(int) - self.expected['samples']
    self.assertLessEqual(np.abs(difference).max(), 1)  # roundings of another machine

  def test_it_is_loaded_in_python(self):
    model = diffusion_ebm.load(self.workdir)
    self.assertIsNone(model.proposal)
    x = preprocessing.to_stored(model.sample(random_keys.stream_key(0), 5))
    self.assertLessEqual(np.abs(x.astype(int) - self.expected['samples']).max(), 1)  # roundings of another machine

  def test_it_is_scored_and_an_old_score_counts(self):
    self.config.eval.update({'num_samples': 20, 'extractor': 'pixels', 'baselines': False, 'max_wait_minutes': 0.0})
    evaluate.run(self.config, self.workdir)
    with open(os.path.join(self.workdir, 'eval', 'results.jsonl'), encoding='utf-8') as file:
      (record,) = map(json.loads, file)
    np.testing.assert_allclose(record['fid'], self.expected['fid'], rtol=1e-3)
    # The same name for the settings: what has been scored by the older version is not scored again.
    self.assertEqual(record['settings'], str(self.expected['settings']))

  def test_it_is_continued(self):
    self.config.train.num_steps = 4
    train.run(self.config, self.workdir)
    state, batches_read = testing.restore(self.config, self.workdir, 4)
    self.assertEqual(batches_read, 4)
    for path, found in jax.tree_util.tree_flatten_with_path(state.params)[0]:
      name = jax.tree_util.keystr(path, simple=True, separator='/')
      np.testing.assert_allclose(found, self.expected[f'params/{name}'], rtol=1e-4, atol=1e-5, err_msg=name)


if __name__ == '__main__':
  absltest.main()
