"""The evaluation job, on networks that have not learned anything."""

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from unittest import mock

from absl.testing import absltest
import numpy as np
from PIL import Image
import threadpoolctl

from diffusion_ebm import data
from diffusion_ebm.data.source import ArraySource
from diffusion_ebm.evaluate import scores
from diffusion_ebm.jobs import evaluate
from diffusion_ebm.run import checkpoints
from diffusion_ebm.run.errors import InterruptedRun, UserError
from tests import testing
from tests.jobs import evaluation_kills
from tests.jobs.evaluation_kills import eval_config, polling_often, records

SCORES = ('fid', 'kid', 'precision', 'recall', 'density', 'coverage')


class EvaluationTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.enterClassContext(polling_often())
    cls.first = cls.enterClassContext(tempfile.TemporaryDirectory())
    for step in (2, 4):
      testing.save_first_state(testing.digits_config(), cls.first, step)
    cls.run_before = testing.contents(cls.first)
    with threadpoolctl.threadpool_limits(1):  # threads that wait for each other make small mixtures slow
      evaluate.run(eval_config(baselines=True, save_samples=True), cls.first)

  def setUp(self):
    super().setUp()
    self.workdir = os.path.join(self.enterContext(tempfile.TemporaryDirectory()), 'run')
    shutil.copytree(self.first, self.workdir, ignore=shutil.ignore_patterns('eval'))

  def test_each_checkpoint_has_a_record_with_all_scores(self):
    found = records(self.first)
    self.assertEqual([record['step'] for record in found], [2, 4])
    for record in found:
      self.assertEqual(
        (record['extractor'], record['num_samples'], record['num_data'], record['num_features'], record['split']),
        ('pixels', 30, 360, 64, 'test'),
      )
      self.assertIsNone(record['inception_score'])
      self.assertTrue(all(np.isfinite(record[name]) for name in SCORES))
      self.assertCountEqual(record['baselines'], ['real', 'gaussian', 'gaussian_mixture', 'cross_validated_mixture'])
      self.assertEqual(
        [record['baselines'][name]['num_components'] for name in ('gaussian_mixture', 'cross_validated_mixture')],
        [10, 8],
      )
      for baseline in record['baselines'].values():
        self.assertContainsSubset(SCORES, baseline)
      # Noise from a network that knows nothing is worse than any of them.
      self.assertGreater(record['fid'], max(baseline['fid'] for baseline in record['baselines'].values()))

  def test_the_distance_is_that_of_the_samples_from_the_test_split(self):
    with np.load(os.path.join(self.first, 'eval', 'samples_4.npz'), allow_pickle=False) as file:
      samples = file['samples']
    self.assertEqual((samples.dtype, samples.shape), (np.uint8, (30, 8, 8, 1)))
    test = data.load_source(testing.digits_config().data, 'test')
    fake, real = (rows.reshape(len(rows), -1) / 255 for rows in (samples, test.read(np.arange(len(test)))))
    expected = scores.frechet_distance(fake.mean(0), np.cov(fake.T), real.mean(0), np.cov(real.T))
    np.testing.assert_allclose(records(self.first)[1]['fid'], expected, rtol=1e-5)  # features are float32

  def test_all_is_in_its_own_folder_and_the_run_is_untouched(self):
    self.assertCountEqual(
      os.listdir(os.path.join(self.first, 'eval')),
      [
        'cache',
        'claims',
        'results.jsonl',
        'report.html',
        'report.json',
        'tensorboard',
        'samples_2.npz',
        'samples_4.npz',
        'samples_2.png',
        'samples_4.png',
        'neighbours_2.png',
        'neighbours_4.png',
      ],
    )
    for name in ('samples_4.png', 'neighbours_4.png'):
      with Image.open(os.path.join(self.first, 'eval', name)) as picture:
        self.assertGreater(np.asarray(picture).std(), 10)
    rest = {name: content for name, content in testing.contents(self.first).items() if not name.startswith('eval')}
    self.assertEqual(rest, self.run_before)
    board = os.path.join(self.first, 'eval', 'tensorboard')
    events = b''.join(testing.contents(board).values())
    for tag in (b'eval/fid', b'eval/coverage', b'eval/samples', b'eval/neighbours'):
      self.assertIn(tag, events)

  def test_nothing_is_scored_twice_and_new_settings_are(self):
    evaluate.run(eval_config(), self.workdir)
    before = records(self.workdir)
    with mock.patch.object(evaluate, '_score', side_effect=AssertionError):
      evaluate.run(eval_config(batch_size=100), self.workdir)
      evaluate.run(eval_config(), self.workdir, step=4)
    self.assertEqual(records(self.workdir), before)
    folder = os.path.join(self.workdir, 'eval')
    pictures = {name: content for name, content in testing.contents(folder).items() if name.endswith(('.png', '.html'))}
    evaluate.run(eval_config(seed=1), self.workdir, step=4)
    self.assertEqual([record['step'] for record in records(self.workdir)], [2, 4, 4])
    self.assertNotEqual(records(self.workdir)[2]['fid'], before[1]['fid'])
    # Beside the report and the pictures of the first, not in their place.
    after = testing.contents(folder)
    self.assertEqual({name: after[name] for name in pictures}, pictures)
    self.assertNotEqual(after['samples_4_2.png'], pictures['samples_4.png'])
    self.assertContainsSubset(['report_2.html', 'neighbours_4_2.png'], after)

  def test_scores_do_not_depend_on_batches(self):
    config = eval_config(batch_size=7)
    config.sampling.batch_size = 4
    evaluate.run(config, self.workdir, step=4)
    for name in SCORES:  # float32 may round a pixel to either side
      np.testing.assert_allclose(records(self.workdir)[0][name], records(self.first)[1][name], rtol=0.02, atol=0.04)

  def test_a_step_that_is_not_there_is_refused_with_those_that_are(self):
    with self.assertRaisesRegex(UserError, r'no checkpoint of step 3 .* steps that are there: 2, 4'):
      evaluate.run(eval_config(), self.workdir, step=3)

  def test_a_workdir_without_a_run_is_refused_and_left_alone(self):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    with self.assertRaisesRegex(UserError, 'holds no run: train first'):
      evaluate.run(eval_config(), folder)
    self.assertEmpty(os.listdir(folder))

  def test_it_waits_for_checkpoints_until_training_has_ended(self):
    shutil.rmtree(checkpoints.directory(self.workdir))
    seen, wait = [], evaluate._sleep

    def sleep(seconds, check_stop):
      # A training that saves while this job waits; the last step of the configuration is 4.
      if len(seen) < 2:
        seen.append([record['step'] for record in records(self.workdir)])
        step = 2 * len(seen)
        shutil.copytree(
          os.path.join(checkpoints.directory(self.first), str(step)),
          os.path.join(checkpoints.directory(self.workdir), str(step)),
        )
      wait(seconds, check_stop)

    with mock.patch.object(evaluate, '_sleep', sleep):
      evaluate.run(eval_config(max_wait_minutes=5.0), self.workdir)
    self.assertEqual(seen, [[], [2]])
    self.assertEqual([record['step'] for record in records(self.workdir)], [2, 4])

  def test_it_does_not_wait_for_ever(self):
    shutil.rmtree(os.path.join(checkpoints.directory(self.workdir), '4'))
    with self.assertLogs('diffusion_ebm', 'INFO') as logs:
      evaluate.run(eval_config(max_wait_minutes=0.005), self.workdir)
    self.assertIn('training has not ended', '\n'.join(logs.output))
    self.assertEqual([record['step'] for record in records(self.workdir)], [2])

  def test_a_checkpoint_deleted_while_it_is_read_is_skipped_with_a_message(self):
    restore = checkpoints.restore

    def delete_first(manager, state, step, **kwargs):
      if step == 2:
        shutil.rmtree(os.path.join(checkpoints.directory(self.workdir), '2'))
      return restore(manager, state, step, **kwargs)

    with mock.patch.object(checkpoints, 'restore', delete_first), self.assertLogs('diffusion_ebm', 'WARNING') as logs:
      evaluate.run(eval_config(), self.workdir)
    self.assertIn('step 2 was deleted before it was read: skipped', '\n'.join(logs.output))
    self.assertEqual([record['step'] for record in records(self.workdir)], [4])

  def test_a_damaged_checkpoint_is_skipped_with_a_message(self):
    shutil.rmtree(os.path.join(checkpoints.directory(self.workdir), '2', 'state'))
    with mock.patch.object(evaluate, '_READ_PAUSE', 0.0), self.assertLogs('diffusion_ebm', 'WARNING') as logs:
      evaluate.run(eval_config(), self.workdir)
    self.assertIn('step 2 cannot be read', '\n'.join(logs.output))
    self.assertEqual([record['step'] for record in records(self.workdir)], [4])

  def test_samples_that_are_no_numbers_are_reported_once_and_the_next_are_scored(self):
    workdir = self.enterContext(tempfile.TemporaryDirectory())
    config = testing.digits_config()
    testing.save_first_state(config, workdir, 2, ema_params=testing.nothing(config))
    testing.save_first_state(config, workdir, 4)
    with self.assertLogs('diffusion_ebm', 'WARNING') as logs:
      evaluate.run(eval_config(), workdir)
    self.assertIn('step 2: 15 of 15 samples hold NaN or infinity', '\n'.join(logs.output))
    self.assertEqual([(record['step'], 'error' in record) for record in records(workdir)], [(2, True), (4, False)])
    with open(os.path.join(workdir, 'eval', 'report.html'), encoding='utf-8') as file:
      self.assertIn('NaN or infinity', file.read())
    evaluate.run(eval_config(), workdir)
    self.assertLen(records(workdir), 2)
    with self.assertRaisesRegex(UserError, 'NaN'):
      evaluate.run(eval_config(seed=3), workdir, step=2)

  def test_fewer_samples_than_features_are_scored_with_one_line_of_warning(self):
    with self.assertLogs('diffusion_ebm', 'WARNING') as logs:
      evaluate.run(eval_config(), self.workdir, step=4)
    self.assertLen([line for line in logs.output if '30 samples for 64 features' in line], 1)
    with open(os.path.join(self.workdir, 'eval', 'report.html'), encoding='utf-8') as file:
      self.assertIn('no more samples than features', file.read())

  def test_given_statistics_are_compared_with(self):
    path = os.path.join(self.workdir, 'statistics.npz')
    np.savez(path, mu=np.zeros(64), sigma=np.zeros((64, 64)))
    evaluate.run(eval_config(statistics=path, save_samples=True), self.workdir, step=4)
    with np.load(os.path.join(self.workdir, 'eval', 'samples_4.npz'), allow_pickle=False) as file:
      rows = file['samples'].reshape(30, 64) / 255
    (record,) = records(self.workdir)
    np.testing.assert_allclose(record['fid'], np.sum(rows.mean(0) ** 2) + np.trace(np.cov(rows.T)), rtol=1e-5)
    self.assertIsNone(record['num_data'])
    np.savez(path, mu=np.zeros(2048), sigma=np.zeros((2048, 2048)))
    with self.assertRaisesRegex(UserError, 'for other features'):
      evaluate.run(eval_config(statistics=path), self.workdir, step=4)

  @testing.long
  def test_of_a_few_images_there_are_the_scores_that_a_few_allow(self):
    load = data.load_source

    def load_few(count, section, split):
      source = load(section, split)
      return ArraySource(source.examples[:count], source.labels[:count]) if split == 'test' else source

    for count in (1, 2, 3, 5, 6, 19, 20):
      shutil.rmtree(os.path.join(self.workdir, 'eval'), ignore_errors=True)
      with self.subTest(count), mock.patch.object(data, 'load_source', functools.partial(load_few, count)):
        if count == 1:
          with self.assertRaisesRegex(UserError, 'single image'):
            evaluate.run(eval_config(), self.workdir, step=4)
          continue
        evaluate.run(eval_config(), self.workdir, step=4)
        (record,) = records(self.workdir)
        self.assertEqual(record['num_data'], count)
        self.assertGreater(record['fid'], 0)
        for name in SCORES[1:]:
          self.assertEqual(record[name] is None, count < 20, name)
        with open(os.path.join(self.workdir, 'eval', 'report.html'), encoding='utf-8') as file:
          self.assertEqual('too few images' in file.read(), count < 20)
        with open(os.path.join(self.workdir, 'eval', 'results.jsonl'), encoding='utf-8') as file:
          self.assertNotIn('NaN', file.read())

  def test_points_are_scored_too(self):
    workdir = self.enterContext(tempfile.TemporaryDirectory())
    config = testing.toy2d_config()
    testing.save_first_state(config, workdir, 4)
    config.eval.update({'num_samples': 40, 'baselines': False, 'max_wait_minutes': 0.0, 'batch_size': 20_000})
    with mock.patch.dict('diffusion_ebm.data.toy._NUM_SAMPLES', {'train': 300, 'test': 200}):
      evaluate.run(config, workdir)
    (record,) = records(workdir)
    self.assertEqual((record['extractor'], record['num_features'], record['num_data']), ('pixels', 2, 200))
    self.assertFalse(os.path.exists(os.path.join(workdir, 'eval', 'neighbours_4.png')))


@testing.long
class ProcessesTest(absltest.TestCase):
  """Several jobs on one workdir, and jobs that die."""

  def setUp(self):
    super().setUp()
    self.enterContext(polling_often())
    self.workdir = self.enterContext(tempfile.TemporaryDirectory())
    for step in (1, 2, 3, 4):
      testing.save_first_state(testing.digits_config(checkpoint_every=1), self.workdir, step)

  def start(self):
    return subprocess.Popen(
      [
        sys.executable,
        '-c',
        'import sys; from tests.jobs import evaluation_kills as k; k.run_job(sys.argv[1])',
        self.workdir,
      ],
      cwd=testing.ROOT,
      stderr=subprocess.DEVNULL,
      env=os.environ | {'JAX_PLATFORMS': 'cpu'},
    )

  def assert_all_done_once(self):
    self.assertCountEqual([record['step'] for record in records(self.workdir)], checkpoints.steps(self.workdir))

  @testing.long
  def test_killed_at_any_moment_and_started_again_nothing_is_done_twice(self):
    workdir = self.enterContext(tempfile.TemporaryDirectory())
    self.assertLen(evaluation_kills.kill_loop(workdir, 3), 3)  # checks what is left of each

  def test_two_jobs_share_the_work(self):
    process = self.start()
    evaluate.run(eval_config(max_wait_minutes=1.0), self.workdir)
    self.assertEqual(process.wait(), 0)
    self.assert_all_done_once()
    with open(os.path.join(self.workdir, 'eval', 'results.jsonl'), encoding='utf-8') as file:
      self.assertTrue(all(json.loads(line)['fid'] > 0 for line in file))

  def test_ctrl_c_ends_in_one_line(self):
    shutil.rmtree(os.path.join(checkpoints.directory(self.workdir), '4'))
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
    sleep = evaluate._sleep

    def asked(seconds, check_stop):  # waiting for step 4
      if not timer.ident:
        timer.start()
      sleep(seconds, check_stop)

    with mock.patch.object(evaluate, '_sleep', asked), self.assertRaisesRegex(InterruptedRun, 'scored is kept'):
      evaluate.run(eval_config(max_wait_minutes=5.0), self.workdir)
    self.assertLen(records(self.workdir), len(checkpoints.steps(self.workdir)))


if __name__ == '__main__':
  absltest.main()
