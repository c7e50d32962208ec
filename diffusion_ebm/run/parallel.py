"""Devices and processes: the only place that knows how many there are.

State is replicated, batches are split over the axis `AXIS`, which runs through all devices of all processes, those of
a process side by side. A function that runs on all devices is compiled once, for the arguments at hand, with the
options that suit the platform. With several processes, each runs the same program and calls everything here that
communicates in the same order.
"""

import collections
from collections.abc import Callable, Iterable, Iterator
import contextlib
import json
import logging
import socket
import time
from typing import Any

import jax
from jax import lax
from jax.experimental import multihost_utils
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from diffusion_ebm.run import compilation
from diffusion_ebm.run.errors import UserError

_log = logging.getLogger(__name__)

AXIS = 'devices'
_WAIT_SECONDS = 300.0  # for process 0 to start


def connect(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None):
  """Joins the other processes of the run; to be called before JAX is used.

  Args:
    coordinator: HOST:PORT of process 0. Without it and the others, JAX finds them out itself, on TPU pods, under SLURM,
      Open MPI and in Kubernetes.
    num_processes: of the run.
    process_id: of this one, from 0.

  Raises:
    UserError: the others cannot be found or do not fit.
  """
  if coordinator is not None:
    _find(coordinator, process_id)
  # Its handler would swallow SIGTERM, which `interrupts` handles.
  jax.config.update('jax_enable_preemption_service', False)
  try:
    jax.distributed.initialize(
      coordinator, num_processes, process_id, cluster_detection_method='deactivate' if coordinator else None
    )
  except Exception as error:  # of many kinds: of the cluster, of the network, of values
    raise UserError(
      f'the processes of the run cannot be joined ({" ".join(str(error).split())}): check --coordinator, '
      '--num_processes and --process_id; --distributed needs a TPU pod, SLURM, Open MPI or Kubernetes'
    ) from error
  counts = {len(jax.local_devices(process_index=i)) for i in range(jax.process_count())}
  if len(counts) > 1:
    raise UserError(
      f'the processes have different numbers of devices ({", ".join(map(str, sorted(counts)))}): give each the same'
    )


def _find(coordinator, process_id):
  """Waits until process 0 listens: where nobody comes, JAX would end the process with a stack trace."""
  host, _, port = coordinator.rpartition(':')
  if not host or not port.isdecimal():
    raise UserError(f'--coordinator={coordinator} is not HOST:PORT')
  _log.info('waiting for the other processes at %s', coordinator)
  until = time.monotonic() + _WAIT_SECONDS
  while process_id:
    try:
      socket.create_connection((host.strip('[]'), int(port)), timeout=5).close()
      return
    except (OSError, OverflowError) as error:
      if time.monotonic() > until:
        raise UserError(
          f'process 0 does not answer at --coordinator={coordinator} ({error}): start it, or check the address and '
          f'the firewall'
        ) from error
    time.sleep(0.2)


def is_first() -> bool:
  """Whether this process is the one that writes logs and pictures."""
  return jax.process_index() == 0


def num_processes() -> int:
  """How many processes run this program together."""
  return jax.process_count()


def share() -> tuple[int, int]:
  """(i, n): this is process i of n, which reads rows i * B / n to (i + 1) * B / n of each global batch of B."""
  return jax.process_index(), jax.process_count()


def own_rows(batch: np.ndarray) -> np.ndarray:
  """This process's rows of a global batch."""
  i, n = share()
  size = len(batch) // n
  return batch[i * size : (i + 1) * size]


def exchange(value) -> list:
  """The values (whatever JSON holds) of all processes, in their order; called by all."""
  if num_processes() == 1:
    return [value]
  data = np.frombuffer(json.dumps(value).encode(), np.uint8)
  lengths = multihost_utils.process_allgather(np.array(len(data)))
  padded = multihost_utils.process_allgather(np.pad(data, (0, int(lengths.max()) - len(data))))
  return [json.loads(row[:length].tobytes()) for row, length in zip(padded, lengths.ravel(), strict=True)]


def from_first(tree):
  """The arrays that the first process has, for all: where roundings of the host would make others."""
  return tree if num_processes() == 1 else multihost_utils.broadcast_one_to_all(tree)


def together(function: Callable[[], Any], first_only: bool = False):
  """Calls a function that may refuse; where it does on one process, all refuse, so that none waits for another.

  Args:
    function: called on every process; may raise a `UserError`.
    first_only: call it on the first process alone, and hand its result (whatever JSON holds) to all.

  Returns:
    What it returned.

  Raises:
    UserError: the process's own, or another's.
  """
  result, error = None, None
  if is_first() or not first_only:
    try:
      result = function()
    except UserError as raised:
      error = raised
  outcomes = exchange([error and str(error), result if first_only else None])
  if error:
    raise error
  for number, (message, _) in enumerate(outcomes):
    if message:
      raise UserError(f'process {number} refused: {message}')
  return outcomes[0][1] if first_only else result


_described: list = []  # of `described_devices`


def devices() -> list:
  """All devices of all processes, those of a process side by side, as the rows of a batch are."""
  return _described or sorted(jax.devices(), key=lambda device: device.process_index)


@contextlib.contextmanager
def described_devices(described: list):
  """Compiles for devices that are not there, of a topology, instead of this machine's; nothing can run on them."""
  _described[:] = described
  try:
    yield
  finally:
    _described.clear()


def num_devices() -> int:
  """How many devices share a batch."""
  return len(devices())


def up_to_devices(count: int) -> int:
  """The smallest number of examples from `count` on that all devices share equally."""
  n = num_devices()
  return -(-count // n) * n


def _sharding(*axes):
  return NamedSharding(Mesh(np.array(devices()), (AXIS,)), PartitionSpec(*axes))


def replicate(tree):
  """Puts a copy of the arrays of `tree`, the same on every process, on every device."""
  sharding = _sharding()
  if num_processes() == 1:
    return jax.device_put(tree, sharding)
  return jax.tree.map(lambda a: jax.make_array_from_process_local_data(sharding, np.asarray(a)), tree)


def replicated_like(tree):
  """Shapes, types and devices of what `replicate` would make of arrays like those of `tree`."""
  sharding = _sharding()
  return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tree)


def split_like(batch):
  """Shape and type of what `split` would make of a global batch like this, on all devices."""
  n = num_devices()
  return jax.ShapeDtypeStruct((n, batch.shape[0] // n, *batch.shape[1:]), batch.dtype)


def split(batch: np.ndarray):
  """Splits the first axis of this process's rows over its devices: (B, ...) to (n, B / n, ...), n of all processes."""
  n = num_devices() // num_processes()
  return jax.make_array_from_process_local_data(_sharding(AXIS), batch.reshape(n, len(batch) // n, *batch.shape[1:]))


def gather(array) -> np.ndarray:
  """The whole of an array that is split over the devices of all processes; called by all."""
  if num_processes() == 1:
    return np.asarray(array)
  return np.asarray(multihost_utils.process_allgather(array, tiled=True))


class SharedSignal:
  """The largest of the numbers that the processes give at each step, told to all a little later.

  With one process it is told at once; with several, two steps later, so that the devices never wait.
  """

  _LAG = 2

  def __init__(self):
    self._queue = collections.deque()
    self._largest = on_devices(lambda n: lax.pmax(jnp.max(n), AXIS), replicated=(), out_axes=None)

  def __call__(self, number: int) -> int:
    """Gives a number of at least 0, and returns the largest of an earlier step."""
    if num_processes() == 1:
      return number
    self._queue.append(self._largest(split(np.full(num_devices() // num_processes(), number, np.int32))))
    return int(self._queue.popleft()) if len(self._queue) > self._LAG else 0


def prefetch(batches: Iterable[Any], ahead: int = 2) -> Iterator[Any]:
  """`split` of the arrays of each batch, a tree, `ahead` of them on the devices before they are needed."""
  queue = collections.deque()
  for batch in batches:
    queue.append(jax.tree.map(split, batch))
    if len(queue) > ahead:
      yield queue.popleft()
  yield from queue


def example_index(batch_size: int):
  """Inside a compiled function: the global index of each of the device's `batch_size` examples, int (B,)."""
  return lax.axis_index(AXIS) * batch_size + jnp.arange(batch_size)


def compile_for(
  function, *args, replicated: tuple[int, ...], out_axes, donate: tuple[int, ...] = (), precision: str = 'highest'
):
  """Compiles `function` under `pmap` for arguments like `args`.

  Args:
    function: sees one device's part of each argument, and the axis `AXIS`.
    *args: the arguments, or like them in shape, dtype and sharding.
    replicated: positions of the arguments that every device gets whole; the others come from `split`.
    out_axes: for each result None (the same on every device) or the axis along which the devices' parts are stacked.
    donate: positions of the arguments whose memory may be reused.
    precision: of products of float32: default is fast on accelerators (bfloat16 on TPUs, TF32 on GPUs); high, highest.

  Returns:
    The compiled function of all the arguments.
  """
  in_axes = tuple(None if i in replicated else 0 for i in range(len(args)))
  mapped = jax.pmap(
    function, axis_name=AXIS, in_axes=in_axes, out_axes=out_axes, donate_argnums=donate, devices=devices()
  )
  with jax.default_matmul_precision(precision):
    lowered = mapped.lower(*args)
  return compilation.compile_lowered(lowered, devices()[0].platform)


def on_devices(function, *, replicated: tuple[int, ...], out_axes, precision: str = 'highest'):
  """`function` on all devices, compiled by `compile_for` for the arguments of its first call."""
  compiled = None

  def call(*args):
    nonlocal compiled
    if compiled is None:
      compiled = compile_for(function, *args, replicated=replicated, out_axes=out_axes, precision=precision)
    return compiled(*args)

  return call


def map_examples(function, batch_size: int, precision: str = 'highest'):
  """Maps a function over examples, a batch at a time on all devices of all processes.

  What it gives for an example must depend on that example alone: then batch size and devices do not matter.

  Args:
    function: `(shared, *parts) -> results`, where parts and results (a tree) have an axis of examples first.
    batch_size: examples at once; rounded up to a multiple of the devices.
    precision: as of `compile_for`.

  Returns:
    A function `(shared, *arrays, progress=None)` of a tree of arrays, the same on every device, and of arrays with an
    axis of N examples first, the same on every process; it gives the results for all N as NumPy arrays. A `Progress`
    counts examples. It is compiled on the first call.
  """
  size = up_to_devices(batch_size)
  on_batch = on_devices(function, replicated=(0,), out_axes=0, precision=precision)

  def run(shared, *arrays, progress=None):
    batches = []
    for first in range(0, len(arrays[0]), size):
      parts = [np.asarray(array[first : first + size]) for array in arrays]
      count = len(parts[0])
      filled = np.arange(size) % count
      results = on_batch(shared, *(split(own_rows(part[filled])) for part in parts))
      batches.append(jax.tree.map(lambda array: _joined(gather(array))[:count], results))  # noqa: B023
      if progress is not None:
        progress.update(count)
        progress.line(always=progress.silent)
    return jax.tree.map(lambda *parts: np.concatenate(parts), *batches)

  return run


def _joined(array):
  """The parts of the devices, (n, B / n, ...), as one batch."""
  return array.reshape(array.shape[0] * array.shape[1], *array.shape[2:])
