import socket
from unittest import mock

from absl.testing import absltest, parameterized
import jax.numpy as jnp
import numpy as np

from diffusion_ebm.run import parallel
from diffusion_ebm.run.errors import DivergedError, UserError


class AloneTest(absltest.TestCase):
  """With one process there is nobody to agree with; several are in devices_test.py."""

  def test_a_process_alone_is_the_first_and_has_all(self):
    self.assertTrue(parallel.is_first())
    self.assertEqual((parallel.num_processes(), parallel.share()), (1, (0, 1)))
    rows = np.arange(6).reshape(3, 2)
    np.testing.assert_array_equal(parallel.own_rows(rows), rows)
    np.testing.assert_array_equal(parallel.gather(parallel.split(rows[:2])).reshape(2, 2), rows[:2])

  def test_what_it_says_is_what_it_hears(self):
    self.assertEqual(parallel.exchange({'a': [1, 'b']}), [{'a': [1, 'b']}])
    shared = parallel.SharedSignal()
    self.assertEqual([shared(number) for number in (0, 15, 0)], [0, 15, 0])

  def test_it_refuses_as_it_would_alone(self):
    self.assertEqual(parallel.together(lambda: 3), 3)
    self.assertEqual(parallel.together(lambda: 3, first_only=True), 3)

    def refuse():
      raise DivergedError('no')

    for first_only in (False, True):
      with self.assertRaises(DivergedError):
        parallel.together(refuse, first_only)


class ThreeTest(absltest.TestCase):
  """The rows and refusals of one of three processes, of which the other two are made up."""

  def of_three(self, index, exchange=None):
    self.enterContext(mock.patch('jax.process_index', lambda: index))
    self.enterContext(mock.patch('jax.process_count', lambda: 3))
    if exchange:
      self.enterContext(mock.patch.object(parallel, 'exchange', exchange))

  def test_rows_of_a_batch_go_to_the_processes_in_their_order(self):
    self.of_three(1)
    np.testing.assert_array_equal(parallel.own_rows(np.arange(12)), [4, 5, 6, 7])

  def test_another_ones_refusal_is_told_with_its_number(self):
    self.of_three(0, lambda value: [value, [None, None], ['no data', None]])
    with self.assertRaisesRegex(UserError, '^process 2 refused: no data$'):
      parallel.together(lambda: 3)

  def test_what_only_the_first_calls_is_not_called_elsewhere(self):
    self.of_three(2, lambda value: [[None, 'of the first'], [None, None], value])
    self.assertEqual(parallel.together(mock.Mock(side_effect=AssertionError), first_only=True), 'of the first')

  def test_devices_are_in_the_order_of_the_processes_whatever_their_numbers(self):
    devices = [mock.Mock(id=i, process_index=p) for i, p in enumerate((0, 1, 0, 1))]
    with mock.patch('jax.devices', lambda: devices):
      self.assertEqual([device.id for device in parallel.devices()], [0, 2, 1, 3])


class ConnectTest(parameterized.TestCase):
  @parameterized.parameters('host', ':1', 'host:', 'host:port')
  def test_an_address_that_is_none_is_refused(self, address):
    with self.assertRaisesRegex(UserError, f'--coordinator={address} is not HOST:PORT'):
      parallel.connect(address, 2, 1)

  def test_where_nobody_answers_that_is_one_line(self):
    with socket.socket() as taken:
      taken.bind(('127.0.0.1', 0))  # but does not listen
      address = f'127.0.0.1:{taken.getsockname()[1]}'
      with (
        mock.patch.object(parallel, '_WAIT_SECONDS', 0.0),
        self.assertRaisesRegex(
          UserError, rf'process 0 does not answer at --coordinator={address} \(.*refused\): start it, or'
        ),
      ):
        parallel.connect(address, 2, 1)

  def test_what_jax_refuses_is_one_line(self):
    with (
      mock.patch('jax.distributed.initialize', side_effect=ValueError('coordinator_address\nis missing')),
      mock.patch('jax.config.update'),
      self.assertRaisesRegex(
        UserError, r'cannot be joined \(coordinator_address is missing\): .*--distributed needs a TPU pod'
      ),
    ):
      parallel.connect()


class MapExamplesTest(parameterized.TestCase):
  """On whatever devices there are; devices_test.py has several."""

  @parameterized.parameters((7, 1), (7, 2), (7, 3), (7, 7), (7, 20), (6, 3), (1, 4))
  def test_each_example_has_its_own_result_whatever_the_batch(self, num_examples, batch_size):
    numbers = np.arange(num_examples, dtype=np.float32)
    rows = np.random.default_rng(0).normal(size=(num_examples, 2, 3)).astype(np.float32)
    shared = {'scale': np.float32(3), 'offsets': [np.array([1.0, 2.0, 4.0], np.float32)]}

    def function(shared, numbers, rows):
      moved = shared['scale'] * rows + shared['offsets'][0]
      return {'moved': moved, 'pair': (numbers * 2, (numbers[:, None, None] * rows).sum((1, 2)))}

    found = parallel.map_examples(function, batch_size)(shared, numbers, rows)
    self.assertCountEqual(found, ['moved', 'pair'])
    self.assertIsInstance(found['moved'], np.ndarray)
    np.testing.assert_allclose(found['moved'], 3 * rows + np.array([1.0, 2.0, 4.0]), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(found['pair'][0], 2 * numbers)
    np.testing.assert_allclose(found['pair'][1], numbers * rows.sum((1, 2)), rtol=1e-5, atol=1e-5)

  def test_an_axis_of_length_zero_stays(self):
    numbers = np.arange(5, dtype=np.float32)
    mapped = parallel.map_examples(lambda shared, x, empty: (x + shared, empty, jnp.zeros((len(x), 0, 3))), 2)
    found, empty, made = mapped(np.float32(1), numbers, np.zeros((5, 0), np.int32))
    np.testing.assert_array_equal(found, numbers + 1)
    self.assertEqual((empty.shape, empty.dtype, made.shape), ((5, 0), np.int32, (5, 0, 3)))

  def test_it_is_compiled_once_and_takes_other_values_and_numbers_of_examples(self):
    traced = mock.Mock()

    def function(shared, x):
      traced()
      return x * shared

    mapped = parallel.map_examples(function, 4)
    for factor, count in ((2, 9), (3, 4), (5, 1)):
      x = np.arange(count, dtype=np.float32)
      np.testing.assert_array_equal(mapped(np.float32(factor), x), factor * x)
    traced.assert_called_once()

  def test_progress_counts_examples_and_no_filling(self):
    progress = mock.Mock()
    parallel.map_examples(lambda _, x: x, 3)((), np.arange(2 * parallel.up_to_devices(3) + 1.0), progress=progress)
    size = parallel.up_to_devices(3)
    self.assertEqual([call.args for call in progress.update.call_args_list], [(size,), (size,), (1,)])


if __name__ == '__main__':
  absltest.main()
