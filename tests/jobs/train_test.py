"""The training job, whole, on tiny networks."""

import contextlib
import errno
import io
import os
import re
import shutil
import signal
import tempfile
import time
from unittest import mock

from absl.testing import absltest
import jax
import numpy as np
from PIL import Image

from configs import toy2d_cdrl
from diffusion_ebm import bad_step_file, data, trained, training_metrics
from diffusion_ebm import config as config_lib
from diffusion_ebm.jobs import replay_bad_step, sample, train
from diffusion_ebm.run import checkpoints, parallel, writers
from diffusion_ebm.run import workdir as workdir_lib
from diffusion_ebm.run.errors import DivergedError, InterruptedRun, PreemptedRun, SaveError, UserError
from tests import testing


def largest_change(before, after):
  return max(
    float(np.max(np.abs(np.subtract(a, b))))
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
  )


class TrainTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.workdir = cls.enterClassContext(tempfile.TemporaryDirectory())
    train.run(testing.digits_config(), cls.workdir)
    cls.state, cls.batches = testing.restore(testing.digits_config(), cls.workdir)

  def setUp(self):
    super().setUp()
    # Of a save that failed, Orbax may still write when the test has ended.
    self.folder = self.enterContext(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))

  def assert_same_as_at_once(self, workdir):
    state, batches = testing.restore(testing.digits_config(), workdir)
    self.assertEqual(batches, self.batches)
    jax.tree.map(np.testing.assert_array_equal, state, self.state)  # all of it: no tolerance
    for ours, at_once in zip(testing.records(workdir), testing.records(self.workdir), strict=True):
      self.assertEqual((ours['step'], ours['loss']), (at_once['step'], at_once['loss']))

  def killing(self, at, number):
    """Stands in for `_Report.add`: sends this process a signal in that step."""
    add = train._Report.add

    def signalling(report, step, *args):
      add(report, step, *args)
      if step == at:
        os.kill(os.getpid(), number)

    return signalling

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
      levels = [
        {key.partition('/')[2] for key in record if key.startswith(name + '/')}
        for name in ('level_loss', 'level_f', 'level_displacement')
      ]
      self.assertTrue(levels[0] and levels[0] == levels[1] == levels[2], record)
      self.assertContainsSubset(levels[0], set('012345'))
      seen |= levels[0]
      self.assertTrue(all(np.isfinite(value) for value in record.values()))
      self.assertGreater(min(record['grad_norm'], record['images_per_s'], record['learning_rate']), 0)
    self.assertGreater(len(seen), 3)

  def test_parameters_and_their_average_learn(self):
    start = testing.first_state(testing.digits_config())
    self.assertEqual((int(self.state.step), self.batches), (4, 4))
    self.assertGreater(largest_change(start.params, self.state.params), 1e-3)
    moved = largest_change(start.ema_params, self.state.ema_params)
    self.assertGreater(moved, 0)
    self.assertLess(moved, 0.1 * largest_change(start.params, self.state.params))
    self.assertGreater(largest_change(start.spectral, self.state.spectral), 1e-4)

  def test_a_finished_run_says_so_and_changes_nothing(self):
    before = testing.contents(self.workdir)
    with self.assertLogs('diffusion_ebm', 'INFO') as logs:
      train.run(testing.digits_config(), self.workdir)
    self.assertIn('already trained to step 4 of 4', logs.output[-1])
    self.assertIn('raise --config.train.num_steps to go on', logs.output[-1])
    self.assertEqual(testing.contents(self.workdir), before)

  def test_a_finished_run_with_cosine_decay_says_how_to_train_longer(self):
    config = testing.digits_config(cosine_decay=True)
    with self.assertLogs('diffusion_ebm', 'INFO') as logs:
      train._describe(config, None, mock.Mock(step=4))
    self.assertRegex(logs.output[0], 'with cosine decay, use another --workdir and --config.train.init_from=THIS_ONE')

  def test_stopping_and_going_on_equals_not_stopping(self):
    train.run(testing.digits_config(num_steps=2), self.folder)
    self.assertEqual(testing.steps_of(self.folder), [2])
    with self.assertLogs('diffusion_ebm', 'INFO') as logs:
      train.run(testing.digits_config(), self.folder)
    self.assertIn('going on from step 2', '\n'.join(logs.output))
    self.assert_same_as_at_once(self.folder)

  @testing.long
  def test_a_clock_that_goes_back_to_2001_changes_nothing(self):
    train.run(testing.digits_config(num_steps=2), self.folder)
    now, now_ns, back = time.time, time.time_ns, time.time() - 1_000_000_000
    with (
      mock.patch.object(time, 'time', lambda: now() - back),
      mock.patch.object(time, 'time_ns', lambda: now_ns() - int(back) * 10**9),
    ):
      self.assertEqual(time.gmtime(time.time()).tm_year, 2001)
      train.run(testing.digits_config(), self.folder)
      for path, _, names in os.walk(os.path.join(checkpoints.directory(self.folder), '4')):
        for name in names:
          os.utime(os.path.join(path, name), (time.time(), time.time()))
      self.assertEqual(testing.steps_of(self.folder), [2, 4])
      self.assert_same_as_at_once(self.folder)  # of the newest by number, not by date

  def test_ctrl_c_saves_and_the_next_run_goes_on_from_there(self):
    handler = signal.getsignal(signal.SIGINT)
    with (
      mock.patch.object(train._Report, 'add', self.killing(3, signal.SIGINT)),
      self.assertRaisesRegex(InterruptedRun, 'step 3, which is saved') as caught,
    ):
      train.run(testing.digits_config(), self.folder)
    self.assertEqual(caught.exception.exit_code, 130)
    self.assertIs(signal.getsignal(signal.SIGINT), handler)
    self.assertEqual(testing.steps_of(self.folder), [2, 3])
    train.run(testing.digits_config(), self.folder)
    self.assert_same_as_at_once(self.folder)

  def test_sigterm_is_a_preemption_with_a_code_of_its_own(self):
    with (
      mock.patch.object(train._Report, 'add', self.killing(3, signal.SIGTERM)),
      self.assertRaisesRegex(PreemptedRun, 'step 3, which is saved') as caught,
    ):
      train.run(testing.digits_config(), self.folder)
    self.assertEqual(caught.exception.exit_code, 143)
    self.assertEqual(testing.steps_of(self.folder), [2, 3])
    train.run(testing.digits_config(), self.folder)
    self.assert_same_as_at_once(self.folder)

  def test_a_second_trainer_is_refused_and_the_lock_ends_with_the_first(self):
    with workdir_lib.lock(self.folder):
      with self.assertRaisesRegex(
        UserError, rf'{self.folder} is being trained by process {os.getpid()} on \S+: wait for it, stop it'
      ):
        train.run(testing.digits_config(), self.folder)
      self.assertCountEqual(os.listdir(self.folder), ['samples', 'train.lock'])
    with workdir_lib.lock(self.folder):
      pass
    locks = mock.Mock(side_effect=OSError(errno.ENOLCK, 'No locks available'))
    with mock.patch('fcntl.flock', locks), self.assertLogs('diffusion_ebm', 'WARNING') as logs:
      workdir_lib.lock(self.folder).close()
    self.assertIn('has no locks (No locks available): see yourself', logs.output[0])

  def test_a_damaged_checkpoint_and_the_records_after_the_one_before_it_are_done_again(self):
    shutil.copytree(self.workdir, self.folder, dirs_exist_ok=True)
    lost = os.path.join(checkpoints.directory(self.folder), '4', 'data', 'metadata')
    os.remove(lost)
    with self.assertLogs('diffusion_ebm', 'WARNING') as logs:
      train.run(testing.digits_config(), self.folder)
    self.assertIn(lost, logs.output[0])
    self.assert_same_as_at_once(self.folder)

  def test_a_checkpoint_of_another_run_is_refused_key_by_key(self):
    shutil.copytree(checkpoints.directory(self.workdir), checkpoints.directory(self.folder))
    config = testing.digits_config(learning_rate=1e-5, log_every=3)
    with self.assertRaisesRegex(
      UserError, r'/4 belongs to another configuration: train\.learning_rate \(0\.002 there, 1e-05 here\);'
    ):
      train.run(config, self.folder)

  def test_on_a_full_disk_training_goes_on_but_for_its_last_checkpoint(self):
    save, scalars = checkpoints.Saver.save, writers.Writer.scalars

    def save_once(saver, state, step):
      with testing.full_disk() if step == 2 else contextlib.nullcontext():
        save(saver, state, step)
        saver.wait()

    def write_once(writer, step, values):
      with testing.full_disk() if step == 3 else contextlib.nullcontext():
        scalars(writer, step, values)

    config = testing.digits_config(num_steps=6, sample_every=6)
    with (
      mock.patch.object(checkpoints.Saver, 'save', save_once),
      mock.patch.object(writers.Writer, 'scalars', write_once),
    ):
      with self.assertLogs('diffusion_ebm', 'WARNING') as logs:
        train.run(config, self.folder)
      self.assertRegex(logs.output[0], 'checkpoint of step 2 could not be written .*; going on$')
      self.assertRegex(logs.output[1], 'could not be written .*: free space; going on$')
      self.assertLen(logs.output, 2)
      self.assertEqual(testing.steps_of(self.folder), [4, 6])
      self.assertEqual([record['step'] for record in testing.records(self.folder)], [1, 2, 3, 4, 5, 6])
      config.train.num_steps = 2
      with self.assertRaisesRegex(SaveError, 'checkpoint of step 2 could not be written') as caught:
        train.run(config, os.path.join(self.folder, 'stopped'))
    self.assertEqual(caught.exception.exit_code, 4)

  def test_steps_done_again_after_a_crash_are_recorded_once(self):
    # As if killed after the record of step 4 but before its checkpoint.
    train.run(testing.digits_config(num_steps=2), self.folder)
    with open(os.path.join(self.folder, 'metrics.jsonl'), 'a', encoding='utf-8') as file:
      file.write('{"step": 3, "loss": 99.0}\n{"step": 4, "loss": 99.0}\n{"step": 5, "lo')
    train.run(testing.digits_config(), self.folder)
    self.assert_same_as_at_once(self.folder)

  def start_from(self, path, **changes):
    config = testing.digits_config(num_steps=1, init_from=path)
    config.update_from_flattened_dict(changes)
    train.run(config, os.path.join(self.folder, 'run'))

  @testing.long
  def test_a_run_may_start_from_the_weights_of_another(self):
    other = os.path.join(self.folder, 'other')
    shutil.copytree(self.workdir, other)
    self.addCleanup(os.chdir, os.getcwd())
    os.chdir(self.folder)
    # The first step has learning rate zero.
    self.start_from('other', seed=3, **{'train.beta_1': 0.5, 'data.random_flip': False, 'model.remat': True})
    state, batches = testing.restore(testing.digits_config(), 'run')
    self.assertEqual((int(state.step), batches), (1, 1))
    jax.tree.map(np.testing.assert_array_equal, state.params, self.state.ema_params)
    for ours, theirs in zip(*(jax.tree.leaves(each.ema_params) for each in (state, self.state)), strict=True):
      np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    self.assertGreater(largest_change(state.params, self.state.params), 0)
    self.assertLess(largest_change(state.spectral, self.state.spectral), 0.1)
    self.assertEqual(config_lib.load('run').train.init_from, os.path.abspath('other'))
    # It belongs to the run, which needs the other one no longer.
    shutil.rmtree('other')
    with self.assertRaisesRegex(UserError, r"train\.init_from \('.*/other' there, '' here\)"):
      self.start_from('', seed=3, **{'train.beta_1': 0.5, 'data.random_flip': False})
    changes = {'train.beta_1': 0.5, 'data.random_flip': False, 'train.num_steps': 2}
    self.start_from(os.path.abspath('other'), seed=3, **changes)
    self.assertEqual(testing.steps_of('run'), [1, 2])

  def test_a_run_may_start_from_a_checkpoint_of_another(self):
    path = os.path.join(self.workdir, 'checkpoints', '2')
    config = config_lib.resolve(testing.digits_config(init_from=path))
    trained.check_start(config)
    state = trained.start(config, testing.first_state(config))
    expected, _ = testing.restore(testing.digits_config(), self.workdir, 2)
    jax.tree.map(np.testing.assert_array_equal, state.params, expected.ema_params)
    jax.tree.map(np.testing.assert_array_equal, state.ema_params, expected.ema_params)
    jax.tree.map(np.testing.assert_array_equal, state.spectral, expected.spectral)
    self.assertEqual(int(state.step), 0)
    self.assertEqual(largest_change(state.opt_state, testing.first_state(config).opt_state), 0)

  def test_weights_that_are_not_there_or_do_not_fit_are_refused_before_anything_is_written(self):
    for path, changes, message in (
      (self.workdir, {'model.ch': 16}, r'init_from=.* has another network: model\.ch \(8 there, 16 here\); set these'),
      (self.workdir, {'diffusion.num_levels': 8}, r'has another network: diffusion\.num_levels \(6 there, 8 here\)'),
      (self.folder, {}, '--config.train.init_from=.* holds no checkpoint: name the workdir of a trained run'),
      (os.path.join(self.workdir, 'checkpoints', '3'), {}, r'no checkpoint of step 3 in .*; there are \[2, 4\]'),
      ('gs://bucket/run', {}, '--config.train.init_from=gs://bucket/run: gs:// is not supported'),
    ):
      with self.subTest(message), self.assertRaisesRegex(UserError, message) as caught:
        self.start_from(path, **changes)
      self.assertNotIn('\n', str(caught.exception))
    self.assertEmpty(os.listdir(self.folder))

  def test_another_configuration_is_refused_key_by_key(self):
    before = testing.contents(self.workdir)
    config = testing.digits_config(learning_rate=1e-5, log_every=3)
    config.seed = 1
    with self.assertRaises(UserError) as caught:
      train.run(config, self.workdir)
    message = str(caught.exception)
    self.assertIn('seed (0 there, 1 here)', message)
    self.assertIn('train.learning_rate (0.002 there, 1e-05 here)', message)
    self.assertNotIn('log_every', message)
    self.assertEqual(testing.contents(self.workdir), before)

  def test_a_batch_that_the_devices_cannot_share_is_refused_before_anything_is_written(self):
    workdir = os.path.join(self.folder, 'run')
    with (
      mock.patch.object(parallel, 'num_devices', lambda: 3),
      self.assertRaisesRegex(UserError, r'train\.batch_size is 8, which 3 devices cannot share'),
    ):
      train.run(testing.digits_config(), workdir)
    self.assertFalse(os.path.exists(workdir))

  def test_a_run_that_diverges_names_a_level_and_keeps_what_can_be_restored(self):
    config = testing.digits_config(
      learning_rate=1e6, num_steps=50, checkpoint_every=1, sample_every=50, max_bad_steps=1
    )
    with self.assertRaisesRegex(DivergedError, r'level \d.* at step \d+') as caught:
      train.run(config, self.folder)
    self.assertEqual(caught.exception.exit_code, 3)
    self.assertNotIn('\n', str(caught.exception))
    diverged = int(re.search(r'at step (\d+)', str(caught.exception))[1])
    self.assertEqual(testing.steps_of(self.folder)[-1], diverged - 1)
    state, batches = testing.restore(config, self.folder)
    self.assertEqual((int(state.step), batches), (diverged - 1, diverged - 1))
    self.assertTrue(all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state)))

  def test_a_step_that_goes_wrong_between_two_checkpoints_is_not_saved(self):
    check = training_metrics.check

    def poisoned(step, step_metrics, *args):
      if step == 3:
        step_metrics['level_displacement'] = np.where(np.arange(6) == 2, np.nan, 1.0)
      check(step, step_metrics, *args)

    with (
      mock.patch.object(training_metrics, 'check', poisoned),
      self.assertRaisesRegex(DivergedError, 'level 2 diverged at step 3'),
    ):
      train.run(testing.digits_config(), self.folder)
    self.assertEqual(testing.steps_of(self.folder), [2])
    train.run(testing.digits_config(), self.folder)
    self.assert_same_as_at_once(self.folder)


class ToyTest(absltest.TestCase):
  def poisoned(self, numbers):
    """Stands in for `data.train_batches`: one point of the batches of these numbers is NaN."""
    batches = data.train_batches

    def poisoned(source, batch_size, seed, start, share, labelled):
      for number, (batch, label) in enumerate(batches(source, batch_size, seed, start, share, labelled), start):
        if number in numbers:
          batch[3, 1] = np.nan
        yield batch, label

    return mock.patch.object(data, 'train_batches', poisoned)

  @testing.long
  def test_the_checkerboards_own_settings_do_not_diverge(self):
    config = toy2d_cdrl.get_config()
    config.train.update({'num_steps': 200, 'sample_every': 200, 'checkpoint_every': 200})
    workdir = self.enterContext(tempfile.TemporaryDirectory())
    train.run(config, workdir)  # with other steps of the chains it ends in a `DivergedError` within a hundred
    self.assertEqual(testing.steps_of(workdir), [200])

  def test_an_update_without_a_finite_gradient_is_skipped_and_reported(self):
    workdir = self.enterContext(tempfile.TemporaryDirectory())
    config = testing.toy2d_config(checkpoint_every=1, keep_checkpoints=9)
    with (
      self.poisoned([1, 2]),
      mock.patch.object(train, '_NUM_POINTS', 16),
      self.assertLogs('diffusion_ebm', 'WARNING') as logs,
    ):
      train.run(config, workdir)
    self.assertLen(logs.output, 2)
    self.assertIn('step 3: the update was skipped, as its gradient is not finite (2 in a row)', logs.output[1])
    self.assertEqual([record['skipped_steps'] for record in testing.records(workdir)], [0, 1, 1, 0])
    self.assertEqual([record['step'] for record in testing.records(workdir) if 'loss' in record], [1, 4])
    self.assertEqual(testing.steps_of(workdir), [1, 4])  # in between, nothing is worth keeping
    (first, _), (last, _) = (testing.restore(config, workdir, step) for step in (1, 4))
    self.assertEqual(int(last.opt_state[1].count), 2)
    self.assertGreater(largest_change(first.params, last.params), 0)

  def test_too_many_bad_steps_end_the_run_with_what_to_do_the_step_again(self):
    workdir = self.enterContext(tempfile.TemporaryDirectory())
    config = testing.toy2d_config(max_bad_steps=2, num_steps=9, checkpoint_every=1)
    # After two bad ones come sound ones, which the devices have begun when the loop learns of the bad ones.
    with (
      self.poisoned([2, 3]),
      self.assertRaisesRegex(
        DivergedError,
        r'^2 updates in a row were skipped.*level \d diverged at step 4: .*; to do the step again: '
        r'python -m diffusion_ebm\.jobs\.replay_bad_step (\S+)$',
      ) as caught,
    ):
      train.run(config, workdir)
    path = caught.exception.args[0].split()[-1]
    self.assertEqual(os.path.relpath(path, workdir), 'bad_step_00000004.npz')
    self.assertEqual(testing.steps_of(workdir)[-1], 2)
    sound, _ = testing.restore(config, workdir)
    _, _, state, batch = bad_step_file.load(path)
    self.assertEqual((int(state.step), int(np.sum(np.isnan(batch[0])))), (3, 1))
    jax.tree.map(np.testing.assert_array_equal, state.replace(step=sound.step), sound)

    metrics_again = replay_bad_step.replay(path)
    self.assertTrue(np.isnan(metrics_again['loss']) and metrics_again['bad_steps'] == 1)
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
      replay_bad_step.main(['replay', path])
    self.assertRegex(output.getvalue(), r'\Aloss nan, norm of the gradient nan, skipped\nlevel ')
    os.truncate(path, 1000)
    with self.assertRaisesRegex(UserError, 'cannot be read as the inputs of a training step'):
      replay_bad_step.replay(path)

  def test_points_are_trained_and_sampled_with_densities_in_the_picture(self):
    workdir = self.enterContext(tempfile.TemporaryDirectory())
    config = testing.toy2d_config(num_steps=2)
    with mock.patch.object(train, '_NUM_POINTS', 16):
      train.run(config, workdir)
    config.sampling.num_samples = 20
    sample.run(config, workdir)
    with np.load(os.path.join(workdir, 'samples', 'samples_2.npz'), allow_pickle=False) as file:
      self.assertEqual((file['samples'].dtype, file['samples'].shape), (np.float32, (20, 2)))
      self.assertLen(np.unique(file['samples'], axis=0), 20)
    self.assertCountEqual(
      os.listdir(os.path.join(workdir, 'samples')),
      ['samples_2.npz', 'samples_2.json', 'samples_2.png', 'samples_2_levels.png', 'training_00000002.png'],
    )
    self.assertGreater(
      largest_change(testing.first_state(config).params, testing.restore(config, workdir)[0].params), 0
    )


if __name__ == '__main__':
  absltest.main()
