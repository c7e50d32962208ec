"""The same answer on any number of devices and processes."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from unittest import mock

from absl.testing import absltest
import jax
import numpy as np
from PIL import Image

from diffusion_ebm import config as config_lib
from diffusion_ebm.evaluate import classifier
from diffusion_ebm.jobs import inpaint, interpolate, ood
from diffusion_ebm.run import checkpoints, files
from tests import forks, testing

NUM_STEPS, HALF = 20, 10
# Sums over the devices round differently, and training amplifies it; measured after 20 steps: 2e-7 of the norm of all
# parameters, 9e-5 of the largest element of an array whose gradient is nearly zero.
TOLERANCE = 1e-5


def config():
  return testing.convolutional(testing.proposal_config(NUM_STEPS))


def free_port():
  with socket.socket() as found:
    found.bind(('127.0.0.1', 0))
    return found.getsockname()[1]


def of_two(*args, **changes):
  """The command lines of two processes with two devices each, on the loopback address."""
  address = f'127.0.0.1:{free_port()}'
  return [
    {'args': [*args, f'--coordinator={address}', '--num_processes=2', f'--process_id={i}'], 'devices': 2}
    | (changes if i == 1 else {})
    for i in range(2)
  ]


class CodesTest(absltest.TestCase):
  def assert_codes(self, results, *codes):
    self.assertEqual([code for code, _ in results], list(codes), '\n'.join(text for _, text in results))


@testing.long
class DevicesTest(CodesTest):
  @classmethod
  def setUpClass(cls):
    """Trains on 1, 2, 4 and 8 devices, in folders of these names."""
    super().setUpClass()
    cls.folder = cls.enterClassContext(tempfile.TemporaryDirectory())
    result = subprocess.run(
      [
        sys.executable,
        '-c',
        'import sys; from tests import testing; testing.train_on_devices(*sys.argv[1:])',
        cls.folder,
        str(NUM_STEPS),
      ],
      cwd=testing.ROOT,
      capture_output=True,
      text=True,
      check=False,
      env=os.environ | {'XLA_FLAGS': forks.xla_flags(8), 'JAX_PLATFORMS': 'cpu'},
    )
    if result.returncode:
      raise AssertionError(result.stderr)
    cls.output = result.stdout

  def copied(self, devices, up_to=NUM_STEPS):
    """A copy of the run on so many devices, as it was at a step."""
    workdir = os.path.join(self.enterContext(tempfile.TemporaryDirectory()), 'run')
    shutil.copytree(os.path.join(self.folder, str(devices)), workdir)
    for step in checkpoints.steps(workdir):
      if step > up_to:
        shutil.rmtree(os.path.join(checkpoints.directory(workdir), str(step)))
    return workdir

  def assert_same(self, workdir, other, step=NUM_STEPS):
    (ours, read), (theirs, _) = (testing.restore(config(), each, step) for each in (workdir, other))
    self.assertEqual((int(ours.step), read), (step, step))
    for tree in ('params', 'ema_params', 'opt_state', 'spectral', 'proposal'):
      a, b = getattr(ours, tree), getattr(theirs, tree)
      self.assertLess(testing.norm(jax.tree.map(np.subtract, a, b)), TOLERANCE * testing.norm(b), tree)
      # The smallest arrays move the most: 20 steps of Adam amplify the rounding of their sums.
      jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=10 * TOLERANCE * np.max(np.abs(b))), a, b)

  def assert_same_samples(self, one, two):
    one, two = (
      files.read_npz(os.path.join(workdir, 'samples', f'samples_{NUM_STEPS}.npz'))['samples'] for workdir in (one, two)
    )
    self.assertEqual(one.shape, (5, 8, 8, 1))
    self.assertGreater(one.std(), 10)
    testing.assert_same_images(one, two)

  def test_parameters_and_samples_are_the_same_on_1_2_4_and_8_devices(self):
    self.assertEqual(self.output.split(), ['1', '2', '4', '8'])
    for devices in ('2', '4', '8'):
      with self.subTest(devices):
        one, many = os.path.join(self.folder, '1'), os.path.join(self.folder, devices)
        self.assert_same(many, one)
        self.assert_same_samples(many, one)

  def test_two_processes_are_as_one_and_continue_each_others_checkpoints(self):
    # Two processes, of which one is told to stop half way; then one process with four devices; and the other way.
    two_then_one = os.path.join(self.enterContext(tempfile.TemporaryDirectory()), 'run')
    one_then_two = self.copied(4, HALF)
    os.mkdir(two_then_one)
    config_lib.save(config_lib.resolve(config()), two_then_one)
    first, finished, drawn = forks.run(
      [
        of_two(f'--workdir={two_then_one}', term_at=HALF - 2),
        [{'args': [f'--workdir={two_then_one}'], 'devices': 4}, *of_two(f'--workdir={one_then_two}')],
        of_two(f'--workdir={one_then_two}', '--mode=sample', '--num_samples=5'),
      ]
    )
    self.assert_codes(first, 143, 143)
    stopped = [re.search(r'stopped at step (\d+), which is saved', text) for _, text in first]
    self.assertTrue(all(stopped), first)
    self.assertEqual(*(match[1] for match in stopped))
    self.assertIn(int(stopped[0][1]), range(HALF - 2, NUM_STEPS))
    self.assert_codes(finished, 0, 0, 0)
    self.assertIn(f'going on from step {stopped[0][1]}\n', finished[0][1])
    four = os.path.join(self.folder, '4')
    self.assert_same(two_then_one, four)
    self.assert_same(one_then_two, four)
    self.assert_codes(drawn, 0, 0)
    self.assert_same_samples(one_then_two, four)

    # Logs, metrics and pictures are those of one process.
    for _, text in (first[1], finished[2], drawn[1]):
      self.assertNotIn('loss', text)
      self.assertNotIn('compil', text)
    for workdir in (two_then_one, one_then_two):
      self.assertEqual([record['step'] for record in testing.records(workdir)], [5, 10, 15, 20])
    self.assertLen(os.listdir(os.path.join(two_then_one, 'samples')), 1)


@testing.long
class JobsTest(absltest.TestCase):
  """What is done with a trained model, in this process and in one with two devices."""

  def test_two_devices_do_as_one(self):
    one, two = (self.enterContext(tempfile.TemporaryDirectory()) for _ in range(2))
    config = testing.jobs_config()
    for workdir in (one, two):
      testing.save_first_state(config, workdir, step=7)
    result = subprocess.run(
      [sys.executable, '-c', 'import sys; from tests import testing; testing.sample_and_more(sys.argv[1])', two],
      cwd=testing.ROOT,
      capture_output=True,
      text=True,
      check=False,
      env=os.environ | {'XLA_FLAGS': forks.xla_flags(2), 'JAX_PLATFORMS': 'cpu'},
    )
    self.assertEqual(result.returncode, 0, result.stderr)
    self.assertEqual(result.stdout.splitlines()[-1], '2 devices')
    for what in ('inpainting', 'interpolating', 'energies'):
      self.assertRegex(result.stderr, rf'{what} at step 7 \d+/\d+')
    with mock.patch.object(classifier, '_STEPS', 5):
      testing.assert_same_images(
        files.read_npz(os.path.join(two, 'inpainting', 'inpaint_7_top.npz'))['completions'], inpaint.run(config, one)
      )
    testing.assert_same_images(
      files.read_npz(os.path.join(two, 'interpolation', 'interpolation_7.npz'))['strips'], interpolate.run(config, one)
    )
    with open(os.path.join(two, 'ood', 'ood_7.json'), encoding='utf-8') as file:
      theirs = json.load(file)['mean_log_density']
    for name, of_level in ood.run(config, one)['mean_log_density'].items():
      np.testing.assert_allclose(list(theirs[name].values()), list(of_level.values()), rtol=1e-3, atol=0.1)


@testing.long
class RefusedTest(CodesTest):
  def test_what_one_process_refuses_ends_all(self):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    workdir, there = os.path.join(folder, 'run'), os.path.join(folder, 'images')
    os.mkdir(there)
    Image.new('L', (9, 9)).save(os.path.join(there, 'image.png'))
    digits = [f'--workdir={workdir}', '--config=configs/digits.py']
    images = [f'--workdir={workdir}', '--config=configs/images.py']
    address = [f'--coordinator=127.0.0.1:{free_port()}', '--num_processes=2', '--process_id=0']
    other, missing, (alone, incomplete, evaluating) = forks.run(
      [
        [{**command, 'args': command['args'] + [f'--config.seed={i}']} for i, command in enumerate(of_two(*digits))],
        [
          {**command, 'args': command['args'] + [f'--config.data.path={there if i else "nowhere"}']}
          for i, command in enumerate(of_two(*images))
        ],
        [
          {'args': [*digits, '--num_processes=2', '--process_id=0']},
          {'args': [*digits, *address[:2]]},
          {'args': [*digits, *address, '--mode=eval']},
        ],
      ]
    )
    for result, message in (
      (other, 'process 1 has another configuration than process 0'),
      (missing, 'nowhere does not exist'),
    ):
      self.assert_codes(result, 2, 2)
      for _, text in result:
        self.assertRegex(text, message)
    for (code, text), name in ((alone, '--coordinator'), (incomplete, '--process_id')):
      self.assertEqual(code, 2)
      self.assertRegex(text, rf'\Aerror: .* go together; missing: {name}\n\Z')
    self.assertEqual(
      evaluating, (2, 'error: --mode=eval runs in one process: leave --distributed and --coordinator out\n')
    )
    self.assertFalse(os.path.exists(workdir))


if __name__ == '__main__':
  absltest.main()
