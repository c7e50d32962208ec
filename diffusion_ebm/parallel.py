"""Devices: the only place that knows how many there are.

State is replicated, batches are split over the axis `AXIS`. A function that runs on all devices is compiled once,
for the arguments at hand, with the options that suit the platform.
"""

import collections
from collections.abc import Iterable, Iterator

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from diffusion_ebm import compilation

AXIS = 'devices'


def _sharding(*axes):
  return NamedSharding(Mesh(np.array(jax.local_devices()), (AXIS,)), PartitionSpec(*axes))


def replicate(tree):
  """Puts a copy of the arrays of `tree` on every device."""
  return jax.device_put(tree, _sharding())


def split(batch: np.ndarray):
  """Splits the first axis (this host's share of the batch) over the local devices: (B, ...) to (n, B / n, ...)."""
  n = jax.local_device_count()
  return jax.device_put(batch.reshape(n, len(batch) // n, *batch.shape[1:]), _sharding(AXIS))


def prefetch(batches: Iterable[np.ndarray], ahead: int = 2) -> Iterator[jax.Array]:
  """`split(batch)` of each batch, `ahead` of them on the devices before they are needed."""
  queue = collections.deque()
  for batch in batches:
    queue.append(split(batch))
    if len(queue) > ahead:
      yield queue.popleft()
  yield from queue


def example_index(batch_size: int):
  """Inside a compiled function: the global index of each of the device's `batch_size` examples, int (B,)."""
  return lax.axis_index(AXIS) * batch_size + jnp.arange(batch_size)


def compile_for(function, *args, replicated: tuple[int, ...], out_axes, donate: tuple[int, ...] = ()):
  """Compiles `function` under `pmap` for arguments like `args`.

  Args:
    function: sees one device's part of each argument, and the axis `AXIS`.
    *args: the arguments, or like them in shape, dtype and sharding.
    replicated: positions of the arguments that every device gets whole; the others come from `split`.
    out_axes: for each result None (the same on every device) or the axis along which the devices' parts are stacked.
    donate: positions of the arguments whose memory may be reused.

  Returns:
    The compiled function of all the arguments.
  """
  in_axes = tuple(None if i in replicated else 0 for i in range(len(args)))
  mapped = jax.pmap(function, axis_name=AXIS, in_axes=in_axes, out_axes=out_axes, donate_argnums=donate)
  return compilation.compile_lowered(mapped.lower(*args))
