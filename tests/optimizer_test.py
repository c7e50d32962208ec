"""Ten steps of the optimiser against NumPy, with the published epsilon and order of operations."""

from absl.testing import absltest, parameterized
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from diffusion_ebm import optimizer

B1, B2, EPS = 0.9, 0.999, 1e-7


def settings(**changes):
  return ml_collections.ConfigDict(
    {'learning_rate': 1e-2, 'warmup_steps': 4, 'num_steps': 10, 'cosine_decay': False, 'grad_clip': 0.0, 'beta_1': B1}
    | changes
  )


def gradients():
  # Small ones too: there epsilon counts.
  return np.random.default_rng(0).normal(size=(10, 5)) * np.array([1, 1e-2, 1e-4, 1e-6, 1e-7])


def keras(grads, rates, beta_1=B1):
  x, m, v = np.ones(5), np.zeros(5), np.zeros(5)
  for n, (g, rate) in enumerate(zip(grads, rates, strict=True), 1):
    m = beta_1 * m + (1 - beta_1) * g
    v = B2 * v + (1 - B2) * g**2
    x = x - rate * np.sqrt(1 - B2**n) / (1 - beta_1**n) * m / (np.sqrt(v) + EPS)
  return x


def run(train, grads):
  tx, schedule = optimizer.make_optimizer(train)
  x = jnp.ones(5)
  state = tx.init(x)
  for g in grads:
    updates, state = tx.update(jnp.asarray(g, jnp.float32), state, x)
    x = optax.apply_updates(x, updates)
  return x, schedule


class OptimizerTest(parameterized.TestCase):
  @parameterized.parameters(0.9, 0.5)
  def test_ten_steps_are_those_of_keras(self, beta_1):
    rates = 1e-2 * np.minimum(1, np.arange(10) / 4)
    x, _ = run(settings(beta_1=beta_1), gradients())
    expected = keras(gradients(), rates, beta_1)
    np.testing.assert_allclose(x - 1, expected - 1, rtol=1e-3, atol=2e-7)  # float32 around one

  def test_warm_up_and_cosine_decay(self):
    _, schedule = run(settings(cosine_decay=True), gradients()[:1])
    steps = np.arange(12)
    expected = 1e-2 * np.minimum(1, steps / 4) * 0.5 * (1 + np.cos(np.pi * np.clip((steps - 4) / 6, 0, 1)))
    np.testing.assert_allclose([schedule(s) for s in steps], expected, rtol=1e-5, atol=1e-9)

  def test_without_warm_up_the_first_step_has_the_full_rate(self):
    self.assertAlmostEqual(float(optimizer.learning_rate_schedule(0.1, 0)(0)), 0.1)

  def test_clipping_bounds_the_global_norm_before_the_moments(self):
    g = gradients() * 100
    norms = np.linalg.norm(g, axis=1, keepdims=True)
    x, _ = run(settings(grad_clip=1.0), g)
    expected = keras(g / np.maximum(norms, 1), 1e-2 * np.minimum(1, np.arange(10) / 4))
    np.testing.assert_allclose(x - 1, expected - 1, rtol=1e-3, atol=2e-7)

  def test_moving_average(self):
    ema, expected = jnp.zeros(3), np.zeros(3)
    for n in range(10):
      ema = optimizer.ema_update(ema, jnp.full(3, float(n)), 0.9)
      expected = 0.9 * expected + 0.1 * n
    np.testing.assert_allclose(ema, expected, rtol=1e-5)


if __name__ == '__main__':
  absltest.main()
