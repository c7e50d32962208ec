"""Trains and samples energy-based models by diffusion recovery likelihood.

python main.py --config=configs/cifar10.py --workdir=runs/cifar10 [--mode=MODE] [--config.KEY=VALUE]
"""

import importlib
import logging
import os
import signal
import sys

from absl import flags

from configs import default
from diffusion_ebm import command_line
from diffusion_ebm.run import compilation, errors, paths, progress
from diffusion_ebm.run.errors import UserError

# Mode to the module of `diffusion_ebm.jobs` whose `run(config, workdir, seed, step)` does it.
_JOBS = {
  'train': 'train',
  'sample': 'sample',
  'grid': 'grid_density',
  'eval': 'evaluate',
  'density': 'density',
  'long_run': 'long_run',
  'inpaint': 'inpaint',
  'interpolate': 'interpolate',
  'ood': 'ood',
  'steps': 'steps',
  'guidance': 'guidance',
  'import': 'import_weights',
  'export': 'export',
}
_SEVERAL_PROCESSES = ('train', 'sample')

# Flags that are short for keys of the configuration, in the modes that have them.
_SHORT_NAMES = {
  'num_samples': {
    'sample': 'sampling.num_samples',
    'inpaint': 'inpaint.num_images',
    'interpolate': 'interpolate.num_strips',
    'ood': 'ood.num_examples',
    'eval': 'eval.num_samples',
    'steps': 'eval.num_samples',
    'guidance': 'eval.num_samples',
    'density': 'density.num_images',
  },
  'compose': dict.fromkeys(('sample', 'inpaint', 'interpolate', 'ood', 'long_run'), 'sampling.compose'),
  'path': {'import': 'import_weights.path', 'export': 'export.path'},
  'mask': {'inpaint': 'inpaint.mask'},
  'images': {'inpaint': 'inpaint.images'},
  'completions': {'inpaint': 'inpaint.completions'},
  'repeats': {'inpaint': 'inpaint.repeats'},
  'frames': {'interpolate': 'interpolate.frames'},
  'against': {'ood': 'ood.against'},
}

_MODE = flags.DEFINE_enum('mode', 'train', tuple(_JOBS), 'What to do.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Where checkpoints, samples and logs go.')
_SEED = flags.DEFINE_integer(
  'seed', 0, 'Of the random numbers; training has --config.seed; eval, steps and guidance have --config.eval.seed.'
)
_STEP = flags.DEFINE_integer('step', None, 'Which checkpoint; the newest by default, for eval all.')
_PRETRAINED = flags.DEFINE_string(
  'pretrained', None, 'A model that comes with the package, by its name, or an exported file: what a new workdir holds.'
)
_DISTRIBUTED = flags.DEFINE_boolean(
  'distributed', False, 'Several processes, found by JAX itself: TPU pods, SLURM, Open MPI, Kubernetes.'
)
_COORDINATOR = flags.DEFINE_string('coordinator', None, 'Several processes, by hand: HOST:PORT of process 0.')
_NUM_PROCESSES = flags.DEFINE_integer('num_processes', None, 'With --coordinator: how many processes.')
_PROCESS_ID = flags.DEFINE_integer('process_id', None, 'With --coordinator: number of this process, from 0.')
command_line.define_short_names(
  _SHORT_NAMES, {'path': str, 'mask': str, 'images': str, 'against': list, 'compose': list}
)

_CONFIGS = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'configs')


def _default_config(argv: list[str]) -> str:
  """The configuration of a new workdir; for weights from elsewhere, of what their file's name says they are."""
  name = 'digits'
  if command_line.given(argv, 'mode') == 'import':
    name = 'cifar10' if _imported(argv).endswith('.npz') else 'cifar10_cdrl'
  return os.path.join(_CONFIGS, f'{name}.py')


def _exported_config(argv: list[str]):
  """That of an exported model which is named; None if none is."""
  name = _imported(argv) if command_line.given(argv, 'mode') == 'import' else command_line.given(argv, 'pretrained')
  if not name:
    return None
  from diffusion_ebm import exported

  return exported.config(name)


def _imported(argv: list[str]) -> str:
  return command_line.given(argv, 'path') or command_line.given(argv, 'config.import_weights.path')


def _connect():
  """Joins the other processes of the run, if there are any."""
  by_hand = {flag.name: flag.value for flag in (_COORDINATOR, _NUM_PROCESSES, _PROCESS_ID)}
  missing = [f'--{name}' for name, value in by_hand.items() if value is None]
  if 0 < len(missing) < len(by_hand):
    raise UserError(f'--coordinator, --num_processes and --process_id go together; missing: {", ".join(missing)}')
  if missing and not _DISTRIBUTED.value:
    return
  if _MODE.value not in _SEVERAL_PROCESSES:
    raise UserError(f'--mode={_MODE.value} runs in one process: leave --distributed and --coordinator out')
  from diffusion_ebm.run import parallel

  parallel.connect(*by_hand.values())
  if not parallel.is_first():
    logging.getLogger('diffusion_ebm').setLevel(logging.WARNING)


def main():
  for name in ('stdout', 'stderr'):
    if getattr(sys, name) is None:  # closed by whoever starts the command
      setattr(sys, name, open(os.devnull, 'w', encoding='utf-8'))  # noqa: SIM115
  logging.basicConfig(format='%(asctime)s %(message)s', datefmt='%H:%M:%S', level=logging.WARNING, force=True)
  logging.getLogger('diffusion_ebm').setLevel(logging.INFO)
  logging.getLogger('absl').setLevel(logging.CRITICAL)  # Orbax explains itself there, at length
  with errors.shown():
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `--help | head -1` ends like any program
    config = command_line.parse(sys.argv, _default_config, default.get_config(), _exported_config)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # a job goes on, whoever reads what it prints
    workdir = paths.workdir(_WORKDIR.value or '')
    if not workdir:
      raise UserError('--workdir is missing: name the folder for checkpoints, samples and logs')
    if _PRETRAINED.value and _MODE.value == 'import':
      raise UserError('--pretrained is not for --mode=import: name the model by --path')
    if _MODE.value in ('eval', 'steps', 'guidance') and flags.FLAGS['seed'].present:
      raise UserError(f'--seed is not for --mode={_MODE.value}: set --config.eval.seed')
    command_line.apply_short_names(config, _SHORT_NAMES, _MODE.value)
    compilation.use_cache()
    with progress.never_silent(f'{_MODE.value} in {workdir}'):
      _connect()
      compilation.check_jax()
      if _PRETRAINED.value:
        importlib.import_module('diffusion_ebm.jobs.import_weights').prepare(config, workdir, _PRETRAINED.value)
      job = importlib.import_module(f'diffusion_ebm.jobs.{_JOBS[_MODE.value]}')
      job.run(config, workdir, _SEED.value, _STEP.value)


if __name__ == '__main__':
  main()
