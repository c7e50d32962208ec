"""Which images are for training, which for testing, and of which class, by the folders that they are in."""

import hashlib
import re
from typing import NamedTuple

# What people call the folders, in lower case; the first is the default of the configuration.
_TRAIN = ('train', 'training')
_TEST = ('test', 'testing', 'val', 'valid', 'validation', 'eval', 'dev')


class Layout(NamedTuple):
  """How the folders of a set of images are used.

  Attributes:
    train: the folders of images for training: ('',) for everything, () where there is no folder of that name. By
      default everything is for training where there are no folders for splits.
    test: likewise.
    by_class: whether the splits are inside of the classes (cats/train), not around them (train/cats).
    outer: the folder that everything is in, or ''.
    unused: folders that look like splits, but are not used.
  """

  train: tuple[str, ...]
  test: tuple[str, ...]
  by_class: bool
  outer: str
  unused: tuple[str, ...]

  def place(self, folder: str) -> tuple[str, str]:
    """`(split, class)` of the images in a folder: 'train', 'test', 'train+test' or '', and the class or ''."""
    above = folder.split('/') if folder else []
    folders = ['/'.join(above[:depth]) for depth in range(len(above), -1, -1)]
    inside = {split: next((each for each in folders if each in getattr(self, split)), None) for split in _SPLITS}
    split = '+'.join(split for split in _SPLITS if inside[split] is not None)
    around = inside['test'] or inside['train'] or self.outer
    if self.by_class and split:
      return split, around.rpartition('/')[0].rpartition('/')[2]
    return split, folder.removeprefix(around).lstrip('/').partition('/')[0]


_SPLITS = ('train', 'test')


def find(names: list[str], train: str, test: str) -> Layout:
  """Finds the folders of the splits.

  They are looked for at the top, inside of a folder around everything, in a folder beside others, and in each class.
  The names that the configuration gives count first. Where it gives the defaults, folders called alike do
  (`Training` and `val`, say), if there is one for training beside one for testing. What is for training does not depend
  on `test`, but that images in a folder of that name are not for training.

  Args:
    names: of images: paths with '/' between the parts.
    train: the configured folder, '' for everything.
    test: likewise.
  """
  tree = _Tree(names)
  train_name, test_name = train.strip('/'), test.strip('/')

  def find_train(parent):
    literal = tree.get(parent, train_name or _TRAIN[0])
    alike = tree.alike(parent, _TRAIN) if train_name in ('', _TRAIN[0]) and tree.alike(parent, _TEST) else None
    return literal or alike

  def find_test(parent):
    literal = tree.get(parent, test_name)
    return literal or (tree.alike(parent, _TEST) if test_name == _TEST[0] and find_train(parent) else None)

  parents = _parents(tree, find_train, lambda parent: tree.get(parent, test_name))
  found = {
    'train': tuple(filter(None, map(find_train, parents))) if train_name else ('',),
    'test': tuple(filter(None, map(find_test, parents))) if test_name else ('',),
  }
  if train_name == _TRAIN[0] and not parents:
    found['train'] = ('',)
  unused = tree.looking_like_splits() if train_name and not parents else ()
  return Layout(**found, by_class=len(parents) > 1, outer=tree.outer(), unused=unused)


def _parents(tree, find_train, find_literal_test):
  """The folders in which there are splits: one, several that are classes, or none."""
  level, beside = '', False  # whether there are images beside what has been looked through
  while True:
    if find_train(level) and (tree.alike(level, _TEST) or not beside):
      return [level]
    if find_literal_test(level) and not beside:
      return [level]
    inner = tree.folders(level)
    beside = beside or level in tree.direct
    if len(inner) == 1:
      level = inner[0]
      continue
    both = [folder for folder in inner if find_train(folder) and tree.alike(folder, _TEST)]
    if len(both) > 1 or inner and all(map(find_train, inner)):
      return [folder for folder in inner if find_train(folder) or find_literal_test(folder)]
    return both


class _Tree:
  """The folders that hold images, at any depth, as paths; '' is the top.

  Attributes:
    direct: folders that hold images themselves.
    children: folder to the names of the folders in it.
  """

  def __init__(self, names):
    self.direct = {name.rpartition('/')[0] for name in names}
    self.children = {}
    for folder in self.direct:
      while folder:
        folder, _, last = folder.rpartition('/')
        self.children.setdefault(folder, set()).add(last)

  def folders(self, parent):
    return sorted(_join(parent, child) for child in self.children.get(parent, ()))

  def get(self, parent, path):
    """The folder of that path in another, or None."""
    folder = _join(parent, path)
    return folder if path and (folder in self.direct or folder in self.children) else None

  def alike(self, parent, words):
    """The first folder in another that has one of the names in lower case, or None."""
    found = [(words.index(child.lower()), child) for child in self.children.get(parent, ()) if child.lower() in words]
    return _join(parent, min(found)[1]) if found else None

  def looking_like_splits(self):
    """Folders with the name of a split; or with one as a part (`train2017`), beside one for the other split."""
    found = []
    for parent, inner in self.children.items():
      both = all(any(_has_part(child, words) for child in inner) for words in (_TRAIN, _TEST))
      either = (*_TRAIN, *_TEST)
      found += [_join(parent, child) for child in inner if child.lower() in either or both and _has_part(child, either)]
    return tuple(sorted(found))

  def outer(self):
    """The folder that everything is in."""
    folder = ''
    while folder not in self.direct and len(inner := self.folders(folder)) == 1:
      (folder,) = inner
    return folder


def _has_part(name, words):
  """Whether a part of a name is one of the words: of `train_images`, `trainA` and `TRAIN-2`, not of `trains`."""
  return any(part.lower() in words for part in re.findall('[A-Z]?[a-z]+|[A-Z]+', name))


def _join(folder, path):
  return f'{folder}/{path}' if folder else path


def is_set_aside(name: str, fraction: float) -> bool:
  """Whether an image belongs to the fraction for testing, by its name alone: others do not matter."""
  digest = hashlib.sha256(name.encode(errors='surrogateescape')).digest()
  return int.from_bytes(digest[:8], 'big') < fraction * 2**64
