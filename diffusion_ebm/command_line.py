"""The command line: the configuration, its keys and their short names."""

from collections.abc import Callable
import itertools
import os

from absl import app, flags
import ml_collections
from ml_collections import config_flags

from diffusion_ebm import config as config_lib
from diffusion_ebm import older_versions
from diffusion_ebm.run import paths
from diffusion_ebm.run.errors import UserError

_KEYS_SHOWN = 5


def parse(argv: list[str], default_file: Callable[[list[str]], str], defaults, of_model: Callable = lambda argv: None):
  """Parses the command line.

  Without --config, a workdir's own configuration goes on; a new workdir starts on the default one.

  Args:
    argv: with the name of the program first.
    default_file: from the arguments, not parsed yet, to the configuration of a new workdir.
    defaults: the configuration that has every key.
    of_model: from the arguments to the configuration of a trained model that a new workdir shall hold, or None.

  Returns:
    The configuration, locked.

  Raises:
    UserError: for everything that is wrong with the command line.
  """
  app.define_help_flags()
  try:
    config = _define_config(flags.FLAGS.read_flags_from_files(argv[1:]), default_file, defaults, of_model)
    rest = flags.FLAGS(argv)
    config = config.value
    getattr(config, 'data', None)  # a configuration that could not be loaded says so when it is first used
  except UserError:
    raise
  except flags.Error as error:
    cause = str(error).strip()
    if 'Traceback' in cause:  # of get_config, which is not for users of a --config
      cause = f'{cause.partition(": ")[0]}: {cause.splitlines()[-1]}; name a file such as configs/digits.py'
    raise UserError(f'command line: {" ".join(cause.split())}') from error
  except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
    while error.args and isinstance(error.args[0], Exception):  # ml_collections wraps the one that says most
      error = error.args[0]
    cause = ' '.join(str(error.args[0] if error.args else error).split())
    raise UserError(f'command line: no such configuration key: {cause}') from error
  except OSError as error:  # of a --config that is not there
    folder = os.path.dirname(default_file([]))
    names = sorted(name[:-3] for name in os.listdir(folder) if name.endswith('.py'))
    known = ', '.join(name for name in names if name not in ('__init__', 'default'))
    raise UserError(f'command line: --config: {str(error).splitlines()[-1].strip()}; {folder} has {known}') from error
  except Exception as error:  # whatever a file of the user's own does
    cause = ' '.join(f'{type(error).__name__}: {error}'.split())
    raise UserError(f'command line: --config cannot be run ({cause}): mend the file') from error
  if lacking := _lacking(config, defaults):
    shown = ', '.join(lacking[:_KEYS_SHOWN]) + (', ...' if len(lacking) > _KEYS_SHOWN else '')
    raise UserError(
      f'command line: --config lacks {shown}: begin it with a copy of configs/default.py, and set single '
      'keys, as --config.train.batch_size=64'
    )
  if len(rest) > 1:
    raise UserError(f'command line: {rest[1]!r} is not a flag; flags begin with --')
  return config


def _define_config(argv, default_file, defaults, of_model):
  names = {arg.lstrip('-').partition('=')[0] for arg in argv if arg.startswith('-')}
  workdir = paths.workdir(given(argv, 'workdir'))
  saved = None if 'config' in names else config_lib.load(workdir) or of_model(argv)
  if saved is None:
    return config_flags.DEFINE_config_file(
      'config', default_file(argv), 'The configuration; configs/default.py has its keys.', lock_config=True
    )
  older_versions.fill_in(saved, defaults, workdir)
  return config_flags.DEFINE_config_dict('config', saved.lock())


def _lacking(config, defaults) -> list[str]:
  """The keys of the defaults that a configuration has not."""
  if not isinstance(config, ml_collections.ConfigDict):
    return ['everything']
  known = dict(config_lib.flatten(config.to_dict()))
  return [key for key, _ in config_lib.flatten(defaults.to_dict()) if key not in known]


def given(argv: list[str], name: str) -> str:
  """The value of a flag on the command line, before it is parsed: '' if there is none."""
  values = [
    arg.partition('=')[2] or after
    for arg, after in itertools.zip_longest(argv, argv[1:], fillvalue='')
    if arg.startswith('-') and arg.lstrip('-').partition('=')[0] == name
  ]
  return values[-1] if values else ''


def define_short_names(names: dict[str, dict[str, str]], define: dict[str, type] | None = None):
  """Defines a flag for each short name of keys.

  Args:
    names: flag to mode to the key that it stands for in that mode.
    define: flag to the type of its value; integers are the rule.
  """
  kinds = {int: flags.DEFINE_integer, str: flags.DEFINE_string, list: flags.DEFINE_list}
  for name, keys in names.items():
    meaning = '; '.join(f'{mode}: --config.{key}' for mode, key in keys.items())
    kinds[(define or {}).get(name, int)](name, None, f'Short for {meaning}.')


def apply_short_names(config, names: dict[str, dict[str, str]], mode: str):
  """Sets the keys whose short names are on the command line.

  Raises:
    UserError: a name is for other modes.
  """
  for name, keys in names.items():
    flag = flags.FLAGS[name]
    if not flag.present:
      continue
    if mode not in keys:
      raise UserError(f'--{name} is for --mode={", ".join(keys)}, not for --mode={mode}')
    section, key = keys[mode].split('.')
    config[section][key] = tuple(flag.value) if isinstance(flag.value, list) else flag.value
