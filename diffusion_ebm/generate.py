"""Generation on all devices: samples of a model, a batch at a time, as a configuration asks for them."""

import re
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from diffusion_ebm import composition, corrected_sampling, older_versions, random_keys, sampling
from diffusion_ebm.run import parallel
from diffusion_ebm.run.errors import UserError, printable


def settings(config) -> sampling.Settings:
  """How samples are drawn."""
  s = config.sampling
  num_steps = max(s.generation_steps or s.num_steps, 0)
  return sampling.Settings(num_steps, s.noise_scale, s.full_noise_levels, s.denoise, s.denoise_factor, s.flow_steps)


def corrected_settings(config) -> corrected_sampling.Settings:
  """How they are drawn with `sampling.corrected`."""
  return corrected_sampling.Settings(config.sampling.corrected, config.sampling.corrected_steps)


def asked(config) -> dict:
  """What is asked for of a model that is told classes, or of several, and of its arithmetic: for records of results."""
  keys = ('label', 'guidance', 'compose')
  found = older_versions.without_later('sampling', {key: config.sampling[key] for key in keys})
  return found | ({} if config.model.dtype == 'float32' else {'dtype': config.model.dtype})


def inputs(config) -> dict:
  """What samples depend on beside the checkpoint and the seed, likewise."""
  drawn = settings(config)._asdict()
  if config.sampling.corrected:
    drawn = {key: config.sampling[key] for key in ('corrected', 'corrected_steps', 'denoise', 'denoise_factor')}
  elif config.model.precision != 'default':
    drawn['precision'] = config.model.precision
  return older_versions.without_later('sampling', drawn) | asked(config)


def numbered(config, classes: tuple[str, ...]):
  """A resolved configuration whose `sampling.label` is the number of the class, counted from 0 as in the data.

  Args:
    config: the configuration.
    classes: the names of the classes, by number; () if they are not known.

  Raises:
    UserError: there is no such class.
  """
  label = config.sampling.label
  if label in ('', 'all'):
    return config
  config = config.copy_and_resolve_references()
  config.sampling.label = str(class_number(config, label, classes))
  return config


def class_number(config, label: str, classes: tuple[str, ...], key: str = 'label', others: str = "'all' or ''") -> int:
  """The number of a class, counted from 0 as in the data.

  Args:
    config: the model's.
    label: name or number.
    classes: the names of the classes, by number; () if they are not known.
    key: of the `sampling` section that names it.
    others: what may stand there too.

  Raises:
    UserError: there is no such class.
  """
  count = config.model.num_classes
  if label in classes:
    return classes.index(label)
  if label.isdecimal() and int(label) < count:
    return int(label)
  known = f'one of {", ".join(map(printable, classes))}, ' if classes and count else ''
  numbers = f'0 .. {count - 1}, ' if count else ''
  raise UserError(f'sampling.{key} names {printable(label)!r}, not {known}{numbers}{others}')


class Term(NamedTuple):
  """A term of `sampling.compose`.

  Attributes:
    coefficient: of the energy.
    what: a class of the run's own model, by name or number, `none` for none in particular; or a workdir, with
      `@CLASS` behind it for a class of its model.
  """

  coefficient: float
  what: str


_TERM = re.compile(r'(?:([+-]?(?:\d+\.?\d*|\.\d+))\*|([+-]))?(.+)')


def terms(config) -> tuple[Term, ...]:
  """The terms of `sampling.compose`, each of them `[COEFFICIENT*]WHAT`.

  Raises:
    UserError: one is empty, or no text.
  """
  found = []
  for text in config.sampling.compose:
    match = isinstance(text, str) and _TERM.fullmatch(text.strip())
    if not match:
      raise UserError(
        f'sampling.compose names {printable(str(text))!r}, not a class, `none` or a workdir, with a coefficient and a '
        'star before it if it is not 1: --compose=3,8,-1*none'
      )
    number, sign, what = match.groups()
    found.append(Term(float(number or f'{sign or ""}1'), what))
  return tuple(found)


def class_names(config, classes: tuple[str, ...]) -> tuple[str, ...]:
  """The names of the classes that the networks are told, by number: numbers where names are not known."""
  count = config.model.num_classes
  return classes if len(classes) == count else tuple(map(str, range(count)))


def columns(config) -> int:
  """Columns of a picture of samples: one for each class, up to 32, where each is drawn in turn; 0 for a square."""
  count = config.model.num_classes
  return count if config.sampling.label == 'all' and count <= 32 else 0


def told(config, model, index=None):
  """An `Ebm` or its proposal, told the class that is asked for, with guidance; with `all`, each in turn.

  Args:
    config: the configuration, `numbered`.
    model: with the empty class; None stays None.
    index: numbers of the examples, int (B,); without them, `all` are all together.
  """
  label = config.sampling.label
  if model is None or not label or (label == 'all' and index is None):
    return model
  number = index % config.model.num_classes if label == 'all' else int(label)
  return composition.guided(model, 1 + number, config.sampling.guidance)


def make_sampler(config, shape, batch_size: int, keep: tuple[int, ...] = ()):
  """A function that draws samples; sample number i is the same whatever the batch and the devices.

  Args:
    config: the configuration, `numbered`.
    shape: of one sample.
    batch_size: samples at once; rounded up to a multiple of the devices.
    keep: levels whose samples are returned too.

  Returns:
    A function `(ebm, proposal, seed, first, count)` to samples number `first` to `first + count - 1` and their path,
    float32 (count, ...) and (len(keep), count, ...), as of `sampling.sample`; the weights of the model, and of its
    proposal if there is one, are on all devices. It is compiled on the first call.
  """
  run = parallel.map_examples(draw_function(config, shape, keep), batch_size, precision(config))

  def sampler(ebm, proposal, seed: int, first: int, count: int):
    x, path = run((ebm, proposal, np.uint32(seed)), np.arange(first, first + count, dtype=np.int32))
    return x, np.moveaxis(path, 1, 0)

  return sampler


def precision(config) -> str:
  """That of products of float32 in the sampler that is asked for: corrected chains need the energy itself."""
  return 'highest' if config.sampling.corrected else config.model.precision


def draw_function(config, shape, keep: tuple[int, ...] = ()):
  """What runs on each device: `((ebm, proposal, seed), index) -> (x, path)`, as of `make_sampler`, examples first."""
  drawn = settings(config)

  def draw(shared, index):
    ebm, proposal, seed = shared
    keys = random_keys.sample_keys(seed, index)
    if config.sampling.corrected:
      x, path = _draw_corrected(config, ebm, seed, index, keys, shape, keep)
    else:
      ebm, proposal = (told(config, each, index) for each in (ebm, proposal))
      x, path = sampling.sample(ebm, keys, shape, drawn, keep, proposal)
    return x, jnp.moveaxis(path, 0, 1)

  return draw


def _draw_corrected(config, ebm, seed, index, keys, shape, keep):
  """Corrected samples; the step sizes are tuned anew for each batch, by the same chains."""
  number, how = jnp.arange(corrected_sampling.NUM_TUNING_CHAINS), corrected_settings(config)
  tuning_keys = random_keys.sample_keys(seed, number, random_keys.TUNING)
  step_sizes = corrected_sampling.tune(told(config, ebm, number), tuning_keys, shape, how)
  ebm = told(config, ebm, index)
  x, path, _ = corrected_sampling.sample(ebm, keys, shape, how, step_sizes, keep)
  return sampling.finish(ebm, x, path, keep, settings(config))
