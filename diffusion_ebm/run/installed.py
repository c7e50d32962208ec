"""Whether what is in memory is what is installed: pip may have changed it under a running notebook."""

from importlib import metadata
import sys

from diffusion_ebm.run.errors import UserError

# Compiled, and of one piece with what is imported after them.
_PACKAGES = ('numpy', 'scipy', 'jax', 'jaxlib')


def check():
  """Raises a `UserError` where another version of a package is installed than the one that has been imported."""
  for name in _PACKAGES:
    loaded = getattr(sys.modules.get(name), '__version__', None)
    try:
      installed = metadata.version(name)
    except metadata.PackageNotFoundError:
      continue
    if loaded and loaded.partition('+')[0] != installed.partition('+')[0]:
      raise UserError(
        f'{name} {loaded} is in use, but {installed} has been installed since: restart the runtime (the kernel), then '
        'run the cells again'
      )
