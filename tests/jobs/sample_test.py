"""The sampling job, on networks that have not learned anything."""

import os
import shutil
import tempfile
from unittest import mock

from absl.testing import absltest
import numpy as np
from PIL import Image

from diffusion_ebm.jobs import sample
from diffusion_ebm.run import files
from diffusion_ebm.run.errors import UserError
from tests import testing


class SampleTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.workdir = cls.enterClassContext(tempfile.TemporaryDirectory())
    config = testing.digits_config()
    # Only the average is fit for use.
    nothing = testing.nothing(config)
    testing.save_first_state(config, cls.workdir, step=7, params=nothing)
    cls.samples = cls.draw()

  @classmethod
  def draw(cls, num_samples=5, seed=0, step=None, **sampling):
    config = testing.digits_config()
    config.sampling.update({'num_samples': num_samples} | sampling)
    return sample.run(config, cls.workdir, seed, step)

  def read(self, name):
    return files.read_npz(os.path.join(self.workdir, 'samples', name))['samples']

  def test_samples_are_bytes_of_the_shape_of_the_data(self):
    self.assertEqual((self.samples.dtype, self.samples.shape), (np.uint8, (5, 8, 8, 1)))
    self.assertGreater(np.min(np.std(self.samples, axis=(1, 2, 3))), 10)
    self.assertLen(np.unique(self.samples, axis=0), 5)

  def test_they_are_written_with_pictures_and_what_they_depend_on(self):
    self.assertContainsSubset(
      ['samples_7.npz', 'samples_7.json', 'samples_7.png', 'samples_7_levels.png'],
      os.listdir(os.path.join(self.workdir, 'samples')),
    )
    np.testing.assert_array_equal(self.read('samples_7.npz'), self.samples)
    drawn = {'num_steps': 2, 'noise_scale': 0.99, 'denoised': False}
    self.assertEqual(
      files.read_json(os.path.join(self.workdir, 'samples', 'samples_7.json')),
      {'inputs': {'step': 7, 'seed': 0, 'num_samples': 5, 'sampling': drawn}},
    )
    sizes = []
    for name in ('samples_7.png', 'samples_7_levels.png'):
      with Image.open(os.path.join(self.workdir, 'samples', name)) as picture:
        sizes.append(picture.size)
        self.assertGreater(np.asarray(picture).std(), 10)
    self.assertGreater(sizes[1][0], 6 * sizes[0][0])  # seven levels

  def test_without_the_data_only_the_picture_beside_data_is_missing(self):
    workdir = os.path.join(self.enterContext(tempfile.TemporaryDirectory()), 'run')
    shutil.copytree(self.workdir, workdir, ignore=shutil.ignore_patterns('samples'))
    gone = UserError('photos does not exist')
    with mock.patch.object(sample.data, 'load_some', side_effect=gone), self.assertLogs(level='WARNING') as logs:
      sample.run(testing.digits_config(), workdir)
    self.assertIn('photos does not exist', ''.join(logs.output))
    self.assertCountEqual(
      os.listdir(os.path.join(workdir, 'samples')), ['samples_7.npz', 'samples_7.png', 'samples_7.json']
    )

  def test_a_sample_depends_on_its_number_and_the_seed_alone(self):
    np.testing.assert_array_equal(self.draw(), self.samples)
    testing.assert_same_images(self.draw(batch_size=2), self.samples)
    with Image.open(os.path.join(self.workdir, 'samples', 'samples_7_levels.png')) as picture:
      self.assertEqual(picture.size, (910, 204))  # of all five, though two were drawn at once

  def test_another_seed_gives_others(self):
    others = self.draw(seed=1)
    self.assertGreater(np.mean(others != self.samples), 0.5)
    np.testing.assert_array_equal(self.read('samples_7_seed1.npz'), others)

  def test_samples_drawn_otherwise_are_beside_the_first(self):
    path = np.zeros((7, 5, 8, 8, 1), np.float32)
    drawn = [(np.full((n, 8, 8, 1), n, np.uint8), path) for n in (5, 6, 4)]
    with mock.patch.object(sample, '_draw', side_effect=drawn), self.assertLogs('diffusion_ebm', 'INFO') as logs:
      for changes in ({}, {'denoise': True}, {'num_samples': 4}):
        self.draw(seed=2, **changes)
    lines = [record.getMessage() for record in logs.records if 'holds results' in record.getMessage()]
    self.assertEqual(
      lines,
      [
        'samples_7_seed2 holds results of other inputs (num_samples, sampling): these are in samples_7_seed2_2',
        'samples_7_seed2 holds results of other inputs (num_samples): these are in samples_7_seed2_3',
      ],
    )
    for name, (expected, _) in zip(('', '_2', '_3'), drawn, strict=True):
      np.testing.assert_array_equal(self.read(f'samples_7_seed2{name}.npz'), expected)

  def test_chains_may_be_longer_than_in_training(self):
    longer = self.draw(num_steps=4)
    self.assertGreater(np.mean(longer != self.samples), 0.1)
    np.testing.assert_array_equal(self.draw(generation_steps=4), longer)

  def test_a_step_that_is_not_there_is_refused_with_those_that_are(self):
    with self.assertRaisesRegex(UserError, 'no checkpoint of step 8 in .*; steps that are there: 7$'):
      self.draw(step=8)
    self.assertEqual(self.draw(step=7).shape, self.samples.shape)

  def test_another_network_is_refused(self):
    config = testing.digits_config()
    config.model.ch = 16
    with self.assertRaisesRegex(UserError, r'model\.ch \(8 there, 16 here\)'):
      sample.run(config, self.workdir)

  def test_senseless_numbers_are_refused(self):
    with self.assertRaisesRegex(UserError, 'sampling.num_samples is 0'):
      self.draw(num_samples=0)
    for seed in (-1, 2**32):
      with self.assertRaisesRegex(UserError, f'--seed is {seed}'):
        self.draw(seed=seed)

  def test_chains_that_diverge_are_refused_and_leave_no_samples(self):
    workdir = self.enterContext(tempfile.TemporaryDirectory())
    config = testing.toy2d_config()
    nothing = testing.nothing(config)
    testing.save_first_state(config, workdir, step=7, ema_params=nothing)
    with self.assertRaisesRegex(UserError, 'diverged at step 7'):
      sample.run(config, workdir)
    self.assertEmpty(os.listdir(os.path.join(workdir, 'samples')))

  def test_a_workdir_without_checkpoints_is_refused_and_left_alone(self):
    workdir = self.enterContext(tempfile.TemporaryDirectory())
    with self.assertRaisesRegex(UserError, 'no checkpoint: train first'):
      sample.run(testing.digits_config(), workdir)
    self.assertEmpty(os.listdir(workdir))


if __name__ == '__main__':
  absltest.main()
