"""Runs in odd places: a workdir that was moved, is a link or has an odd name, and a home that cannot be written."""

import os
import shutil
import subprocess
import sys
import tempfile

from absl.testing import absltest
import jax
import numpy as np

from diffusion_ebm.jobs import sample, train
from tests import testing

_NAMES = ('a b', ' a ', '🦊é', 'new\nline', '-dash', '~', '$HOME', 'a:b,c=d', '"\'', '{x}%20#;')


@testing.long
class OddPlacesTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.original = os.path.join(cls.enterClassContext(tempfile.TemporaryDirectory()), 'run')
    cls.config = testing.toy2d_config(num_steps=2)
    cls.config.sampling.num_samples = 4
    train.run(cls.config, cls.original)
    sample.run(cls.config, cls.original)
    cls.samples = cls.read_samples(cls.original)

  def setUp(self):
    super().setUp()
    self.folder = self.enterContext(tempfile.TemporaryDirectory())
    shutil.copytree(self.original, os.path.join(self.folder, 'run'))
    self.addCleanup(os.chdir, os.getcwd())
    os.chdir(self.folder)

  @staticmethod
  def read_samples(workdir):
    with np.load(os.path.join(workdir, 'samples', 'samples_2.npz')) as file:
      return file['samples']

  def assert_same_run(self, workdir):
    state, batches_read = testing.restore(self.config, workdir)
    expected, _ = testing.restore(self.config, self.original)
    jax.tree.map(np.testing.assert_array_equal, state, expected)
    self.assertEqual(batches_read, 2)

  def assert_goes_on(self, workdir):
    """And as it would have gone on in its first place."""
    first = os.path.join(self.enterContext(tempfile.TemporaryDirectory()), 'run')
    shutil.copytree(self.original, first)
    config = testing.toy2d_config(num_steps=3)
    states = []
    for each in (workdir, first):
      train.run(config, each)
      self.assertEqual(testing.steps_of(each), [2, 3])
      states.append(testing.restore(config, each)[0])
    jax.tree.map(np.testing.assert_array_equal, *states)

  def test_it_is_the_same_run_under_every_name(self):
    before = 'run'
    for name in _NAMES:
      with self.subTest(name):
        os.rename(before, name)
        self.assert_same_run(name)
        self.assert_same_run(os.path.join(self.folder, name))
        before = name
    self.assert_goes_on(before)

  def test_it_is_the_same_run_behind_links(self):
    os.rename(os.path.join('run', 'checkpoints'), 'on_another_disk')
    os.symlink(os.path.join(self.folder, 'on_another_disk'), os.path.join('run', 'checkpoints'))
    os.symlink('run', 'link')
    self.assert_same_run('link')
    self.assert_goes_on('link')
    self.assertCountEqual(os.listdir('on_another_disk'), ['2', '3'])
    self.assertTrue(os.path.islink('link') and os.path.islink(os.path.join('run', 'checkpoints')))

  def test_the_command_line_takes_an_odd_name_where_no_home_can_be_written(self):
    name = '-🦊\n é'
    os.rename('run', name)
    shutil.rmtree(os.path.join(name, 'samples'))
    env = {
      key: value for key, value in os.environ.items() if key not in ('JAX_COMPILATION_CACHE_DIR', 'XDG_CACHE_HOME')
    }
    main = os.path.join(testing.ROOT, 'main.py')
    result = subprocess.run(
      [sys.executable, main, '--workdir', name, '--mode=sample', '--num_samples=4'],
      env=env | {'HOME': '/dev/null/home', 'JAX_PLATFORMS': 'cpu'},
      capture_output=True,
      text=True,
      check=False,
    )
    self.assertEqual(result.returncode, 0, result.stderr)
    np.testing.assert_allclose(self.read_samples(name), self.samples, rtol=1e-5)
    self.assertEqual(os.listdir(), [name])


if __name__ == '__main__':
  absltest.main()
