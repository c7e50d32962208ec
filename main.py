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
from diffusion_ebm import compilation
from diffusion_ebm import config as config_lib
from diffusion_ebm.errors import InterruptedRun, UserError

_MODES = ('train', 'sample', 'grid', 'eval', 'density', 'long_run', 'inpaint', 'interpolate', 'ood')

_MODE = flags.DEFINE_enum('mode', 'train', _MODES, 'What to do.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Where checkpoints, samples and logs go.')
_NUM_SAMPLES = flags.DEFINE_integer(
    'num_samples', None, 'sample: how many (64); inpaint: images (8); interpolate: strips (8); ood: images of each set '
    '(1000); for eval, --config.eval.num_samples.')
_SEED = flags.DEFINE_integer(
    'seed', 0, 'Of the random numbers; training has --config.seed, eval --config.eval.seed.')
_STEP = flags.DEFINE_integer('step', None, 'Which checkpoint; the newest by default, for eval all.')
_DISTRIBUTED = flags.DEFINE_boolean(
    'distributed', False, 'Several processes, found by JAX itself: TPU pods, SLURM, Open MPI, Kubernetes.')
_COORDINATOR = flags.DEFINE_string('coordinator', None, 'Several processes, by hand: HOST:PORT of process 0.')
_NUM_PROCESSES = flags.DEFINE_integer('num_processes', None, 'With --coordinator: how many processes.')
_PROCESS_ID = flags.DEFINE_integer('process_id', None, 'With --coordinator: number of this process, from 0.')
_MASK = flags.DEFINE_string(
    'mask', 'left', 'inpaint: what is hidden: left, right, top, bottom, centre, random, or an image, white there.')
_IMAGES = flags.DEFINE_string(
    'images', '', "inpaint: a folder, a .zip, an image or a data set; the run's own test split by default.")
_COMPLETIONS = flags.DEFINE_integer('completions', 6, 'inpaint: how many of each image.')
_REPEATS = flags.DEFINE_integer('repeats', 4, 'inpaint: chains at each level.')
_FRAMES = flags.DEFINE_integer('frames', 16, 'interpolate: images in a strip.')
_AGAINST = flags.DEFINE_list(
    'against', 'noise,inversion,shuffle,constant', 'ood: what to tell from the test split: these, data sets or paths.')
_MODE_OF = {'mask': 'inpaint', 'images': 'inpaint', 'completions': 'inpaint', 'repeats': 'inpaint',
            'frames': 'interpolate', 'against': 'ood'}

_DEFAULT_CONFIG = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'configs', 'digits.py')


def _workdir(argv):
  """The workdir on the command line, before it is parsed: '' if there is none."""
  named = [arg.partition('=')[2] or after
           for arg, after in itertools.zip_longest(argv, argv[1:], fillvalue='')
           if arg.lstrip('-').partition('=')[0] == 'workdir']
  return named[-1] if named else ''


def _with_new_keys(saved, workdir):
  """A configuration of an older version, with the defaults of what it does not know; nonsense is refused."""
  defaults = default.get_config()
  problems = _of_other_types('', saved, defaults)
  if problems:
    raise UserError(
        f'config.json in {workdir} makes no sense: {"; ".join(problems)}; restore it, or use another --workdir')
  for name, section in defaults.items():
    if name not in saved:
      saved[name] = section
    elif isinstance(section, ml_collections.ConfigDict):
      saved[name].update({key: value for key, value in section.items() if key not in saved[name]})
  return saved


def _of_other_types(prefix, saved, defaults):
  problems = []
  for key, value in saved.items():
    if key not in defaults:
      continue
    wanted = type(defaults[key])
    if wanted is ml_collections.ConfigDict and isinstance(value, wanted):
      problems += _of_other_types(f'{prefix}{key}.', value, defaults[key])
    elif not (type(value) is wanted or wanted is float and type(value) is int):
      problems.append(f'{prefix}{key} is {value!r}, not of type {wanted.__name__}')
  return problems


def _define_config(argv):
  """Without --config, a workdir's own configuration goes on; a new one starts on digits."""
  given = {arg.lstrip('-').partition('=')[0] for arg in argv if arg.startswith('-')}
  saved = None
  if 'config' not in given:
    saved = config_lib.load(_workdir(argv))
  if saved is not None:
    saved = _with_new_keys(saved, _workdir(argv))
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
    folder = os.path.dirname(_DEFAULT_CONFIG)
    names = sorted(name[:-3] for name in os.listdir(folder) if name.endswith('.py'))
    there = ', '.join(name for name in names if name not in ('__init__', 'default'))
    raise UserError(f'command line: --config: {str(error).splitlines()[-1].strip()}; {folder} has {there}') from error
  if len(rest) > 1:
    raise UserError(f'command line: {rest[1]!r} is not a flag; flags begin with --')
  return config


def _connect():
  """Joins the other processes of the run, if there are any."""
  by_hand = {flag.name: flag.value for flag in (_COORDINATOR, _NUM_PROCESSES, _PROCESS_ID)}
  missing = [f'--{name}' for name, value in by_hand.items() if value is None]
  if 0 < len(missing) < len(by_hand):
    raise UserError(f'--coordinator, --num_processes and --process_id go together; missing: {", ".join(missing)}')
  if missing and not _DISTRIBUTED.value:
    return
  if _MODE.value not in ('train', 'sample'):
    raise UserError(f'--mode={_MODE.value} runs in one process: leave --distributed and --coordinator out')
  from diffusion_ebm import parallel
  parallel.connect(*by_hand.values())
  if not parallel.is_first():
    logging.getLogger('diffusion_ebm').setLevel(logging.WARNING)


def _num_samples(default: int) -> int:
  return default if _NUM_SAMPLES.value is None else _NUM_SAMPLES.value


def _run(config):
  if not _WORKDIR.value:
    raise UserError('--workdir is missing: name the folder for checkpoints, samples and logs')
  for name, mode in _MODE_OF.items():
    if flags.FLAGS[name].present and _MODE.value != mode:
      raise UserError(f'--{name} is for --mode={mode}, not for --mode={_MODE.value}')
  compilation.use_cache()
  _connect()
  if _MODE.value == 'train':
    from diffusion_ebm import train
    train.train(config, _WORKDIR.value)
  elif _MODE.value == 'sample':
    from diffusion_ebm import sample
    sample.sample(config, _WORKDIR.value, _num_samples(64), _SEED.value, _STEP.value)
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
  elif _MODE.value == 'inpaint':
    from diffusion_ebm import inpaint
    inpaint.inpaint(config, _WORKDIR.value, _MASK.value, _IMAGES.value, _num_samples(8), _COMPLETIONS.value,
                    _REPEATS.value, _SEED.value, _STEP.value)
  elif _MODE.value == 'interpolate':
    from diffusion_ebm import interpolate
    interpolate.interpolate(config, _WORKDIR.value, _num_samples(8), _FRAMES.value, _SEED.value, _STEP.value)
  elif _MODE.value == 'ood':
    from diffusion_ebm import ood
    ood.ood(config, _WORKDIR.value, _AGAINST.value, _num_samples(1000), _SEED.value, _STEP.value)


def main():
  logging.basicConfig(format='%(asctime)s %(message)s', datefmt='%H:%M:%S', level=logging.WARNING, force=True)
  logging.getLogger('diffusion_ebm').setLevel(logging.INFO)
  logging.getLogger('absl').setLevel(logging.CRITICAL)  # Orbax explains itself there, at length
  try:
    _run(_parse(sys.argv))
  except InterruptedRun as stopped:
    print(stopped, file=sys.stderr)
    sys.exit(stopped.exit_code)
  except UserError as error:
    print(f'error: {error}', file=sys.stderr)
    sys.exit(error.exit_code)
  except (MemoryError, RuntimeError) as error:
    if not isinstance(error, MemoryError) and 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    said = ' '.join(str(error).split())[:300]
    print(f'error: not enough memory ({said}): try a smaller --config.train.batch_size, --config.sampling.batch_size '
          'or --config.model.ch, --config.model.remat=True, or more devices', file=sys.stderr)
    sys.exit(2)
  except KeyboardInterrupt:  # before there is anything to save, or by a second Ctrl-C
    print('interrupted: what was saved is whole', file=sys.stderr)
    sys.exit(130)


if __name__ == '__main__':
  main()
