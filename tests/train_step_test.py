"""The training step beside its parts, done one after the other on the same random numbers."""

import dataclasses
import functools

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffusion_ebm import dual_score_matching, langevin, noise_levels, recovery, train_step
from diffusion_ebm.ebm import Ebm
from diffusion_ebm.networks import mlp, resnet, spectral_norm
from diffusion_ebm.proposal import Proposal
from tests import testing

SETTINGS = train_step.StepSettings(seed=3, num_langevin_steps=2, ema_decay=0.9, random_flip=False)
RATE = 0.1


def first_draws():
  """Levels of twelve examples at step 0 of seed 3, and the six keys of each."""
  key = jax.random.fold_in(jax.random.key(3), 0)
  keys = [jax.random.split(jax.random.fold_in(key, i), 6) for i in range(12)]
  return jnp.array([jax.random.randint(k[0], (), 0, 6) for k in keys]), keys


class TrainStepTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.network, cls.tx = mlp.MLP(mlp.MLPSettings(ch=8, num_layers=1)), optax.sgd(RATE)
    cls.levels = noise_levels.make_levels(6, 0.06, 'conditional')
    cls.state = train_step.init_state(jax.random.key(0), cls.network, cls.tx, np.zeros(2), True)
    cls.batch = jax.random.normal(jax.random.key(1), (12, 2))
    cls.after, cls.metrics = cls.step(cls.state, cls.batch, jnp.arange(12))

  @classmethod
  def step(cls, state, batch, index, settings=SETTINGS, network=None, levels=None):
    return jax.jit(
      lambda *args: train_step.train_step(
        *args,
        trainable=train_step.Trainable(
          lambda params, u: Ebm(spectral_norm.normalise(params, u), network or cls.network, levels or cls.levels),
          cls.tx,
        ),
        settings=settings,
      )
    )(state, batch, index)

  def expected(self):
    """Loss, gradient and positives by hand."""
    t, keys = first_draws()
    eps, eps_next = (jnp.stack([jax.random.normal(k[j], (2,)) for k in keys]) for j in (2, 3))
    x_pos, x_next = noise_levels.diffuse_pair(self.levels, self.batch, t, eps, eps_next)
    u = spectral_norm.iterate(self.state.params, self.state.spectral)
    ebm = Ebm(spectral_norm.normalise(self.state.params, u), self.network, self.levels)
    noise = langevin.normal_noise(jnp.stack([k[4] for k in keys]), (2,))
    x_neg = recovery.sample_conditional(ebm.at(t), x_next, noise, 2)

    def loss(params):
      weights = spectral_norm.normalise(params, u)
      a = jnp.asarray(self.levels.a_y, jnp.float32)[t, None]
      weight = jnp.asarray(self.levels.sigma[1] / self.levels.sigma, jnp.float32)[t + 1]
      f_pos = self.network.apply({'params': weights}, a * x_pos, t)
      f_neg = self.network.apply({'params': weights}, a * x_neg, t)
      return jnp.mean(weight * (f_neg - f_pos)), f_pos

    (value, f_pos), grads = jax.value_and_grad(loss, has_aux=True)(self.state.params)
    moved = np.linalg.norm(x_neg - x_next, axis=1)
    return value, f_pos, grads, t, moved

  def test_update_is_the_gradient_of_the_loss_with_the_negatives_held_constant(self):
    value, _, grads, *_ = self.expected()
    np.testing.assert_allclose(self.metrics['loss'], value, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(self.metrics['grad_norm'], testing.norm(grads), rtol=1e-3)
    moved = jax.tree.map(lambda a, b: (b - a) / RATE, self.after.params, self.state.params)
    jax.tree.map(lambda m, g: np.testing.assert_allclose(m, g, rtol=1e-2, atol=1e-4), moved, grads)

  def test_moving_average_follows_the_updated_parameters(self):
    expected = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, self.state.ema_params, self.after.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), self.after.ema_params, expected)

  def test_micro_batches_add_up_to_the_batch(self):
    settings = dataclasses.replace(SETTINGS, micro_batches=3)
    state, metrics = self.step(self.state, self.batch, jnp.arange(12), settings)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, (state, metrics), (self.after, self.metrics))

  def test_statistics_are_those_of_each_level(self):
    _, f_pos, _, t, moved = self.expected()
    np.testing.assert_array_equal(self.metrics['level_count'], np.bincount(t, minlength=6))
    for name, values in (('level_f', np.abs(f_pos)), ('level_displacement', moved)):
      np.testing.assert_allclose(self.metrics[name], np.bincount(t, values, minlength=6), rtol=1e-3, atol=1e-6)

  def test_step_counts_and_the_power_iteration_advances_once(self):
    self.assertEqual(int(self.after.step), 1)
    expected = spectral_norm.iterate(self.state.params, self.state.spectral)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), self.after.spectral, expected)

  def test_a_gradient_that_is_not_finite_changes_nothing_and_is_counted(self):
    for poison in (np.nan, np.inf):
      state = self.after
      for count in (1, 2):
        skipped, metrics = self.step(state, self.batch.at[5, 0].set(poison), jnp.arange(12))
        self.assertEqual((int(metrics['bad_steps']), int(skipped.bad_steps)), (count, count))
        jax.tree.map(np.testing.assert_array_equal, skipped.replace(step=0, bad_steps=0), self.after.replace(step=0))
        self.assertEqual(int(skipped.step), int(state.step) + 1)
        state = skipped
      sound, metrics = self.step(state, self.batch, jnp.arange(12))
      self.assertEqual((int(metrics['bad_steps']), int(sound.bad_steps)), (0, 0))
      expected, _ = self.step(self.after.replace(step=state.step), self.batch, jnp.arange(12))
      jax.tree.map(np.testing.assert_array_equal, sound, expected)

  @testing.long
  def test_nan_in_one_image_is_found_whatever_the_batch(self):
    network = resnet.ResNet(resnet.ResNetSettings(ch=8, ch_mult=(1,), num_res_blocks=1))
    state = train_step.init_state(jax.random.key(0), network, self.tx, np.zeros((16, 16, 1)), True)
    for batch in (1, 4, 8):
      x = jnp.zeros((batch, 16, 16, 1)).at[-1, 3, 3].set(jnp.nan)
      skipped, metrics = self.step(state, x, jnp.arange(batch), network=network)
      self.assertTrue(np.isnan(metrics['loss']))
      self.assertEqual(int(metrics['bad_steps']), 1)
      jax.tree.map(np.testing.assert_array_equal, skipped.params, state.params)

  def test_after_too_many_skipped_updates_the_state_is_frozen(self):
    settings = train_step.StepSettings(3, 2, 0.9, False, max_bad_steps=2)
    last = self.after.replace(bad_steps=jnp.asarray(2, jnp.int32))
    frozen, _ = self.step(last, self.batch, jnp.arange(12), settings)
    jax.tree.map(np.testing.assert_array_equal, frozen, last.replace(step=last.step + 1))

  def test_random_numbers_depend_on_step_seed_and_index(self):
    later = self.state.replace(step=self.state.step + 1)
    for state, index, settings in (
      (later, jnp.arange(12), SETTINGS),
      (self.state, jnp.arange(12) + 12, SETTINGS),
      (self.state, jnp.arange(12), train_step.StepSettings(4, 2, 0.9, False)),
    ):
      _, metrics = self.step(state, self.batch, index, settings)
      self.assertNotAlmostEqual(float(metrics['loss']), float(self.metrics['loss']), places=7)

  def test_two_halves_of_a_batch_average_to_the_whole(self):
    halves = [self.step(self.state, self.batch[i : i + 6], jnp.arange(i, i + 6)) for i in (0, 6)]
    np.testing.assert_allclose(np.mean([m['loss'] for _, m in halves]), self.metrics['loss'], rtol=1e-4, atol=1e-6)
    mean = jax.tree.map(lambda a, b: (a + b) / 2, halves[0][0].params, halves[1][0].params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), mean, self.after.params)

  @testing.long
  def test_the_proposal_learns_from_its_own_chains_and_the_model_from_where_they_end(self):
    network = mlp.ProposalMLP(mlp.ProposalMLPSettings(ch=8, dropout=0.5), tuple(range(6)))
    settings = train_step.StepSettings(3, 2, 0.99, False, shared_noise=True, ema_warmup=True, micro_batches=2)
    trainable = train_step.Trainable(
      lambda params, u: Ebm(spectral_norm.normalise(params, u), self.network, self.levels),
      self.tx,
      lambda weights: Proposal(weights, network, self.levels),
      optax.sgd(RATE),
    )
    state = train_step.init_state(
      jax.random.key(0), self.network, self.tx, np.zeros(2), True, network, trainable.proposal_tx
    )
    step = jax.jit(functools.partial(train_step.train_step, trainable=trainable, settings=settings))
    after, metrics = step(state, self.batch, jnp.arange(12))

    # By hand: the same noise for both, a chain from the proposal, two losses.
    key = jax.random.fold_in(jax.random.key(3), 0)
    examples = [jax.random.fold_in(key, i) for i in range(12)]
    keys = [jax.random.split(k, 6) for k in examples]
    t = jnp.array([jax.random.randint(k[0], (), 0, 6) for k in keys])
    eps = jnp.stack([jax.random.normal(k[2], (2,)) for k in keys])
    z = jnp.stack([jax.random.normal(jax.random.fold_in(k, 8), (2,)) for k in examples])
    dropout_keys = jnp.stack([k[5] for k in keys])
    x_pos, x_next = (noise_levels.diffuse(self.levels, self.batch, level, eps) for level in (t, t + 1))
    made = Proposal(state.proposal.params, network, self.levels, dropout_keys=dropout_keys)
    start = made.sample(x_next, t, z)
    u = spectral_norm.iterate(state.params, state.spectral)
    model = Ebm(spectral_norm.normalise(state.params, u), self.network, self.levels)
    noise = langevin.normal_noise(jnp.stack([k[4] for k in keys]), (2,))
    step_size = jnp.asarray(np.sqrt(self.levels.step_variance), jnp.float32)[t, None]
    y = langevin.unadjusted_chain(lambda y: model.at(t).conditional_score(y, x_next), start, step_size, noise, 2)

    def teaching(weights):
      made = Proposal(weights, network, self.levels, dropout_keys=dropout_keys)
      return jnp.mean(jnp.sum((made.sample(x_next, t, z) - y) ** 2, axis=1))

    def energy(params):
      model = Ebm(spectral_norm.normalise(params, u), self.network, self.levels)
      return jnp.mean(recovery.recovery_loss(model, x_pos, self.levels.to_x(y, t), t)[0])

    for name, loss, before, now in (
      ('proposal_', teaching, state.proposal, after.proposal),
      ('', energy, state, after),
    ):
      value, grads = jax.value_and_grad(loss)(before.params)
      np.testing.assert_allclose(metrics[f'{name}loss'], value, rtol=1e-3, atol=1e-6)
      np.testing.assert_allclose(metrics[f'{name}grad_norm'], testing.norm(grads), rtol=1e-3)
      moved = jax.tree.map(lambda a, b: (b - a) / RATE, now.params, before.params)
      jax.tree.map(lambda m, g: np.testing.assert_allclose(m, g, rtol=1e-2, atol=1e-4), moved, grads)
      average = jax.tree.map(lambda old, new: (2 * old + 9 * new) / 11, before.params, now.params)
      jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), now.ema_params, average)
    distance = np.linalg.norm(self.levels.to_x(y - start, t), axis=1)
    np.testing.assert_allclose(
      metrics['level_displacement'], np.bincount(t, distance, minlength=6), rtol=1e-3, atol=1e-6
    )

    # What is wrong with the proposal alone keeps both as they were.
    poisoned = state.replace(
      proposal=state.proposal.replace(params=jax.tree.map(lambda a: a * jnp.nan, state.proposal.params))
    )
    skipped, metrics = step(poisoned, self.batch, jnp.arange(12))
    self.assertEqual(int(metrics['bad_steps']), 1)
    jax.tree.map(np.testing.assert_array_equal, skipped.params, state.params)

  @testing.long
  def test_score_matching_is_done_on_the_same_data_without_a_chain(self):
    settings = train_step.StepSettings(3, 2, 0.9, False, objective='dsm')
    after, metrics = self.step(self.state, self.batch, jnp.arange(12), settings)
    t, keys = first_draws()
    eps = jnp.stack([jax.random.normal(k[2], (2,)) for k in keys])
    x_pos = noise_levels.diffuse(self.levels, self.batch, t, eps)
    u = spectral_norm.iterate(self.state.params, self.state.spectral)

    def loss(params):
      ebm = Ebm(spectral_norm.normalise(params, u), self.network, self.levels)
      return jnp.mean(recovery.score_matching_loss(ebm, x_pos, eps, t)[0])

    value, grads = jax.value_and_grad(loss)(self.state.params)
    np.testing.assert_allclose(metrics['loss'], value, rtol=1e-4)
    np.testing.assert_allclose(metrics['grad_norm'], testing.norm(grads), rtol=1e-3)
    self.assertGreater(float(metrics['grad_norm']), 0)

  @testing.long
  def test_contrastive_chains_start_at_the_data(self):
    settings = train_step.StepSettings(3, 2, 0.9, False, objective='contrastive')
    _, metrics = self.step(self.state, self.batch, jnp.arange(12), settings)
    t, keys = first_draws()
    eps, eps_next = (jnp.stack([jax.random.normal(k[j], (2,)) for k in keys]) for j in (2, 3))
    x_pos, x_next = noise_levels.diffuse_pair(self.levels, self.batch, t, eps, eps_next)
    u = spectral_norm.iterate(self.state.params, self.state.spectral)
    ebm = Ebm(spectral_norm.normalise(self.state.params, u), self.network, self.levels)
    x_neg = recovery.contrastive_negatives(ebm.at(t), x_pos, x_next, jnp.stack([k[4] for k in keys]), 2)
    loss, _ = recovery.recovery_loss(ebm, x_pos, x_neg, t)
    np.testing.assert_allclose(metrics['loss'], np.mean(loss), rtol=1e-3, atol=1e-7)
    moved = np.linalg.norm(x_neg - x_pos, axis=1)
    np.testing.assert_allclose(metrics['level_displacement'], jax.ops.segment_sum(moved, t, 6), rtol=1e-4)

  @testing.long
  def test_one_gradient_a_level_and_the_dual_score(self):
    levels = noise_levels.make_levels(1000, 0.2, 'conditional', 'one', 'balanced')
    settings = train_step.StepSettings(3, 0, 0.9, False, time_score=0.7, score_matching=0.3)
    after, metrics = self.step(self.state, self.batch, jnp.arange(12), settings, levels=levels)
    key = jax.random.fold_in(jax.random.key(3), 0)
    examples = [jax.random.fold_in(key, i) for i in range(12)]
    keys = [jax.random.split(k, 6) for k in examples]
    t = jnp.array([jax.random.randint(k[0], (), 0, 999) for k in keys])
    eps, eps_next = (jnp.stack([jax.random.normal(k[j], (2,)) for k in keys]) for j in (2, 3))
    noise = langevin.normal_noise(jnp.stack([k[4] for k in keys]), (2,))(0)
    between = jnp.minimum(t, 997) + jnp.array([jax.random.uniform(jax.random.fold_in(k, 7)) for k in examples])
    x_next = noise_levels.diffuse(levels, self.batch, t + 1, eps_next)
    x_pos = noise_levels.posterior(levels, self.batch, x_next, t, noise)
    u = spectral_norm.iterate(self.state.params, self.state.spectral)
    ebm = Ebm(spectral_norm.normalise(self.state.params, u), self.network, levels)
    x_neg = recovery.normal_approximation(ebm.at(t), x_next, noise)

    def loss(params):
      ebm = Ebm(spectral_norm.normalise(params, u), self.network, levels)
      change, score = (
        loss(ebm, self.batch, between, eps)
        for loss in (dual_score_matching.time_score_loss, dual_score_matching.score_loss)
      )
      neighbours = recovery.recovery_loss(ebm, x_pos, x_neg, t)[0]
      return jnp.mean(neighbours + 0.7 * change + 0.3 * score), (change, score)

    (value, parts), grads = jax.value_and_grad(loss, has_aux=True)(self.state.params)
    np.testing.assert_allclose(metrics['loss'], value, rtol=1e-3)
    for name, part in zip(('level_time_score', 'level_score_matching'), parts, strict=True):
      np.testing.assert_allclose(metrics[name], np.bincount(t, part, minlength=999), rtol=1e-3, atol=1e-6)
    moved = jax.tree.map(lambda a, b: (b - a) / RATE, after.params, self.state.params)
    jax.tree.map(lambda m, g: np.testing.assert_allclose(m, g, rtol=1e-2, atol=1e-4), moved, grads)

  @testing.long
  def test_flip_and_dropout_are_used_in_training(self):
    state_of = lambda network: train_step.init_state(  # noqa: E731
      jax.random.key(0), network, self.tx, np.zeros((4, 4, 1)), False
    )
    batch = jax.random.randint(jax.random.key(1), (4, 4, 4, 1), 0, 256).astype(jnp.uint8)
    plain = resnet.ResNetSettings(ch=4, ch_mult=(1,), num_res_blocks=1)
    losses = []
    for network, flip in ((plain, False), (plain, True), (dataclasses.replace(plain, dropout=0.5), False)):
      network = resnet.ResNet(network)
      state = state_of(network)
      # The second convolution starts at zero, where dropout would do nothing.
      state = state.replace(params=jax.tree.map(lambda p: p + 0.3, state.params))
      settings = train_step.StepSettings(3, 1, 0.9, flip)
      losses.append(float(self.step(state, batch, jnp.arange(4), settings, network)[1]['loss']))
    self.assertLen(set(losses), 3)


if __name__ == '__main__':
  absltest.main()
