"""The package's front door, on exact Gaussian energies and on a tiny run."""

import json
import os
import subprocess
import sys
import tempfile

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

import diffusion_ebm
from diffusion_ebm import UserError, inpainting, noise_levels, preprocessing, random_keys, sampling
from diffusion_ebm import config as config_lib
from diffusion_ebm.jobs import sample
from diffusion_ebm.run import checkpoints
from tests import testing

_COVARIANCE = np.array([[0.25, 0.2], [0.2, 0.25]])


def gaussian_model(log_z=None):
  levels = noise_levels.make_levels(6, 0.06, 'conditional')
  ebm = testing.gaussian_ebm(levels, _COVARIANCE)
  return diffusion_ebm.DiffusionEBM(
    ebm, log_z=ebm.network.log_z() if log_z is None else log_z, shape=(2,), sampling=sampling.Settings(3)
  )


class DensityTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.model = gaussian_model()
    cls.x = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)

  def test_log_prob_is_the_log_density(self):
    levels = self.model.ebm.levels
    for t in (0, 5):
      law = stats.multivariate_normal(
        np.zeros(2), levels.a_cum[t] ** 2 * _COVARIANCE + levels.sigma_cum[t] ** 2 * np.eye(2)
      )
      # Up to 100 nats in float32.
      np.testing.assert_allclose(self.model.log_prob(self.x, t), law.logpdf(self.x), rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(self.model.log_prob(self.x), self.model.log_prob(self.x, 0))

  def test_log_prob_is_minus_energy_less_log_z_and_score_its_gradient(self):
    level = np.array([0, 3, 5])
    np.testing.assert_allclose(
      self.model.log_prob(self.x, level), -self.model.energy(self.x, level) - self.model.log_z[level], rtol=1e-5
    )
    gradient = jax.grad(lambda x: jnp.sum(self.model.log_prob(x, level)))(jnp.asarray(self.x))
    np.testing.assert_allclose(self.model.score(self.x, level), gradient, rtol=1e-5)

  def test_an_unknown_normaliser_is_refused_with_what_to_do(self):
    with self.assertRaisesRegex(UserError, 'log Z is not known: run python main.py --mode=density'):
      self.model.replace(log_z=None).log_prob(self.x)
    partly = gaussian_model(np.array([1.0, np.nan, np.nan, 2.0, np.nan, np.nan]))
    self.assertTrue(np.all(np.isfinite(partly.log_prob(self.x, 3))))
    with self.assertRaisesRegex(UserError, 'log Z of level 1 is not known: the levels with one are 0, 3'):
      partly.log_prob(self.x, 1)

  def test_diffused_data_have_the_moments_of_the_level(self):
    x = self.model.diffuse(jax.random.key(0), np.ones((20_000, 2)), 3)
    levels = self.model.ebm.levels
    np.testing.assert_allclose(np.mean(x), levels.a_cum[3], atol=0.02)  # 4 standard errors of 0.005
    np.testing.assert_allclose(np.std(x), levels.sigma_cum[3], rtol=0.02)

  def test_conditional_samples_have_the_law_of_the_conditional(self):
    model = self.model.replace(sampling=sampling.Settings(100))
    x_next = np.broadcast_to(np.float32([0.5, -0.5]), (10_000, 2))
    x = model.conditional_sample(jax.random.key(1), x_next, 2)
    levels = model.ebm.levels
    prior = np.linalg.inv(model.ebm.network.covariance[2])
    covariance = np.linalg.inv(prior + np.eye(2) / levels.sigma[3] ** 2)  # of y_2
    a = levels.a[3]
    np.testing.assert_allclose(np.mean(x, 0), covariance @ x_next[0] / levels.sigma[3] ** 2 / a, atol=0.02)
    # Monte-Carlo error 1.4 %, the chain's bias at most 2 %.
    np.testing.assert_allclose(np.cov(np.asarray(x).T), covariance / a**2, rtol=0.08, atol=0.005)


class WrongInputTest(absltest.TestCase):
  def test_it_is_refused_in_one_line(self):
    model, key, x = gaussian_model(), jax.random.key(0), np.zeros((3, 2))
    for call, message in (
      (lambda: model.energy(np.zeros(2), 0), r'x has shape \(2,\), not \(B, 2\)'),
      (lambda: model.score(np.zeros((3, 4)), 0), r'x has shape \(3, 4\), not'),
      (lambda: model.energy(x, 6), 'level 6 is out of range: the levels are 0 to 5'),
      (lambda: model.energy(x, -1), 'level -1 is out of range'),
      (lambda: model.diffuse(key, x, 7), 'level 7 is out of range: the levels are 0 to 6'),
      (lambda: model.log_prob(x, [0, 1]), r'level is \[0 1\], neither'),
      (lambda: model.energy(x, 0.5), 'level is 0.5, neither'),
      (lambda: model.sample(key, 0), 'n is 0, but must be at least 1'),
      (lambda: model.interpolate(key, 0, 1, 1), 'n is 1, but must be at least 2'),
      (lambda: model.interpolate(key, -1, 1, 5), 'a is -1'),
      (lambda: model.inpaint(key, x, [True, False]), r'image has shape \(3, 2\), not \(2,\)'),
      (lambda: model.inpaint(key, x[0], [1, 0]), 'mask is int32, not bool'),
      (lambda: model.inpaint(key, x[0], [True] * 3), r'mask has shape \(3,\), not \(2,\)'),
      (lambda: model.inpaint(key, x[0], [True, False], num_repeats=0), 'num_repeats is 0'),
    ):
      with self.subTest(message), self.assertRaisesRegex(UserError, rf'\A{message}[^\n]*\Z'):
        call()


class WorkdirTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.workdir = cls.enterClassContext(tempfile.TemporaryDirectory())
    cls.config = testing.digits_config()
    testing.save_first_state(cls.config, cls.workdir, step=7)
    cls.model = diffusion_ebm.load(cls.workdir)
    cls.key = random_keys.stream_key(3)
    cls.samples = cls.model.sample(cls.key, 5)

  def test_samples_are_those_of_the_command_line(self):
    config = self.config.copy_and_resolve_references()
    config.sampling.num_samples = 5
    sample.run(config, self.workdir, 3)
    with np.load(os.path.join(self.workdir, 'samples', 'samples_7_seed3.npz'), allow_pickle=False) as file:
      expected = file['samples'].astype(int)
    ours = np.asarray(preprocessing.to_uint8(self.samples)).astype(int)
    self.assertLessEqual(np.max(np.abs(ours - expected)), 1)  # a value on the edge may round to either side
    self.assertLess(np.mean(ours != expected), 0.02)
    self.assertEqual(self.samples.shape, (5, 8, 8, 1))
    self.assertLessEqual(np.max(np.abs(self.samples)), 1)

  def test_a_strip_runs_between_samples_of_the_same_key(self):
    strip = self.model.interpolate(self.key, 1, 4, 3)
    np.testing.assert_allclose(strip[::2], self.samples[np.array([1, 4])], atol=1e-3)
    self.assertEqual(strip.shape, (3, 8, 8, 1))

  def test_completions_keep_what_is_known_and_differ_elsewhere(self):
    mask = inpainting.make_mask('right', (8, 8))
    image = np.asarray(preprocessing.to_uint8(self.samples[0]))
    completions = self.model.inpaint(self.key, image, mask, 2, num_repeats=1)
    self.assertEqual(completions.shape, (2, 8, 8, 1))
    known = image[~mask] / np.float32(127.5) - 1
    np.testing.assert_allclose(completions[:, ~mask], np.broadcast_to(known, (2, 32, 1)), rtol=0, atol=1e-7)
    np.testing.assert_array_equal(np.asarray(preprocessing.to_uint8(completions))[:, ~mask], [image[~mask]] * 2)
    self.assertGreater(np.std(completions[0][mask] - completions[1][mask]), 0.1)

  def test_all_may_be_called_inside_jit_with_the_model_as_an_argument(self):
    inside = jax.jit(lambda model, key, x, level: (model.energy(x, level), model.sample(key, 5)))
    energy, samples = inside(self.model, self.key, self.samples, 2)
    np.testing.assert_allclose(energy, self.model.energy(self.samples, 2), rtol=1e-4)
    np.testing.assert_allclose(samples, self.samples, atol=1e-3)

  def test_a_configuration_and_parameters_make_the_same_model(self):
    state, _ = testing.restore(self.config, self.workdir)
    model = diffusion_ebm.from_parameters(self.config, state.ema_params)
    x = np.zeros((1, 8, 8, 1), np.uint8)
    # The power iteration starts elsewhere, and ends at the same vectors.
    np.testing.assert_allclose(model.energy(x, 3), self.model.energy(x, 3), rtol=1e-3)
    with self.assertRaisesRegex(UserError, 'not those of the network'):
      diffusion_ebm.from_parameters(self.config, {'conv_in': np.zeros(3)})

  def test_log_z_comes_from_the_density_job_of_the_same_step(self):
    folder = os.path.join(self.workdir, 'density')
    os.makedirs(folder, exist_ok=True)
    self.addCleanup(lambda: os.remove(os.path.join(folder, 'results.json')))
    for step, known in ((7, True), (6, False)):
      with open(os.path.join(folder, 'results.json'), 'w', encoding='utf-8') as file:
        json.dump({'step': step, 'log_z': [{'level': 0, 'log_z': 5.0}, {'level': 4, 'log_z': 6.0}]}, file)
      log_z = diffusion_ebm.load(self.workdir).log_z
      if known:
        np.testing.assert_array_equal(log_z, [5.0, np.nan, np.nan, np.nan, 6.0, np.nan])
      else:
        self.assertIsNone(log_z)

  def test_what_is_not_there_is_refused(self):
    with self.assertRaisesRegex(UserError, 'holds no run: train first'):
      diffusion_ebm.load(os.path.join(self.workdir, 'none'))
    with self.assertRaisesRegex(UserError, 'no checkpoint of step 8'):
      diffusion_ebm.load(self.workdir, step=8)
    empty = self.enterContext(tempfile.TemporaryDirectory())
    config_lib.save(config_lib.resolve(self.config), empty)
    with self.assertRaisesRegex(UserError, 'no checkpoint: train first'):
      diffusion_ebm.load(empty)
    self.assertFalse(os.path.exists(checkpoints.directory(empty)))


class ImportTest(absltest.TestCase):
  def test_the_package_alone_imports_nothing_and_knows_its_names(self):
    code = (
      'import sys, jax, flax, optax; before = set(sys.modules); import diffusion_ebm; '
      'print(sorted(set(sys.modules) - before)); print({"load", "DiffusionEBM"} <= set(dir(diffusion_ebm)))'
    )
    result = subprocess.run([sys.executable, '-c', code], cwd=testing.ROOT, capture_output=True, text=True, check=True)
    self.assertEqual(result.stdout.splitlines(), ["['diffusion_ebm']", 'True'])

  def test_an_unknown_name_is_an_attribute_error(self):
    with self.assertRaisesRegex(AttributeError, "no attribute 'lode'"):
      _ = diffusion_ebm.lode


if __name__ == '__main__':
  absltest.main()
