"""An inventory of a set of images: one line for each file, made without decoding any."""

import collections
from collections.abc import Callable
import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import logging
from typing import NamedTuple

from diffusion_ebm.data import decode, image_files, splits
from diffusion_ebm.data.formats import NOT_AN_IMAGE
from diffusion_ebm.run.errors import UserError, printable
from diffusion_ebm.run.progress import Progress

_log = logging.getLogger(__name__)

# Files are opened side by side, as each may have to be waited for where they are on another machine.
_THREADS, _CHUNK = 16, 64
_NAMES_SHOWN = 3
_REASONS_SHOWN = 6
# Images that are copies or parts of others, or previews beside films.
_ASIDE = ('~', '.bak', '.tmp', '.part', '.partial', '.crdownload', '.download', '.thm')
DAMAGED = 'damaged: '  # begins what is said of such a file
_OUTSIDE = 'outside of the splits'


class File(NamedTuple):
  """A file in the set.

  Attributes:
    name: its path in the set.
    size: bytes; -1 where it cannot be opened.
    modified: when it was last changed.
    checksum: of its content, where the archive has one, else ''.
    kind: what Pillow calls its format, by its first bytes; '' for what is not read.
    split: 'train', 'test', 'train+test' or ''.
    label: its class, or ''.
    left_out: why it is, or ''.
  """

  name: str
  size: int
  modified: str
  checksum: str
  kind: str
  split: str
  label: str
  left_out: str

  @property
  def is_damaged(self) -> bool:
    """Whether it should be an image, but cannot be read as one."""
    return self.left_out.startswith(DAMAGED)

  def damaged(self, why) -> 'File':
    """The same file, left out as damaged."""
    return self._replace(left_out=DAMAGED + printable(f'{why}'))


@dataclasses.dataclass(frozen=True)
class Inventory:
  """All files of a set of images.

  Attributes:
    path: of the folder or archive, absolute.
    files: by name.
    hidden: how many files and folders were passed over as hidden.
    workdirs: folders that were passed over as workdirs of runs.
    links: links that were passed over as their folders are read under another name.
    read: (name) -> bytes, as of `listing.Files`.
  """

  path: str
  files: tuple[File, ...]
  hidden: int
  workdirs: tuple[str, ...]
  links: tuple[str, ...]
  read: Callable

  def of(self, split: str) -> list[File]:
    """The images of a split, 'train' or 'test', in the order of their names; some may turn out to be damaged."""
    return [file for file in self.files if file.kind and split in file.split]

  def replace(self, files: list[File]) -> 'Inventory':
    """The same inventory with what has been found out about some files."""
    known = {file.name: file for file in files}
    return dataclasses.replace(self, files=tuple(known.get(file.name, file) for file in self.files))


def fingerprint(files: list[File]) -> str:
  """A name for the content of files: another one once a name, a size or a time of change is another."""
  rows = [(file.name, file.size, file.modified, file.checksum) for file in files]
  return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


def classes(inventory: Inventory, split: str) -> tuple[str, ...] | None:
  """The classes by number, the same in both splits, those of training images first; None where a split has none.

  One class tells nothing, and an image outside of the folders of classes has none.
  """
  labels = {each: {file.label for file in inventory.of(each)} for each in ('train', 'test')}
  if '' in labels[split]:
    return None
  ordered = dict.fromkeys((*sorted(labels['train'] - {''}), *sorted(labels['test'] - {''})))
  return tuple(ordered) if len(ordered) > 1 else None


def take(data, split: str) -> Inventory:
  """Takes the inventory of the set of images that a configuration names.

  Args:
    data: the `data` section of a configuration.
    split: 'train' or 'test', of which there have to be images.

  Raises:
    UserError: there are none, or the set cannot be listed.
  """
  files = image_files.list_files(data.path)
  found = [_look(name, *head) for name, head in zip(files.names, _heads(files), strict=True)]
  layout = splits.find([file.name for file in found if file.kind or file.is_damaged], data.train_split, data.test_split)
  place = functools.cache(layout.place)
  found = tuple(_place(file, place, data.test_fraction) for file in found)
  inventory = Inventory(files.path, found, files.hidden, tuple(files.workdirs), tuple(files.links), files.read)
  _check(inventory, layout, data, split)
  if split == 'train':
    _remark(inventory, layout, data)
  return inventory


def _heads(files):
  """`(head, None)` or `(None, exception)` of each file."""

  def head(name):
    try:
      return files.head(name), None
    except UserError:
      raise
    except Exception as error:  # damaged archives may lead to anything
      return None, error

  heads, progress = [], Progress('looking at files', len(files.names), unit='file')
  parts = [files.names[start : start + _CHUNK] for start in range(0, len(files.names), _CHUNK)]
  pool = concurrent.futures.ThreadPoolExecutor(_THREADS)
  try:
    for part in pool.map(lambda names: [head(name) for name in names], parts):
      heads += part
      progress.update(len(part))
      progress.line(always=False)
  finally:
    pool.shutdown(cancel_futures=True)
    progress.close()
  return heads


def _look(name, head, error):
  """A `File` by its first bytes; its place in the splits is not known yet."""
  is_named_image = name.lower().endswith(image_files.SUFFIXES)
  if error is not None:
    file = File(name, -1, '', '', '', '', '', f'cannot be read ({getattr(error, "strerror", None) or error})')
  else:
    kind = decode.kind(head.prefix)
    left_out = '' if kind else decode.unreadable(name, head.prefix)
    if kind == 'TIFF' and not is_named_image:  # RAW photographs begin like that
      left_out = decode.unreadable(name, head.prefix).removeprefix(NOT_AN_IMAGE)
    if not head.prefix and not is_named_image:
      left_out = NOT_AN_IMAGE
    if kind and name.lower().endswith(_ASIDE):
      left_out = 'a copy, a part or a preview of another'
    if head.size > decode.MAX_BYTES and not left_out:
      left_out = f'{head.size} bytes are more than {decode.MAX_BYTES}'
    file = File(name, head.size, head.modified, head.checksum, '' if left_out else kind, '', '', left_out)
  return file.damaged(file.left_out) if file.left_out and is_named_image else file


def _place(file, place, test_fraction):
  """The file with its split and its class."""
  split, label = place(file.name.rpartition('/')[0])
  if test_fraction and 'train' in split:
    split = 'test' if splits.is_set_aside(file.name, test_fraction) else 'train'
  file = file._replace(split=split, label=label)
  return file if split or file.left_out else file._replace(left_out=_OUTSIDE)


# What is said.


def counted(number: int, noun: str) -> str:
  """A number of things: '1 image', '1,200 images'."""
  return f'{number:,} {noun}{"" if number == 1 else "s"}'


def some(names) -> str:
  """The first of some names, as they may be printed."""
  shown = ', '.join(map(printable, names[:_NAMES_SHOWN]))
  return f'{shown}, ...' if len(names) > _NAMES_SHOWN else shown


def reasons(files) -> collections.Counter:
  """How many files are left out for each reason, such as 'damaged', '.txt' or '.heic (HEIC: convert it to JPEG)'."""
  return collections.Counter(_reason(file) for file in files if file.left_out)


def in_words(counts) -> str:
  """Such as '200 .heic (HEIC: convert it to JPEG), 5 .txt'; '' if nothing is left out."""
  common = collections.Counter(counts).most_common()
  parts = [f'{number:,} {reason}' for reason, number in common[:_REASONS_SHOWN]]
  if rest := sum(number for _, number in common[_REASONS_SHOWN:]):
    parts.append(f'{rest:,} others')
  return ', '.join(parts)


def _reason(file):
  if file.is_damaged:
    return 'damaged'
  if file.left_out == _OUTSIDE:
    return _OUTSIDE
  last = file.name.rpartition('/')[2]
  suffix = printable('.' + last.rpartition('.')[2].lower()) if '.' in last else 'without a suffix'
  return suffix if file.left_out == NOT_AN_IMAGE else f'{suffix} ({printable(file.left_out)})'


def _check(inventory, layout, data, split):
  """Raises a `UserError` where there are no images for a split, or two ways to choose them."""
  path = inventory.path
  if not any(file.kind or file.is_damaged for file in inventory.files):
    parts = [in_words(reasons(inventory.files))]
    if inventory.hidden:
      parts.append(f'{inventory.hidden:,} hidden (passed over)')
    if inventory.workdirs:
      parts.append(f'the workdir of a run, which is not read: {some(inventory.workdirs)}')
    has = ', '.join(filter(None, parts))
    raise UserError(
      f'{path} holds no images (JPEG, PNG, WebP, TIFF and others){f"; it holds {has}" if has else ""}: set '
      '--config.data.path to a folder or archive that does'
    )
  if data.test_fraction and data.test_split and layout.test:
    raise UserError(
      f'--config.data.test_fraction={data.test_fraction} is for images without a folder for testing, but {path} has '
      f'{some(layout.test)}: leave it out, or name no folder with --config.data.test_split='
    )
  if any(split in file.split and (file.kind or file.is_damaged) for file in inventory.files):
    return
  if data.test_fraction:
    raise UserError(
      f'--config.data.test_fraction={data.test_fraction} leaves no images to {split} on in {path}: choose another'
    )
  folder = (data.train_split if split == 'train' else data.test_split).strip('/')
  fraction = ', or set a part of all aside with --config.data.test_fraction=0.1 in a new run' if split == 'test' else ''
  raise UserError(
    f'{path} has no folder {folder!r} with images to {split} on: add it, or set --config.data.{split}_split to '
    f'another folder, or to nothing to use all images{fraction}'
  )


def _remark(inventory, layout, data):
  """Says what of the set is not used, and what its folders are not taken for."""
  shown, training = printable(inventory.path), inventory.of('train')
  if inventory.workdirs:
    are = 'is the workdir of a run' if len(inventory.workdirs) == 1 else 'are workdirs of runs'
    _log.warning('%s: %s %s, whose images are not data', shown, some(inventory.workdirs), are)
  if inventory.links:
    text = '%s: links to folders that are read under another name are left out (%s): put the folders there instead'
    _log.warning(text, shown, some(inventory.links))
  if layout.unused:
    text = (
      '%s: folders that are called like splits are not used as such (%s): call them train and test, side by side, or '
      'name them with --config.data.train_split and --config.data.test_split'
    )
    _log.warning(text, shown, some(layout.unused))
  if outside := [file.name for file in inventory.files if file.left_out == _OUTSIDE]:
    used = some((*layout.train, *layout.test))
    _log.warning('%s: %s outside of %s left out (%s)', shown, counted(len(outside), 'image'), used, some(outside))
  beside = [file.name for file in training if not file.label]
  if beside and len({file.label for file in training}) > 2:
    _log.info('%s: no classes, as %s lie beside the folders (%s)', shown, counted(len(beside), 'image'), some(beside))
  aside = ''
  if data.test_fraction:
    aside = counted(sum(file.split == 'test' for file in inventory.files if file.kind), 'image')
    aside += ' set aside for testing, by their names'
  if layout.train == ('',) and data.train_split:
    text = 'no folder %r in %s: training on everything in it%s'
    _log.info(text, data.train_split, shown, aside and f', but for {aside}')
  elif aside:
    _log.info('%s', aside)
  if not aside and data.test_split and not layout.test:
    _log.info('nothing is kept aside for testing: --config.data.test_fraction=0.1 would do that, in a new run')
