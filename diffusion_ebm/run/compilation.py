"""XLA: the compiler options of each platform, and the cache of compiled programs.

docs/performance.md has the measurements behind the options.
"""

import hashlib
import logging
import os
import platform
import re

import jax

from diffusion_ebm.run import paths
from diffusion_ebm.run.errors import UserError

_log = logging.getLogger(__name__)

_OPTIONS = {
  'cpu': {
    # Running independent operations side by side costs more than it gains where each already uses all the cores.
    'xla_cpu_enable_concurrency_optimized_scheduler': False,
    # Eigen's convolutions with few output channels, and its small products of matrices, are faster than YNNPACK's.
    'xla_cpu_experimental_ynn_fusion_type': '',
  },
  'tpu': {
    # Two convolutions in one kernel compute what lies between them several times.
    'xla_tpu_dot_dot_fusion': False,
    # Blocks of one shape share their kernels' code: shorter to compile.
    'xla_tpu_enable_deduplicated_calls': True,
  },
}


# Convolutions of large images, from this size on, take larger windows at once; for small ones this is only slower to
# compile.
_LARGE, _LARGE_OPTIONS = 128, {'tpu': {'xla_tpu_scoped_vmem_limit_kib': 32768}}


def compile_lowered(lowered: jax.stages.Lowered, kind: str | None = None) -> jax.stages.Compiled:
  """Compiles with the options that suit a platform; those that this version of XLA does not know are left out.

  Args:
    lowered: the program.
    kind: the platform's name, such as tpu; None for this machine's.
  """
  kind = kind or jax.default_backend()
  options = dict(_OPTIONS.get(kind, {}))
  if kind in _LARGE_OPTIONS and _largest_image(lowered.as_text()) >= _LARGE:
    options |= _LARGE_OPTIONS[kind]
  while True:
    try:
      return lowered.compile(compiler_options=options or None)
    except jax.errors.JaxRuntimeError as error:
      unknown = [name for name in options if f"'{name}'" in str(error)]
      if 'No such compile option' not in str(error) or not unknown:
        raise
      _log.warning('this version of XLA has no option %s: going on without it', unknown[0])
      del options[unknown[0]]


# What runs once need not run fast: a third of the time, most of which is compilation (docs/performance.md).
_ONCE_OPTIONS = {'cpu': {'xla_backend_optimization_level': 0}}


def once(function):
  """`function` as one program for a single call: quick to compile rather than to run."""
  return jax.jit(function, compiler_options=_ONCE_OPTIONS.get(jax.default_backend()))


def _largest_image(text: str) -> int:
  """Height and width of the largest square images, (B, H, W, C), in a lowered program; 0 for none."""
  return max((int(size) for size in re.findall(r'tensor<\d+x(\d+)x\1x\d+x(?:f32|bf16)>', text)), default=0)


def use_cache():
  """Keeps compiled programs in the user's cache folder, so that the next run of the same network starts at once.

  `JAX_COMPILATION_CACHE_DIR` names another folder; `JAX_ENABLE_COMPILATION_CACHE=false` turns the cache off.
  """
  if jax.config.jax_compilation_cache_dir is None:
    jax.config.update('jax_compilation_cache_dir', os.path.join(paths.user_cache(), f'jax-{_processor()}'))


def check_jax():
  """Raises a `UserError` where JAX has no device, or was asked to compute in double precision.

  With several processes, they have to be connected before.
  """
  if jax.config.jax_enable_x64:
    raise UserError('JAX_ENABLE_X64 is set, but parameters and checkpoints are float32: unset it')
  try:
    jax.devices()
  except (RuntimeError, AssertionError) as error:  # the latter where not even the plugin is installed
    cause = ' '.join(str(error).split())[:300] or 'nothing is installed for it'
    raise UserError(
      f'JAX finds no device of JAX_PLATFORMS={os.environ.get("JAX_PLATFORMS", "")} ({cause}): unset it, or install '
      f"JAX's build for that device"
    ) from error


def _processor() -> str:
  """A short name of the processor: programs compiled for one kind may not run on another that shares the folder."""
  try:
    with open('/proc/cpuinfo', encoding='utf-8', errors='replace') as file:
      lines = [line for line in file if line.startswith(('model name', 'flags', 'Features', 'CPU part'))]
  except OSError:
    lines = [platform.processor()]
  kind = '\n'.join(sorted(set(lines)))
  return f'{platform.machine()}-{hashlib.sha256(kind.encode()).hexdigest()[:8]}'
