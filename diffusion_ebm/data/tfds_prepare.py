"""Prepares data sets of TensorFlow Datasets (TFDS) without TensorFlow.

TFDS reads prepared data without TensorFlow, but to prepare them it opens files with `tf.io.gfile`
and encodes images with `tf.image`. While it prepares, those few functions are stood in for by ours,
in the modules that call them; whatever else of TensorFlow a data set needs is reported by name.
TFDS 4.9 also uses the package importlib_resources without requiring it.
"""

import contextlib
import importlib.resources.abc
import importlib.util
import io
import logging
import os
import shutil
import sys
import textwrap
import types

from diffusion_ebm.run.errors import UserError

_log = logging.getLogger(__name__)

# Their preparation reads LMDB files with it.
_NEED_TENSORFLOW_IO = ('lsun',)
# With its 10, TFDS tries for minutes where there is no network.
_MAX_RETRIES = 4


class _TensorFlowNeededError(Exception):
  """A data set needs more of TensorFlow than there is a stand-in for."""


class _Module(types.SimpleNamespace):
  """A stand-in for a part of TensorFlow."""

  def __getattr__(self, name):
    raise _TensorFlowNeededError(f'tf.{name}')


class _Reader(io.BufferedReader):
  """A file that `with` leaves open: TensorFlow's can be read after it, and CelebA's is."""

  def __exit__(self, *args):
    pass

  def __del__(self):
    self.close()


def _open(path, mode='r'):
  return _Reader(io.FileIO(path)) if mode == 'rb' else open(path, mode)


_TF = _Module(
  compat=_Module(as_text=os.fsdecode),
  errors=_Module(UnimplementedError=NotImplementedError),  # caught by TFDS, and raised by nothing here
  io=_Module(gfile=_Module(GFile=_open, copy=shutil.copy, exists=os.path.exists)),
)


def prepare(builder):
  """Downloads and prepares a data set, unless that has been done.

  Args:
    builder: a `tfds.core.DatasetBuilder`.

  Raises:
    UserError: a download fails, or the data set needs TensorFlow or files that a person has to
      fetch.
  """
  import tensorflow_datasets as tfds

  name = builder.info.full_name.rpartition('/')[0]
  downloads = builder.data_dir_root / 'downloads'
  config = tfds.download.DownloadConfig(try_download_gcs=False)
  try:
    with _stand_in(builder):
      if not builder.data_path.exists():
        _log.info(
          'downloading %s (%s) to %s and preparing it in %s, once and for all',
          name,
          _download_size(builder),
          downloads,
          builder.data_dir,
        )
      builder.download_and_prepare(download_config=config, file_format='array_record')
  except Exception as error:
    raise UserError(_explain(error, builder, name, downloads)) from error


def _download_size(builder):
  """The size of the download in words."""
  sizes = [info.size for info in (builder.url_infos or {}).values()]
  if not sizes or builder.BUILDER_CONFIGS:  # the files of all configurations are listed together
    return 'of unknown size'
  return f'{sum(sizes) / 2**20:.0f} MiB'


def _explain(error, builder, name, downloads):
  """Says in one line why a data set could not be prepared, and what to do."""
  cause = textwrap.shorten(f'{type(error).__name__}: {error}', 400, placeholder=' ...')
  if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
    instructions = ' '.join(builder.MANUAL_DOWNLOAD_INSTRUCTIONS.split())
    if instructions not in cause:
      cause += f'; {instructions}'
    return f'{name} has to be fetched by hand: put its files into {downloads / "manual"} and start again ({cause})'
  if any(_is_tensorflow_missing(e) for e in _chain(error)):
    return (
      f'to prepare {name} takes TensorFlow ({cause}): in an environment with it (pip install '
      f'tensorflow tensorflow-io), run `tfds build {name} --file_format=array_record '
      f'--data_dir={builder.data_dir_root}` once; to read it then takes none. Or save the images '
      'to a folder and set --config.data.name=images --config.data.path=FOLDER'
    )
  if isinstance(error, ImportError):
    return f'to prepare {name} takes a missing package ({cause}): install it and start again'
  return (
    f'{name} could not be downloaded and prepared ({cause}): check the network and the free disk '
    f'space, remove {downloads} if a file in it is damaged, or prepare it on another machine with '
    f'`tfds build {name} --file_format=array_record` and set --config.data.path to a copy of its '
    'data directory'
  )


def _chain(error):
  """An exception and those that it came from."""
  while error:
    yield error
    error = error.__cause__ or error.__context__


def _is_tensorflow_missing(error):
  missing = isinstance(error, ImportError) and 'tensorflow' in str(error)
  return missing or isinstance(error, _TensorFlowNeededError)


@contextlib.contextmanager
def _stand_in(builder):
  """Puts the stand-ins in place of what is not installed, and shortens hopeless waits."""
  from tensorflow_datasets.core import dataset_builder
  from tensorflow_datasets.core.download import downloader, extractor
  from tensorflow_datasets.core.features import image_feature

  places = {(downloader, 'MAX_RETRIES'): _MAX_RETRIES}
  if not importlib.util.find_spec('importlib_resources'):
    places[dataset_builder, 'importlib_resources'] = importlib.resources
  if not importlib.util.find_spec('tensorflow'):
    modules = [downloader, extractor, *(sys.modules[c.__module__] for c in type(builder).mro())]
    places |= {(module, 'tf'): _TF for module in modules if 'tf' in vars(module)}
    places[image_feature._ImageEncoder, '_encode_image'] = _encode_image
  if builder.name in _NEED_TENSORFLOW_IO and not importlib.util.find_spec('tensorflow_io'):
    places[type(builder), '_split_generators'] = _refuse
  before = {place: getattr(*place) for place in places}
  try:
    for place, stand_in in places.items():
      setattr(*place, stand_in)
    yield
  finally:
    for place, original in before.items():
      setattr(*place, original)


def _refuse(builder, dl_manager):
  """Stands in for the first step of a preparation that would fail after a long download."""
  raise _TensorFlowNeededError('tensorflow_io')


def _encode_image(encoder, array):
  """Encodes as `tf.image.encode_png` and `tf.image.encode_jpeg` do.

  Args:
    encoder: an `_ImageEncoder` of TFDS.
    array: uint8 (H, W, 1), (H, W, 3) or (H, W, 4).

  Returns:
    Bytes of a PNG or JPEG file.
  """
  from PIL import Image

  if array.dtype != 'uint8':
    raise _TensorFlowNeededError(f'tf.image for {array.dtype} pixels')
  encoded = io.BytesIO()
  pixels = array[..., 0] if array.shape[-1] == 1 else array
  # 95 is what TensorFlow takes for JPEG; PNG loses nothing.
  Image.fromarray(pixels).save(encoded, encoder.encoding_format, quality=95)
  return encoded.getvalue()
