"""The normal factor: against SciPy's normal density, and where its numbers come from."""

import os
import tempfile
from unittest import mock

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
from scipy import special, stats

from configs import digits_density
from diffusion_ebm import config as config_lib
from diffusion_ebm import data, networks, noise_levels
from diffusion_ebm.data import source
from diffusion_ebm.ebm import Ebm
from diffusion_ebm.jobs import train
from diffusion_ebm.networks import normal_factor
from diffusion_ebm.run.errors import UserError


def make_factor(num_levels, num_components=1):
  levels = noise_levels.make_noise_levels(num_levels)
  return levels, normal_factor.NormalFactor(
    num_components, tuple(levels.log_snr[:-1].tolist()), tuple(levels.a_y.tolist())
  )


def fit(x, *args, to_data=lambda x: x, **kwargs):
  return normal_factor.fit(source.ArraySource(x), to_data, *args, **kwargs)


class NormalFactorTest(parameterized.TestCase):
  @parameterized.product(num_levels=(6, 10, 1000), num_components=(1, 3))
  def test_it_is_the_density_of_diffused_normal_data(self, num_levels, num_components):
    rng = np.random.default_rng(0)
    weights, means = rng.dirichlet(np.ones(num_components)), rng.normal(size=(num_components, 4))
    roots = rng.normal(size=(num_components, 4, 4)) * [1, 0.1, 0.5, 0.01]
    covariances = np.einsum('kde,kfe->kdf', roots, roots)
    variances, axes = np.linalg.eigh(covariances)
    params = {
      'log_weights': np.log(weights),
      'axes': axes,
      'variances': variances,
      'centres': np.stack([a.T @ m for a, m in zip(axes, means, strict=True)]),
    }
    levels, factor = make_factor(num_levels, num_components)
    y = rng.normal(size=(30, 2, 2, 1)).astype(np.float32)
    for t in (0, 2, levels.num_models - 1, 2.4):  # between two levels log_snr and a_y run straight
      a = np.interp(t, np.arange(levels.num_models), levels.a_y)
      a_cum = 1 / np.sqrt(1 + np.exp(-2 * np.interp(t, np.arange(levels.num_models), levels.log_snr[:-1])))
      expected = special.logsumexp(
        [
          np.log(w)
          + stats.multivariate_normal(
            a * a_cum * mean, a**2 * (a_cum**2 * covariance + (1 - a_cum**2) * np.eye(4))
          ).logpdf(y.reshape(-1, 4))
          for w, mean, covariance in zip(weights, means, covariances, strict=True)
        ],
        axis=0,
      )
      ours = factor.apply({'params': jax.tree.map(jnp.float32, params)}, y, jnp.full(30, t))
      np.testing.assert_allclose(ours, expected, rtol=2e-3, atol=2e-3)

  def test_before_it_knows_the_data_they_are_standard_normal(self):
    levels, factor = make_factor(6, 3)
    y = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    t = jnp.array([0, 1, 2, 4, 5])
    params = factor.init(jax.random.key(0), y, t)['params']
    expected = stats.norm(0, levels.a_y[np.asarray(t)][:, None]).logpdf(y).sum(1)
    np.testing.assert_allclose(factor.apply({'params': params}, y, t), expected, rtol=1e-5)

  def test_its_numbers_do_not_train(self):
    _, factor = make_factor(6)
    y, t = jnp.ones((2, 3)), jnp.array([0, 3])
    params = factor.init(jax.random.key(0), y, t)['params']
    grads = jax.grad(lambda params: jnp.sum(factor.apply({'params': params}, y, t)))(params)
    jax.tree.map(lambda g: np.testing.assert_array_equal(g, 0), grads)
    self.assertGreater(float(jnp.abs(jax.grad(lambda y: jnp.sum(factor.apply({'params': params}, y, t)))(y)).min()), 0)

  def test_one_component_has_the_mean_and_covariance_of_the_data(self):
    # Mirror images and the noise of dequantisation count.
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(2500, 2, 3, 1)) * np.arange(1, 4)[:, None]).astype(np.float32)
    found = fit(x, 1, 0, to_data=lambda x: 2 * x, flip=True, width=0.5)
    both = 2 * np.concatenate([x, x[:, :, ::-1]]).reshape(-1, 6)
    axes, variances = found['axes'][0], found['variances'][0]
    np.testing.assert_allclose(axes @ found['centres'][0], both.mean(0), atol=1e-5)
    np.testing.assert_allclose(
      (axes * variances) @ axes.T, np.cov(both.T, bias=True) + 0.5**2 / 12 * np.eye(6), atol=1e-4
    )
    np.testing.assert_array_equal(found['log_weights'], 0)

  def test_components_far_apart_are_found(self):
    rng = np.random.default_rng(0)
    first = rng.random(20_000) < 0.3
    x = np.where(first[:, None], -3 + 0.5 * rng.normal(size=(20_000, 2)), 3 + [0.2, 1.0] * rng.normal(size=(20_000, 2)))
    found = fit(x, 2, 0)
    order = np.argsort(found['log_weights'])
    means = np.einsum('kde,ke->kd', found['axes'], found['centres'])[order]
    np.testing.assert_allclose(np.exp(found['log_weights'])[order], [0.3, 0.7], atol=0.02)
    np.testing.assert_allclose(means, [[-3, -3], [3, 3]], atol=0.05)
    np.testing.assert_allclose(found['variances'][order], [[0.25, 0.25], [0.04, 1.0]], rtol=0.1)

  def test_at_most_50_000_examples_count(self):
    x = np.arange(60_000.0)[:, None]
    found = fit(x, 1, 0, to_data=lambda x: x / 60_000)
    mean = (found['axes'] * found['centres']).item()
    self.assertAlmostEqual(mean, 0.5, delta=0.005)
    self.assertNotAlmostEqual(mean, 0.5, places=5)
    np.testing.assert_allclose(found['variances'], 1 / 12, rtol=0.02)

  def test_fewer_of_large_examples_count(self):
    with mock.patch.object(normal_factor, '_MAX_NUMBERS', 100):
      read = []
      fit(np.random.default_rng(0).normal(size=(60, 5)), 1, 0, to_data=lambda x: read.append(len(x)) or x)
    self.assertEqual(read, [20])

  def test_a_pixel_that_never_changes_has_little_variance_but_some(self):
    found = fit(np.random.default_rng(0).normal(size=(500, 2)) * [1, 0], 1, 0)
    np.testing.assert_allclose(found['variances'].min(), 1e-6, rtol=1e-3)

  def test_more_components_than_examples_are_refused(self):
    config = digits_density.get_config()
    config.model.normal_factor = 900
    few = source.ArraySource(np.zeros((899, 8, 8, 1), np.uint8))
    workdir = os.path.join(self.enterContext(tempfile.TemporaryDirectory()), 'run')
    with (
      mock.patch.object(data, 'load_source', lambda *_: few),
      self.assertRaisesRegex(UserError, 'model.normal_factor is 900, but there are only 899 examples'),
    ):
      train.run(config, workdir)
    self.assertFalse(os.path.exists(workdir))

  def test_a_fit_that_has_not_converged_says_so(self):
    with mock.patch.object(normal_factor, '_MAX_ITERATIONS', 1), self.assertLogs(level='WARNING') as logs:
      fit(np.random.default_rng(0).normal(size=(1000, 2)), 5, 0)
    self.assertLen(logs.output, 1)
    self.assertIn('the 5 normal densities still change after 1 steps', logs.output[0])

  @parameterized.parameters('mlp', 'resnet')
  def test_networks_add_it(self, name):
    config = digits_density.get_config()
    config.model.update({'name': name, 'ch': 8, 'ch_mult': (1,), 'num_res_blocks': 1})
    levels = noise_levels.make_levels(10, 0.06)
    factor = networks.make_network(config.model, levels)
    config.model.normal_factor = 0
    plain = networks.make_network(config.model, levels)
    y, t = jax.random.normal(jax.random.key(0), (2, 8, 8, 1)), jnp.array([1, 7])
    params = factor.init(jax.random.key(1), y, t)['params']
    rest = {name: value for name, value in params.items() if name != 'normal_factor'}
    _, alone = make_factor(10, 5)
    np.testing.assert_allclose(
      Ebm(params, factor, levels).f(y, t),
      Ebm(rest, plain, levels).f(y, t) + alone.apply({'params': params['normal_factor']}, y, t),
      rtol=1e-5,
    )

  def test_with_normal_data_nothing_is_left_to_learn(self):
    # Its score is that of the data: denoising score matching finds nothing to improve.
    levels = noise_levels.make_levels(10, 0.1, 'conditional', 'one', 'balanced')
    _, factor = make_factor(10)
    rng = np.random.default_rng(0)
    x = (0.5 + 0.3 * rng.standard_normal((40_000, 1))).astype(np.float32)
    params = fit(x, 1, 0)
    t, eps = jnp.full(len(x), 4), rng.standard_normal((len(x), 1)).astype(np.float32)
    x_t = noise_levels.diffuse(levels, x, t, eps)
    score = jax.grad(lambda x: jnp.sum(factor.apply({'params': params}, levels.a_y[4] * x, t)))(x_t)
    # E[(sbar score + eps) phi(x_t)] = 0 for any phi: here 1 and x_t, with standard errors below 0.005.
    error = levels.sigma_cum[4] * score + eps
    self.assertLess(abs(float(jnp.mean(error))), 0.02)
    self.assertLess(abs(float(jnp.mean(error * x_t))), 0.02)

  def test_where_it_cannot_be_is_refused(self):
    config = digits_density.get_config()
    config_lib.check(config, 1)
    for changes, message in (
      (
        {'diffusion.temperature': 'step_size'},
        "diffusion.temperature is 'step_size', but model.normal_factor, .*, needs 'one'",
      ),
      ({'data.image_size': 128, 'model.ch_mult': (1,)}, '=5 is for examples of at most 1831 '),
      ({'model.normal_factor': -1}, r'model.normal_factor is -1, not in 0 \.\. 1000'),
    ):
      wrong = digits_density.get_config()
      wrong.update_from_flattened_dict(changes)
      with self.assertRaisesRegex(UserError, message):
        config_lib.check(config_lib.resolve(wrong), 1)


if __name__ == '__main__':
  absltest.main()
