"""A folder or an archive of images."""

from collections.abc import Callable
import logging
import time
from typing import NamedTuple

import numpy as np

from diffusion_ebm.data import decoded_cache, encoded, inventory, memory, summary
from diffusion_ebm.data.decode import Facts, check_channels, decode
from diffusion_ebm.data.source import ArraySource
from diffusion_ebm.run.errors import UserError, printable

_log = logging.getLogger(__name__)

_NAMES_SHOWN = 5


class _Split(NamedTuple):
  """The images of a split, which need not have been decoded.

  Attributes:
    inventory: of the whole set.
    files: of the split's images, in the order of their names; some may turn out to be damaged.
    labels: of these, int (N,), or None.
    classes: as of `Source`, like the fingerprint.
    fingerprint: of the files.
    shape: (S, S, C).
    key: of the decoded images in the cache.
    facts: int (N, F): the fields of `decode.Facts` of each that has been decoded.
    decode: (number) -> uint8 (S, S, C).
  """

  inventory: inventory.Inventory
  files: list[inventory.File]
  labels: np.ndarray | None
  classes: tuple[str, ...] | None
  fingerprint: str
  shape: tuple[int, int, int]
  key: str
  facts: np.ndarray
  decode: Callable

  def with_damaged(self, failures) -> inventory.Inventory:
    """The inventory, with what is wrong with the images of these numbers."""
    return self.inventory.replace([self.files[number].damaged(why) for number, why in failures.items()])


def load(data, split):
  """Loads images in the order of their names.

  Every image is decoded once at the start: into memory where all fit, otherwise to find the
  damaged ones, and then again whenever it is read. Sub-folders of the split are classes.

  Args:
    data: the `data` section of a configuration.
    split: 'train' or 'test'; `data.train_split` or `data.test_split` is its folder.

  Returns:
    A source of shape (image_size, image_size, num_channels).

  Raises:
    UserError: there are no images for the split, damaged ones under `data.strict`, only damaged
      ones, or grey and colour images mixed where colours are asked for.
  """
  part = _open(data, split)
  if not part.files:
    _report(part.inventory, data, split)
  in_memory = encoded.fits_memory(len(part.files), part.shape, data.max_memory_gb)
  found = _decoded(part, data, in_memory)
  good = np.setdiff1d(np.arange(len(part.files)), list(found.failures))
  known = part.with_damaged(found.failures)
  _report(known, data, split)
  _check_colours(Facts(*found.facts.T).colour != 0, [part.files[n].name for n in good], data)
  numbers = summary.numbers(known, split, found.facts, data)
  _log.info('%s', summary.line(numbers, split, data))
  if dark := summary.warning(numbers):
    _log.warning('%s: %s', printable(known.path), dark)
  labels = None if part.labels is None else part.labels[good]
  kept = {'classes': part.classes, 'fingerprint': part.fingerprint, 'record': summary.Record(known, numbers)}
  if in_memory:
    return ArraySource(found.images, labels, **kept)

  def read_again(number):
    try:
      return part.decode(number)
    except UserError:
      raise
    except Exception as error:
      raise UserError(
        f'{part.files[number].name} in {known.path} could be read at the start, but '
        f'not now ({error}): leave the images alone during a run, or keep them in memory with '
        '--config.data.max_memory_gb'
      ) from error

  return encoded.on_demand(read_again, good, part.shape, lambda: labels, data.num_workers, **kept)


def load_some(data, split, choose):
  """Loads some images of a split, and decodes no others. Grey and colour images may be mixed.

  Args:
    data: as of `load`.
    split: likewise.
    choose: (number of images, N) -> int (B,) in 0..N-1; called again where some of these are damaged, as if they were
      not there.

  Returns:
    A source of these B images.

  Raises:
    UserError: there are no images for the split.
  """
  part = _open(data, split)
  known = decoded_cache.load(part.key, len(part.files), None)
  bad, images = dict(known.failures if known else {}), {}
  while len(bad) < len(part.files):
    good = np.setdiff1d(np.arange(len(part.files)), list(bad))
    chosen = good[choose(len(good))]
    new = [number for number in dict.fromkeys(chosen.tolist()) if number not in images]
    pixels, failures = encoded.decode_all(
      lambda row, new=new: part.decode(new[row]), len(new), part.shape, data.num_workers, keep=True
    )
    images |= {number: pixels[row] for row, number in enumerate(new) if row not in failures}
    bad |= {new[row]: str(error) for row, error in failures.items()}
    if not failures:
      shown, coloured = printable(part.inventory.path), Facts(*part.facts[list(images)].T).colour
      if bad:
        _log.warning('%s in %s cannot be decoded: left out', inventory.counted(len(bad), 'image'), shown)
      if data.num_channels == 3 and 0 < np.sum(coloured) < len(coloured):
        _log.info('%s mixes grey and colour images: all are used in colour', shown)
      labels = None if part.labels is None else part.labels[chosen]
      return ArraySource(np.stack([images[number] for number in chosen]), labels, part.classes)
  _report(part.with_damaged(bad), data, split)


def _open(data, split) -> _Split:
  """A split, of which nothing has been decoded."""
  check_channels(data)
  found = inventory.take(data, split)
  files, classes = found.of(split), inventory.classes(found, split)
  shape = (data.image_size, data.image_size, data.num_channels)
  limit, size = data.max_memory_gb * 2**30, len(files) * int(np.prod(shape))
  budget = memory.Budget(limit - size if size <= limit else limit)  # beside the images that are kept
  facts = np.zeros((len(files), len(Facts._fields)), np.int64)

  def decode_one(number):
    content = found.read(files[number].name)
    with budget.taking(memory.needed(content, data.image_size)):
      image, facts[number] = decode(content, data.image_size, data.num_channels)
    return image

  number_of = {name: number for number, name in enumerate(classes or ())}
  labels = np.array([number_of[file.label] for file in files]) if classes else None
  fingerprint = inventory.fingerprint(files)
  key = decoded_cache.key(found.path, fingerprint, shape)
  return _Split(found, files, labels, classes, fingerprint, shape, key, facts, decode_one)


def _decoded(part, data, in_memory) -> decoded_cache.Decoded:
  """The decoded images of a split, from the cache or from the files."""
  count, shown = inventory.counted(len(part.files), 'image'), printable(part.inventory.path)
  found = decoded_cache.load(part.key, len(part.files), part.shape if in_memory else None)
  if found is not None:
    _log.info('%s of %s, as decoded before', count, shown)
    return found
  _log.info('reading %s of %s', count, shown)
  began = time.monotonic()
  images, failures = encoded.decode_all(part.decode, len(part.files), part.shape, data.num_workers, keep=in_memory)
  good = np.setdiff1d(np.arange(len(part.files)), list(failures))
  reasons = {number: str(error) for number, error in failures.items()}
  found = decoded_cache.Decoded(_compact(images, good) if in_memory else None, part.facts[good], reasons)
  if time.monotonic() - began >= decoded_cache.MIN_SECONDS:
    decoded_cache.save(part.key, found)
  return found


def _compact(images, good):
  """Picks images in place: a copy would take the memory twice."""
  for row, number in enumerate(good):
    if row != number:
      images[row] = images[number]
  return images[: len(good)]


def _report(known, data, split):
  """Warns of damaged images, or refuses them."""
  images = [file for file in known.files if split in file.split and (file.is_damaged or not file.left_out)]
  damaged = [file for file in images if file.is_damaged]
  if not damaged:
    return
  shown = '; '.join(
    f'{printable(file.name)}: {" ".join(file.left_out.removeprefix(inventory.DAMAGED).split())}'
    for file in damaged[:_NAMES_SHOWN]
  )
  if len(damaged) > _NAMES_SHOWN:
    shown += '; ...'
  path = printable(known.path)
  if len(damaged) == len(images):
    raise UserError(
      f'none of the {len(images)} images in {path} can be decoded ({shown}): fetch them again, '
      'or set --config.data.path to others'
    )
  if data.strict:
    raise UserError(
      f'{len(damaged)} of {len(images)} images in {path} cannot be decoded ({shown}): '
      'repair or remove them, or skip them with --config.data.strict=False'
    )
  _log.warning('skipping %d of %d images in %s that cannot be decoded (%s)', len(damaged), len(images), path, shown)


def _check_colours(colours, names, data):
  """Refuses grey images among colour ones; all to grey is what one channel asks for."""
  num_colour = int(np.sum(colours))
  num_grey = len(colours) - num_colour
  if data.num_channels == 3 and num_colour and num_grey:
    rarer = num_colour < num_grey
    some = ', '.join(names[n] for n in np.flatnonzero(colours == rarer)[:_NAMES_SHOWN])
    more = ', ...' if min(num_grey, num_colour) > _NAMES_SHOWN else ''
    raise UserError(
      f'{data.path} mixes {num_grey} grey and {num_colour} colour images: separate them (the '
      f'{"colour" if rarer else "grey"} ones are {some}{more}), or turn '
      'all to grey with --config.data.num_channels=1'
    )
