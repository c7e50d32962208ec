"""Kernels against exact Gaussians and against blackjax."""

from absl.testing import absltest, parameterized
import blackjax
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_ebm import langevin
from tests import testing

PRECISION = np.array([1.0, 4.0, 25.0], np.float32)
MEAN = np.array([0.5, -1.0, 2.0], np.float32)


def target(y):
  return -0.5 * jnp.sum(PRECISION * (y - MEAN) ** 2, axis=1)


def chains(seed, n):
  """Keys, and independent samples of a wider Gaussian at the wrong place."""
  keys = jax.random.split(jax.random.key(seed), n)
  return keys, jax.random.normal(jax.random.key(seed + 100), (n, 3))


class KernelTest(parameterized.TestCase):
  @parameterized.parameters(('mala', 1, 0.35, 300), ('hmc', 5, 0.25, 100))
  def test_chains_have_the_targets_mean_and_variance(self, name, num_leapfrog, step_size, num_steps):
    # The unadjusted chain of this step would have the third variance off by s^2 25 / 4: a factor of 4 for MALA.
    n = 20_000
    keys, y = chains(0, n)
    kernel = langevin.make_kernel(name, num_leapfrog)
    state, info = jax.jit(lambda y: langevin.run(kernel, target, langevin.init(target, y), keys, step_size, num_steps))(
      y
    )
    np.testing.assert_allclose(np.mean(state.y, 0), MEAN, atol=5 / np.sqrt(n * PRECISION.min()))
    np.testing.assert_allclose(np.var(state.y, 0) * PRECISION, 1, atol=5 * np.sqrt(2 / n))
    # The share of accepted proposals is their mean probability, up to sqrt(1 / 4 / n / steps).
    self.assertAlmostEqual(float(jnp.mean(info.accepted - info.acceptance)), 0, delta=2.5 / np.sqrt(n * num_steps))
    self.assertLess(float(np.mean(info.acceptance)), 0.98)

  def test_a_state_keeps_the_log_density_and_the_score_of_its_position(self):
    keys, y = chains(1, 8)
    state, _ = langevin.run(langevin.make_kernel('hmc', 3), target, langevin.init(target, y), keys, 0.3, 5)
    np.testing.assert_allclose(state.log_density, target(state.y), rtol=1e-5)
    np.testing.assert_allclose(state.score, -PRECISION * (state.y - MEAN), rtol=1e-4, atol=1e-5)

  def test_unadjusted_chain_has_its_own_variance(self):
    n, s = 20_000, 0.2
    keys, y = chains(2, n)
    state, info = jax.jit(lambda y: langevin.run(langevin.unadjusted, target, langevin.init(target, y), keys, s, 300))(
      y
    )
    expected = 1 / PRECISION / (1 - s**2 * PRECISION / 4)
    np.testing.assert_allclose(np.var(state.y, 0), expected, rtol=5 * np.sqrt(2 / n))
    np.testing.assert_array_equal(info.acceptance, 1)

  @testing.long
  @parameterized.parameters(0.2, 0.5)
  def test_mala_accepts_as_blackjax_does(self, s):
    # The same proposals: blackjax's epsilon, with the drift epsilon and the noise sqrt(2 epsilon), is s^2 / 2.
    keys, y = chains(3, 2000)
    _, info = langevin.mala(target, langevin.init(target, y), keys, s)
    one = lambda y: target(y[None])[0]  # noqa: E731
    step = jax.vmap(lambda key, y: blackjax.mala.build_kernel()(key, blackjax.mala.init(y, one), one, s**2 / 2)[1])
    theirs = np.mean([np.mean(step(jax.random.split(jax.random.key(i), 2000), y).acceptance_rate) for i in range(5)])
    # The acceptance of a proposal, in [0, 1], has a standard deviation of at most 1/2.
    self.assertAlmostEqual(float(np.mean(info.acceptance)), theirs, delta=5 * 0.5 * np.sqrt(1 / 2000 + 1 / 10_000))

  def test_hmc_moves_and_accepts_as_blackjax_does_with_the_same_momentum(self):
    key, y = jax.random.key(4), jnp.array([[0.3, -0.7, 1.6]])
    momentum_key, _ = jax.random.split(key)
    momentum = jax.random.normal(momentum_key, (3,))
    one = lambda y: target(y[None])[0]  # noqa: E731
    integrate = blackjax.mcmc.integrators.velocity_verlet(one, lambda p, **_: 0.5 * jnp.sum(p**2))
    value, gradient = jax.value_and_grad(one)(y[0])
    at = blackjax.mcmc.integrators.IntegratorState(y[0], momentum, value, gradient)
    for _ in range(4):
      at = integrate(at, 0.2)
    energy = at.logdensity - value - 0.5 * (jnp.sum(at.momentum**2) - jnp.sum(momentum**2))
    state, info = langevin.hmc(target, langevin.init(target, y), key[None], 0.2, 4)
    np.testing.assert_allclose(info.acceptance[0], np.minimum(1, np.exp(energy)), rtol=1e-4)
    self.assertTrue(bool(info.accepted[0]))
    np.testing.assert_allclose(state.y[0], at.position, rtol=1e-5)

  def test_a_chain_depends_on_its_own_key_alone(self):
    keys, y = chains(5, 6)
    kernel = langevin.make_kernel('hmc', 2)
    run = lambda keys, y: langevin.run(kernel, target, langevin.init(target, y), keys, 0.4, 7)[0].y  # noqa: E731
    np.testing.assert_allclose(run(keys, y)[4:], run(keys[4:], y[4:]), rtol=1e-6)

  def test_steps_may_be_done_in_parts(self):
    keys, y = chains(6, 4)
    state = langevin.init(target, y)
    whole, _ = langevin.run(langevin.mala, target, state, keys, 0.3, 9)
    part, _ = langevin.run(langevin.mala, target, state, keys, 0.3, 4)
    part, _ = langevin.run(langevin.mala, target, part, keys, 0.3, 5, 4)
    np.testing.assert_array_equal(part.y, whole.y)

  def test_what_is_not_finite_is_refused(self):
    walled = lambda y: jnp.where(jnp.all(y < 0.1, axis=1), target(y), jnp.nan)  # noqa: E731
    keys = jax.random.split(jax.random.key(7), 100)
    state, info = langevin.run(langevin.mala, walled, langevin.init(walled, jnp.zeros((100, 3))), keys, 0.5, 20)
    self.assertTrue(np.all(np.isfinite(state.y)) and np.all(np.max(state.y, 1) < 0.1))
    self.assertTrue(np.all(np.isfinite(info.acceptance)))


class StepSizeTest(parameterized.TestCase):
  @parameterized.parameters(('mala', 1, 0.574, 0.01), ('mala', 1, 0.574, 10.0), ('hmc', 5, 0.8, 0.1))
  def test_it_comes_to_the_acceptance_from_either_side(self, name, num_leapfrog, acceptance, first):
    keys, y = chains(8, 500)
    y = MEAN + y / np.sqrt(PRECISION)
    kernel = langevin.make_kernel(name, num_leapfrog)

    @jax.jit
    def tune(y):
      state, step_size = langevin.adapt_step_size(
        kernel, target, langevin.init(target, y), keys, first, 300, acceptance
      )
      return step_size, langevin.run(kernel, target, state, keys, step_size, 100, 1000)[1].acceptance

    _, reached = tune(y)
    self.assertAlmostEqual(float(np.mean(reached)), acceptance, delta=0.03)

  def test_updates_are_blackjaxs(self):
    # blackjax averages the step sizes one update later than the paper; the iterates are the same.
    init, update, _ = blackjax.optimizers.dual_averaging.dual_averaging(t0=10, gamma=0.05, kappa=0.75)
    theirs, ours = init(0.3), langevin.init_step_size(0.3)
    for acceptance in (0.1, 0.9, 0.5, 1.0, 0.2):
      theirs = update(theirs, 0.65 - acceptance)
      ours = langevin.update_step_size(ours, acceptance, 0.65)
      np.testing.assert_allclose(ours.log_step, theirs.log_x, rtol=1e-5)


if __name__ == '__main__':
  absltest.main()
