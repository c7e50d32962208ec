"""Zip and tar archives of images, read in place. What is in them is not trusted."""

import os
import re
import tarfile
import threading
import zipfile

from diffusion_ebm.data import decode, formats, listing
from diffusion_ebm.run import workdir
from diffusion_ebm.run.errors import UserError

# Images are compressed already: an archive that unpacks to more than this, and to so many times its size, is a bomb.
_SUSPICIOUS_BYTES, _SUSPICIOUS_RATIO = 2**30, 100
_ENCRYPTED = 1  # a bit of a zip's flags
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA}
# How archives begin out of which single files cannot be read.
_PACKED = {
  rb'\x1f\x8b': 'gzip',
  rb'BZh': 'bzip2',
  rb'\xfd7zXZ\0': 'xz',
  rb'\x28\xb5\x2f\xfd': 'zstd',
  rb"7z\xbc\xaf'\x1c": '7z',
  rb'Rar!\x1a\x07': 'RAR',
}
_UNPACK = 'unpack it, and set --config.data.path to the folder'


def list_archive(path: str) -> listing.Files:
  """Lists the files in a `.zip` or `.tar` archive, whatever its suffix.

  Raises:
    UserError: it is none or damaged; it is packed in another way, or needs a password; names lead out of it, or it
      unpacks to far more than its size.
  """
  try:
    if not os.path.isfile(path):
      raise ValueError('not a file')
    with open(path, 'rb') as file:
      beginning = file.read(512)
    if kind := decode.kind(beginning[: decode.MAGIC_BYTES]):
      raise UserError(f'{path} is a single image ({kind}): set --config.data.path to the folder that it is in')
    for sign, packing in _PACKED.items():
      if re.match(sign, beginning):
        raise UserError(f'{path} is packed by {packing}, out of which single images cannot be read: {_UNPACK}')
    # Tar first: a zip inside of it may end where it ends.
    is_zip = beginning[257:262] != b'ustar' and (beginning.startswith(b'PK') or zipfile.is_zipfile(path))
    try:
      return _zip(path) if is_zip else _tar(path)
    except tarfile.ReadError as error:
      what = formats.unreadable('', beginning[: formats.MAGIC_BYTES])
      raise ValueError(error if what == formats.NOT_AN_IMAGE else what) from error
  except UserError:
    raise
  except Exception as error:  # a damaged archive may lead to anything
    raise UserError(
      f'{path} is neither a folder nor a .zip or .tar that can be read ({error}): set '
      '--config.data.path to one, or fetch the archive again'
    ) from error


def _zip(path):
  archive = zipfile.ZipFile(path)
  infos = archive.infolist()
  _check([info.filename for info in infos], sum(info.file_size for info in infos), path)
  entries = {_clean(info.filename): info for info in infos if not info.filename.endswith(('/', '\\'))}
  for info in entries.values():
    if info.flag_bits & _ENCRYPTED:
      raise UserError(f'{path} is encrypted: unpack it with its password, and set --config.data.path to the folder')
    if info.compress_type not in _METHODS:
      method = zipfile.compressor_names.get(info.compress_type, f'method {info.compress_type}')
      raise UserError(f'{path} is packed by {method}, which is not read: {_UNPACK}')

  def open_entry(name):
    return archive.open(entries[name]), entries[name].file_size

  def head(name, prefix):
    year, month, day, *clock = entries[name].date_time
    modified = f'{year:04}-{month:02}-{day:02}T' + ':'.join(f'{number:02}' for number in clock)
    return listing.Head(entries[name].file_size, modified, f'{entries[name].CRC:08x}', prefix)

  return _files(path, entries, open_entry, head)


def _tar(path):
  archive = tarfile.open(path, 'r:')  # noqa: SIM115
  members = archive.getmembers()
  _check([member.name for member in members], sum(member.size for member in members), path)
  regular = {member.name: member for member in members if member.isreg()}
  linked = {member.name: regular.get(member.linkname) for member in members if member.islnk()}
  entries = {_clean(name): member for name, member in (regular | linked).items() if member}

  def open_entry(name):
    return archive.extractfile(entries[name]), entries[name].size

  def head(name, prefix):
    return listing.Head(entries[name].size, listing.utc(int(entries[name].mtime * 1_000_000)), '', prefix)

  return _files(path, entries, open_entry, head)


def _files(path, entries, open_entry, head):
  """`Files` of an archive.

  Args:
    path: of the archive.
    entries: the names in it.
    open_entry: (name) -> (file, bytes).
    head: (name, prefix) -> `Head`.
  """
  names, hidden, workdirs = _visible(entries)
  if '' in workdirs:
    raise listing.workdir_refused(path)
  lock = threading.Lock()  # what threads may do with an archive is not documented

  def use(name, function):
    try:
      with lock:
        file, size = open_entry(name)
        with file:
          return function(file, size)
    except OSError as error:
      if error.errno is None:  # not the system's: the entry is damaged
        raise
      raise listing.lost(path, name, error) from error

  return listing.Files(
    path,
    names,
    hidden,
    workdirs,
    [],
    lambda name: head(name, use(name, lambda file, size: file.read(decode.MAGIC_BYTES))),
    lambda name: use(name, listing.read_bounded),
  )


def _visible(entries):
  """`(names, hidden, workdirs)` of all names in an archive, as of `Files`."""
  names, hidden, files, folders = [], set(), {}, {}
  for name in entries:
    *above, last = name.split('/')
    for depth, part in enumerate((*above, last)):
      if listing.is_hidden(part):
        hidden.add('/'.join((*above, last)[: depth + 1]))
        break
    else:
      names.append(name)
    folder = ''
    for part in above:
      folders.setdefault(folder, set()).add(part)
      folder = f'{folder}/{part}' if folder else part
    files.setdefault(folder, set()).add(last)
  workdirs = sorted(folder for folder in files if workdir.is_one(files[folder], folders.get(folder, ())))
  inside = tuple(f'{folder}/' for folder in workdirs)
  return sorted(name for name in names if not name.startswith(inside)), len(hidden), workdirs


def _clean(name):
  """A name with '/' between its parts, also where Windows packed it, and no empty parts."""
  return '/'.join(part for part in name.replace('\\', '/').split('/') if part not in ('', '.'))


def _check(names, unpacked, path):
  """Refuses what no archive of images holds. Nothing is ever unpacked to the disk."""
  for name in names:
    parts = name.replace('\\', '/').split('/')
    if '..' in parts or os.path.isabs(name) or re.match('[A-Za-z]:', name):
      raise UserError(
        f"{path} holds '{name}', a name that leads out of the archive: do not trust it; fetch the "
        'images from elsewhere, or pack them again'
      )
  packed = os.path.getsize(path)
  if unpacked > max(_SUSPICIOUS_BYTES, _SUSPICIOUS_RATIO * packed):
    raise UserError(
      f'{path} has {packed} bytes but unpacks to {unpacked}: images do not, so it is not read; unpack it yourself if '
      'you trust it, and name the folder'
    )
