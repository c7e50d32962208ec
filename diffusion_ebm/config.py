"""The configuration: what it leaves open is filled in, what is wrong with it is said at once, where it is kept."""

import json
import math
import os

import ml_collections

from diffusion_ebm import energy, evaluate, langevin, noise_levels, optimizer, recovery, train_step
from diffusion_ebm.energy import layers, normal_factor
from diffusion_ebm.errors import UserError

# Steps, seeds and sizes are 32-bit numbers on the devices.
_MAX_INT = 2**31 - 1

# Widths of the published networks, by image size.
_CH_MULT = {
    32: (1, 2, 2, 2), 64: (1, 2, 2, 2, 4), 128: (1, 2, 2, 2, 4, 4), 256: (1, 1, 2, 2, 2, 4, 4)}

# What a run may change when it goes on: everything else makes it another run.
_FREE = {
    'data.path', 'data.max_memory_gb', 'data.num_workers', 'model.remat', 'sampling.noise_scale',
    'sampling.generation_steps', 'sampling.denoise', 'sampling.batch_size',
    'train.num_steps', 'train.micro_batches', 'train.log_every', 'train.sample_every', 'train.checkpoint_every',
    'train.keep_checkpoints', 'train.keep_every', 'train.max_bad_steps', 'train.stop_on_save_error'}
# Sections that say nothing about the run.
_FREE_SECTIONS = ('eval', 'density', 'long_run')
# Keys that came later, and what a configuration without them means.
_LATER = {
    ('model', 'level_embedding'): 'index', ('model', 'normal_factor'): 0, ('train', 'level_weight'): 'published',
    ('train', 'time_score'): 0.0, ('train', 'score_matching'): 0.0}


def is_vector(config) -> bool:
  """Whether the data are vectors, not images."""
  return config.data.name == 'toy2d'


def grey_width(config) -> float:
  """Distance between two grey levels of the images, in [-1, 1]."""
  return 2 / (config.data.grey_levels - 1)


def resolve(config) -> ml_collections.ConfigDict:
  """A copy of the configuration with what it leaves open filled in: `model.ch_mult`."""
  config = config.copy_and_resolve_references()
  if not config.model.ch_mult:
    config.model.ch_mult = _CH_MULT.get(config.data.image_size, ())
  return config


def check(config, num_devices: int):
  """Raises a `UserError` that names everything that is wrong with a resolved configuration."""
  problems = _unusable(config) or _problems(config, num_devices)
  if problems:
    raise UserError('configuration: ' + '; '.join(problems))


def _unusable(config):
  """What makes no number at all, or one that cannot be computed with."""
  problems = []
  for key, value in _flatten(config.to_dict()):
    for number in value if isinstance(value, list) else [value]:
      if isinstance(number, float) and not math.isfinite(number):
        problems.append(f'{key} is {number}, but must be finite')
      elif isinstance(number, int) and abs(number) > _MAX_INT:
        problems.append(f'{key} is {number}, but must be at most {_MAX_INT}')
  return problems


def _problems(config, num_devices):
  data, model, sampling, train = config.data, config.model, config.sampling, config.train
  problems = []

  def require(holds, message):
    if not holds:
      problems.append(message)

  def one_of(name, value, choices):
    require(value in choices, f'{name} is {value!r}, not one of {", ".join(map(str, choices))}')

  def at_least(name, value, low):
    require(value >= low, f'{name} is {value}, but must be at least {low}')

  def positive(name, value):
    require(value > 0, f'{name} is {value}, but must be positive')

  at_least('seed', config.seed, 0)
  require(data.name, 'data.name is empty: name a data set')
  positive('data.max_memory_gb', data.max_memory_gb)
  at_least('data.num_workers', data.num_workers, 0)
  at_least('data.grey_levels', data.grey_levels, 2)

  one_of('model.name', model.name, ('resnet', 'mlp'))
  one_of('model.dtype', model.dtype, tuple(energy.DTYPES))
  one_of('model.act', model.act, tuple(layers.ACTIVATIONS))
  at_least('model.ch', model.ch, 4)
  require(0 <= model.dropout < 1, f'model.dropout is {model.dropout}, not in [0, 1)')
  if is_vector(config):
    require(model.name == 'mlp', f'model.name is {model.name!r}, but {data.name} needs mlp')
    require(not data.random_flip, f'data.random_flip is for images, not for {data.name}')
    require(not data.dequantize, f'data.dequantize is for images, not for {data.name}')
  else:
    problems += _image_problems(data, model)
  if model.name == 'mlp':
    at_least('model.num_layers', model.num_layers, 1)
    at_least('model.num_frequencies', model.num_frequencies, 0)
    positive('model.output_scale', model.output_scale)

  num_levels, most = config.diffusion.num_levels, noise_levels.MAX_LEVELS
  require(2 <= num_levels <= most, f'diffusion.num_levels is {num_levels}, not in 2 .. {most}')
  one_of('diffusion.temperature', config.diffusion.temperature, recovery.TEMPERATURES)
  at_least('model.quadratic', model.quadratic, 0)
  most = normal_factor.MAX_COMPONENTS
  require(0 <= model.normal_factor <= most, f'model.normal_factor is {model.normal_factor}, not in 0 .. {most}')
  if 0 < model.normal_factor <= most:
    size = 2 if is_vector(config) else data.image_size**2 * data.num_channels
    require(config.diffusion.temperature == 'one',
            "model.normal_factor needs diffusion.temperature='one': it is a density in nats")
    most = math.isqrt(normal_factor.MAX_SIZE // model.normal_factor)
    require(size <= most, f'model.normal_factor={model.normal_factor} is for examples of at most {most} numbers, not '
                          f'{size}')
  one_of('model.level_embedding', model.level_embedding, energy.LEVEL_EMBEDDINGS)
  at_least('sampling.num_steps', sampling.num_steps, 0)
  at_least('sampling.generation_steps', sampling.generation_steps, -1)
  if config.diffusion.num_levels != 1000 and (sampling.num_steps == 0 or sampling.generation_steps == -1):
    problems.append('sampling.num_steps 0 and sampling.generation_steps -1, the normal approximation, hold for little '
                    'noise a level: they need diffusion.num_levels 1000')
  positive('sampling.step_size', sampling.step_size)
  one_of('sampling.step_size_rule', sampling.step_size_rule, recovery.STEP_SIZE_RULES)
  at_least('sampling.noise_scale', sampling.noise_scale, 0)
  at_least('sampling.batch_size', sampling.batch_size, 1)

  at_least('train.batch_size', train.batch_size, 1)
  if train.batch_size % num_devices:
    problems.append(f'train.batch_size is {train.batch_size}, which {num_devices} devices cannot share equally')
  at_least('train.micro_batches', train.micro_batches, 1)
  if train.micro_batches > 1:
    if train.batch_size % (num_devices * train.micro_batches):
      problems.append(f'train.batch_size is {train.batch_size}, not divisible into {train.micro_batches} '
                      f'train.micro_batches on each of {num_devices} devices')
    if model.norm == 'batch':
      problems.append("train.micro_batches is for norms other than model.norm='batch', which needs the whole batch")
  at_least('train.num_steps', train.num_steps, 0)
  one_of('train.optimizer', train.optimizer, optimizer.OPTIMIZERS)
  one_of('train.objective', train.objective, train_step.OBJECTIVES)
  one_of('train.level_weight', train.level_weight, recovery.LEVEL_WEIGHTS)
  at_least('train.time_score', train.time_score, 0)
  at_least('train.score_matching', train.score_matching, 0)
  positive('train.learning_rate', train.learning_rate)
  require(0 <= train.beta_1 < 1, f'train.beta_1 is {train.beta_1}, not in [0, 1)')
  at_least('train.warmup_steps', train.warmup_steps, 0)
  at_least('train.grad_clip', train.grad_clip, 0)
  require(0 <= train.ema_decay < 1, f'train.ema_decay is {train.ema_decay}, not in [0, 1)')
  for name in ('log_every', 'sample_every', 'checkpoint_every', 'keep_checkpoints', 'max_bad_steps'):
    at_least(f'train.{name}', train[name], 1)
  at_least('train.keep_every', train.keep_every, 0)
  return problems + _eval_problems(config) + _density_problems(config) + _long_run_problems(config)


def _density_problems(config):
  density, problems = config.density, []
  num_levels = config.diffusion.num_levels
  top = (999 if num_levels == 1000 else num_levels) - 1
  for level in density.levels:
    if not isinstance(level, int) or not 0 <= level <= top:
      problems.append(f'density.levels names {level}, not in 0 .. {top}')
  for name, choices in (('split', ('train', 'test')), ('kernel', ('hmc', 'mala'))):
    if density[name] not in choices:
      problems.append(f'density.{name} is {density[name]!r}, not one of {", ".join(choices)}')
  for name, low in (('num_leapfrog', 1), ('num_chains', 2), ('pilot_chains', 2), ('num_steps', 1), ('data_steps', 0),
                    ('num_draws', 1)):
    if density[name] < low:
      problems.append(f'density.{name} is {density[name]}, but must be at least {low}')
  if density.baselines and is_vector(config):
    problems.append(f'density.baselines is for images, not for {config.data.name}')
  if not 0 < density.rung_ess < 1:
    problems.append(f'density.rung_ess is {density.rung_ess}, not in (0, 1)')
  for name in ('acceptance', 'min_acceptance'):
    if not 0 <= density[name] < 1:
      problems.append(f'density.{name} is {density[name]}, not in [0, 1)')
  return problems


def _eval_problems(config):
  evaluation, problems = config.eval, []
  for name, choices in (('extractor', evaluate.EXTRACTORS), ('split', ('train', 'test'))):
    if evaluation[name] and evaluation[name] not in choices:
      problems.append(
          f"eval.{name} is {evaluation[name]!r}, not one of {', '.join(choices)}, or '' for what suits the data")
  for name, low in (
      ('num_samples', evaluate.MIN_SAMPLES), ('seed', 0), ('batch_size', 1), ('max_wait_minutes', 0)):
    if evaluation[name] < low:
      problems.append(f'eval.{name} is {evaluation[name]}, but must be at least {low}')
  if not evaluation.poll_seconds > 0:
    problems.append(f'eval.poll_seconds is {evaluation.poll_seconds}, but must be positive')
  if is_vector(config) and evaluation.extractor not in ('', 'pixels'):
    problems.append(f'eval.extractor is {evaluation.extractor!r}, but {config.data.name} needs pixels')
  return problems


def _long_run_problems(config):
  long_run, problems = config.long_run, []
  for name, choices in (('kernel', langevin.KERNELS), ('split', ('train', 'test')),
                        ('extractor', ('', *evaluate.EXTRACTORS))):
    if long_run[name] not in choices:
      problems.append(f'long_run.{name} is {long_run[name]!r}, not one of {", ".join(filter(None, choices))}')
  for name, low in (('num_leapfrog', 1), ('level', 0), ('num_chains', 2), ('thin', 1), ('step_size', 0),
                    ('warmup_steps', 1), ('num_steps', long_run.thin)):
    if long_run[name] < low:
      problems.append(f'long_run.{name} is {long_run[name]}, but must be at least {low}')
  if long_run.thin > 0 and long_run.num_steps % long_run.thin:
    problems.append(f'long_run.num_steps is {long_run.num_steps}, not a multiple of long_run.thin, {long_run.thin}')
  for name in ('acceptance', 'min_acceptance'):
    if not 0 <= long_run[name] < 1:
      problems.append(f'long_run.{name} is {long_run[name]}, not in [0, 1)')
  if is_vector(config) and long_run.extractor not in ('', 'pixels'):
    problems.append(f'long_run.extractor is {long_run.extractor!r}, but {config.data.name} needs pixels')
  return problems


def _image_problems(data, model):
  problems = []
  for name, value, choices in (
      ('data.num_channels', data.num_channels, (1, 3)), ('model.norm', model.norm, layers.NORMS),
      ('model.final_act', model.final_act, tuple(layers.ACTIVATIONS)),
      ('model.shortcut', model.shortcut, ('conv', 'nin'))):
    if value not in choices:
      problems.append(f'{name} is {value!r}, not one of {", ".join(map(str, choices))}')
  for name, value in (
      ('data.image_size', data.image_size), ('model.num_res_blocks', model.num_res_blocks),
      *(('model.ch_mult', mult) for mult in model.ch_mult)):
    if not isinstance(value, int) or value < 1:
      problems.append(f'{name} is {value}, but must be at least 1')
  factor = 2 ** (len(model.ch_mult) - 1)
  if not model.ch_mult:
    known = ', '.join(map(str, _CH_MULT))
    problems.append(f'model.ch_mult is empty, and image size {data.image_size} has no published one (only '
                    f'{known}): set it, as --config.model.ch_mult="(1,2,2)"')
  elif data.image_size % factor:
    problems.append(
        f'data.image_size is {data.image_size}, not divisible by {factor}, as the {len(model.ch_mult)} resolutions of '
        f'model.ch_mult need')
  if model.norm == 'group' and any(model.ch * mult % min(32, model.ch * mult) for mult in model.ch_mult):
    problems.append(f'model.ch is {model.ch}, whose widths 32 groups cannot share equally (model.norm group)')
  sizes = [data.image_size // 2**i for i in range(len(model.ch_mult))]
  for size in model.attention_resolutions:
    if size not in sizes:
      problems.append(f'model.attention_resolutions names {size}, but the network has {", ".join(map(str, sizes))}')
  return problems


def _flatten(tree, prefix=''):
  for key, value in tree.items():
    if isinstance(value, dict):
      yield from _flatten(value, f'{prefix}{key}.')
    else:
      yield prefix + key, list(value) if isinstance(value, tuple) else value


def _path(workdir):
  return os.path.join(workdir, 'config.json')


def save(config, workdir):
  """Writes the configuration to `config.json` in the workdir, whole or not at all."""
  path = _path(workdir)
  with open(path + '.tmp', 'w', encoding='utf-8') as file:
    json.dump(config.to_dict(), file, indent=2)
    file.write('\n')
  os.replace(path + '.tmp', path)


def load(workdir) -> ml_collections.ConfigDict | None:
  """The configuration in the workdir's `config.json`, or None if there is none.

  Raises:
    UserError: the file cannot be read.
  """
  try:
    with open(_path(workdir), encoding='utf-8') as file:
      saved = json.load(file)
    if not isinstance(saved, dict):
      raise ValueError('no JSON object')
  except (FileNotFoundError, NotADirectoryError):
    return None
  except (OSError, ValueError, RecursionError) as error:
    raise UserError(f'{_path(workdir)} cannot be read ({error}): restore it, or use another --workdir') from error
  return from_dict(saved)


def from_dict(saved: dict) -> ml_collections.ConfigDict:
  """A configuration from what JSON holds of it; one of an older version says what it meant by keys that came later."""
  sections = {key: {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
              if isinstance(value, dict) else value for key, value in saved.items()}
  for (section, key), meant in _LATER.items():
    if isinstance(sections.get(section), dict):
      value = sections[section].setdefault(key, meant)
      if type(value) is bool and type(meant) is int:  # a switch that is a number now
        sections[section][key] = int(value)
  return ml_collections.ConfigDict(sections)


def check_same_run(config, workdir, free=()):
  """Raises a `UserError` that lists the keys in which the workdir's own configuration differs.

  Keys that a run may change when it goes on (intervals, lengths, paths) do not count.

  Args:
    config: a resolved configuration.
    workdir: the workdir; without a `config.json` it belongs to nobody.
    free: further sections or keys that do not count, such as 'train' or 'sampling.num_steps'.
  """
  saved = load(workdir)
  if saved is not None:
    check_same(config, saved.to_dict(), workdir, free)


def check_same(config, saved: dict, where: str, free=()):
  """Raises a `UserError` that lists the keys in which a saved configuration, found `where`, differs; see above."""
  ours = dict(_flatten(config.to_dict()))
  theirs = ours | dict(_flatten(saved))  # an older version did not know all of ours
  skip = _FREE - {'train.num_steps'} if config.train.cosine_decay else _FREE
  differing = [
      key for key in sorted(ours.keys() | theirs.keys())
      if ours.get(key) != theirs.get(key) and key not in skip and key not in free
      and key.split('.')[0] not in (*free, *_FREE_SECTIONS)]
  if differing:
    listed = ', '.join(f'{key} ({theirs.get(key)!r} there, {ours.get(key)!r} here)' for key in differing)
    cosine = 'train.num_steps' in differing
    why = ' (with cosine decay, the length of the run shapes its learning rate)' if cosine else ''
    raise UserError(f'{where} belongs to another configuration: {listed}{why}; use another --workdir')
