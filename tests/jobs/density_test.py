"""The density job beside quadrature, and what it refuses."""

import json
import os
import tempfile
from unittest import mock

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np
from scipy import special, stats

from configs import digits_t1k, toy2d_t1k
from diffusion_ebm import data, trained
from diffusion_ebm import model as model_lib
from diffusion_ebm.density import annealing, baseline_densities, log_prob, quadrature
from diffusion_ebm.jobs import density
from diffusion_ebm.run import files
from diffusion_ebm.run.errors import DivergedError, UserError
from tests import testing


def perturbed(config):
  """Parameters far enough from their start that the levels differ."""
  state = testing.first_state(config)
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda p: p + 0.3 * rng.standard_normal(p.shape).astype(np.float32), state.ema_params)


@testing.long
class DensityTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.workdir = cls.enterClassContext(tempfile.TemporaryDirectory())
    cls.config = config = testing.toy2d_config()
    config.model.update({'output_scale': 0.3, 'quadratic': 1.0})
    config.diffusion.temperature = 'one'
    config.density.update({'num_chains': 500, 'pilot_chains': 100, 'rung_ess': 0.99, 'data_steps': 64})
    config.density.update({'checks': ('exchange', 'flow'), 'num_ladders': 32, 'num_rounds': 240, 'overlap': 0.7})
    testing.save_first_state(config, cls.workdir, step=3, ema_params=perturbed(config))
    cls.record = density.run(config, cls.workdir)

  def test_log_z_is_that_of_quadrature_at_every_level(self):
    ebm = trained.load(self.config, self.workdir).ebm
    points, area = quadrature.make_grid(300)
    points = jnp.asarray(points, jnp.float32)
    self.assertEqual([entry['level'] for entry in self.record['log_z']], [0, 1, 2, 3, 4, 5])
    for entry in self.record['log_z']:
      f = ebm.at(jnp.full(1, entry['level'])).f(points)
      exact = special.logsumexp(np.asarray(f, np.float64)) + np.log(area)
      self.assertBetween(exact, entry['lower'] - 0.01, entry['upper'] + 0.01)
      for end in ('forward', 'reverse'):
        self.assertAlmostEqual(entry[end]['log_z'], exact, delta=4 * entry[end]['standard_error'] + 0.01)
        self.assertLess(entry[end]['standard_error'], 0.25)
      exchange = entry['exchange']
      self.assertAlmostEqual(exchange['log_z'], exact, delta=4 * exchange['standard_error'] + 0.01)
      self.assertLess(exchange['standard_error'], 0.15)
      self.assertLess(exchange['r_hat'], 1.1)

  def test_log_density_is_that_of_the_test_split(self):
    ebm = trained.load(self.config, self.workdir).ebm
    x = data.load_source(self.config.data, 'test').read(np.arange(2**14))
    q = log_prob.log_prob(ebm, jnp.asarray(x), self.record['log_z'][0]['log_z'])
    self.assertAlmostEqual(self.record['log_prob'], float(np.mean(q)), places=4)
    self.assertEqual(
      (self.record['split'], self.record['num_images'], self.record['bits_per_dim']), ('test', 2**14, None)
    )

  def test_what_it_found_is_kept(self):
    folder = os.path.join(self.workdir, 'density')
    with open(os.path.join(folder, 'results.json'), encoding='utf-8') as file:
      self.assertEqual(json.load(file)['log_z'], self.record['log_z'])
    names = ['ladder.npz', 'log_prob.png', 'log_probs.npz', 'log_z.png', 'results.json', 'routes.md']
    self.assertCountEqual(os.listdir(folder), names)
    self.assertEqual(files.read_npz(os.path.join(folder, 'log_probs.npz'))['flow'].shape, (2**14,))
    inputs = self.record['inputs']
    self.assertEqual((inputs['step'], inputs['seed'], inputs['density']['num_chains']), (3, 0, 500))
    np.testing.assert_array_equal(trained.log_z(self.workdir, 3, 6), [entry['log_z'] for entry in self.record['log_z']])

  def test_the_flow_has_a_density_of_its_own_that_is_normalised(self):
    # Levels that nothing has made consistent: the job must say that the two densities differ, and why.
    self.assertEqual(
      [route['name'].rpartition(', ')[2] for route in self.record['routes']],
      ['forward', 'reverse', 'both ends', 'replica exchange', 'probability-flow ODE'],
    )
    self.assertRegex(
      ' '.join(self.record['disagreements']), 'and probability-flow ODE differ by .* one diffused density'
    )
    self.assertEqual(self.record['flow']['unsolved'], 0)
    self.assertGreater(self.record['rank_correlation'], -1)
    self.assertIn('| probability-flow ODE |  | ', self.record['table'])

  def test_log_z_of_another_checkpoint_is_not_known(self):
    self.assertIsNone(trained.log_z(self.workdir, 4, 6))
    self.assertIsNone(trained.log_z(os.path.join(self.workdir, 'nowhere'), 3, 6))

  def test_what_one_gradient_a_level_samples_is_bounded(self):
    config = toy2d_t1k.get_config()
    config.model.update({'ch': 8, 'num_layers': 1, 'output_scale': 1e-6})  # next to nothing beside -|y|^2 / 2
    config.density.update({'num_chains': 500})
    workdir = self.enterContext(tempfile.TemporaryDirectory())
    testing.save_first_state(config, workdir, step=3)
    # It comes before the ladder, which is not needed for it.
    with (
      mock.patch.object(annealing.ladder, 'choose', side_effect=FloatingPointError(7)),
      mock.patch.object(density, '_bounds', wraps=density._bounds) as bounds,
      self.assertRaisesRegex(DivergedError, 'level 7'),
    ):
      density.run(config, workdir, seed=1)
    found = density._bounds(*bounds.call_args.args)
    # The sampler is a chain of linear maps of normal numbers.
    noise, variance = model_lib.build(config).levels, 1.0
    for t in reversed(range(999)):
      sigma2 = noise.sigma[t + 1] ** 2
      variance = (variance * (1 - (1.0 if t < 998 else 0.5) * sigma2) ** 2 + sigma2) / noise.a_y[t] ** 2
    x = data.load_source(config.data, 'test').read(np.arange(1000))
    self.assertEqual(found['num_examples'], 1000)
    exact = np.mean(np.sum(stats.norm.logpdf(x, scale=np.sqrt(variance) / noise.a[0]), axis=1))
    # Backwards, this sampler is the forward process: but for the noise of 1,000 draws, nothing is lost.
    self.assertAlmostEqual(found['log_prob'], exact, delta=0.1)
    # Noise of level 0 makes data of this spread a little less likely.
    self.assertAlmostEqual(found['log_prob_with_noise'], found['log_prob'], delta=0.02)
    self.assertNotIn('bits_per_dim', found)


class ImagesTest(absltest.TestCase):
  def test_bits_per_dimension_and_a_warning_about_few_effective_samples(self):
    config = digits_t1k.get_config()
    config.diffusion.num_levels = 6
    config.model.update({'ch': 8, 'num_layers': 1, 'output_scale': 0.3})
    config.sampling.num_steps = 2
    config.density.update(
      {
        'num_chains': 4,
        'pilot_chains': 4,
        'rung_ess': 0.3,
        'data_steps': 1,
        'levels': (0,),
        'num_draws': 2,
        'baselines': False,
      }
    )
    workdir = self.enterContext(tempfile.TemporaryDirectory())
    testing.save_first_state(config, workdir, step=3, ema_params=perturbed(config))
    with self.assertLogs('diffusion_ebm', 'WARNING') as logs:
      record = density.run(config, workdir, seed=1)
    self.assertRegex(logs.output[0], 'level 0: .* effective of 4 samples .*density.rung_ess')
    dim, log2 = 64, np.log(2)
    self.assertAlmostEqual(record['bits_per_dim'], -(record['log_prob'] + dim * np.log(0.125)) / dim / log2, places=6)
    first = record['log_z'][0]
    self.assertAlmostEqual(
      record['bits_per_dim_upper'] - record['bits_per_dim_lower'],
      (first['upper'] - first['lower']) / dim / log2,
      places=6,
    )
    self.assertEqual((record['num_images'], record['grey_levels']), (360, 17))
    self.assertNotEqual(record['bits_per_dim'], record['bits_per_dim_with_noise'])


class FlowAloneTest(absltest.TestCase):
  @testing.long
  def test_it_needs_no_ladder_below_the_noisiest_level(self):
    config = testing.toy2d_config()
    config.model.update({'output_scale': 0.1, 'quadratic': 1.0})
    config.diffusion.temperature = 'one'
    config.density.update({'checks': ('flow',), 'bracket': False, 'num_images': 20, 'num_chains': 64})
    workdir = self.enterContext(tempfile.TemporaryDirectory())
    testing.save_first_state(config, workdir, step=3)  # all energies are -|y|^2 / 2: the flow stands still
    record = density.run(config, workdir)
    self.assertEqual([entry['level'] for entry in record['log_z']], [5])
    found = files.read_npz(os.path.join(workdir, 'density', 'log_probs.npz'))
    self.assertEqual(list(found), ['flow'])
    self.assertEqual((record['num_images'], len(found['flow'])), (20, 20))
    self.assertEqual([route['name'] for route in record['routes']], ['probability-flow ODE'])
    self.assertAlmostEqual(record['routes'][0]['log_prob'], found['flow'].mean(), places=5)


class ResultsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.workdir = self.enterContext(tempfile.TemporaryDirectory())
    self.folder = os.path.join(self.workdir, 'density')
    os.mkdir(self.folder)

  def test_those_of_other_inputs_are_beside_the_first(self):
    plots = {name: np.zeros((1, 1, 3), np.uint8) for name in ('log_z', 'log_prob')}
    for number, inputs in enumerate(({'step': 3}, {'step': 4}, {'step': 3})):
      record = {'inputs': inputs, 'number': number, 'table': ''}
      density._write(self.folder, record, {'ladder': {'level': np.array([number])}, 'log_probs': {}}, plots)
    self.assertCountEqual(
      os.listdir(self.folder),
      [
        name.format(number)
        for number in ('', '_2')
        for name in (
          'results{}.json',
          'routes{}.md',
          'ladder{}.npz',
          'log_probs{}.npz',
          'log_z{}.png',
          'log_prob{}.png',
        )
      ],
    )
    for suffix, number in (('', 2), ('_2', 1)):
      self.assertEqual(files.read_json(os.path.join(self.folder, f'results{suffix}.json'))['number'], number)
      self.assertEqual(files.read_npz(os.path.join(self.folder, f'ladder{suffix}.npz'))['level'][0], number)

  def test_log_z_is_that_of_the_last_time_for_the_checkpoint(self):
    for name, age, record in (
      ('results', 0, {'step': 4, 'log_z': [{'level': 0, 'log_z': 1.0}]}),
      ('results_2', 2, {'step': 3, 'log_z': [{'level': 0, 'log_z': 2.0}]}),
      ('results_3', 1, {'step': 3, 'log_z': [{'level': 1, 'log_z': 3.0}]}),
      ('results_4', 0, {'inputs': {'step': 3}}),  # of a job that was killed
    ):
      path = os.path.join(self.folder, f'{name}.json')
      files.write_json(path, record)
      os.utime(path, (1e9 - age, 1e9 - age))
    np.testing.assert_array_equal(trained.log_z(self.workdir, 3, 2), [np.nan, 3.0])
    np.testing.assert_array_equal(trained.log_z(self.workdir, 4, 2), [1.0, np.nan])
    self.assertIsNone(trained.log_z(self.workdir, 5, 2))
    files.write_text(os.path.join(self.folder, 'results_2.json'), '{')
    with self.assertRaisesRegex(
      UserError, r'density/results_2\.json cannot be read .*: remove it, and run --mode=density'
    ):
      trained.log_z(self.workdir, 5, 2)


class RefusedTest(absltest.TestCase):
  @testing.long
  def test_chains_that_stand_still(self):
    config = testing.toy2d_config()
    config.density.update({'num_chains': 3, 'pilot_chains': 3, 'rung_ess': 0.1, 'num_leapfrog': 1})
    workdir = self.enterContext(tempfile.TemporaryDirectory())
    testing.save_first_state(config, workdir, step=3)
    with (
      mock.patch.object(density, '_MIN_ACCEPTANCE', 1.1),
      self.assertRaisesRegex(
        UserError, r'acceptance of the chains collapsed to \d.\d* at level \d: try a larger --config.density.rung_ess'
      ),
    ):
      density.run(config, workdir)

  def test_no_checkpoint(self):
    with self.assertRaisesRegex(UserError, 'no checkpoint: train first'):
      density.run(testing.toy2d_config(), self.enterContext(tempfile.TemporaryDirectory()))

  def test_energies_that_are_not_finite(self):
    config = testing.toy2d_config()
    config.density.pilot_chains = 3
    nothing = testing.nothing(config)
    workdir = self.enterContext(tempfile.TemporaryDirectory())
    testing.save_first_state(config, workdir, step=7, ema_params=nothing)
    with self.assertRaisesRegex(DivergedError, 'level 5 are not finite'):
      density.run(config, workdir)


class BaselinesTest(absltest.TestCase):
  def test_the_best_settings_are_chosen_and_the_density_is_normalised(self):
    # Independent pixels of three equal grey levels: log2 3 bits each, and nothing can beat that on average.
    rng = np.random.default_rng(0)
    train, test = (rng.integers(-1, 2, (n, 1, 2, 1)).astype(np.float64) for n in (300, 200))
    values, settings = baseline_densities.log_densities('kernel_density', train, test, 1.0, 4, 0)
    bits = log_prob.bits_per_dim(values, 2, 1.0).mean()
    self.assertBetween(bits, np.log2(3), np.log2(3) + 0.25)
    self.assertEqual(list(settings), ['bandwidth'])


if __name__ == '__main__':
  absltest.main()
