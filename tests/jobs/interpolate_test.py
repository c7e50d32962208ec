"""The interpolation job, on a network that has not learned anything."""

import json
import os
import tempfile
from unittest import mock

from absl.testing import absltest
import numpy as np
from PIL import Image

from diffusion_ebm import interpolation
from diffusion_ebm.jobs import interpolate, sample
from diffusion_ebm.run import files
from diffusion_ebm.run.errors import UserError
from tests import testing


class InterpolateTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.workdir = cls.enterClassContext(tempfile.TemporaryDirectory())
    testing.save_first_state(testing.digits_config(), cls.workdir, step=7)

  def config(self, batch_size=5, **changes):
    config = testing.digits_config()
    config.sampling.update({'batch_size': batch_size, 'num_samples': 4})
    config.interpolate.update({'num_strips': 2, 'frames': 4} | changes)
    return config

  def read(self, *path):
    return files.read_npz(os.path.join(self.workdir, *path))

  def test_a_strip_runs_from_one_sample_to_another(self):
    strips = interpolate.run(self.config(), self.workdir)
    np.testing.assert_array_equal(self.read('interpolation', 'interpolation_7.npz')['strips'], strips)
    sample.run(self.config(), self.workdir)
    samples = self.read('samples', 'samples_7.npz')['samples']
    testing.assert_same_images(strips[:, 0], samples[::2])
    testing.assert_same_images(strips[:, -1], samples[1::2])
    testing.assert_same_images(interpolate.run(self.config(batch_size=3), self.workdir), strips)
    with open(os.path.join(self.workdir, 'interpolation', 'interpolation_7.json'), encoding='utf-8') as file:
      written = json.load(file)
    steps = interpolation.path_lengths(strips)
    np.testing.assert_allclose(written['largest_step'], steps.max(1))
    np.testing.assert_allclose(written['median_step'], np.median(steps, 1))
    self.assertEqual((written['inputs']['num_strips'], written['inputs']['frames']), (2, 4))
    with Image.open(os.path.join(self.workdir, 'interpolation', 'interpolation_7.png')) as picture:
      self.assertEqual(picture.size, (4 * 42, 2 * 42))

  def test_other_strips_are_beside_the_first(self):
    def no_strips(config, ebm, proposal, shape, seed, step):
      frames = np.full((config.interpolate.num_strips, config.interpolate.frames, *shape), 0.5)
      return frames[..., 0, 0, 0], frames

    with mock.patch.object(interpolate, '_strips', no_strips):
      for frames in (4, 5, 4):
        interpolate.run(self.config(frames=frames), self.workdir, seed=1)
    for name, frames in (('7_seed1', 4), ('7_seed1_2', 5)):
      self.assertEqual(self.read('interpolation', f'interpolation_{name}.npz')['strips'].shape[1], frames)
    self.assertNotIn('interpolation_7_seed1_3.npz', os.listdir(os.path.join(self.workdir, 'interpolation')))

  def test_too_few_frames_or_strips_are_refused(self):
    for changes, seed, message in (
      ({'num_strips': 0}, 0, r'interpolate\.num_strips is 0'),
      ({'frames': 1}, 0, r'interpolate\.frames is 1'),
      ({}, -1, '--seed'),
    ):
      with self.assertRaisesRegex(UserError, message):
        interpolate.run(self.config(**changes), self.workdir, seed)

  def test_points_are_refused(self):
    with self.assertRaisesRegex(UserError, 'is for images, not for toy2d'):
      interpolate.run(testing.toy2d_config(), 'unused')


if __name__ == '__main__':
  absltest.main()
