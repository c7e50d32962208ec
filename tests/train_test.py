"""The training job, whole, on tiny networks."""

import os
import re
import signal
import subprocess
import sys
import tempfile
from unittest import mock

from absl.testing import absltest
import jax
import numpy as np
from PIL import Image

from diffusion_ebm import config as config_lib
from diffusion_ebm import metrics, sample, train
from diffusion_ebm import model as model_lib
from diffusion_ebm.errors import DivergedError, InterruptedRun, UserError
from tests import testing


def largest_change(before, after):
  return max(float(np.max(np.abs(np.subtract(a, b)))) for a, b in
             zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True))


class TrainTest(absltest.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.workdir = cls.enterClassContext(tempfile.TemporaryDirectory())
    train.train(testing.digits_config(), cls.workdir)
    cls.state, cls.batches = testing.restore(testing.digits_config(), cls.workdir)

  def setUp(self):
    super().setUp()
    self.folder = self.enterContext(tempfile.TemporaryDirectory())

  def assert_same_as_at_once(self, workdir):
    state, batches = testing.restore(testing.digits_config(), workdir)
    self.assertEqual(batches, self.batches)
    jax.tree.map(np.testing.assert_array_equal, state, self.state)  # all of it: no tolerance
    for ours, at_once in zip(testing.records(workdir), testing.records(self.workdir), strict=True):
      self.assertEqual((ours['step'], ours['loss']), (at_once['step'], at_once['loss']))

  def test_results_are_in_the_workdir(self):
    self.assertEqual(config_lib.load(self.workdir).to_dict(), testing.digits_config().to_dict())
    self.assertEqual(testing.steps_of(self.workdir), [2, 4])
    self.assertEqual(os.listdir(os.path.join(self.workdir, 'samples')), ['training_00000004.png'])
    with Image.open(os.path.join(self.workdir, 'samples', 'training_00000004.png')) as picture:
      self.assertGreater(np.asarray(picture).std(), 10)
    board = os.path.join(self.workdir, 'tensorboard')
    (name,) = os.listdir(board)
    with open(os.path.join(board, name), 'rb') as file:
      events = file.read()
    for tag in (b'loss', b'level_loss/0', b'samples'):
      self.assertIn(tag, events)

  def test_each_record_has_the_averages_and_the_statistics_of_each_level(self):
    self.assertEqual([record['step'] for record in testing.records(self.workdir)], [1, 2, 3, 4])
    seen = set()
    for record in testing.records(self.workdir):
      self.assertContainsSubset({'loss', 'grad_norm', 'learning_rate', 'images_per_s'}, record)
      levels = [{key.partition('/')[2] for key in record if key.startswith(name + '/')}
                for name in ('level_loss', 'level_f', 'level_displacement')]
      self.assertTrue(levels[0] and levels[0] == levels[1] == levels[2], record)
      self.assertContainsSubset(levels[0], set('012345'))
      seen |= levels[0]
      self.assertTrue(all(np.isfinite(value) for value in record.values()))
      self.assertGreater(min(record['grad_norm'], record['images_per_s'], record['learning_rate']), 0)
    self.assertGreater(len(seen), 3)

  def test_parameters_and_their_average_learn(self):
    start = model_lib.build(testing.digits_config()).state
    self.assertEqual((int(self.state.step), self.batches), (4, 4))
    self.assertGreater(largest_change(start.params, self.state.params), 1e-3)
    moved = largest_change(start.ema_params, self.state.ema_params)
    self.assertGreater(moved, 0)
    self.assertLess(moved, 0.1 * largest_change(start.params, self.state.params))
    self.assertGreater(largest_change(start.spectral, self.state.spectral), 1e-4)

  def test_a_finished_run_says_so_and_changes_nothing(self):
    before = testing.contents(self.workdir)
    with self.assertLogs('diffusion_ebm', 'INFO') as logs:
      train.train(testing.digits_config(), self.workdir)
    self.assertIn('already trained to step 4 of 4', logs.output[-1])
    self.assertEqual(testing.contents(self.workdir), before)

  def test_stopping_and_going_on_equals_not_stopping(self):
    train.train(testing.digits_config(num_steps=2), self.folder)
    self.assertEqual(testing.steps_of(self.folder), [2])
    with self.assertLogs('diffusion_ebm', 'INFO') as logs:
      train.train(testing.digits_config(), self.folder)
    self.assertIn('going on from step 2', '\n'.join(logs.output))
    self.assert_same_as_at_once(self.folder)

  def test_ctrl_c_saves_and_the_next_run_goes_on_from_there(self):
    add = train._Report.add

    def interrupted(report, step, step_metrics):
      add(report, step, step_metrics)
      if step == 3:
        os.kill(os.getpid(), signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    with mock.patch.object(train._Report, 'add', interrupted), self.assertRaisesRegex(
        InterruptedRun, 'step 3, which is saved') as caught:
      train.train(testing.digits_config(), self.folder)
    self.assertEqual(caught.exception.exit_code, 130)
    self.assertIs(signal.getsignal(signal.SIGINT), handler)
    self.assertEqual(testing.steps_of(self.folder), [2, 3])
    train.train(testing.digits_config(), self.folder)
    self.assert_same_as_at_once(self.folder)

  def test_steps_done_again_after_a_crash_are_recorded_once(self):
    # As if killed after the record of step 4 but before its checkpoint.
    train.train(testing.digits_config(num_steps=2), self.folder)
    with open(os.path.join(self.folder, 'metrics.jsonl'), 'a', encoding='utf-8') as file:
      file.write('{"step": 3, "loss": 99.0}\n{"step": 4, "loss": 99.0}\n{"step": 5, "lo')
    train.train(testing.digits_config(), self.folder)
    self.assert_same_as_at_once(self.folder)

  def test_another_configuration_is_refused_key_by_key(self):
    before = testing.contents(self.workdir)
    config = testing.digits_config(learning_rate=1e-5, log_every=3)
    config.seed = 1
    with self.assertRaises(UserError) as caught:
      train.train(config, self.workdir)
    message = str(caught.exception)
    self.assertIn('seed (0 there, 1 here)', message)
    self.assertIn('train.learning_rate (0.002 there, 1e-05 here)', message)
    self.assertNotIn('log_every', message)
    self.assertEqual(testing.contents(self.workdir), before)

  def test_a_batch_that_the_devices_cannot_share_is_refused_before_anything_is_written(self):
    workdir = os.path.join(self.folder, 'run')
    with mock.patch.object(jax, 'device_count', lambda: 3), self.assertRaisesRegex(
        UserError, r'train\.batch_size is 8, which 3 devices cannot share'):
      train.train(testing.digits_config(), workdir)
    self.assertFalse(os.path.exists(workdir))

  def test_a_run_that_diverges_names_a_level_and_keeps_what_can_be_restored(self):
    config = testing.digits_config(learning_rate=1e6, num_steps=50, checkpoint_every=1, sample_every=50)
    with self.assertRaisesRegex(DivergedError, r'level \d.* at step \d+') as caught:
      train.train(config, self.folder)
    self.assertEqual(caught.exception.exit_code, 3)
    self.assertNotIn('\n', str(caught.exception))
    diverged = int(re.search(r'at step (\d+)', str(caught.exception))[1])
    self.assertEqual(testing.steps_of(self.folder)[-1], diverged - 1)
    state, batches = testing.restore(config, self.folder)
    self.assertEqual((int(state.step), batches), (diverged - 1, diverged - 1))
    self.assertTrue(all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state)))

  def test_a_step_that_goes_wrong_between_two_checkpoints_is_not_saved(self):
    check = metrics.check

    def poisoned(step, step_metrics, dimension):
      if step == 3:
        step_metrics['level_displacement'] = np.where(np.arange(6) == 2, np.nan, 1.0)
      check(step, step_metrics, dimension)

    with mock.patch.object(metrics, 'check', poisoned), self.assertRaisesRegex(
        DivergedError, 'level 2 diverged at step 3'):
      train.train(testing.digits_config(), self.folder)
    self.assertEqual(testing.steps_of(self.folder), [2])
    train.train(testing.digits_config(), self.folder)
    self.assert_same_as_at_once(self.folder)

  def test_two_devices_train_and_sample_as_one(self):
    result = subprocess.run(
        [sys.executable, '-c', 'import sys; from tests import testing; testing.train_and_sample(sys.argv[1])',
         self.folder], cwd=testing.ROOT, capture_output=True, text=True, check=False,
        env=os.environ | {'XLA_FLAGS': '--xla_force_host_platform_device_count=2', 'JAX_PLATFORMS': 'cpu'})
    self.assertEqual(result.returncode, 0, result.stderr)
    self.assertEqual(result.stdout.splitlines()[-1], '2 devices')
    state, batches = testing.restore(testing.digits_config(), self.folder)
    self.assertEqual((int(state.step), batches), (4, 4))
    for tree in ('params', 'ema_params'):
      jax.tree.map(
          lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * max(np.max(np.abs(b)), 0.1)),
          getattr(state, tree), getattr(self.state, tree))
    sample.sample(testing.digits_config(), self.workdir, 5, 0)
    one, two = (np.load(os.path.join(workdir, 'samples', 'samples_4.npz'))['samples'].astype(int)
                for workdir in (self.workdir, self.folder))
    self.assertEqual(one.shape, (5, 8, 8, 1))
    self.assertLessEqual(np.max(np.abs(one - two)), 1)  # a value on the edge may round to either side
    self.assertLess(np.mean(one != two), 0.02)
    for name in ('samples_4.npz', 'samples_4.png', 'samples_4_levels.png'):
      os.remove(os.path.join(self.workdir, 'samples', name))


class ToyTest(absltest.TestCase):

  def test_points_are_trained_and_sampled_with_densities_in_the_picture(self):
    workdir = self.enterContext(tempfile.TemporaryDirectory())
    config = testing.toy2d_config(num_steps=2)
    with mock.patch.object(train, '_NUM_POINTS', 16):
      train.train(config, workdir)
    sample.sample(config, workdir, 20, 0)
    with np.load(os.path.join(workdir, 'samples', 'samples_2.npz'), allow_pickle=False) as file:
      self.assertEqual((file['samples'].dtype, file['samples'].shape), (np.float32, (20, 2)))
      self.assertLen(np.unique(file['samples'], axis=0), 20)
    self.assertCountEqual(
        os.listdir(os.path.join(workdir, 'samples')),
        ['samples_2.npz', 'samples_2.png', 'samples_2_levels.png', 'training_00000002.png'])
    self.assertGreater(largest_change(
        model_lib.build(config).state.params, testing.restore(config, workdir)[0].params), 0)


if __name__ == '__main__':
  absltest.main()
