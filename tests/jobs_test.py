"""The training and sampling jobs, whole, on tiny networks."""

import glob
import json
import os
import signal
import subprocess
import sys
import tempfile
from unittest import mock

from absl.testing import absltest
import jax
import numpy as np

from configs import digits, toy2d
from diffusion_ebm import checkpoints, metrics, sample, train
from diffusion_ebm import model as model_lib
from diffusion_ebm.errors import DivergedError, InterruptedRun, UserError

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def tiny(num_steps=4):
  config = digits.get_config()
  config.model.update({'ch': 4, 'ch_mult': (1,)})
  config.sampling.update({'num_steps': 2, 'generation_steps': 0, 'batch_size': 4})
  config.train.update({'num_steps': num_steps, 'batch_size': 8, 'cosine_decay': False, 'warmup_steps': 1,
                       'log_every': 2, 'sample_every': 4, 'checkpoint_every': 2, 'keep_checkpoints': 2})
  return config


def state_of(workdir, config, step=None):
  return checkpoints.restore(checkpoints.open_for_reading(workdir), model_lib.build(config).state, step)


def steps_of(workdir):
  return sorted(int(name) for name in os.listdir(os.path.join(workdir, 'checkpoints')))


def records(workdir):
  with open(os.path.join(workdir, 'metrics.jsonl'), encoding='utf-8') as file:
    return [json.loads(line) for line in file]


def assert_same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


class JobsTest(absltest.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.workdir = cls.enterClassContext(tempfile.TemporaryDirectory())
    train.train(tiny(), cls.workdir)

  def fresh(self):
    return self.enterContext(tempfile.TemporaryDirectory())

  def test_results_are_where_the_readme_says(self):
    self.assertEqual(steps_of(self.workdir), [2, 4])
    self.assertTrue(glob.glob(os.path.join(self.workdir, 'tensorboard', 'events*')))
    self.assertTrue(os.path.exists(os.path.join(self.workdir, 'samples', 'training_00000004.png')))
    with open(os.path.join(self.workdir, 'config.json'), encoding='utf-8') as file:
      self.assertEqual(json.load(file)['model']['ch'], 4)
    self.assertEqual([record['step'] for record in records(self.workdir)], [2, 4])
    keys = set().union(*records(self.workdir))
    self.assertContainsSubset({'loss', 'grad_norm', 'learning_rate', 'images_per_s'}, keys)
    for name in ('level_loss', 'level_f', 'level_displacement'):
      self.assertTrue([key for key in keys if key.startswith(f'{name}/')])

  def test_training_changes_parameters_and_their_average(self):
    start = model_lib.build(tiny()).state
    state, batches = state_of(self.workdir, tiny())
    self.assertEqual((int(state.step), batches), (4, 4))
    for before, after in ((start.params, state.params), (start.ema_params, state.ema_params),
                          (state.params, state.ema_params), (start.spectral, state.spectral)):
      changed = jax.tree.map(lambda a, b: float(np.max(np.abs(a - b))), before, after)
      self.assertGreater(max(jax.tree.leaves(changed)), 0)

  def test_stopping_and_going_on_equals_not_stopping(self):
    workdir = self.fresh()
    train.train(tiny(2), workdir)
    with self.assertLogs('diffusion_ebm', 'INFO') as logs:
      train.train(tiny(4), workdir)
    self.assertIn('going on from step 2', '\n'.join(logs.output))
    assert_same(state_of(workdir, tiny()), state_of(self.workdir, tiny()))
    self.assertEqual([r['step'] for r in records(workdir)], [2, 4])
    for ours, theirs in zip(records(workdir), records(self.workdir), strict=True):
      self.assertEqual(ours['loss'], theirs['loss'])

  def test_a_finished_run_says_so(self):
    with self.assertLogs('diffusion_ebm', 'INFO') as logs:
      train.train(tiny(), self.workdir)
    self.assertIn('already trained to step 4', '\n'.join(logs.output))

  def test_another_configuration_is_refused(self):
    config = tiny()
    config.model.ch = 8
    with self.assertRaisesRegex(UserError, r'model\.ch \(4 there, 8 here\)'):
      train.train(config, self.workdir)

  def test_ctrl_c_saves_and_the_next_run_goes_on(self):
    workdir = self.fresh()
    add = train._Report.add

    def interrupted(report, step, step_metrics):
      add(report, step, step_metrics)
      if step == 3:
        os.kill(os.getpid(), signal.SIGINT)

    with mock.patch.object(train._Report, 'add', interrupted), self.assertRaisesRegex(InterruptedRun, 'step 3'):
      train.train(tiny(), workdir)
    self.assertIn(3, steps_of(workdir))
    train.train(tiny(), workdir)
    assert_same(state_of(workdir, tiny()), state_of(self.workdir, tiny()))

  def test_a_run_that_goes_wrong_names_the_level_and_keeps_the_last_good_checkpoint(self):
    workdir = self.fresh()
    train.train(tiny(2), workdir)
    config = tiny(6)
    check = metrics.check

    def poisoned(step, step_metrics, dimension):
      if step >= 3:
        step_metrics['level_displacement'] = step_metrics['level_displacement'] + np.inf
      check(step, step_metrics, dimension)

    with mock.patch.object(metrics, 'check', poisoned), self.assertRaisesRegex(DivergedError, 'level 0.*step 3'):
      train.train(config, workdir)
    self.assertEqual(steps_of(workdir), [2])

  def test_a_learning_rate_beyond_reason_diverges_in_one_line(self):
    config = tiny(200)
    config.train.learning_rate, config.train.warmup_steps = 1e6, 0
    with self.assertRaisesRegex(DivergedError, 'level'):
      train.train(config, self.fresh())

  def sample(self, workdir=None, config=None, num_samples=5, seed=0, step=None):
    workdir = workdir or self.workdir
    sample.sample(config or tiny(), workdir, num_samples, seed, step)
    with np.load(os.path.join(workdir, 'samples', f'samples_{step or 4}.npz'), allow_pickle=False) as file:
      return file['samples']

  def test_samples_are_images_and_do_not_depend_on_the_batch(self):
    samples = self.sample()
    self.assertEqual((samples.dtype, samples.shape), (np.uint8, (5, 8, 8, 1)))
    for name in ('samples_4.png', 'samples_4_levels.png'):
      self.assertTrue(os.path.exists(os.path.join(self.workdir, 'samples', name)))
    config = tiny()
    config.sampling.batch_size = 2
    # float32 sums in another order may move a pixel by one grey level.
    self.assertLessEqual(np.max(np.abs(self.sample(config=config).astype(int) - samples)), 1)
    self.assertGreater(np.mean(self.sample(seed=1) != samples), 0.5)
    self.assertGreater(np.mean(samples[0] != samples[1]), 0.5)

  def test_sampling_may_take_other_chains_but_not_another_network(self):
    config = tiny()
    config.sampling.generation_steps = 5
    self.assertGreater(np.mean(self.sample(config=config) != self.sample()), 0)
    config.model.ch = 8
    with self.assertRaisesRegex(UserError, r'model\.ch'):
      self.sample(config=config)

  def test_any_checkpoint_can_be_sampled_and_missing_ones_are_named(self):
    self.assertEqual(self.sample(step=2).shape, (5, 8, 8, 1))
    with self.assertRaisesRegex(UserError, 'no checkpoint of step 3.*2, 4'):
      self.sample(step=3)
    with self.assertRaisesRegex(UserError, 'num_samples'):
      self.sample(num_samples=0)
    with self.assertRaisesRegex(UserError, 'no checkpoint: train first'):
      self.sample(workdir=self.fresh())

  def test_two_devices_train_and_sample_as_one(self):
    # A process of its own: the number of devices is fixed when JAX starts.
    workdir = self.fresh()
    code = ('import sys; from tests import jobs_test as t; c = t.tiny(); '
            't.train.train(c, sys.argv[1]); t.sample.sample(c, sys.argv[1], 5, 0); print(t.jax.device_count())')
    result = subprocess.run(
        [sys.executable, '-c', code, workdir], cwd=ROOT, capture_output=True, text=True, check=False,
        env=os.environ | {'XLA_FLAGS': '--xla_force_host_platform_device_count=2', 'JAX_PLATFORMS': 'cpu'})
    self.assertEqual(result.returncode, 0, result.stderr)
    self.assertIn('2', result.stdout.split())
    (one, _), (two, _) = state_of(self.workdir, tiny()), state_of(workdir, tiny())
    for tree in ('params', 'ema_params'):
      jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
                   getattr(one, tree), getattr(two, tree))
    with np.load(os.path.join(workdir, 'samples', 'samples_4.npz')) as file:
      self.assertLessEqual(np.max(np.abs(file['samples'].astype(int) - self.sample())), 1)

  def test_vectors_have_their_pictures_and_float_samples(self):
    config = toy2d.get_config()
    config.model.update({'ch': 4, 'num_layers': 1})
    config.sampling.update({'num_steps': 1, 'batch_size': 64})
    config.train.update({'num_steps': 2, 'batch_size': 8, 'sample_every': 2, 'checkpoint_every': 2})
    workdir = self.fresh()
    train.train(config, workdir)
    sample.sample(config, workdir, 100, 0)
    with np.load(os.path.join(workdir, 'samples', 'samples_2.npz')) as file:
      self.assertEqual((file['samples'].dtype, file['samples'].shape), (np.float32, (100, 2)))
    self.assertLen(glob.glob(os.path.join(workdir, 'samples', '*.png')), 3)


class CheckpointsTest(absltest.TestCase):

  def test_the_newest_and_every_so_many_are_kept(self):
    workdir = self.enterContext(tempfile.TemporaryDirectory())
    state = model_lib.build(tiny()).state
    manager = checkpoints.open_for_writing(workdir, 2, 4)
    for step in range(2, 11, 2):
      checkpoints.save(manager, state.replace(step=state.step + step), 10 * step)
    manager.wait_until_finished()
    self.assertEqual(sorted(manager.all_steps()), [4, 8, 10])
    restored, batches = checkpoints.restore(manager, state)
    self.assertEqual((int(restored.step), batches), (10, 100))
    assert_same(restored.params, state.params)
    manager.close()


class CommandLineTest(absltest.TestCase):

  def run_main(self, *args):
    return subprocess.run(
        [sys.executable, os.path.join(ROOT, 'main.py'), *args], cwd=ROOT, capture_output=True, text=True, check=False,
        env=os.environ | {'JAX_PLATFORMS': 'cpu'})

  def test_what_is_wrong_is_one_line_and_nothing_is_written(self):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    workdir = os.path.join(folder, 'run')
    empty = os.path.join(folder, 'empty')
    os.mkdir(empty)
    open(os.path.join(folder, 'file'), 'w').close()
    images = ['--config=configs/images.py', f'--workdir={workdir}']
    for args, message in (
        ([f'--workdir={workdir}', '--config.train.speed=3'], 'speed'),
        ([f'--workdir={workdir}', '--mode=dance'], 'train|sample'),
        ([f'--workdir={workdir}', '--config=configs/none.py'], 'configs/none.py'),
        ([f'--workdir={workdir}', 'digits'], "'digits' is not a flag"),
        ([f'--workdir={workdir}', '--config.train.batch_size=many'], 'many'),
        ([f'--workdir={workdir}', '--config.train.batch_size=0'], 'train.batch_size'),
        ([f'--workdir={workdir}', '--config.model.ch_mult=(1,1,1,1,1)'], 'not divisible by 16'),
        (['--config=configs/digits.py'], '--workdir is missing'),
        ([f'--workdir={folder}/file/run'], 'cannot be written'),
        ([f'--workdir={workdir}', '--mode=sample'], 'no checkpoint'),
        ([*images], '--config.data.path'),
        ([*images, f'--config.data.path={folder}/nowhere'], 'nowhere'),
        ([*images, f'--config.data.path={empty}'], 'empty')):
      with self.subTest(message):
        result = self.run_main(*args)
        self.assertEqual(result.returncode, 2, result.stderr)
        lines = result.stderr.strip().splitlines()
        self.assertLen(lines, 1, result.stderr)
        self.assertStartsWith(lines[0], 'error: ')
        self.assertIn(message, lines[0])
        self.assertEqual(sorted(os.listdir(folder)), ['empty', 'file'])

  def test_without_a_configuration_the_workdirs_own_goes_on(self):
    workdir = self.enterContext(tempfile.TemporaryDirectory())
    train.train(tiny(2), workdir)
    result = self.run_main(f'--workdir={workdir}', '--config.train.num_steps=4')
    self.assertEqual(result.returncode, 0, result.stderr)
    self.assertIn('going on from step 2', result.stderr)
    self.assertIn('training 4/4', result.stderr)
    self.assertEqual(steps_of(workdir), [2, 4])


if __name__ == '__main__':
  absltest.main()
