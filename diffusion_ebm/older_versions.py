"""What configurations and checkpoints of older versions mean; nothing else in the project knows of any."""

import ml_collections

from diffusion_ebm.run.errors import UserError

# Keys that came later, and what a configuration without them meant.
_LATER = {
  'data.test_fraction': 0.0,
  'diffusion.schedule': 'linear',
  'diffusion.log_snr_max': 9.8,
  'diffusion.log_snr_min': -5.1,
  'model.level_embedding': 'index',
  'model.level_act': False,
  'model.normal_factor': 0,
  'model.num_classes': 0,
  'model.precision': 'default',
  'model.raw_singular_vectors': False,
  'model.zero_init': True,
  'proposal.name': '',
  'sampling.compose': (),
  'sampling.corrected': '',
  'sampling.corrected_steps': 100,
  'sampling.denoise_factor': 1.0,
  'sampling.flow_steps': 0,
  'sampling.full_noise_levels': 0,
  'sampling.guidance': 0.0,
  'sampling.label': '',
  'train.ema_warmup': False,
  'train.init_from': '',
  'train.level_weight': 'published',
  'train.time_score': 0.0,
  'train.score_matching': 0.0,
  'train.shared_noise': False,
}
# Keys that are gone: the one value that still has a meaning, or None where no value had one for the results.
_GONE = {
  'train.optimizer': 'adam',
  'train.stop_on_save_error': None,
  'eval.poll_seconds': None,
  'density.min_acceptance': None,
  'long_run.min_acceptance': None,
}
_LATER_VALUES = {(*name.split('.'), value) for name, value in _LATER.items()}
# Fields that the training state of an older format of checkpoints lacks; they are zero when it is read.
LACKING = {1: ('bad_steps', 'proposal'), 2: ('proposal',)}


def read_config(saved: dict) -> ml_collections.ConfigDict:
  """A configuration from what JSON holds of it, of this or of an older version.

  Raises:
    UserError: it asks for something that is gone.
  """
  sections = {
    key: {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()} if isinstance(value, dict) else value
    for key, value in saved.items()
  }
  if isinstance(sections.get('model'), dict):
    sections.setdefault('proposal', {})
  for name, meant in _LATER.items():
    section, key = name.split('.')
    if isinstance(sections.get(section), dict):
      value = sections[section].setdefault(key, meant)
      if type(value) is bool and type(meant) is int:  # a switch that is a number now
        sections[section][key] = int(value)
  for name, allowed in _GONE.items():
    section, key = name.split('.')
    if isinstance(sections.get(section), dict) and key in sections[section]:
      value = sections[section].pop(key)
      if allowed is not None and value != allowed:
        raise UserError(f'{name} is {value!r}, but this version has only {allowed!r}: use an older one')
  return ml_collections.ConfigDict(sections)


def without_later(section: str, values: dict) -> dict:
  """Of a section's values, those that an older version would have noted for the same results."""
  return {key: value for key, value in values.items() if (section, key, value) not in _LATER_VALUES}


def fill_in(saved: ml_collections.ConfigDict, defaults: ml_collections.ConfigDict, where: str):
  """Gives a saved configuration the defaults of the keys that it does not know.

  Raises:
    UserError: a value has another type than its default.
  """
  problems = list(_of_other_types('', saved, defaults))
  if problems:
    raise UserError(
      f'config.json in {where} makes no sense: {"; ".join(problems)}; restore it, or use another --workdir'
    )
  for name, section in defaults.items():
    if name not in saved:
      saved[name] = section
    elif isinstance(section, ml_collections.ConfigDict):
      saved[name].update({key: value for key, value in section.items() if key not in saved[name]})


def _of_other_types(prefix, saved, defaults):
  for key, value in saved.items():
    if key not in defaults:
      continue
    wanted = type(defaults[key])
    if wanted is ml_collections.ConfigDict and isinstance(value, wanted):
      yield from _of_other_types(f'{prefix}{key}.', value, defaults[key])
    elif not (type(value) is wanted or wanted is float and type(value) is int):
      yield f'{prefix}{key} is {value!r}, not of type {wanted.__name__}'
