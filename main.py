"""Trains and samples energy-based models by diffusion recovery likelihood.

  python main.py --config=configs/cifar10.py --workdir=runs/cifar10 [--mode=MODE] [--config.KEY=VALUE]
"""

import itertools
import logging
import os
import sys

from absl import app, flags
import ml_collections
from ml_collections import config_flags

from configs import default
from diffusion_ebm import config as config_lib
from diffusion_ebm.errors import UserError

_MODES = ('train', 'sample', 'grid', 'eval', 'density', 'long_run')

_MODE = flags.DEFINE_enum('mode', 'train', _MODES, 'What to do.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Where checkpoints, samples and logs go.')
_NUM_SAMPLES = flags.DEFINE_integer('num_samples', 64, 'sample: how many; for eval, --config.eval.num_samples.')
_SEED = flags.DEFINE_integer(
    'seed', 0, 'sample, grid, density, long_run: of the random numbers; training has --config.seed, eval '
    '--config.eval.seed.')
_STEP = flags.DEFINE_integer(
    'step', None, 'not for train: which checkpoint; the newest by default, for eval all.')

_DEFAULT_CONFIG = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'configs', 'digits.py')


def _workdir(argv):
  """The workdir on the command line, before it is parsed: '' if there is none."""
  named = [arg.partition('=')[2] or after
           for arg, after in itertools.zip_longest(argv, argv[1:], fillvalue='')
           if arg.lstrip('-').partition('=')[0] == 'workdir']
  return named[-1] if named else ''


def _with_new_keys(saved):
  """A configuration of an older version, with the defaults of what it does not know."""
  for name, section in default.get_config().items():
    if name not in saved:
      saved[name] = section
    elif isinstance(section, ml_collections.ConfigDict):
      saved[name].update({key: value for key, value in section.items() if key not in saved[name]})
  return saved


def _define_config(argv):
  """Without --config, a workdir's own configuration goes on; a new one starts on digits."""
  given = {arg.lstrip('-').partition('=')[0] for arg in argv if arg.startswith('-')}
  saved = None
  if 'config' not in given:
    saved = config_lib.load(_workdir(argv))
  if saved is not None:
    saved = _with_new_keys(saved)
    return config_flags.DEFINE_config_dict('config', saved.lock())
  return config_flags.DEFINE_config_file(
      'config', _DEFAULT_CONFIG, 'The configuration; configs/default.py has its keys.', lock_config=True)


def _parse(argv):
  """Parses the command line and returns the configuration; everything wrong with it is a `UserError`."""
  app.define_help_flags()
  try:
    config = _define_config(argv[1:])
    rest = flags.FLAGS(argv)
    config = config.value
    getattr(config, 'data', None)  # a configuration that could not be loaded says so when it is first used
  except flags.Error as error:
    raise UserError(f'command line: {" ".join(str(error).split())}') from error
  except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
    while error.args and isinstance(error.args[0], Exception):  # ml_collections wraps the one that says most
      error = error.args[0]
    said = ' '.join(str(error.args[0] if error.args else error).split())
    raise UserError(f'command line: no such configuration key: {said}') from error
  except OSError as error:  # of a --config that is not there
    names = sorted(name[:-3] for name in os.listdir(os.path.dirname(_DEFAULT_CONFIG)) if name.endswith('.py'))
    there = ', '.join(name for name in names if name not in ('__init__', 'default'))
    raise UserError(f'command line: --config: {str(error).splitlines()[-1].strip()}; configs/ has {there}') from error
  if len(rest) > 1:
    raise UserError(f'command line: {rest[1]!r} is not a flag; flags begin with --')
  return config


def _run(config):
  if not _WORKDIR.value:
    raise UserError('--workdir is missing: name the folder for checkpoints, samples and logs')
  if _MODE.value == 'train':
    from diffusion_ebm import train
    train.train(config, _WORKDIR.value)
  elif _MODE.value == 'sample':
    from diffusion_ebm import sample
    sample.sample(config, _WORKDIR.value, _NUM_SAMPLES.value, _SEED.value, _STEP.value)
  elif _MODE.value == 'grid':
    from diffusion_ebm import grid_density
    grid_density.grid_density(config, _WORKDIR.value, _SEED.value, _STEP.value)
  elif _MODE.value == 'density':
    from diffusion_ebm import normalised_density
    normalised_density.normalised_density(config, _WORKDIR.value, _SEED.value, _STEP.value)
  elif _MODE.value == 'long_run':
    from diffusion_ebm import long_run
    long_run.long_run(config, _WORKDIR.value, _SEED.value, _STEP.value)
  elif _MODE.value == 'eval':
    for flag in (_NUM_SAMPLES, _SEED):
      if flag.present:
        raise UserError(f'--{flag.name} is not for --mode=eval: set --config.eval.{flag.name}')
    from diffusion_ebm import evaluation
    evaluation.evaluate(config, _WORKDIR.value, _STEP.value)


def main():
  logging.basicConfig(format='%(asctime)s %(message)s', datefmt='%H:%M:%S', level=logging.WARNING, force=True)
  logging.getLogger('diffusion_ebm').setLevel(logging.INFO)
  logging.getLogger('absl').setLevel(logging.ERROR)  # Orbax explains itself there
  try:
    _run(_parse(sys.argv))
  except UserError as error:
    print(f'error: {error}', file=sys.stderr)
    sys.exit(error.exit_code)


if __name__ == '__main__':
  main()
