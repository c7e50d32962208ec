"""Accelerators that need not be there: what is known of them, and XLA's compilers for them.

The compilers come in wheels: `libtpu` for TPUs, JAX's CUDA plugin and `nvcc` for GPUs. Nothing runs on devices that
are only described.

Sources: cloud.google.com/tpu/docs (v4, v5e, v5p, v6e), www.nvidia.com data sheets of H100 SXM, H200, A100 80GB SXM, L4.
"""

import contextlib
import importlib.util
import os
from typing import NamedTuple

import jax

from diffusion_ebm.run.errors import UserError


class Chip(NamedTuple):
  """What is known of one chip.

  Attributes:
    flops: operations a second, products of bfloat16, dense.
    bandwidth: of its memory, bytes a second.
    memory: bytes.
    clock: cycles a second of its processors, in which XLA estimates; 0 where it does not.
    network: bytes a second to other chips, one way, over all its links; 0 for one alone.
    float32: share of `flops` that is left for products of float32 at the precision `default`, which are bfloat16 on
      TPUs and TF32 on GPUs.
    exact: likewise at `highest`: six products of bfloat16 on TPUs, none of the matrix units on GPUs.
  """

  flops: float
  bandwidth: float
  memory: float
  clock: float = 0.0
  network: float = 0.0
  float32: float = 1.0
  exact: float = 1 / 6

  def rate(self, dtype: str, precision: str) -> float:
    """Operations a second in products of this dtype and, of float32, `model.precision`."""
    if dtype != 'float32':
      return self.flops
    if precision == 'highest':
      return self.flops * self.exact
    return self.flops * (self.float32 if precision == 'default' or not self.clock else 1 / 3)


GIB = 2**30
TPUS = {
  'v4': Chip(275e12, 1228e9, 32 * GIB, 1.05e9, 300e9),
  'v5e': Chip(197e12, 819e9, 16 * GIB, 1.5e9, 200e9),
  'v5p': Chip(459e12, 2765e9, 95 * GIB, 1.75e9, 600e9),
  'v6e': Chip(918e12, 1640e9, 32 * GIB, 1.75e9, 448e9),
}
GPUS = {
  'h100': Chip(989e12, 3352e9, 84929347584, float32=0.5, exact=67 / 989),
  'h200': Chip(989e12, 4800e9, 150754820096, float32=0.5, exact=67 / 989),
  'a100': Chip(312e12, 2039e9, 85098233856, float32=0.5, exact=19.5 / 312),
  'l4': Chip(121e12, 300e9, 23671472128, float32=0.5, exact=30.3 / 121),
}
_DIMENSIONS = {'v4': 3, 'v5e': 2, 'v5p': 3, 'v6e': 2}
# What XLA's compiler for GPUs wants to know of each beside: compute capability, multiprocessors, clock in GHz, units of
# float32 in each, bytes of shared memory of each and of a block at most, bytes of the cache.
_GPU_FACTS = {
  'h100': ('NVIDIA H100 80GB HBM3', (9, 0), 132, 1.98, 128, 233472, 232448, 52428800),
  'h200': ('NVIDIA H200', (9, 0), 132, 1.98, 128, 233472, 232448, 62914560),
  'a100': ('NVIDIA A100-SXM4-80GB', (8, 0), 108, 1.41, 64, 167936, 166912, 41943040),
  'l4': ('NVIDIA L4', (8, 9), 58, 2.04, 128, 102400, 101376, 50331648),
}
_ONE_CHIP = {'chips_per_host_bounds': (1, 1, 1), 'num_slices': 1}
_CHIPS = {'v4': {'chip_config_name': 'megacore'}}  # both cores of a chip as one device, as on a v4 itself


_WITHOUT_TPU = {
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-4',  # whatever is compiled for: or it warns
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',  # beside another process that compiles
  'TPU_MIN_LOG_LEVEL': '3',
  'TPU_STDERR_LOG_LEVEL': '3',
}


def tpu(topology: str) -> tuple[list, Chip]:
  """The devices of a TPU topology, such as `v5e:2x4`, and what is known of each.

  Raises:
    UserError: there is no such topology, or no `libtpu`.
  """
  kind, _, shape = topology.partition(':')
  sizes = shape.split('x')
  if kind not in TPUS or len(sizes) != _DIMENSIONS[kind] or not all(size.isdecimal() for size in sizes):
    raise UserError(
      f'--topology={topology} is unknown: give one of {", ".join(TPUS)} and its shape, such as v5e:1x1, v5e:2x4, '
      'v6e:2x4, v4:2x2x1 or v5p:2x2x1'
    )
  if importlib.util.find_spec('libtpu') is None:
    raise UserError("XLA's compiler for TPUs is not installed: pip install libtpu")
  for name, value in _WITHOUT_TPU.items():
    os.environ.setdefault(name, value)
  from jax.experimental import topologies

  options = _CHIPS.get(kind, {}) | (_ONE_CHIP if set(sizes) == {'1'} else {})
  with _one_line(f'--topology={topology}'):
    return list(topologies.get_topology_desc(platform='tpu', topology_name=topology, **options).devices), TPUS[kind]


def gpu(name: str) -> tuple[list, Chip]:
  """One GPU, of `GPUS`, as of `tpu`; XLA estimates no cycles for it.

  Raises:
    UserError: it is not known, or JAX's CUDA plugin is not installed.
  """
  if name not in GPUS:
    raise UserError(f'--gpu={name} is unknown: give one of {", ".join(GPUS)}')
  version = jax.__version__
  if not _has_cuda():
    raise UserError(
      "XLA's compiler for GPUs is not installed: pip install --no-deps "
      f'jax-cuda12-pjrt=={version} jax-cuda12-plugin=={version} nvidia-cuda-nvcc-cu12'
    )
  # Without the GPU, convolution algorithms cannot be timed.
  os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} --xla_gpu_autotune_level=0'
  os.environ['CUDA_VISIBLE_DEVICES'] = '-1'
  from jax.experimental import topologies

  with _one_line(f'--gpu={name}'):
    found = topologies.get_topology_desc(platform='cuda', target_config=_target(name), topology='1x1x1')
    return list(found.devices), GPUS[name]


def _has_cuda() -> bool:
  if importlib.util.find_spec('jax_plugins') is None:
    return False
  return any(importlib.util.find_spec(f'jax_plugins.xla_cuda{n}') for n in (12, 13))


def _target(name: str) -> str:
  """What XLA calls the target's configuration, as text."""
  title, (major, minor), cores, clock, units, shared, shared_of_block, cache = _GPU_FACTS[name]
  info = {
    'threads_per_block_limit': 1024,
    'threads_per_warp': 32,
    'shared_memory_per_block': 49152,
    'shared_memory_per_core': shared,
    'threads_per_core_limit': 1536 if (major, minor) == (8, 9) else 2048,
    'core_count': cores,
    'fpus_per_core': units,
    'block_dim_limit_x': 2147483647,
    'block_dim_limit_y': 65535,
    'block_dim_limit_z': 65535,
    'memory_bandwidth': int(GPUS[name].bandwidth),
    'l2_cache_size': cache,
    'clock_rate_ghz': clock,
    'device_memory_size': int(GPUS[name].memory),
    'shared_memory_per_block_optin': shared_of_block,
    'registers_per_core_limit': 65536,
    'registers_per_block_limit': 65536,
  }
  text = ' '.join(f'{key}: {value}' for key, value in info.items())
  return (
    f'gpu_device_info {{ {text} cuda_compute_capability {{ major: {major} minor: {minor} }} }} platform_name: "CUDA" '
    'dnn_version_info { major: 9 minor: 8 } runtime_version { major: 12 minor: 8 } '
    f'device_description_str: "{title}"'
  )


@contextlib.contextmanager
def _one_line(what: str):
  try:
    yield
  except (jax.errors.JaxRuntimeError, RuntimeError, ValueError, NotImplementedError) as error:
    raise UserError(f'{what} cannot be compiled for ({" ".join(str(error).split())[:300]})') from error
