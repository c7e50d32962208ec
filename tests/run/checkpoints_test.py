import glob
import os
import re
import tempfile
from typing import Any
from unittest import mock

from absl.testing import absltest, parameterized
from flax import struct
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from diffusion_ebm import older_versions
from diffusion_ebm.run import checkpoints
from diffusion_ebm.run.errors import SaveError, UserError
from diffusion_ebm.train_step import TrainState
from tests import testing


def state_at(step):
  """A state whose every number tells the step."""
  params = {'conv': {'kernel': jnp.arange(6, dtype=jnp.float32).reshape(2, 3) + step / 3}}
  return TrainState(
    step=jnp.asarray(step, jnp.int32),
    params=params,
    ema_params=jax.tree.map(lambda a: a / 7, params),
    opt_state=((), {'count': jnp.asarray(step, jnp.int32), 'mu': jax.tree.map(lambda a: -a, params)}),
    spectral={'conv': jnp.full(3, 0.1 * step, jnp.float32)},
    bad_steps=jnp.asarray(step % 3, jnp.int32),
    proposal={},
  )


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

  def test_files_that_file_managers_leave_behind_are_no_damage(self):
    self.save([1], 3, 0)
    for folder in ('', 'state', 'state/d', 'data'):
      for name in ('.DS_Store', '._manifest.ocdbt', 'Thumbs.db', 'desktop.ini'):
        with open(os.path.join(checkpoints.directory(self.workdir), '1', folder, name), 'wb') as file:
          file.write(b'\0\5')
    self.assert_restored(None, 1)

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
    with self.assertRaisesRegex(UserError, 'no checkpoint of step 2 in .*; steps that are there: 1, 12$'):
      checkpoints.restore(manager, state_at(0), 2)

  def test_reading_where_nothing_was_written_is_refused_and_writes_nothing(self):
    with self.assertRaisesRegex(UserError, 'has no checkpoint: train first'):
      checkpoints.open_for_reading(self.workdir)
    self.assertEmpty(os.listdir(self.workdir))
    os.mkdir(checkpoints.directory(self.workdir))
    with self.assertRaisesRegex(UserError, 'has no checkpoint: train first'):
      checkpoints.open_for_reading(self.workdir)


class DamageTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.workdir = self.enterContext(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
    self.folder = checkpoints.directory(self.workdir)
    saver = checkpoints.Saver(self.workdir, 3, 0, {'seed': 1})
    for step in (4, 8):
      saver.save(state_at(step), 10 * step)
    saver.close()

  def file(self, name, step=8):
    """The path of a file of a checkpoint; of the data, the largest."""
    folder = os.path.join(self.folder, str(step))
    if name == 'data':
      return max(glob.glob(os.path.join(folder, 'state', '**', 'd', '*'), recursive=True), key=os.path.getsize)
    return os.path.join(folder, name)

  def restore(self, **kwargs):
    manager = checkpoints.open_for_reading(self.workdir)
    self.addCleanup(manager.close)
    return checkpoints.restore(manager, jax.tree.map(jnp.zeros_like, state_at(0)), **kwargs)

  def assert_is(self, restored, at):
    jax.tree.map(np.testing.assert_array_equal, restored.state, state_at(at))
    self.assertEqual(restored.batches_read, 10 * at)

  @parameterized.product(
    name=('data', 'state/_METADATA', 'state/manifest.ocdbt', 'data/metadata', 'SHA256SUMS'),
    damage=('missing', 'truncated', 'changed'),
  )
  def test_of_a_damaged_newest_one_the_file_is_named_and_the_one_before_it_used(self, name, damage):
    path = self.file(name)
    with open(path, 'rb') as file:
      content = file.read()
    os.remove(path)
    if damage != 'missing':
      middle = len(content) // 2
      flipped = bytes([content[middle] ^ 1])
      with open(path, 'wb') as file:
        file.write(content[:middle] + (flipped + content[middle + 1 :] if damage == 'changed' else b''))
    with self.assertLogs('diffusion_ebm', 'WARNING') as logs:
      restored = self.restore()
    self.assert_is(restored, 4)
    (message,) = logs.output
    self.assertIn('the checkpoint of step 8 is damaged', message)
    # Where a sum is wrong, the file that does not match it is named.
    self.assertIn(os.path.join(self.folder, '8') if name == 'SHA256SUMS' and damage != 'missing' else path, message)
    self.assertIn('using the one of step 4 instead', message)
    with self.assertRaisesRegex(checkpoints.DamagedError, 'step 8 is damaged'):
      self.restore(step=8)

  def test_reading_says_nothing_where_nothing_is_wrong(self):
    with self.assertNoLogs(level='WARNING'):
      checkpoints.open_for_reading(self.workdir).close()

  def test_a_trainer_sets_a_damaged_one_aside_and_writes_its_step_again(self):
    os.truncate(self.file('data'), 1)
    saver = checkpoints.Saver(self.workdir, 3, 0, {'seed': 1})
    with self.assertLogs('diffusion_ebm', 'WARNING') as logs:
      restored = checkpoints.restore(saver.manager, state_at(0), set_aside=True)
    self.assertIn('kept as damaged_8', logs.output[0])
    self.assert_is(restored, 4)
    saver.save(state_at(8), 80)
    saver.close()
    self.assertCountEqual(os.listdir(self.folder), ['4', '8', 'damaged_8'])
    self.assert_is(self.restore(), 8)

  def test_where_all_are_damaged_that_is_said_and_nothing_is_touched(self):
    for step in (4, 8):
      os.remove(os.path.join(self.folder, str(step), 'data', 'metadata'))
    saver = checkpoints.Saver(self.workdir, 3, 0)
    self.addCleanup(saver.close)
    with self.assertRaisesRegex(UserError, 'none of the checkpoints .*/8/data/metadata is missing.* from a copy'):
      checkpoints.restore(saver.manager, state_at(0), set_aside=True)
    self.assertCountEqual(os.listdir(self.folder), ['4', '8'])

  def test_a_pipe_is_refused_rather_than_waited_for(self):
    path = os.path.join(self.folder, '4', '_CHECKPOINT_METADATA')
    os.remove(path)
    os.mkfifo(path)
    for opened in (lambda: checkpoints.open_for_reading(self.workdir), lambda: checkpoints.Saver(self.workdir, 3, 0)):
      with self.assertRaisesRegex(UserError, f'{path} is neither a file nor a folder: remove it'):
        opened()

  def test_the_sums_are_those_that_sha256sum_checks(self):
    with open(self.file('SHA256SUMS'), encoding='utf-8') as file:
      names = [re.fullmatch(r'[0-9a-f]{64}  (.+)\n', line)[1] for line in file]
    self.assertIn('data/metadata', names)
    self.assertIn(os.path.relpath(self.file('data'), self.file('')), names)

  def test_one_of_another_network_is_refused_with_what_differs(self):
    other = state_at(0)
    other = other.replace(params={'conv': {'kernel': jnp.zeros((2, 4)), 'bias': jnp.zeros(4)}})
    manager = checkpoints.open_for_reading(self.workdir)
    self.addCleanup(manager.close)
    with self.assertRaisesRegex(
      UserError,
      r'/8 is of another network or version: params/conv/bias \(nothing there, float32\[4\] here\), '
      r'params/conv/kernel \(float32\[2, 3\] there, float32\[2, 4\] here\); use another --workdir',
    ):
      checkpoints.restore(manager, other)

  def test_the_configuration_in_it_is_shown_to_whom_may_refuse_it(self):
    def check(config, where):
      raise UserError(f'{where} has seed {config["seed"]}')

    with self.assertRaisesRegex(UserError, '/8 has seed 1'):
      self.restore(check=check)

  def test_one_of_a_newer_version_is_refused(self):
    with mock.patch.object(checkpoints, 'FORMAT', checkpoints.FORMAT + 1):
      saver = checkpoints.Saver(self.workdir, 3, 0)
      saver.save(state_at(9), 90)
      saver.close()
    with self.assertRaisesRegex(UserError, r'/9 was written by a newer version \(format 4, here 3\): update'):
      self.restore()

  def test_one_of_the_first_format_is_migrated(self):
    state = state_at(5)
    fields = {name: getattr(state, name) for name in ('step', 'params', 'ema_params', 'opt_state', 'spectral')}
    manager = ocp.CheckpointManager(self.folder)
    manager.save(
      12, args=ocp.args.Composite(state=ocp.args.StandardSave(fields), data=ocp.args.JsonSave({'batches': 50}))
    )
    manager.close()
    restored = self.restore(lacking=older_versions.LACKING)
    jax.tree.map(np.testing.assert_array_equal, restored.state, state.replace(bad_steps=0))
    self.assertEqual(restored.batches_read, 50)
    os.truncate(self.file('data', 12), 0)
    with self.assertLogs('diffusion_ebm', 'WARNING') as logs:
      self.assert_is(self.restore(lacking=older_versions.LACKING), 8)
    self.assertIn('step 12 is damaged', logs.output[0])

  def test_one_of_the_second_format_had_no_proposal(self):
    state = state_at(9)

    class SecondFormat(struct.PyTreeNode):
      step: Any
      params: Any
      ema_params: Any
      opt_state: Any
      spectral: Any
      bad_steps: Any

    fields = {name: getattr(state, name) for name in SecondFormat.__dataclass_fields__}
    with mock.patch.object(checkpoints, 'FORMAT', 2):
      saver = checkpoints.Saver(self.workdir, 3, 0)
      saver.save(SecondFormat(**fields), 90)
      saver.close()
    restored = self.restore(lacking=older_versions.LACKING)
    jax.tree.map(np.testing.assert_array_equal, restored.state, state)

  def test_on_a_full_disk_a_save_is_one_line_and_the_next_one_works(self):
    saver = checkpoints.Saver(self.workdir, 3, 0)
    with (
      testing.full_disk(),
      self.assertRaisesRegex(
        SaveError, 'the checkpoint of step 9 could not be written .*: free space in .*earlier checkpoints are whole'
      ) as caught,
    ):
      saver.save(state_at(9), 90)
      saver.wait()
    self.assertNotIn('\n', str(caught.exception))
    self.assert_is(self.restore(), 8)
    saver.save(state_at(10), 100)
    saver.close()
    self.assert_is(self.restore(), 10)
    self.assertCountEqual(os.listdir(self.folder), ['4', '8', '10'])


if __name__ == '__main__':
  absltest.main()
