import os
import tempfile

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_ebm import checkpoints
from diffusion_ebm.errors import UserError
from diffusion_ebm.train_step import TrainState


def state_at(step):
  """A state whose every number tells the step."""
  params = {'conv': {'kernel': jnp.arange(6, dtype=jnp.float32).reshape(2, 3) + step / 3}}
  return TrainState(
      step=jnp.asarray(step, jnp.int32), params=params, ema_params=jax.tree.map(lambda a: a / 7, params),
      opt_state=((), {'count': jnp.asarray(step, jnp.int32), 'mu': jax.tree.map(lambda a: -a, params)}),
      spectral={'conv': jnp.full(3, 0.1 * step, jnp.float32)}, bad_steps=jnp.asarray(step % 3, jnp.int32))


class CheckpointsTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.workdir = self.enterContext(tempfile.TemporaryDirectory())

  def save(self, steps, keep, keep_every):
    saver = checkpoints.Saver(self.workdir, keep, keep_every)
    for step in steps:
      saver.save(state_at(step), 10 * step)
    saver.close()
    return sorted(int(name) for name in os.listdir(checkpoints.directory(self.workdir)))

  def assert_restored(self, step, at):
    manager = checkpoints.open_for_reading(self.workdir)
    state, batches = checkpoints.restore(manager, jax.tree.map(jnp.zeros_like, state_at(0)), step)
    manager.close()
    self.assertEqual(jax.tree.structure(state), jax.tree.structure(state_at(at)))
    for restored, saved in zip(jax.tree.leaves(state), jax.tree.leaves(state_at(at)), strict=True):
      self.assertEqual(restored.dtype, saved.dtype)
      np.testing.assert_array_equal(restored, saved)
    self.assertEqual(batches, 10 * at)

  def test_only_the_newest_are_kept(self):
    self.assertEqual(self.save(range(1, 7), 2, 0), [5, 6])

  def test_multiples_of_a_step_are_kept_beside_the_newest(self):
    self.assertEqual(self.save(range(1, 8), 2, 3), [3, 6, 7])

  def test_old_ones_go_when_a_run_goes_on(self):
    self.save((1, 2), 2, 0)
    self.assertEqual(self.save((3,), 2, 0), [2, 3])

  def test_what_is_restored_is_what_was_saved_with_the_position_in_the_data(self):
    self.save((3, 8), 3, 0)
    self.assert_restored(None, 8)
    self.assert_restored(3, 3)

  def test_what_a_killed_run_left_half_written_does_not_count(self):
    self.save((1, 2), 3, 0)
    half = os.path.join(checkpoints.directory(self.workdir), '3.orbax-checkpoint-tmp')
    os.mkdir(half)
    self.assert_restored(None, 2)
    self.assertEqual(self.save((4,), 3, 0), [1, 2, 4])

  def test_a_step_that_is_not_there_is_refused_with_those_that_are(self):
    self.save((1, 12), 3, 0)
    manager = checkpoints.open_for_reading(self.workdir)
    self.addCleanup(manager.close)
    with self.assertRaisesRegex(UserError, 'no checkpoint of step 2 in .*; there are 1, 12$'):
      checkpoints.restore(manager, state_at(0), 2)

  def test_reading_where_nothing_was_written_is_refused_and_writes_nothing(self):
    with self.assertRaisesRegex(UserError, 'has no checkpoint: train first'):
      checkpoints.open_for_reading(self.workdir)
    self.assertEmpty(os.listdir(self.workdir))
    os.mkdir(checkpoints.directory(self.workdir))
    with self.assertRaisesRegex(UserError, 'has no checkpoint: train first'):
      checkpoints.open_for_reading(self.workdir)


if __name__ == '__main__':
  absltest.main()
