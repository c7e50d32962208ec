"""What a run keeps of its data, so that a later start can tell whether they are still the same.

The folder may be that of the images, too: `listing.KEPT` are never read as such.
"""

import csv
import io
import os

import numpy as np

from diffusion_ebm.data import inventory, listing
from diffusion_ebm.run import files
from diffusion_ebm.run.errors import printable

_COMPARED = ('size', 'modified', 'checksum')


def keep(folder: str, source, name: str, picture: np.ndarray):
  """Writes `summary.json`, `training_images.png` and, of images, `files.csv`, the inventory with a line for each file.

  Args:
    folder: of the run, there already.
    source: the training split.
    name: of the data set.
    picture: of some examples, uint8 (H, W, 3).

  Raises:
    OSError: they cannot be written.
  """
  summary = {'name': name, 'examples': len(source), 'shape': list(source.shape)}
  if source.classes:
    summary['classes'] = list(source.classes)
  if source.record is not None:
    known = source.record.inventory
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow(inventory.File._fields)
    rows.writerows(known.files)
    with files.replacing(_files(folder)) as file:
      file.write(text.getvalue().encode(errors='surrogateescape'))
    summary |= {
      'path': printable(known.path),
      'fingerprint': inventory.fingerprint(_used(known)),
      'train': source.record.numbers,
      'test_images': len(known.of('test')),
      'hidden': known.hidden,
    }
  files.write_json(_summary(folder), summary)  # after the other: it says that this is whole
  files.write_png(os.path.join(folder, listing.KEPT[2]), picture)


def keep_classes(folder: str, name: str, classes: tuple[str, ...]):
  """Writes the names of the classes of data that are not at hand, into a `summary.json` that `keep` will replace."""
  files.write_json(_summary(folder), {'name': name, 'classes': list(classes)})


def classes(folder: str) -> tuple[str, ...]:
  """The names of the classes by number, as far as they were kept; () if they were not."""
  try:
    return tuple(map(str, files.read_json(_summary(folder)).get('classes', ())))
  except (OSError, ValueError, AttributeError, TypeError):
    return ()


def is_kept(folder: str) -> bool:
  """Whether there is something from an earlier start that has seen the data."""
  try:
    return 'examples' in (files.read_json(_summary(folder)) or ())
  except (OSError, ValueError, TypeError):
    return True


def changes(folder: str, source) -> str:
  """Says how the images differ from those of the run's first start; '' if they do not.

  Args:
    folder: of the run, with what `keep` has written.
    source: the training split.
  """
  if source.record is None:
    return ''
  now = _used(source.record.inventory)
  try:
    if files.read_json(_summary(folder))['fingerprint'] == inventory.fingerprint(now):
      return ''
    with open(_files(folder), encoding='utf-8', errors='surrogateescape', newline='') as file:
      rows = csv.DictReader(file)
      if not {'name', 'kind', 'split', *_COMPARED}.issubset(rows.fieldnames or ()):
        raise ValueError('other columns')
      used = [row for row in rows if row['kind'] and row['split']]
    before = {row['name']: tuple(row[key] for key in _COMPARED) for row in used}
  except (OSError, ValueError, LookupError, TypeError, csv.Error) as error:
    return f'whether the images are those of the first start is not known: {folder} cannot be read ({error})'
  return _in_words(before, {file.name: tuple(str(getattr(file, key)) for key in _COMPARED) for file in now})


def _in_words(before, now):
  changed = [name for name in now if before.get(name, now[name]) != now[name]]
  kinds = {
    'added': [name for name in now if name not in before],
    'removed': [name for name in before if name not in now],
    'changed': changed,
  }
  others = [name for name in changed if now[name][::2] != before[name][::2]]  # in more than time
  if len(changed) == len(now) == len(before) and not others:
    return 'since the run began, all images got another time of change, but no other name or size: are they copies?'
  parts = [
    f'{inventory.counted(len(names), "image")} {what} ({inventory.some(names)})'
    for what, names in kinds.items()
    if names
  ]
  return f'since the run began: {", ".join(parts)}'


def _used(known):
  return [file for file in known.files if file.kind and file.split]


def _summary(folder):
  return os.path.join(folder, listing.KEPT[1])


def _files(folder):
  return os.path.join(folder, listing.KEPT[0])
