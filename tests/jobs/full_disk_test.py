"""Each job on a disk that fills up at any moment: one line, no half file, and the next run gets on."""

import contextlib
import io
import json
import os
import tempfile
from unittest import mock

from absl.testing import absltest
import numpy as np
from PIL import Image

from diffusion_ebm.evaluate import classifier
from diffusion_ebm.jobs import density, evaluate, inpaint, interpolate, long_run, ood, sample, steps
from diffusion_ebm.run import errors
from tests import testing
from tests.jobs.evaluation_kills import eval_config

# Bytes; records, arrays, pictures and features lie on either side of each.
_SIZES = (0, 1_000, 20_000)


def _check_whole(path):
  """Raises an exception for half a file."""
  if path.endswith('.npz'):
    with np.load(path) as file:
      assert all(file[name] is not None for name in file.files)
  elif path.endswith('.npy'):
    np.load(path)
  elif path.endswith('.png'):
    with Image.open(path) as picture:
      picture.load()
  elif path.endswith('.json'):
    with open(path, encoding='utf-8') as file:
      json.load(file)
  elif path.endswith('.jsonl'):
    with open(path, encoding='utf-8') as file:
      assert all(json.loads(line) for line in file)
  assert not path.endswith('.tmp'), path


class FullDiskTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.enterClassContext(mock.patch.object(classifier, '_STEPS', 5))

  def try_out(self, job, config):
    """Runs a job on disks of several sizes, and then on one that suffices."""
    workdir, other = (self.enter_context(tempfile.TemporaryDirectory()) for _ in range(2))
    for each in (workdir, other):
      testing.save_first_state(config, each)
    job.run(config, other)  # from now on the compiled programs are cached: that they cannot be is only a warning
    failed = 0
    for size in _SIZES:
      stderr = io.StringIO()
      with contextlib.redirect_stderr(stderr), self.subTest(size):
        try:
          with testing.full_disk(size), errors.shown():
            job.run(config, workdir)
        except SystemExit as end:
          failed += 1
          self.assertEqual(end.code, 2)
          self.assertRegex(stderr.getvalue(), r'\Aerror: [^\n]*(could not|cannot) be written[^\n]*: [^\n]*\n\Z')
      for folder, _, names in os.walk(workdir):
        for name in names:
          _check_whole(os.path.join(folder, name))
    job.run(config, workdir)
    self.assertGreater(failed, 0)
    return workdir

  @testing.long
  def test_samples(self):
    config = testing.digits_config()
    config.sampling.num_samples = 300
    self.try_out(sample, config)

  @testing.long
  def test_scores(self):
    workdir = self.try_out(evaluate, eval_config(save_samples=True))
    with open(os.path.join(workdir, 'eval', 'results.jsonl'), encoding='utf-8') as file:
      self.assertLen(file.readlines(), 1)

  @testing.long
  def test_scores_over_steps(self):
    config = eval_config()
    config.steps.num_steps = (1,)
    self.try_out(steps, config)

  @testing.long
  def test_images_that_are_not_data(self):
    self.try_out(ood, testing.jobs_config())

  @testing.long
  def test_inpainting(self):
    self.try_out(inpaint, testing.jobs_config())

  @testing.long
  def test_interpolation(self):
    self.try_out(interpolate, testing.jobs_config())

  @testing.long
  def test_long_chains(self):
    config = testing.digits_config()
    config.long_run.update({'num_chains': 4, 'num_steps': 6, 'thin': 2, 'extractor': 'pixels', 'kernel': 'ula'})
    self.try_out(long_run, config)

  @testing.long
  def test_densities(self):
    config = testing.toy2d_config()
    config.model.update({'output_scale': 0.3, 'quadratic': 1.0})
    config.diffusion.temperature = 'one'
    config.density.update({'num_chains': 20, 'pilot_chains': 20, 'rung_ess': 0.9, 'data_steps': 4, 'levels': (0,)})
    config.density.num_images = 100
    self.try_out(density, config)


if __name__ == '__main__':
  absltest.main()
