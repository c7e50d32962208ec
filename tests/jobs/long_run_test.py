"""The long-run job on networks that have learned nothing."""

import json
import os
import tempfile
from unittest import mock

from absl.testing import absltest
import numpy as np

from diffusion_ebm.evaluate import chain_diagnostics, scores
from diffusion_ebm.jobs import long_run
from diffusion_ebm.run import files
from diffusion_ebm.run.errors import UserError
from tests import testing


class LongRunTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.workdir = cls.enterClassContext(tempfile.TemporaryDirectory())
    config = cls.config()
    testing.save_first_state(config, cls.workdir, step=3)

  @classmethod
  def config(cls, **changes):
    config = testing.toy2d_config()
    config.model.update({'quadratic': 1.0})
    config.diffusion.temperature = 'one'
    config.long_run.update({'num_chains': 200, 'num_steps': 60, 'thin': 10, 'warmup_steps': 40} | changes)
    return config

  def states(self, name, count, chains=200):
    folder = os.path.join(self.workdir, 'long_run', name)
    return np.fromfile(os.path.join(folder, 'states.bin'), np.float32).reshape(count, chains, 2)

  def test_a_marginal_chain_reaches_the_models_own_moments_and_says_what_it_did(self):
    # The first state of a network gives f = -|y|^2 / 2 up to a small change: a normal density.
    result = long_run.run(self.config(conditional=False, num_steps=100), self.workdir, 0)
    states = self.states('mala_marginal_level0_seed0_step3', 11)
    self.assertBetween(np.mean(states[-1] ** 2), 0.6, 1.6)
    self.assertBetween(result['acceptance'], 0.4, 0.75)
    self.assertEqual((result['num_steps'], result['num_chains'], result['features']), (100, 200, 'pixels'))
    self.assertLen(result['frechet_distance'], 11)
    self.assertGreater(result['energy']['ess'], 100)
    folder = os.path.join(self.workdir, 'long_run', 'mala_marginal_level0_seed0_step3')
    self.assertTrue(os.path.exists(os.path.join(folder, 'strip.png')))
    # Measured beside other data: beside the first results.
    other = long_run.run(self.config(conditional=False, num_steps=100, split='train'), self.workdir, 0)
    self.assertEqual(other['acceptance'], result['acceptance'])
    for name, expected in (('results.json', result), ('results_2.json', other)):
      self.assertEqual(files.read_json(os.path.join(folder, name)), json.loads(json.dumps(expected)))
    self.assertContainsSubset(['strip_2.png', 'curves_2.png'], os.listdir(folder))

  @testing.long
  def test_going_on_equals_not_stopping(self):
    for seed, lengths in ((1, (60,)), (2, (20, 60))):
      for num_steps in lengths:
        long_run.run(self.config(num_steps=num_steps, step_size=0.2), self.workdir, 1 if seed == 1 else 2)
    # Other seeds are other chains; the same seed in another folder would be the same, so rename and repeat.
    first = self.states('mala_conditional_level0_seed2_step3', 7)
    folder = os.path.join(self.workdir, 'long_run', 'mala_conditional_level0_seed2_step3')
    os.rename(folder, folder + '_before')
    long_run.run(self.config(num_steps=60, step_size=0.2), self.workdir, 2)
    np.testing.assert_array_equal(self.states('mala_conditional_level0_seed2_step3', 7), first)
    self.assertGreater(np.abs(self.states('mala_conditional_level0_seed1_step3', 7) - first).max(), 0.1)

  def test_other_settings_in_the_same_folder_are_refused(self):
    long_run.run(self.config(num_steps=20, step_size=0.2), self.workdir, 5)
    with self.assertRaisesRegex(UserError, r'chains of other settings \(step_size\)'):
      long_run.run(self.config(num_steps=20, step_size=0.3), self.workdir, 5)
    config = self.config(num_steps=20, step_size=0.2)
    config.sampling.generation_steps = 7
    with self.assertRaisesRegex(UserError, r'chains of other settings \(sampling\)'):
      long_run.run(config, self.workdir, 5)
    # An older version did not note how the chains' starts were drawn.
    path = os.path.join(self.workdir, 'long_run', 'mala_conditional_level0_seed5_step3', 'progress.json')
    record = files.read_json(path)
    del record['settings']['sampling']
    files.write_json(path, record)
    self.assertEqual(long_run.run(self.config(num_steps=20, step_size=0.2), self.workdir, 5)['num_steps'], 20)

  def test_chains_whose_acceptance_collapses_stop_and_say_so(self):
    with self.assertRaisesRegex(UserError, 'acceptance collapsed to 0.* smaller --config.long_run.step_size'):
      long_run.run(self.config(step_size=100.0), self.workdir, 6)

  def test_the_acceptance_that_stops_them_has_a_limit(self):
    with (
      mock.patch.object(long_run, '_MIN_ACCEPTANCE', 1.1),
      self.assertRaisesRegex(
        UserError, r'acceptance collapsed to 0\.\d+ before step 10: set a smaller --config.\S+ than 0\.2,'
      ),
    ):
      long_run.run(self.config(step_size=0.2), self.workdir, 7)

  def test_a_split_too_small_to_compare_with_is_refused_before_the_chains_begin(self):
    with (
      mock.patch.dict('diffusion_ebm.data.toy._NUM_SAMPLES', {'test': 19}),
      mock.patch.object(long_run, '_start', side_effect=AssertionError),
      self.assertRaisesRegex(UserError, r'test split has too few examples .*\(19, not 20\).*long_run.split=train'),
    ):
      long_run.run(self.config(), self.workdir, 8)

  def test_levels_that_are_not_there_are_refused(self):
    with self.assertRaisesRegex(UserError, 'long_run.level is 6, not in 0 .. 5'):
      long_run.run(self.config(level=6), self.workdir, 0)


class DiagnosticsTest(absltest.TestCase):
  def test_they_tell_independent_states_from_stuck_ones(self):
    rng = np.random.default_rng(0)
    good = chain_diagnostics.summarise(rng.standard_normal((4, 500)), pooled=True)
    self.assertBetween(good['ess'], 1500, 2500)
    self.assertLess(good['r_hat'], 1.01)
    self.assertLess(abs(good['autocorrelation']), 0.1)
    walk = np.cumsum(rng.standard_normal((4, 500)), axis=1)
    bad = chain_diagnostics.summarise(walk, pooled=False)
    self.assertGreater(bad['r_hat_max'], 1.1)
    self.assertGreater(bad['autocorrelation'], 0.9)
    self.assertIsNone(chain_diagnostics.summarise(walk[:, :3], pooled=True)['ess'])


class PrecisionTest(absltest.TestCase):
  def test_it_is_the_part_within_the_kth_neighbours_distance(self):
    # Data at 0, 1, 2, 3, 4, 5: the second neighbour of each is at 1 inside, at 2 at the ends.
    data = np.arange(6.0)[:, None]
    self.assertEqual(scores.precision(np.array([[-1.9], [-2.1], [2.5], [7.0], [7.1]]), data, 2), 0.6)


if __name__ == '__main__':
  absltest.main()
