"""The steps job, on networks that have not learned anything."""

import csv
import os
import shutil
import signal
import tempfile
from unittest import mock

from absl.testing import absltest
import jax
from PIL import Image

from diffusion_ebm import ebm, scoring
from diffusion_ebm import proposal as proposal_lib
from diffusion_ebm.evaluate import results
from diffusion_ebm.jobs import evaluate, steps
from diffusion_ebm.run.errors import InterruptedRun, UserError
from tests import testing

ROWS = ['proposal', 'num_steps', 'gradients', 'proposal_evaluations']
SCORES = ['frechet_distance', 'precision', 'recall', 'samples_per_s']


def with_proposal(config):
  config.proposal.update({'name': 'mlp', 'ch': 8})
  return config


def steps_config(*num_steps, config=None, **changes):
  """Points in the plane, 30 samples in two batches, with a proposal; `changes` are of the `eval` section."""
  config = config or with_proposal(testing.toy2d_config())
  config.steps.num_steps = num_steps or (0, 2)
  config.sampling.batch_size = 15
  config.eval.update({'extractor': 'pixels', 'num_samples': 30, 'batch_size': 512, 'max_wait_minutes': 0.0} | changes)
  return config


def few_points():
  return mock.patch.dict('diffusion_ebm.data.toy._NUM_SAMPLES', {'train': 300, 'test': 200})


def read(workdir, name='steps_4.csv'):
  """`(header, lines)` of a file."""
  with open(os.path.join(workdir, 'steps', name), newline='', encoding='utf-8') as file:
    header, *lines = csv.reader(file)
  return header, lines


def drawn():
  """Counts, and lets through, what is drawn."""
  return mock.patch.object(scoring, 'draw', side_effect=scoring.draw)


class StepsTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.enterClassContext(few_points())
    cls.first = cls.enterClassContext(tempfile.TemporaryDirectory())
    testing.save_first_state(with_proposal(testing.toy2d_config()), cls.first, 4)
    cls.rows = steps.run(steps_config(), cls.first)

  def setUp(self):
    super().setUp()
    self.workdir = os.path.join(self.enterContext(tempfile.TemporaryDirectory()), 'run')
    shutil.copytree(self.first, self.workdir)

  def test_there_is_a_line_for_each_curve_and_number_of_steps(self):
    header, lines = read(self.first)
    self.assertEqual(header, ROWS + SCORES)
    self.assertEqual(
      [line[:4] for line in lines],
      [['True', '0', '0', '6'], ['True', '2', '12', '6'], ['False', '0', '6', '0'], ['False', '2', '12', '0']],
    )
    for row, line in zip(self.rows, lines, strict=True):
      self.assertEqual([str(each) for each in row], line)
      self.assertGreater(row.frechet_distance, 0)
      self.assertGreater(row.samples_per_s, 0)
      self.assertTrue(0 <= row.precision <= 1 and 0 <= row.recall <= 1)
    self.assertLen({row.frechet_distance for row in self.rows}, 4)

  def test_the_numbers_of_the_evaluation_are_the_same(self):
    config = steps_config(baselines=False)  # whose chains have two steps
    evaluate.run(config, self.workdir)
    (record,) = results.read(os.path.join(self.workdir, 'eval', 'results.jsonl'))
    row = self.rows[1]
    self.assertEqual(
      (row.frechet_distance, row.precision, row.recall), (record['fid'], record['precision'], record['recall'])
    )

  def test_the_picture_shows_the_curves(self):
    folder = os.path.join(self.first, 'steps')
    self.assertCountEqual(os.listdir(folder), ['steps_4.csv', 'steps_4.png', 'steps_4.json'])
    with Image.open(os.path.join(folder, 'steps_4.png')) as picture:
      self.assertEqual(picture.size, (560, 400))
    curves = steps._curves(self.rows)
    distance = [row.frechet_distance for row in self.rows]
    self.assertEqual(
      {name: [values.tolist() for values in points] for name, points in curves.items()},
      {
        'from the proposal': [[0, 12], distance[:2]],
        'normal approximation': [[6], distance[2:3]],
        'from the noisier sample': [[12], distance[3:]],
      },
    )

  def test_nothing_is_drawn_twice_and_other_numbers_of_steps_are_added(self):
    before = testing.contents(self.workdir)
    with drawn() as draw:
      self.assertEqual(steps.run(steps_config(2, 0, 2, batch_size=100), self.workdir), self.rows)
      self.assertEqual(testing.contents(self.workdir), before)
      self.assertEqual(draw.call_count, 0)
      more = steps.run(steps_config(1), self.workdir)
    self.assertEqual(draw.call_count, 2)
    self.assertEqual([row.num_steps for row in more], [0, 1, 2] * 2)
    self.assertEqual([more[i] for i in (0, 2, 3, 5)], self.rows)

  def test_other_settings_get_a_number(self):
    before = testing.contents(os.path.join(self.workdir, 'steps'))
    with self.assertLogs('diffusion_ebm', 'INFO') as logs:
      rows = steps.run(steps_config(0, seed=1), self.workdir)
    self.assertIn('holds results of other inputs (eval): these are in steps_4_2', '\n'.join(logs.output))
    self.assertLen(read(self.workdir, 'steps_4_2.csv')[1], 2)
    self.assertNotEqual(rows[0].frechet_distance, self.rows[0].frechet_distance)
    after = testing.contents(os.path.join(self.workdir, 'steps'))
    self.assertEqual({name: after[name] for name in before}, before)

  def test_the_length_of_chains_elsewhere_is_no_other_setting(self):
    config = steps_config()
    config.sampling.update({'num_steps': 7, 'generation_steps': 9})
    with drawn() as draw:
      self.assertEqual(steps.run(config, self.workdir), self.rows)
    self.assertEqual(draw.call_count, 0)

  @testing.long
  def test_after_an_interruption_it_goes_on(self):
    shutil.rmtree(os.path.join(self.workdir, 'steps'))
    draw = scoring.draw

    def stop_at_third(*args):
      if fake.call_count == 3:
        os.kill(os.getpid(), signal.SIGINT)
      return draw(*args)

    with (
      mock.patch.object(scoring, 'draw', side_effect=stop_at_third) as fake,
      self.assertRaisesRegex(InterruptedRun, 'finished rows are kept'),
    ):
      steps.run(steps_config(), self.workdir)
    self.assertEqual([line[:2] for line in read(self.workdir)[1]], [['True', '0'], ['True', '2']])
    with drawn() as again:
      rows = steps.run(steps_config(), self.workdir)
    self.assertEqual(again.call_count, 2)
    self.assertEqual([row[:7] for row in rows], [row[:7] for row in self.rows])  # not how fast it was

  def test_a_damaged_file_is_named(self):
    path = os.path.join(self.workdir, 'steps', 'steps_4.csv')
    for text in ('proposal,num_steps\nTrue,2\n', ','.join(ROWS + SCORES) + '\nTrue,2,x,6,1,,,\n', '\0\n1,2\n'):
      with open(path, 'w', encoding='utf-8') as file:
        file.write(text)
      with self.subTest(text), self.assertRaisesRegex(UserError, r'steps_4\.csv cannot be read .*: delete it'):
        steps.run(steps_config(), self.workdir)

  @testing.long
  def test_each_line_says_which_chains_and_how_much_is_left(self):
    shutil.rmtree(os.path.join(self.workdir, 'steps'))
    with self.assertLogs('diffusion_ebm', 'INFO') as logs:
      steps.run(steps_config(1), self.workdir)
    lines = '\n'.join(logs.output)
    for pattern in (
      r'K 1, from the proposal 15/30 samples, \S+ left',
      r'K 1, from the proposal: Frechet distance \S+ for 6 gradients an image',
      r'steps 6/12 gradients an image, \S+ left',
      r'K 1, from the noisier sample 15/30 samples',
    ):
      self.assertRegex(lines, pattern)

  def test_no_number_of_steps_is_refused(self):
    config = steps_config()
    config.steps.num_steps = ()
    with self.assertRaisesRegex(UserError, r'steps\.num_steps names no number of steps'):
      steps.run(config, self.workdir)


class OtherRunsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.enterContext(few_points())
    self.workdir = self.enterContext(tempfile.TemporaryDirectory())

  def test_a_workdir_without_checkpoints_is_refused_and_left_alone(self):
    with self.assertRaisesRegex(UserError, 'no checkpoint: train first'):
      steps.run(steps_config(), self.workdir)
    self.assertEmpty(os.listdir(self.workdir))

  @testing.long
  def test_a_run_without_a_proposal_has_one_curve(self):
    config = steps_config(0, 1, config=testing.toy2d_config())
    testing.save_first_state(config, self.workdir, 4)
    rows = steps.run(config, self.workdir)
    self.assertEqual([row[:4] for row in rows], [(False, 0, 6, 0), (False, 1, 6, 0)])
    self.assertTrue(all(row.frechet_distance > 0 for row in rows))

  @testing.long
  def test_chains_that_diverge_are_a_line_without_scores(self):
    config = steps_config(0, 1)
    params = testing.nothing(config)
    testing.save_first_state(config, self.workdir, 4, ema_params=params)
    with self.assertLogs('diffusion_ebm', 'WARNING') as logs:
      rows = steps.run(config, self.workdir)
    self.assertGreater(rows[0].frechet_distance, 0)  # the proposal alone
    self.assertIn('K 1, from the proposal: 15 of 15 samples hold NaN or infinity', '\n'.join(logs.output))
    self.assertEqual([row[4:] for row in rows[1:]], [(None,) * 4] * 3)
    self.assertEqual([line[4:] for line in read(self.workdir)[1]][1:], [[''] * 4] * 3)
    with drawn() as draw:
      self.assertEqual(steps.run(config, self.workdir), rows)
    self.assertEqual(draw.call_count, 0)

  @testing.long
  def test_the_counts_are_what_is_computed(self):
    counts = {'gradients': 0, 'proposal_evaluations': 0}

    def counting(name, function):
      def count(*args):
        jax.debug.callback(lambda: counts.update({name: counts[name] + 1}))
        return function(*args)

      return count

    config = steps_config(0, 1, 3, num_samples=20)
    config.sampling.update({'batch_size': 20, 'denoise': True})
    testing.save_first_state(config, self.workdir, 4)
    score, found = steps._score, []

    def score_counting(*args):
      counts.update(dict.fromkeys(counts, 0))
      row = score(*args)
      jax.effects_barrier()
      found.append(tuple(counts.values()))
      return row

    with (
      mock.patch.object(ebm.LevelEbm, 'log_density', counting('gradients', ebm.LevelEbm.log_density)),
      mock.patch.object(proposal_lib.Proposal, 'mean', counting('proposal_evaluations', proposal_lib.Proposal.mean)),
      mock.patch.object(steps, '_score', score_counting),
    ):
      rows = steps.run(config, self.workdir)
    self.assertEqual(found, [row[2:4] for row in rows])
    self.assertEqual([row.gradients for row in rows], [1, 7, 19, 7, 7, 19])  # the last one denoises
    self.assertTrue(all(row.samples_per_s is None for row in rows))  # one batch

  @testing.long
  def test_images(self):
    config = steps_config(0, 2, config=with_proposal(testing.digits_config()))
    testing.save_first_state(config, self.workdir, 4)
    rows = steps.run(config, self.workdir)
    config.eval.baselines = False
    evaluate.run(config, self.workdir)
    (record,) = results.read(os.path.join(self.workdir, 'eval', 'results.jsonl'))
    self.assertEqual(rows[1].frechet_distance, record['fid'])
    self.assertEqual([row.gradients for row in rows], [0, 12, 6, 12])


if __name__ == '__main__':
  absltest.main()
