"""What lies in a data directory of TensorFlow Datasets (TFDS), and what is wrong there.

DIRECTORY/NAME/[CONFIG/]VERSION/ holds a prepared data set: dataset_info.json and the files with the examples.
"""

import pathlib
import re
import textwrap

from diffusion_ebm.run.errors import UnknownDataSetError, UserError

_KNOWN = (
  'mnist',
  'cifar10',
  'cifar100',
  'svhn_cropped',
  'celeb_a',
  'lsun/church',
  'lsun/bedroom',
  'celeb_a_hq/128',
  'celeb_a_hq/256',
)
_TFDS_NAMES = {'lsun/church': 'lsun/church_outdoor'}

_NUMBER = r'(?:0|[1-9]\d*|\*)'
_VERSIONED = re.compile(rf'(.*?)(?::({_NUMBER}\.{_NUMBER}\.{_NUMBER}))?', re.DOTALL)


def split_version(name: str) -> tuple[str, str | None]:
  """'cifar10:3.0.2' to ('cifar10', '3.0.2'); the version may have wildcards, as '3.*.*', or be missing: None."""
  return _VERSIONED.fullmatch(name).groups()


def open_builder(name: str, path: str):
  """Opens a data set that has been prepared, or that is to be.

  Args:
    name: of TFDS, or one of ours; with or without a version, as 'cifar10:3.0.2'.
    path: the data directory, '' for the default of TFDS.

  Returns:
    A `tfds.core.DatasetBuilder`.

  Raises:
    UnknownDataSetError: there is no such data set.
    UserError: what lies there is damaged, another version, or elsewhere than `path`.
  """
  import tensorflow_datasets as tfds
  from tensorflow_datasets.core import constants

  base, version = split_version(name)
  base = _TFDS_NAMES.get(base, base)
  local = '://' not in path
  if path and local:
    _check_place(base, path)
  try:
    builder = tfds.builder(f'{base}:{version}' if version else base, data_dir=path or None)
  except Exception as error:
    if local:
      raise _refusal(base, version, pathlib.Path(path or constants.DATA_DIR) / base, error) from error
    raise UserError(f'{name} cannot be opened in {path} ({_cause(error)}): copy it to a local folder') from error
  if builder.data_path.exists():
    if not builder.info.initialized:
      raise _damage(builder.data_path)
  elif not version and (there := _versions(builder.data_path.parent)):
    raise UserError(
      f'{builder.data_path.parent} holds version {", ".join(there)}, not {builder.version}, which TensorFlow Datasets '
      f'{tfds.__version__} takes for {name}: to read what is there, name the version, as in '
      f'--config.data.name={name}:{there[-1]}; to download the other one beside it, {name}:{builder.version}'
    )
  return builder


def _versions(folder) -> list[str]:
  """The versions that are prepared, the newest last."""
  from tensorflow_datasets.core.utils import version

  return [str(each) for each in version.list_all_versions(folder)]


def _check_place(base, path):
  """Raises a `UserError` where a folder inside of the data directory is named, or one around it."""
  here = pathlib.Path(path).resolve()
  if here.exists() and not here.is_dir():
    raise UserError(f'--config.data.path={path} is a file: name the directory where TensorFlow Datasets are kept')
  if _versions(here / base):
    return
  for outer in here.parents:
    if here.is_relative_to(outer / base.partition('/')[0]) and _versions(outer / base):
      raise UserError(
        f'--config.data.path={path} is a folder inside of the directory where TensorFlow Datasets are kept: '
        f'set --config.data.path={outer}'
      )
  for depth in ('', '*/'):
    for stray in here.glob(f'{depth}dataset_info.json'):
      raise UserError(
        f'{stray.parent} holds a prepared data set, but TensorFlow Datasets are kept in folders DIRECTORY/NAME/VERSION '
        f'(of {base}: DIRECTORY/{base}/VERSION): move it to one, and set --config.data.path=DIRECTORY'
      )
  for inner in sorted(here.glob('*/')):
    if _versions(inner / base):
      raise UserError(
        f'--config.data.path={path} holds no {base}, but {inner} does: set --config.data.path={inner}, or another '
        'directory to download it anew'
      )


def _refusal(name, version, folder, error):
  """What is wrong where TFDS cannot open a data set in its local folder."""
  import tensorflow_datasets as tfds
  from tensorflow_datasets.core.utils.version import Version

  there, newest = _versions(folder), _newest(name)
  asked = version or newest or '*.*.*'
  if found := [each for each in there if Version(each).match(asked)]:
    return _damage(folder / found[-1], error)
  if known := sorted({*there, newest} - {None}, key=Version):
    return UserError(
      f'there is no version {asked} of {name}: {folder} holds {", ".join(there) or "none"}, and TensorFlow Datasets '
      f'{tfds.__version__} prepares {newest or "none"}; name one of these, as in --config.data.name={name}:{known[-1]}'
    )
  return UnknownDataSetError(
    f'no data set is called {name!r}: set --config.data.name to digits, toy2d, images, '
    f'{", ".join(_KNOWN)}, or another image data set of TFDS'
  )


def _newest(base) -> str | None:
  """The version that TFDS takes where none is asked for, None if it does not know the data set."""
  import tensorflow_datasets as tfds

  try:
    return str(tfds.builder(base, data_dir='/dev/null').version)  # where nothing can lie
  except Exception:
    return None


def _damage(folder, error=None):
  """What is wrong with a prepared data set that TFDS cannot open."""
  import tensorflow_datasets as tfds
  from tensorflow_datasets.core import dataset_info

  what = folder
  try:
    dataset_info.read_proto_from_builder_dir(folder)
  except Exception as of_info:
    what, error = dataset_info.dataset_info_path(folder), of_info
  return UserError(
    f'{what} cannot be read by TensorFlow Datasets {tfds.__version__} ({_cause(error)}): upgrade tensorflow-datasets '
    f'if a newer version has written it, or remove {folder} to have it prepared anew'
  )


def _cause(error):
  return textwrap.shorten(f'{type(error).__name__}: {error}', 200, placeholder=' ...')


def check_files(builder, split: str):
  """Looks at every file of a split: whether it is whole, and holds as many examples as dataset_info.json says.

  Args:
    builder: of a prepared data set; only files in array_record format are looked at.
    split: its name, or a part as 'train[:50%]'.

  Raises:
    UserError: a file is missing, damaged or of another data set.
  """
  from array_record.python import array_record_module

  if builder.info.file_format.value != 'array_record':
    return
  for file in builder.info.splits[split].file_instructions:
    try:
      reader = array_record_module.ArrayRecordReader(file.filename)
      count, cause = reader.num_records(), None
      reader.close()
    except Exception as error:
      count, cause = None, error
    if count != file.examples_in_shard:
      cause = cause or f'it holds {count} examples, not {file.examples_in_shard}, as dataset_info.json says'
      raise UserError(
        f'{file.filename} is missing or damaged ({cause}): copy it again, or remove {builder.data_dir} to have it '
        'prepared anew'
      )
