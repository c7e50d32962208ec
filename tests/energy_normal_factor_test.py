"""The normal factor: against SciPy's normal density, and where its moments come from."""

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from configs import digits_density
from diffusion_ebm import config as config_lib
from diffusion_ebm import energy, noise_levels, recovery
from diffusion_ebm.energy import normal_factor


class Source:
  """Examples in memory, as `diffusion_ebm.data` reads them."""

  def __init__(self, x):
    self._x = x

  def __len__(self):
    return len(self._x)

  def read(self, index):
    return self._x[index]


def make_factor(num_levels):
  noise = noise_levels.make_noise_levels(num_levels)
  return noise, normal_factor.NormalFactor(tuple(noise.log_snr[:-1].tolist()), tuple(noise.a_y[1:].tolist()))


class NormalFactorTest(parameterized.TestCase):

  @parameterized.parameters(6, 10, 1000)
  def test_it_is_the_density_of_diffused_normal_data(self, num_levels):
    rng = np.random.default_rng(0)
    mean, root = rng.normal(size=4), rng.normal(size=(4, 4)) * [1, 0.1, 0.5, 0.01]
    x = (mean + rng.standard_normal((20_000, 4)) @ root.T).astype(np.float32).reshape(-1, 2, 2, 1)
    params = normal_factor.moments(Source(x), lambda x: x, 0)
    mean, covariance = x.reshape(-1, 4).mean(0, np.float64), np.cov(x.reshape(-1, 4).T.astype(np.float64), bias=True)
    noise, factor = make_factor(num_levels)
    y = rng.normal(size=(30, 2, 2, 1)).astype(np.float32)
    for t in (0, 2, noise.num_models - 1):
      a, a_cum = noise.a_y[t + 1], noise.a_cum[t]
      expected = stats.multivariate_normal(
          a * a_cum * mean, a**2 * (a_cum**2 * covariance + noise.sigma_cum[t]**2 * np.eye(4))).logpdf(y.reshape(-1, 4))
      ours = factor.apply({'params': params}, y, jnp.full(30, t))
      np.testing.assert_allclose(ours, expected, rtol=2e-3, atol=2e-3)

  def test_before_it_knows_the_data_they_are_standard_normal(self):
    noise, factor = make_factor(6)
    y = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    t = jnp.array([0, 1, 2, 4, 5])
    params = factor.init(jax.random.key(0), y, t)['params']
    expected = stats.norm(0, noise.a_y[1:][np.asarray(t)][:, None]).logpdf(y).sum(1)
    np.testing.assert_allclose(factor.apply({'params': params}, y, t), expected, rtol=1e-5)

  def test_its_numbers_do_not_train(self):
    _, factor = make_factor(6)
    y, t = jnp.ones((2, 3)), jnp.array([0, 3])
    params = factor.init(jax.random.key(0), y, t)['params']
    grads = jax.grad(lambda params: jnp.sum(factor.apply({'params': params}, y, t)))(params)
    jax.tree.map(lambda g: np.testing.assert_array_equal(g, 0), grads)
    self.assertGreater(float(jnp.abs(jax.grad(lambda y: jnp.sum(factor.apply({'params': params}, y, t)))(y)).min()), 0)

  def test_moments_count_mirror_images_and_the_noise_of_dequantisation(self):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2500, 2, 3, 1)) * np.arange(1, 4)[:, None]  # more than is read at once
    found = normal_factor.moments(Source(x), lambda x: 2 * x, 0, flip=True, width=0.5)
    both = 2 * np.concatenate([x, x[:, :, ::-1]]).reshape(-1, 6)
    covariance = (found['axes'] * found['variances']) @ found['axes'].T
    np.testing.assert_allclose(found['mean'], both.mean(0), atol=1e-5)
    np.testing.assert_allclose(covariance, np.cov(both.T, bias=True) + 0.5**2 / 12 * np.eye(6), atol=1e-4)

  def test_at_most_50_000_examples_count(self):
    x = np.arange(60_000.0)[:, None]
    found = normal_factor.moments(Source(x), lambda x: x / 60_000, 0)
    np.testing.assert_allclose(found['mean'], 0.5, atol=0.005)
    np.testing.assert_allclose(found['variances'], 1 / 12, rtol=0.02)
    self.assertNotAlmostEqual(float(found['mean'][0]), 0.5, places=5)

  @parameterized.parameters('mlp', 'resnet')
  def test_networks_add_it(self, name):
    config = digits_density.get_config()
    config.model.update({'name': name, 'ch': 8, 'ch_mult': (1,), 'num_res_blocks': 1})
    factor = energy.make_network(config.model, 10)
    config.model.normal_factor = False
    plain = energy.make_network(config.model, 10)
    y, t = jax.random.normal(jax.random.key(0), (2, 8, 8, 1)), jnp.array([1, 7])
    params = factor.init(jax.random.key(1), y, t)['params']
    rest = {name: value for name, value in params.items() if name != 'normal_factor'}
    _, alone = make_factor(10)
    np.testing.assert_allclose(
        energy.at_level(factor, params, t)(y),
        energy.at_level(plain, rest, t)(y) + alone.apply({'params': params['normal_factor']}, y, t), rtol=1e-5)

  def test_with_normal_data_nothing_is_left_to_learn(self):
    # One gradient of the recovery loss is zero in expectation, and so is each term of the dual score's loss.
    levels = recovery.make_levels(10, 0.1, 'conditional', 'one', 'balanced')
    _, factor = make_factor(10)
    rng = np.random.default_rng(0)
    x = (0.5 + 0.3 * rng.standard_normal((40_000, 1))).astype(np.float32)
    params = normal_factor.moments(Source(x), lambda x: x, 0)
    t, eps = jnp.full(len(x), 4), rng.standard_normal((len(x), 1)).astype(np.float32)
    x_t = noise_levels.diffuse(levels.noise, x, t, eps)
    score = jax.grad(lambda x: jnp.sum(
        factor.apply({'params': params}, levels.noise.a_y[5] * x, t)))(x_t)
    # E[(sbar score + eps) phi(x_t)] = 0 for any phi: here 1 and x_t, with standard errors below 0.005.
    error = levels.noise.sigma_cum[4] * score + eps
    self.assertLess(abs(float(jnp.mean(error))), 0.02)
    self.assertLess(abs(float(jnp.mean(error * x_t))), 0.02)

  def test_where_it_cannot_be_is_refused(self):
    config = digits_density.get_config()
    config_lib.check(config, 1)
    for changes, message in (({'diffusion.temperature': 'step_size'}, "needs diffusion.temperature='one'"),
                             ({'data.image_size': 128, 'model.ch_mult': (1,)}, 'at most 4096 numbers, not 16384')):
      wrong = digits_density.get_config()
      wrong.update_from_flattened_dict(changes)
      with self.assertRaisesRegex(config_lib.UserError, message):
        config_lib.check(config_lib.resolve(wrong), 1)


if __name__ == '__main__':
  absltest.main()
