"""The configuration: what it leaves open is filled in, what is wrong with it is said at once, where it is kept."""

from collections.abc import Callable, Iterator
import math
import os
from typing import Any, NamedTuple

import ml_collections

from diffusion_ebm import evaluate, langevin, networks, noise_levels, older_versions, train_step
from diffusion_ebm.networks import layers, normal_factor, resnet
from diffusion_ebm.run import files, paths
from diffusion_ebm.run.errors import UserError

# Steps, seeds and sizes are 32-bit numbers on the devices.
_MAX_INT = 2**31 - 1
_MAX_FLOAT = 1e30  # of float32 3.4e38, with room for products

# Levels that the normal approximation of a step between two of them needs: with fewer, samples get visibly worse.
_LEAST_FOR_NORMAL = 50

# Widths of the published networks, by image size.
_CH_MULT = {32: (1, 2, 2, 2), 64: (1, 2, 2, 2, 4), 128: (1, 2, 2, 2, 4, 4), 256: (1, 1, 2, 2, 2, 4, 4)}

# What a run may change when it goes on: everything else makes it another run.
_FREE = {
  'data.path',
  'data.test_split',
  'data.max_memory_gb',
  'data.num_workers',
  'model.remat',
  'sampling.noise_scale',
  'sampling.full_noise_levels',
  'sampling.generation_steps',
  'sampling.flow_steps',
  'sampling.denoise',
  'sampling.label',
  'sampling.guidance',
  'sampling.compose',
  'sampling.corrected',
  'sampling.corrected_steps',
  'sampling.denoise_factor',
  'sampling.batch_size',
  'sampling.num_samples',
  'train.num_steps',
  'train.micro_batches',
  'train.log_every',
  'train.sample_every',
  'train.checkpoint_every',
  'train.keep_checkpoints',
  'train.keep_every',
  'train.max_bad_steps',
}
# Sections of jobs that make a run or work on one: they say nothing about it.
_FREE_SECTIONS = (
  'import_weights',
  'export',
  'inpaint',
  'interpolate',
  'ood',
  'eval',
  'density',
  'long_run',
  'steps',
  'guidance',
)
# Of the `model` section, how it is computed with: the same weights give the same numbers up to rounding.
OF_ARITHMETIC = ('model.dtype', 'model.precision', 'model.remat')
# What fits any weights.
_NOT_OF_WEIGHTS = (*OF_ARITHMETIC, 'model.dropout', 'proposal.dropout')
MAX_COMPLETIONS = 1024


def is_vector(config) -> bool:
  """Whether the data are vectors, not images."""
  return config.data.name == 'toy2d'


def grey_width(config) -> float:
  """Distance between two grey levels of the images, in [-1, 1]."""
  return 2 / (config.data.grey_levels - 1)


def resolve(config) -> ml_collections.ConfigDict:
  """A copy of the configuration with what it leaves open filled in.

  `model.ch_mult`, and where the paths `data.path` and `train.init_from` begin; None is taken for empty.
  """
  config = config.copy_and_resolve_references()
  for section in config.values():
    if isinstance(section, ml_collections.ConfigDict):
      # The command line gives a string or a tuple for it.
      section.update(
        {key: '' if value == 'None' else () for key, value in section.items() if value in ('None', (None,), None)}
      )
  path = config.data.path
  if path and ('://' not in path or path.startswith('file://')):  # to go on from another folder
    config.data.path = os.path.abspath(paths.local(path, '--config.data.path'))
  if not config.model.ch_mult:
    config.model.ch_mult = _CH_MULT.get(config.data.image_size, ())
  if config.train.init_from:
    config.train.init_from = os.path.abspath(paths.local(config.train.init_from, '--config.train.init_from'))
  return config


# What must hold.


class Rule(NamedTuple):
  """What must hold of one value.

  Attributes:
    key: of the configuration; of a list, each entry is looked at.
    holds: of the value.
    wanted: what is said of a value of which it does not hold.
    applies: of the configuration: whether the rule counts.
  """

  key: str
  holds: Callable[[Any], bool]
  wanted: str
  applies: Callable[[Any], bool] = lambda config: True


def _at_least(low, *keys, **when):
  return [Rule(key, lambda value: value >= low, f'but must be at least {low}', **when) for key in keys]


def _positive(*keys, **when):
  return [Rule(key, lambda value: value > 0, 'but must be positive', **when) for key in keys]


def _below_one(*keys):
  return [Rule(key, lambda value: 0 <= value < 1, 'not in [0, 1)') for key in keys]


def _one_of(choices, *keys, suits: bool = False, **when):
  """`suits`: empty means what suits the data."""
  wanted = f'not one of {", ".join(map(str, choices))}' + (", or '' for what suits the data" if suits else '')
  return [Rule(key, lambda value: value in choices or suits and not value, wanted, **when) for key in keys]


def _within(low, high, key):
  return [Rule(key, lambda value: low <= value <= high, f'not in {low} .. {high}')]


def _is_images(config):
  return not is_vector(config)


def _is_mlp(config):
  return config.model.name == 'mlp'


def _has_proposal(config):
  return bool(config.proposal.name)


def _is_contrastive(config):
  return config.train.objective == 'contrastive'


def _has_no_classes(config):
  return not config.model.num_classes


def _is_unet(config):
  return config.proposal.name == 'unet'


def _is_mlp_proposal(config):
  return config.proposal.name == 'mlp'


_SPLITS = ('train', 'test')
_DENSITY_CHECKS = ('exchange', 'flow')
RULES = (
  *_at_least(
    0,
    'seed',
    'data.num_workers',
    'model.quadratic',
    'model.num_classes',
    'sampling.num_steps',
    'sampling.noise_scale',
    'sampling.full_noise_levels',
    'sampling.flow_steps',
    'sampling.denoise_factor',
    'proposal.warmup_steps',
    'proposal.warmup_head_start',
    'proposal.grad_clip',
    'train.num_steps',
    'train.time_score',
    'train.score_matching',
    'train.warmup_steps',
    'train.grad_clip',
    'train.keep_every',
    'eval.seed',
    'eval.max_wait_minutes',
    'density.data_steps',
    'density.num_images',
    'density.num_probes',
    'long_run.level',
    'long_run.step_size',
    'steps.num_steps',
  ),
  *_at_least(-1, 'sampling.generation_steps'),
  *_at_least(
    1,
    'sampling.batch_size',
    'sampling.num_samples',
    'sampling.corrected_steps',
    'train.batch_size',
    'train.micro_batches',
    'train.log_every',
    'train.sample_every',
    'train.checkpoint_every',
    'train.keep_checkpoints',
    'train.max_bad_steps',
    'inpaint.num_images',
    'inpaint.completions',
    'inpaint.repeats',
    'interpolate.num_strips',
    'eval.batch_size',
    'density.num_leapfrog',
    'density.num_steps',
    'density.num_draws',
    'density.exchange_steps',
    'density.num_rounds',
    'long_run.num_leapfrog',
    'long_run.thin',
    'long_run.warmup_steps',
  ),
  *_at_least(
    2,
    'data.grey_levels',
    'interpolate.frames',
    'ood.num_examples',
    'density.num_chains',
    'density.pilot_chains',
    'density.num_ladders',
    'long_run.num_chains',
  ),
  *_at_least(4, 'model.ch'),
  *_at_least(4, 'proposal.ch', applies=_has_proposal),
  *_at_least(1, 'proposal.num_res_blocks', 'proposal.ch_mult', applies=_is_unet),
  *_at_least(1, 'proposal.num_layers', applies=_is_mlp_proposal),
  *_at_least(0, 'proposal.num_frequencies', applies=_is_mlp_proposal),
  *_at_least(evaluate.MIN_SAMPLES, 'eval.num_samples'),
  *_at_least(1, 'data.image_size', 'model.num_res_blocks', 'model.ch_mult', applies=_is_images),
  *_at_least(1, 'model.num_layers', applies=_is_mlp),
  *_at_least(0, 'model.num_frequencies', applies=_is_mlp),
  *_positive('data.max_memory_gb', 'sampling.step_size', 'train.learning_rate', 'proposal.learning_rate'),
  *_positive('model.output_scale', applies=_is_mlp),
  *_below_one(
    'data.test_fraction',
    'model.dropout',
    'proposal.dropout',
    'train.beta_1',
    'train.ema_decay',
    'density.acceptance',
    'long_run.acceptance',
  ),
  *_within(2, noise_levels.MAX_LEVELS, 'diffusion.num_levels'),
  Rule('train.label_dropout', lambda value: 0 <= value <= 1, 'not in 0 .. 1'),
  *(
    Rule(key, lambda value: not value, 'but model.num_classes is 0: the model knows no classes', _has_no_classes)
    for key in ('sampling.label', 'sampling.guidance')
  ),
  *_within(0, normal_factor.MAX_COMPONENTS, 'model.normal_factor'),
  Rule('inpaint.completions', lambda value: value <= MAX_COMPLETIONS, f'but must be at most {MAX_COMPLETIONS}'),
  *(Rule(f'density.{key}', lambda value: 0 < value < 1, 'not in (0, 1)') for key in ('rung_ess', 'overlap', 'rtol')),
  *_one_of(('data', 'exchange'), 'density.reverse_from'),
  Rule('data.name', bool, 'but must name a data set'),
  Rule(
    'data.test_fraction',
    lambda value: not value,
    'but is for images of your own (data.name images)',
    lambda config: config.data.name != 'images',
  ),
  *_one_of(networks.NETWORKS, 'model.name'),
  *_one_of(tuple(networks.DTYPES), 'model.dtype'),
  *_one_of(networks.PRECISIONS, 'model.precision'),
  *_one_of(tuple(layers.ACTIVATIONS), 'model.act'),
  *_one_of(networks.LEVEL_EMBEDDINGS, 'model.level_embedding'),
  *_one_of((1, 3), 'data.num_channels', applies=_is_images),
  *_one_of(layers.NORMS, 'model.norm', applies=_is_images),
  *_one_of(tuple(layers.ACTIVATIONS), 'model.final_act', applies=_is_images),
  *_one_of(resnet.SHORTCUTS, 'model.shortcut', applies=_is_images),
  *_one_of(noise_levels.SCHEDULES, 'diffusion.schedule'),
  *_one_of(noise_levels.TEMPERATURES, 'diffusion.temperature'),
  *_one_of(noise_levels.STEP_SIZE_RULES, 'sampling.step_size_rule'),
  *_one_of(train_step.OBJECTIVES, 'train.objective'),
  *_one_of(noise_levels.LEVEL_WEIGHTS, 'train.level_weight'),
  *_one_of(('hmc', 'mala'), 'density.kernel'),
  Rule(
    'sampling.corrected',
    lambda value: value in ('', *langevin.TARGET_ACCEPTANCE),
    "not mala, hmc, or '' for plain chains",
  ),
  *_one_of(langevin.KERNELS, 'long_run.kernel'),
  *_one_of(_SPLITS, 'density.split', 'long_run.split'),
  *_one_of(_SPLITS, 'eval.split', suits=True),
  *_one_of(evaluate.EXTRACTORS, 'eval.extractor', 'long_run.extractor', suits=True),
  Rule('model.name', lambda value: value == 'mlp', 'but vectors need mlp', is_vector),
  Rule(
    'proposal.name',
    lambda value: value in ('', *networks.PROPOSALS),
    f"not one of {', '.join(networks.PROPOSALS)}, or '' for none",
  ),
  Rule('proposal.name', lambda value: value != 'unet', 'but vectors need mlp', is_vector),
  Rule(
    'train.objective',
    lambda value: value == 'recovery',
    "but a proposal learns from chains, and needs 'recovery'",
    _has_proposal,
  ),
  *_at_least(1, 'sampling.num_steps', applies=_is_contrastive),
  Rule(
    'train.shared_noise',
    lambda value: not value,
    "but train.objective 'contrastive' needs neighbours of one trajectory",
    _is_contrastive,
  ),
  Rule('data.random_flip', lambda value: not value, 'but is for images only', is_vector),
  Rule('data.dequantize', lambda value: not value, 'but is for images only', is_vector),
  Rule('density.baselines', lambda value: not value, 'but is for images only', is_vector),
  *(
    Rule(f'{section}.extractor', lambda value: value in ('', 'pixels'), 'but vectors need pixels', is_vector)
    for section in ('eval', 'long_run')
  ),
  Rule(
    'diffusion.temperature',
    lambda value: value == 'one',
    "but model.normal_factor, a density in nats, needs 'one'",
    lambda config: bool(config.model.normal_factor),
  ),
)


def check(config, num_devices: int):
  """Raises a `UserError` that names everything that is wrong with a resolved configuration."""
  problems = list(_unusable(config)) or list(_broken_rules(config)) or list(_misfits(config, num_devices))
  if problems:
    raise UserError('configuration: ' + '; '.join(problems))


def _unusable(config) -> Iterator[str]:
  """What makes no number at all, or one that cannot be computed with."""
  for key, value in flatten(config.to_dict()):
    for number in value if isinstance(value, list) else [value]:
      if isinstance(number, float) and not math.isfinite(number):
        yield f'{key} is {number}, but must be finite'
      elif isinstance(number, float) and abs(number) > _MAX_FLOAT:
        yield f'{key} is {number}, but must be at most {_MAX_FLOAT}'
      elif isinstance(number, int) and abs(number) > _MAX_INT:
        yield f'{key} is {number}, but must be at most {_MAX_INT}'


def _broken_rules(config) -> Iterator[str]:
  values = dict(flatten(config.to_dict()))
  for rule in RULES:
    if rule.key in values and rule.applies(config):  # a run that was saved may lack the section of a later job
      value = values[rule.key]
      for each in value if isinstance(value, list) else [value]:
        if isinstance(value, list) and not isinstance(each, int) or not rule.holds(each):
          yield f'{rule.key} is {each!r}, {rule.wanted}'


# How values must fit each other, where each is right by itself.


def _misfits(config, num_devices) -> Iterator[str]:
  yield from _level_misfits(config)
  yield from _batch_misfits(config.train, num_devices)
  if not is_vector(config):
    yield from _image_misfits(config.data, config.model)
    if _is_unet(config):
      yield from _unet_misfits(config.data, config.proposal)
  for weight in config.guidance.weights if 'guidance' in config else ():
    if not isinstance(weight, int | float):
      yield f'guidance.weights names {weight!r}, which is no number'
  if components := config.model.normal_factor:
    size = 2 if is_vector(config) else config.data.image_size**2 * config.data.num_channels
    most = math.isqrt(normal_factor.MAX_SIZE // components)
    if size > most:
      yield f'model.normal_factor={components} is for examples of at most {most} numbers, not {size}'


def _level_misfits(config):
  diffusion, sampling, proposal = config.diffusion, config.sampling, config.proposal.name
  num_levels = diffusion.num_levels
  if sampling.compose and (sampling.label not in ('', 'all') or sampling.guidance):
    yield 'sampling.compose does not go with sampling.label and sampling.guidance: name the classes in it'
  if diffusion.schedule == 'cosine' and diffusion.log_snr_min >= diffusion.log_snr_max:
    yield f'diffusion.log_snr_min is {diffusion.log_snr_min}, but must be below diffusion.log_snr_max'
  if proposal and sampling.num_steps == 0:
    yield 'sampling.num_steps is 0, but a proposal learns from chains, and needs at least 1'
  elif not proposal and num_levels < _LEAST_FOR_NORMAL and (sampling.num_steps == 0 or sampling.generation_steps == -1):
    yield (
      'sampling.num_steps 0 and sampling.generation_steps -1, the normal approximation, hold for little noise a '
      f'level: they need diffusion.num_levels at least {_LEAST_FOR_NORMAL}'
    )
  top = noise_levels.num_models(num_levels, diffusion.schedule) - 1
  if sampling.flow_steps > top + 1:
    yield f'sampling.flow_steps is {sampling.flow_steps}, but must be at most {top + 1}, the number of levels'
  if sampling.flow_steps and sampling.corrected:
    yield f'sampling.flow_steps is {sampling.flow_steps}, but sampling.corrected asks for chains: set one of them'
  if 'density' in config:
    density = config.density
    checks = density.get('checks', ())  # later than the section
    for level in density.levels:
      if not isinstance(level, int) or not 0 <= level <= top:
        yield f'density.levels names {level}, not in 0 .. {top}'
    for check in checks:
      if check not in _DENSITY_CHECKS:
        yield f'density.checks names {check!r}, not one of {", ".join(_DENSITY_CHECKS)}'
    if not density.get('bracket', True) and tuple(checks) != ('flow',):
      yield "density.bracket is False, but that is for density.checks=('flow',)"
    if density.get('reverse_from') == 'exchange' and 'exchange' not in checks:
      yield "density.reverse_from is 'exchange', but density.checks does not name it"
  if 'long_run' in config:
    long_run = config.long_run
    if long_run.num_steps < long_run.thin:
      yield f'long_run.num_steps is {long_run.num_steps}, but must be at least {long_run.thin}'
    elif long_run.num_steps % long_run.thin:
      yield f'long_run.num_steps is {long_run.num_steps}, not a multiple of long_run.thin, {long_run.thin}'


def _batch_misfits(train, num_devices):
  if train.batch_size % num_devices:
    yield f'train.batch_size is {train.batch_size}, which {num_devices} devices cannot share equally'
  elif train.batch_size % (num_devices * train.micro_batches):
    yield (
      f'train.batch_size is {train.batch_size}, not divisible into {train.micro_batches} train.micro_batches on '
      f'each of {num_devices} devices'
    )


def _image_misfits(data, model):
  if not model.ch_mult:
    yield (
      f'model.ch_mult is empty, and image size {data.image_size} has no published one (only '
      f'{", ".join(map(str, _CH_MULT))}): set it, as --config.model.ch_mult="(1,2,2)"'
    )
  if model.norm == 'group' and any(model.ch * mult % min(32, model.ch * mult) for mult in model.ch_mult):
    yield f'model.ch is {model.ch}, whose widths 32 groups cannot share equally (model.norm group)'
  yield from _resolution_misfits(data, model, 'model')


def _unet_misfits(data, proposal):
  if not proposal.ch_mult:
    yield 'proposal.ch_mult is empty: set it, as --config.proposal.ch_mult="(1,1,1)"'
  yield from _resolution_misfits(data, proposal, 'proposal')


def _resolution_misfits(data, section, name):
  factor = 2 ** (len(section.ch_mult) - 1)
  if section.ch_mult and data.image_size % factor:
    yield (
      f'data.image_size is {data.image_size}, not divisible by {factor}, as the {len(section.ch_mult)} resolutions '
      f'of {name}.ch_mult need'
    )
  sizes = [data.image_size // 2**i for i in range(len(section.ch_mult))]
  for size in section.attention_resolutions:
    if size not in sizes:
      yield f'{name}.attention_resolutions names {size}, but the network has {", ".join(map(str, sizes))}'


def flatten(tree, prefix=''):
  """Yields `(key, value)` of a configuration as a dictionary, keys as 'train.batch_size', tuples as lists."""
  for key, value in tree.items():
    if isinstance(value, dict):
      yield from flatten(value, f'{prefix}{key}.')
    else:
      yield prefix + key, list(value) if isinstance(value, tuple) else value


# Where it is kept.


def _path(workdir):
  return os.path.join(workdir, 'config.json')


def save(config, workdir):
  """Writes the configuration to `config.json` in the workdir, whole or not at all."""
  files.write_json(_path(workdir), config.to_dict())


def load(workdir) -> ml_collections.ConfigDict | None:
  """The configuration in the workdir's `config.json`, or None if there is none.

  Raises:
    UserError: the file cannot be read.
  """
  try:
    saved = files.read_json(_path(workdir))
    if not isinstance(saved, dict | None):
      raise ValueError('no JSON object')
  except (OSError, ValueError) as error:
    raise UserError(f'{_path(workdir)} cannot be read ({error}): restore it, or use another --workdir') from error
  return None if saved is None else older_versions.read_config(saved)


def check_same_run(config, workdir, free=()):
  """Raises a `UserError` that lists the keys in which the workdir's own configuration differs.

  Keys that a run may change when it goes on (intervals, lengths, paths) do not count, nor does a data set's version.

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
  skip = _FREE - {'train.num_steps'} if config.train.cosine_decay else _FREE
  differing = {
    key: how
    for key, how in _differences(config, saved).items()
    if key not in skip and key not in free and key.split('.')[0] not in (*free, *_FREE_SECTIONS)
  }
  if differing:
    listed, why, remedy = ', '.join(differing.values()), '', 'use another --workdir'
    if 'train.num_steps' in differing:
      why = ' (with cosine decay, the length of the run shapes its learning rate)'
      remedy += f'; --config.train.init_from={where} lets it start from these weights'
    raise UserError(f'{where} belongs to another configuration: {listed}{why}; {remedy}')


def check_same_network(config, saved: dict, where: str):
  """Raises a `UserError` that lists how the network, the levels or the shape of the data of another model differ."""
  differing = [
    how
    for key, how in _differences(config, saved).items()
    if key.startswith(('model.', 'proposal.', 'diffusion.', 'data.image_size', 'data.num_channels'))
    and key not in _NOT_OF_WEIGHTS
  ]
  if differing:
    raise UserError(f'{where} has another network: {", ".join(differing)}; set these alike')


def _differences(config, saved: dict) -> dict[str, str]:
  """The keys in which a saved configuration differs, and how."""
  here = dict(flatten(config.to_dict()))
  # An older version did not know all of ours.
  there = here | dict(flatten(older_versions.read_config(saved).to_dict()))
  return {
    key: f'{key} ({there.get(key)!r} there, {here.get(key)!r} here)'
    for key in sorted(here.keys() | there.keys())
    if not _is_same(key, here.get(key), there.get(key))
  }


def _is_same(key, one, other) -> bool:
  if one != other and key == 'data.name':
    from diffusion_ebm.data import tfds_data_dir  # only here: `data` takes long to import

    one, other = (tfds_data_dir.split_version(str(name))[0] for name in (one, other))
  return one == other
