"""The dual score against closed forms: diffused Gaussians and mixtures of them stay such."""

from unittest import mock

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_ebm import dual_score_matching, marginal_density, noise_levels, recovery
from diffusion_ebm.ebm import Ebm
from diffusion_ebm.networks import resnet
from diffusion_ebm.run import compilation
from tests import testing

MEANS, STD = np.array([-3.0, 3.0]), 0.3


def noise_at(levels, t):
  """abar, sbar and a of y at real levels, in float64, from the definitions."""
  grid = np.arange(levels.num_models)
  lam = np.interp(t, grid, np.log(levels.a_cum / levels.sigma_cum)[:-1])
  a_cum = 1 / np.sqrt(1 + np.exp(-2 * lam))
  return lam, a_cum, np.exp(-lam) * a_cum, np.interp(t, grid, levels.a_y)


def exact(levels, weight_at, extra=lambda y, t: 0.0):
  """The model of a mixture of two Gaussians in one dimension, `weight_at(t)` the share of the second; f has `extra`."""

  def f(y, t):
    lam = jnp.interp(t, jnp.arange(levels.num_models), jnp.asarray(levels.log_snr[:-1], jnp.float32))
    a = jnp.interp(t, jnp.arange(levels.num_models), jnp.asarray(levels.a_y, jnp.float32))
    scale = jnp.interp(t, jnp.arange(levels.num_models), jnp.asarray(levels.temperature, jnp.float32))
    a_cum, s2 = jnp.sqrt(jax.nn.sigmoid(2 * lam)), jax.nn.sigmoid(-2 * lam)
    variance = a**2 * (a_cum**2 * STD**2 + s2)
    shares = (1 - weight_at(t), weight_at(t))
    logs = [jnp.log(w) - (y[:, 0] - a * a_cum * m) ** 2 / (2 * variance) for w, m in zip(shares, MEANS, strict=True)]
    return scale * (jnp.logaddexp(*logs) - 0.5 * jnp.log(variance)) + extra(y, t)

  return testing.function_ebm(levels, f)


def slope_and_curvature(loss, dim):
  """The gradient of a loss at zero, and the diagonal of its Hessian."""
  both = jax.jit(lambda theta: (jax.grad(loss)(theta), jnp.diag(jax.hessian(loss)(theta))))
  return both(jnp.zeros(dim))


class DualScoreTest(parameterized.TestCase):
  @parameterized.parameters(6, 1000)
  def test_at_whole_levels_data_are_diffused_as_ever(self, num_levels):
    levels = noise_levels.make_levels(num_levels, 0.06, 'conditional')
    t = jnp.array([0, 1, levels.num_models // 2, levels.num_models - 1])
    x, eps = jax.random.normal(jax.random.key(0), (2, 4, 3))
    x_t, a_cum, sigma_cum = dual_score_matching.diffuse(levels, x, t.astype(jnp.float32), eps)
    np.testing.assert_allclose(x_t, noise_levels.diffuse(levels, x, t, eps), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(a_cum[:, 0], levels.a_cum[t], rtol=1e-4)
    np.testing.assert_allclose(sigma_cum[:, 0], levels.sigma_cum[t], rtol=1e-4)

  @parameterized.product(num_levels=(6, 1000), temperature=noise_levels.TEMPERATURES)
  def test_time_score_is_the_slope_of_the_exact_log_density(self, num_levels, temperature):
    levels = noise_levels.make_levels(num_levels, 0.06, 'conditional', temperature)
    t = np.array([0.25, 1.5, 2.75, levels.num_models - 1.3])
    x = np.array([2.0, 0.3, -1.0, 1.4])
    ebm = exact(levels, lambda t: 0.3)
    ours = dual_score_matching.time_score(ebm, jnp.asarray(x[:, None], jnp.float32), jnp.asarray(t, jnp.float32))

    def log_density(lam):
      a_cum = 1 / np.sqrt(1 + np.exp(-2 * lam))
      variance = a_cum**2 * STD**2 + 1 - a_cum**2
      logs = [np.log(w) - (x - a_cum * m) ** 2 / (2 * variance) for w, m in zip((0.7, 0.3), MEANS, strict=True)]
      return np.logaddexp(*logs) - 0.5 * np.log(variance)

    lam, h = noise_at(levels, t)[0], 1e-5
    expected = (log_density(lam + h) - log_density(lam - h)) / (2 * h)
    np.testing.assert_allclose(ours, expected, rtol=2e-3, atol=2e-3)

  @parameterized.parameters((6, 0.4), (6, 3.5), (1000, 20.5), (1000, 600.25))
  def test_loss_is_least_at_the_truth(self, num_levels, level):
    levels = noise_levels.make_levels(num_levels, 0.06, 'conditional', 'one')
    # Both modes, and within each Gauss-Hermite quadrature over data and noise.
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    z, eps, mean = (part.ravel() for part in np.meshgrid(nodes, nodes, MEANS, indexing='ij'))
    weights = np.einsum('i,j,k->ijk', weights, weights, [0.7, 0.3]).ravel() / (2 * np.pi)
    x, t = mean + STD * z, jnp.full(len(z), level)

    def loss(theta):
      def wrong(y, t):
        return theta[0] * t + theta[1] * t * jnp.sin(2 * level) * y[:, 0] + theta[2] * t * y[:, 0] ** 2

      values = dual_score_matching.time_score_loss(
        exact(levels, lambda t: 0.3, wrong),
        jnp.asarray(x[:, None], jnp.float32),
        t,
        jnp.asarray(eps[:, None], jnp.float32),
      )
      return jnp.sum(weights * values)

    slope, curvature = slope_and_curvature(loss, 3)
    self.assertGreater(float(jnp.min(curvature)), 0)
    # Where each parabola is least, in units of the slope of lam: the change of log density that it stands for is small.
    np.testing.assert_array_less(np.abs(slope / curvature), 2e-3)

  @testing.long
  @parameterized.product(level=(0.4, 3.5), temperature=noise_levels.TEMPERATURES)
  def test_score_loss_is_least_at_the_truth(self, level, temperature):
    levels = noise_levels.make_levels(6, 0.06, 'conditional', temperature)
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    z, eps, mean = (part.ravel() for part in np.meshgrid(nodes, nodes, MEANS, indexing='ij'))
    weights = np.einsum('i,j,k->ijk', weights, weights, [0.7, 0.3]).ravel() / (2 * np.pi)
    x, t = jnp.asarray((mean + STD * z)[:, None], jnp.float32), jnp.full(len(z), level)
    scale = np.interp(level, np.arange(6), levels.temperature)

    def losses(theta):
      wrong = lambda y, _: scale * (theta[0] * y[:, 0] + theta[1] * y[:, 0] ** 2)  # noqa: E731
      return dual_score_matching.score_loss(
        exact(levels, lambda t: 0.3, wrong), x, t, jnp.asarray(eps[:, None], jnp.float32)
      )

    mean_loss = lambda theta: jnp.sum(weights * losses(theta))  # noqa: E731
    slope, curvature = slope_and_curvature(mean_loss, 2)
    self.assertGreater(float(jnp.min(curvature)), 0)
    np.testing.assert_array_less(np.abs(slope / curvature), 2e-3)
    # Its value: sbar^2 |score + eps / sbar|^2 / 2, the score by differences of the log density.
    _, a_cum, sigma_cum, _ = noise_at(levels, level)
    variance, h = a_cum**2 * STD**2 + sigma_cum**2, 1e-5
    x_t = a_cum * np.asarray(x[:, 0], np.float64) + sigma_cum * eps

    def logp(x):
      parts = (np.log(w) - (x - a_cum * m) ** 2 / (2 * variance) for w, m in zip((0.7, 0.3), MEANS, strict=True))
      return np.logaddexp(*parts)

    score = (logp(x_t + h) - logp(x_t - h)) / (2 * h)
    np.testing.assert_allclose(losses(jnp.zeros(2)), (sigma_cum * score + eps) ** 2 / 2, rtol=2e-3, atol=2e-3)

  @testing.long
  def test_it_sees_weights_of_modes_that_the_score_does_not(self):
    levels = noise_levels.make_levels(1000, 0.06, 'conditional', 'one')
    rng = np.random.default_rng(0)
    n = 20_000
    x = (MEANS[(rng.random(n) < 0.3).astype(int)] + STD * rng.standard_normal(n)).astype(np.float32)[:, None]
    eps = rng.standard_normal((n, 1)).astype(np.float32)
    # The wrong model shifts weight from one mode to the other over the levels, at a noise that no longer mixes them.
    t = 150
    losses = {}
    for name, weight_at in (('right', lambda t: 0.3), ('wrong', lambda t: 0.3 + 0.3 * jnp.tanh((150.5 - t) / 20))):
      ebm = exact(levels, weight_at)
      whole = jnp.full(n, t)
      x_pos = noise_levels.diffuse(levels, x, whole, eps)
      score = jax.jit(recovery.score_matching_loss)(ebm, x_pos, eps, whole)[0]
      change = jax.jit(dual_score_matching.time_score_loss)(ebm, x, jnp.full(n, t + 0.5), eps)
      losses[name] = float(jnp.mean(score)), float(jnp.mean(change))
    self.assertLess(abs(losses['wrong'][0] / losses['right'][0] - 1), 1e-3)
    self.assertGreater(losses['wrong'][1], 1.2 * losses['right'][1])

  def test_at_the_truth_the_loss_is_the_noise_of_what_it_regresses_on(self):
    # Data that are a single point: the target's mean given x_t is the target itself, and there is none.
    levels = noise_levels.make_levels(6, 0.06, 'conditional', 'one')
    t = jnp.array([0.5, 2.5, 4.5])
    x, eps = jnp.full((3, 2), 0.7), jax.random.normal(jax.random.key(0), (3, 2))

    def f(y, t):
      lam, a = (
        jnp.interp(t, jnp.arange(6), jnp.asarray(values, jnp.float32)) for values in (levels.log_snr[:-1], levels.a_y)
      )
      a_cum, s2 = jnp.sqrt(jax.nn.sigmoid(2 * lam)), jax.nn.sigmoid(-2 * lam)
      mean, variance = (a * a_cum)[:, None] * 0.7, a**2 * s2
      return -0.5 * jnp.sum((y - mean) ** 2, 1) / variance - jnp.log(variance)

    np.testing.assert_allclose(
      dual_score_matching.time_score_loss(testing.function_ebm(levels, f), x, t, eps), 0, atol=1e-6
    )


@testing.long
class ImagesTest(absltest.TestCase):
  """The time score of a convolutional network, whose convolution has a backward pass of its own."""

  def setUp(self):
    super().setUp()
    self.levels = noise_levels.make_levels(6, 0.06, 'conditional', 'one')
    settings = resnet.ResNetSettings(ch=64, ch_mult=(1,), num_res_blocks=1, act='swish', final_act='swish')
    self.network = resnet.ResNet(settings)
    rng = np.random.default_rng(0)
    self.x, self.eps = jnp.asarray(rng.standard_normal((2, 3, 8, 8, 1)), jnp.float32)
    self.t = jnp.array([0.3, 2.6, 4.1])
    params = compilation.once(self.network.init)(jax.random.key(0), self.x, jnp.zeros(3, int))['params']
    self.params = jax.tree.map(lambda p: p + 0.05 * rng.standard_normal(p.shape).astype(p.dtype), params)

  def ebm(self, params):
    return Ebm(params, self.network, self.levels)

  def loss(self, params):
    return jnp.sum(dual_score_matching.time_score_loss(self.ebm(params), self.x, self.t, self.eps))

  def test_it_is_the_slope_of_the_log_density_in_lam(self):
    ebm, h = self.ebm(self.params), 0.02

    def log_density(t):
      return np.asarray(jax.jit(marginal_density.log_density)(ebm, self.x, t), np.float64)

    lam = np.log(self.levels.a_cum / self.levels.sigma_cum)[:-1]
    slope = np.diff(lam)[np.asarray(self.t).astype(int)]
    expected = (log_density(self.t + h) - log_density(self.t - h)) / (2 * h) / slope
    found = jax.jit(dual_score_matching.time_score)(ebm, self.x, self.t)
    np.testing.assert_allclose(found, expected, rtol=2e-2)

  def test_the_gradient_of_its_loss_is_that_with_plain_convolutions(self):
    def plain(x, kernel, stride=1, tiles=None):
      del tiles
      return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
      )

    ours = jax.jit(jax.value_and_grad(self.loss))(self.params)
    with mock.patch('diffusion_ebm.networks.layers.conv2d', plain):
      theirs = jax.jit(jax.value_and_grad(lambda params: self.loss(params)))(self.params)
    for found, expected in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
      np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * float(jnp.max(jnp.abs(expected))))


if __name__ == '__main__':
  absltest.main()
