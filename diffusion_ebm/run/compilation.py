"""XLA: the compiler options of each platform, and the cache of compiled programs.

docs/performance.md has the measurements behind the options.
"""

import hashlib
import logging
import os
import platform

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
  }
}


def compile_lowered(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
  """Compiles with the options that suit the platform; those that this version of XLA does not know are left out."""
  options = dict(_OPTIONS.get(jax.default_backend(), {}))
  while True:
    try:
      return lowered.compile(compiler_options=options or None)
    except jax.errors.JaxRuntimeError as error:
      unknown = [name for name in options if f"'{name}'" in str(error)]
      if 'No such compile option' not in str(error) or not unknown:
        raise
      _log.warning('this version of XLA has no option %s: going on without it', unknown[0])
      del options[unknown[0]]


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
