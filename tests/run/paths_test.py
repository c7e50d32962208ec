"""Paths as the user gives them, in every option that takes one."""

import os
import subprocess
import sys
import tempfile
from unittest import mock

from absl.testing import absltest, parameterized
import numpy as np

from diffusion_ebm.data import external_images, first, image_files
from diffusion_ebm.evaluate import feature_statistics, inception_weights
from diffusion_ebm.jobs import inpaint
from diffusion_ebm.run import paths
from diffusion_ebm.run.errors import UserError
from tests import testing


class PathsTest(parameterized.TestCase):
  @parameterized.parameters(
    ('runs/a', 'runs/a'),
    ('', ''),
    ('~/runs', '/home/me/runs'),
    ('file:///tmp/a%20b', '/tmp/a b'),
    ('file://localhost/tmp/a', '/tmp/a'),
    ('runs/[a]*', 'runs/[a]*'),
    ('C:/runs', 'C:/runs'),
    ('a$HOME', 'a$HOME'),
  )
  def test_it_is_literal_but_for_the_home_and_file(self, given, expected):
    with mock.patch.dict(os.environ, {'HOME': '/home/me'}):
      self.assertEqual(paths.local(given, '--x'), expected)

  @parameterized.parameters('gs://bucket/a', 's3://bucket/a', 'https://host/a', 'hdfs://host/a')
  def test_other_storage_is_refused_by_name(self, given):
    with self.assertRaisesRegex(UserError, f'^--x={given}: [a-z0-9]*:// is not supported: name a local'):
      paths.local(given, '--x')

  def test_what_the_locale_cannot_read_is_said_to_be_that(self):
    with self.assertRaisesRegex(
      UserError, r"--x='/tmp/l\\udcc3' holds characters that this locale cannot read: set LC"
    ):
      paths.local('/tmp/l\udcc3', '--x')

  @parameterized.parameters('runs/ch_mult=[1,2]', 'a*', 'what?', 'back\\slash')
  def test_a_workdir_that_orbax_would_take_for_a_pattern_is_refused(self, given):
    with self.assertRaisesRegex(UserError, 'with which checkpoints could not be read again: choose another name'):
      paths.workdir(given)

  @parameterized.parameters('runs/a b', 'runs/ä', "it's", 'a,b=c', '{x}', 'a%b', 'a#b')
  def test_other_odd_names_are_taken(self, given):
    self.assertEqual(paths.workdir(given), given)

  def test_every_option_expands_the_home(self):
    home = self.enterContext(tempfile.TemporaryDirectory())
    os.makedirs(os.path.join(home, 'folder'))
    testing_image = np.zeros((4, 4), np.uint8)
    testing_image[:, :2] = 255
    from PIL import Image

    Image.fromarray(testing_image).save(os.path.join(home, 'folder', 'mask.png'))
    np.savez(os.path.join(home, 'moments.npz'), mu=np.zeros(2), sigma=np.eye(2))
    with mock.patch.dict(os.environ, {'HOME': home}):
      self.assertLen(image_files.list_files('~/folder').names, 1)
      np.testing.assert_array_equal(feature_statistics.load_given('~/moments.npz', 2)[1], np.eye(2))
      self.assertEqual(inception_weights.find('~/moments.npz'), os.path.join(home, 'moments.npz'))
      self.assertEqual(inpaint._load_mask('~/folder/mask.png', (4, 4), 0)[0], 'mask')
      config = testing.digits_config()
      config.data.image_size = 4
      self.assertLen(external_images.load_elsewhere(config.data, '~/folder/mask.png', 'images', first(5)), 1)


@testing.long
class CommandLineTest(absltest.TestCase):
  def run_main(self, *args, **env):
    return subprocess.run(
      [sys.executable, 'main.py', *args],
      cwd=testing.ROOT,
      capture_output=True,
      text=True,
      check=False,
      env=os.environ | {'JAX_PLATFORMS': 'cpu'} | env,
    )

  def test_a_workdir_in_a_flagfile_is_that_of_its_own_configuration(self):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    config = testing.toy2d_config()
    os.makedirs(os.path.join(folder, 'run'))
    testing.save_first_state(config, os.path.join(folder, 'run'))
    with open(os.path.join(folder, 'flags'), 'w', encoding='utf-8') as file:
      file.write('--workdir=~/run\n--mode=sample\n--num_samples=4\n')
    result = self.run_main(f'--flagfile={folder}/flags', HOME=folder, XDG_CACHE_HOME='/dev/null/cache')
    self.assertEqual(result.returncode, 0, result.stderr)
    with np.load(os.path.join(folder, 'run', 'samples', 'samples_0.npz')) as file:
      self.assertEqual(file['samples'].shape, (4, 2))

  def test_a_platform_that_is_not_there_and_double_precision_are_one_line(self):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    for env, message in (
      ({'JAX_PLATFORMS': 'nonsense'}, 'JAX finds no device of JAX_PLATFORMS=nonsense'),
      ({'JAX_ENABLE_X64': '1'}, 'JAX_ENABLE_X64 is set, but parameters and checkpoints are float32: unset it'),
    ):
      result = self.run_main(f'--workdir={folder}/run', **env)
      self.assertEqual(result.returncode, 2, result.stderr)
      self.assertStartsWith(result.stderr, f'error: {message}')
      self.assertLen(result.stderr.splitlines(), 1)
    self.assertEmpty(os.listdir(folder))


if __name__ == '__main__':
  absltest.main()
