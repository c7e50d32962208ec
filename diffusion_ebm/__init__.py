"""Energy-based models by diffusion recovery likelihood (Gao et al., ICLR 2021), in JAX and Flax.

`load` and `from_parameters` make a `DiffusionEBM` of a trained model, `combine` and `side_by_side` one of several;
docs/api.md shows what they do.
"""

import importlib

# Loaded when they are first used: importing the package alone costs nothing.
_PUBLIC = {
  **dict.fromkeys(('DiffusionEBM', 'combine', 'from_parameters', 'load', 'side_by_side'), 'api'),
  'UserError': 'run.errors',
}
__all__ = tuple(_PUBLIC)  # noqa: PLE0604 (a tuple of names)


def __getattr__(name):
  if name not in _PUBLIC:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  if name != 'UserError':
    importlib.import_module(f'{__name__}.run.installed').check()  # before imports that would fail with a riddle
  return getattr(importlib.import_module(f'{__name__}.{_PUBLIC[name]}'), name)


def __dir__():
  return sorted({*globals(), *__all__})
