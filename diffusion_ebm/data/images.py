"""A folder or a zip archive of images."""

import logging

import numpy as np

from diffusion_ebm.data import encoded
from diffusion_ebm.data.decode import check_channels, decode
from diffusion_ebm.data.image_files import list_images
from diffusion_ebm.data.source import ArraySource
from diffusion_ebm.run.errors import UserError

_log = logging.getLogger(__name__)

_NAMES_SHOWN = 5


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
  check_channels(data)
  files = list_images(data.path)
  names, labels = _choose_split(files.names, data, split)
  shape = (data.image_size, data.image_size, data.num_channels)
  in_memory = encoded.fits_memory(len(names), shape, data.max_memory_gb)
  colours = np.zeros(len(names), bool)

  def read(number):
    image, facts = decode(files.read(names[number]), data.image_size, data.num_channels)
    colours[number] = facts.colour
    return image

  def read_again(number):
    try:
      return read(number)
    except Exception as error:
      raise UserError(
        f'{names[number]} in {data.path} could be read at the start, but not now ({error}): leave '
        'the images alone during a run, or keep them in memory with --config.data.max_memory_gb'
      ) from error

  _log.info('reading %d images of %s', len(names), data.path)
  images, failures = encoded.decode_all(read, len(names), shape, data.num_workers, keep=in_memory)
  _report(failures, names, data)
  good = np.setdiff1d(np.arange(len(names)), list(failures))
  _check_colours(colours[good], [names[n] for n in good], data)
  labels = None if labels is None else labels[good]
  if in_memory:
    return ArraySource(_compact(images, good), labels)
  return encoded.on_demand(read_again, good, shape, lambda: labels, data.num_workers)


def _compact(images, good):
  """Picks images in place: a copy would take the memory twice."""
  for row, number in enumerate(good):
    if row != number:
      images[row] = images[number]
  return images[: len(good)]


def _choose_split(names, data, split):
  """Picks the images of a split and numbers their classes.

  Returns:
    (names, int (N,) labels or None).
  """
  folders = {'train': data.train_split.strip('/'), 'test': data.test_split.strip('/')}
  outer = _shared_folders(names, folders.values())
  inner = [name[len(outer) :] for name in names]
  present = {key: any(name.startswith(folder + '/') for name in inner) for key, folder in folders.items() if folder}
  prefix = ''
  if present.get(split):
    prefix = folders[split] + '/'
  elif split in present and (split == 'test' or any(present.values())):
    raise UserError(
      f'{data.path} has no folder {folders[split]!r} with images to {split} on: add it, or set '
      f'--config.data.{split}_split to another folder, or to nothing to use all images'
    )
  elif split in present:
    _log.info('no folder %r in %s: training on everything in it (%d files)', folders[split], data.path, len(names))
  chosen = [name for name in inner if name.startswith(prefix)]
  classes = [name[len(prefix) :].rpartition('/')[0].partition('/')[0] for name in chosen]
  kinds = sorted(set(classes))
  # One class tells nothing, and an image outside of the sub-folders has none.
  labels = None
  if len(kinds) > 1 and kinds[0]:
    number = {kind: n for n, kind in enumerate(kinds)}
    labels = np.array([number[kind] for kind in classes])
  return [outer + name for name in chosen], labels


def _shared_folders(names, split_folders):
  """The folders that wrap everything, down to the first that is a split: 'a/b/', or ''."""
  tops = [folder.partition('/')[0] for folder in split_folders]
  outer = ''
  while True:
    top, slash, _ = names[0][len(outer) :].partition('/')
    if not slash or top in tops or not all(n.startswith(f'{outer}{top}/') for n in names):
      return outer
    outer += top + '/'


def _report(failures, names, data):
  """Warns of damaged images, or refuses them."""
  if not failures:
    return
  first = list(failures.items())[:_NAMES_SHOWN]
  shown = ' '.join('; '.join(f'{names[n]}: {error}' for n, error in first).split())
  if len(failures) > _NAMES_SHOWN:
    shown += '; ...'
  if len(failures) == len(names):
    raise UserError(
      f'none of the {len(names)} images in {data.path} can be decoded ({shown}): fetch them again, '
      'or set --config.data.path to others'
    )
  if data.strict:
    raise UserError(
      f'{len(failures)} of {len(names)} images in {data.path} cannot be decoded ({shown}): '
      'repair or remove them, or skip them with --config.data.strict=False'
    )
  _log.warning(
    'skipping %d of %d images in %s that cannot be decoded (%s)', len(failures), len(names), data.path, shown
  )


def _check_colours(colours, names, data):
  """Refuses to paint grey images among colour ones; all to grey is what one channel asks for."""
  num_colour = int(np.sum(colours))
  num_grey = len(colours) - num_colour
  if data.num_channels == 3 and num_colour and num_grey:
    rarer = num_colour < num_grey
    some = ', '.join(names[n] for n in np.flatnonzero(np.asarray(colours, bool) == rarer)[:_NAMES_SHOWN])
    more = ', ...' if min(num_grey, num_colour) > _NAMES_SHOWN else ''
    raise UserError(
      f'{data.path} mixes {num_grey} grey and {num_colour} colour images: separate them (the '
      f'{"colour" if rarer else "grey"} ones are {some}{more}), or turn '
      'all to grey with --config.data.num_channels=1'
    )
