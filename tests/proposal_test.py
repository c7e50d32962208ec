"""The proposal on normal data, where its fixed point and the chains that start from it have closed forms."""

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffusion_ebm import inpainting, langevin, noise_levels, optimizer, recovery, sampling, train_step
from diffusion_ebm import proposal as proposal_lib
from diffusion_ebm.proposal import Proposal
from tests import testing

VARIANCE = 0.25  # of the data
LEVELS = noise_levels.make_levels(6, 0.5, 'conditional', schedule='cosine')


class LinearNetwork:
  """A stand-in for a network: a slope and a shift for each level."""

  def apply(self, variables, x_next, t, dropout_keys, label):
    del dropout_keys, label
    weights = variables['params']
    return weights['slope'][t][:, None] * x_next + weights['shift'][t][:, None]


def linear(slope, shift=None, levels=LEVELS):
  slope = jnp.asarray(slope, jnp.float32)
  return Proposal(
    {'slope': slope, 'shift': jnp.zeros(6) if shift is None else jnp.asarray(shift)}, LinearNetwork(), levels
  )


def exact_ebm(levels=LEVELS):
  return testing.gaussian_ebm(levels, np.array([[VARIANCE]]))


def conditional(t, levels=LEVELS):
  """`(precision, slope)` of `p(y_t | x_{t+1})`, whose mean is `slope x_{t+1}`."""
  marginal = 1 / (levels.a_y[t] ** 2 * (VARIANCE * levels.a_cum[t] ** 2 + levels.sigma_cum[t] ** 2))
  pull = levels.is_recovery[t] / levels.sigma_y[t] ** 2
  return marginal + pull, pull / (marginal + pull)


class ProposalTest(parameterized.TestCase):
  def test_its_variance_is_that_of_the_cleaner_data_given_the_noisier_and_the_clean_ones(self):
    n = 200_000
    keys = jax.random.split(jax.random.key(0), 4)
    x = jnp.zeros((n, 1))
    for t in range(6):
      level = jnp.full(n, t)
      x_t, x_next = noise_levels.diffuse_pair(LEVELS, x, level, *jax.random.normal(keys[0], (2, n, 1)))
      y = LEVELS.to_y(x_t, level)
      slope = jnp.sum(y * x_next) / jnp.sum(x_next**2)
      rest = float(jnp.std(y - slope * x_next))
      drawn = linear(np.ones(6)).sample(x_next, level, jax.random.normal(keys[1], (n, 1)))
      np.testing.assert_allclose(jnp.std(drawn - x_next), rest, rtol=5 * np.sqrt(1 / n) * np.sqrt(2))

  def test_teaching_makes_it_the_mean_of_the_models_conditional(self):
    # Each chain forgets a part of where it started: only at the conditional's mean nothing is left to learn.
    network = LinearNetwork()
    weights = {'slope': jnp.full(6, 0.2), 'shift': jnp.full(6, 0.3)}
    tx, rate = optax.set_to_zero(), 1.0
    proposal_tx = optax.sgd(optax.cosine_decay_schedule(rate, 400))
    state = train_step.TrainState(
      jnp.int32(0),
      {'unused': jnp.zeros(1)},
      {'unused': jnp.zeros(1)},
      tx.init({'unused': jnp.zeros(1)}),
      {},
      jnp.int32(0),
      train_step.ProposalState(weights, weights, proposal_tx.init(weights)),
    )
    trainable = train_step.Trainable(
      lambda params, spectral: exact_ebm(), tx, lambda weights: Proposal(weights, network, LEVELS), proposal_tx
    )
    settings = train_step.StepSettings(0, 8, 0.9, False, shared_noise=True)

    def step(state, key):
      batch = np.sqrt(VARIANCE) * jax.random.normal(key, (2048, 1))
      return train_step.train_step(state, batch, jnp.arange(2048), trainable=trainable, settings=settings)

    state, metrics = jax.lax.scan(step, state, jax.random.split(jax.random.key(1), 400))
    found = state.proposal.params
    np.testing.assert_allclose(found['slope'], [conditional(t)[1] for t in range(6)], atol=0.02)
    np.testing.assert_allclose(found['shift'], np.zeros(6), atol=0.02)
    self.assertLess(metrics['proposal_loss'][-50:].mean(), metrics['proposal_loss'][:5].mean())

  @parameterized.parameters(*range(6))
  def test_a_chain_from_it_has_the_mean_and_the_variance_of_its_number_of_steps(self, t):
    # y' = (1 - s^2 lam / 2) y + ...: with the quadratic term below the last level, without it there.
    n, x_next, precision = 40_000, 0.7, conditional(t)[0]
    s2 = LEVELS.step_variance[t]
    left, stationary = 1 - s2 * precision / 2, 1 / precision / (1 - s2 * precision / 4)
    keys, level = jax.random.split(jax.random.key(t), n), jnp.full(n, t)
    made, slope = linear(np.full(6, 0.4)), conditional(t)[1]
    noise = langevin.normal_noise(keys, (1,))
    for num_steps in (0, 1, 3, 200):
      x = recovery.sample_conditional(exact_ebm().at(level), jnp.full((n, 1), x_next), noise, num_steps, made)
      y = np.asarray(LEVELS.to_y(x, level))
      mean = slope * x_next + left**num_steps * (0.4 - slope) * x_next
      variance = left ** (2 * num_steps) * LEVELS.posterior_sigma[t] ** 2 + (1 - left ** (2 * num_steps)) * stationary
      np.testing.assert_allclose(np.mean(y), mean, atol=5 * np.sqrt(variance / n))
      np.testing.assert_allclose(np.var(y), variance, rtol=5 * np.sqrt(2 / n))

  def test_samples_and_completions_start_from_it(self):
    # Without a chain, samples are the proposal's own: their variance follows from level to level.
    n, slope = 40_000, np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    made, keys = linear(slope), jax.random.split(jax.random.key(0), n)
    x, path = sampling.sample(exact_ebm(), keys, (1,), sampling.Settings(0), tuple(range(7)), made)
    variance = 1.0
    for t in reversed(range(6)):
      variance = (slope[t] ** 2 * variance + LEVELS.posterior_sigma[t] ** 2) / LEVELS.a_y[t] ** 2
      np.testing.assert_allclose(np.var(path[t]), variance, rtol=5 * np.sqrt(2 / n))
    image, mask = jnp.zeros((n, 1)), jnp.ones((n, 1), bool)
    completed = inpainting.inpaint(exact_ebm(), keys, image, mask, sampling.Settings(0), 1, made)
    np.testing.assert_allclose(np.var(completed), np.var(x), rtol=0.05)

  def test_the_loss_is_the_squared_distance_from_what_is_held_constant(self):
    x_next, y, noise = jax.random.normal(jax.random.key(0), (3, 6, 1))
    t, made = jnp.arange(6), linear(np.linspace(0, 1, 6))
    loss = proposal_lib.teaching_loss(made, x_next, y, t, noise)
    start = np.linspace(0, 1, 6)[:, None] * x_next + LEVELS.posterior_sigma[:, None] * noise
    np.testing.assert_allclose(loss, np.sum((start - y) ** 2, axis=1), rtol=1e-5)
    slope = jax.grad(lambda y: jnp.sum(proposal_lib.teaching_loss(made, x_next, y, t, noise)))(y)
    np.testing.assert_array_equal(slope, 0)


class SharedNoiseTest(parameterized.TestCase):
  def test_each_of_the_two_has_its_own_distribution(self):
    n = 100_000
    x = np.sqrt(VARIANCE) * jax.random.normal(jax.random.key(0), (n, 1))
    eps = jax.random.normal(jax.random.key(1), (n, 1))
    for t in range(6):
      pair = noise_levels.diffuse_together(LEVELS, x, jnp.full(n, t), eps)
      for level, drawn in zip((t, t + 1), pair, strict=True):
        expected = VARIANCE * LEVELS.a_cum[level] ** 2 + LEVELS.sigma_cum[level] ** 2
        np.testing.assert_allclose(np.var(drawn), expected, rtol=5 * np.sqrt(2 / n))

  @parameterized.parameters(*range(6))
  def test_the_gradient_is_the_same_in_the_mean_and_varies_less(self, t):
    # Of f = -s^2 lam |y|^2 / 2 in lam, with exact negatives of a model that is too narrow.
    n = 100_000
    keys = jax.random.split(jax.random.key(t), 4)
    level = jnp.full(n, t)
    x = np.sqrt(VARIANCE) * jax.random.normal(keys[0], (n, 1))
    eps, eps_next, noise = (jax.random.normal(key, x.shape) for key in keys[1:])
    precision, slope = conditional(t)
    precision, slope = precision + 1.0, slope * precision / (precision + 1.0)

    def gradient(x_t, x_next):
      y = slope * x_next + noise / np.sqrt(precision)
      each = LEVELS.to_y(x_t, level) ** 2 - y**2
      return float(jnp.mean(each)), float(jnp.std(each))

    apart = gradient(*noise_levels.diffuse_pair(LEVELS, x, level, eps, eps_next))
    together = gradient(*noise_levels.diffuse_together(LEVELS, x, level, eps))
    error = np.hypot(apart[1], together[1]) / np.sqrt(n)
    self.assertLess(abs(apart[0] - together[0]), 4 * error)
    self.assertGreater(together[0], 4 * error)
    self.assertLessEqual(together[1], apart[1] + 4 * error)


class AverageTest(absltest.TestCase):
  def test_a_warm_average_begins_as_a_plain_mean_and_ends_at_the_decay(self):
    np.testing.assert_allclose(optimizer.warm_decay(0.99, jnp.array([1, 10, 1000])), [2 / 11, 11 / 20, 0.99], rtol=1e-6)


if __name__ == '__main__':
  absltest.main()
