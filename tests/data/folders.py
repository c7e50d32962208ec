"""Folders and archives of images for the tests of how they are read."""

import io
import os
import pathlib
import tarfile
import types
import zipfile

import numpy as np
from PIL import Image


def encode(seed=0, height=4, width=4, format_='PNG', mode='RGB', **options):
  """The bytes of an image file of noise."""
  pixels = np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8)
  buffer = io.BytesIO()
  Image.fromarray(pixels).convert(mode).save(buffer, format_, **options)
  return buffer.getvalue()


def encode_16_bits(largest):
  """The bytes of a grey PNG of 16 bits whose values go up to `largest`."""
  buffer = io.BytesIO()
  Image.fromarray(np.linspace(0, largest, 16).reshape(4, 4).astype(np.uint16)).save(buffer, 'PNG')
  return buffer.getvalue()


def encode_transparent():
  """The bytes of a PNG of which one pixel is transparent."""
  pixels = np.full((4, 4, 4), 255, np.uint8)
  pixels[0, 0, 3] = 0
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, 'PNG')
  return buffer.getvalue()


def write(folder, contents):
  """Writes files, name to bytes, and returns the folder."""
  os.makedirs(folder, exist_ok=True)
  for name, content in contents.items():
    path = pathlib.Path(folder, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
  return folder


def write_zip(path, contents, compression=zipfile.ZIP_DEFLATED):
  """Likewise as an archive, with the names as they are."""
  with zipfile.ZipFile(path, 'w', compression) as archive:
    for name, content in contents.items():
      archive.writestr(name, content)
  return path


def write_tar(path, contents, mode='w'):
  """Likewise."""
  with tarfile.open(path, mode) as archive:
    for name, content in contents.items():
      entry = tarfile.TarInfo(name)
      entry.size, entry.mtime = len(content), 1_700_000_000
      archive.addfile(entry, io.BytesIO(content))
  return path


def section(path, **changes):
  """The `data` section of a configuration, for 4x4 images."""
  fields = {
    'name': 'images',
    'path': path,
    'image_size': 4,
    'num_channels': 3,
    'random_flip': False,
    'strict': False,
    'train_split': 'train',
    'test_split': 'test',
    'test_fraction': 0.0,
    'max_memory_gb': 1.0,
    'num_workers': 2,
  }
  return types.SimpleNamespace(**fields | changes)
