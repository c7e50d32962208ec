"""What is found in folders and archives as people have them, without decoding any image."""

import logging
import os
import pathlib
import re
import tarfile
import tempfile
import threading
import time
from unittest import mock
import zipfile

from absl.testing import absltest, parameterized

from configs import digits
from diffusion_ebm import config as config_lib
from diffusion_ebm.data import archives, decode, inventory
from diffusion_ebm.run.errors import UserError
from tests.data import folders

PNG, JPEG, TIFF = folders.encode(), folders.encode(format_='JPEG'), folders.encode(format_='TIFF')
HEIC = b'\0\0\0\x18ftypheic' + bytes(50)
MOVIE = b'\0\0\0\x14ftypqt  ' + bytes(50)
LFS = b'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n'
HTML = b'<!DOCTYPE html>\n<html><title>404</title></html>'

# Contents; the names that are used for training; the damaged; what is counted of the rest, by suffix or reason.
_SETS = {
  'as it always was': ({'b.png': PNG, 'a.jpg': JPEG, 'c/d.jpeg': JPEG}, ['a.jpg', 'b.png', 'c/d.jpeg'], [], {}),
  'the export of a phone': (
    {'IMG_1.JPG': JPEG, 'IMG_2.HEIC': HEIC, 'IMG_3.MOV': MOVIE, 'IMG_1.AAE': b'<?xml version', 'IMG_4.HEIC': HEIC},
    ['IMG_1.JPG'],
    [],
    {'.heic': 2, '.mov': 1, '.aae': 1},
  ),
  'a phone whose pictures are elsewhere': (
    {'1.jpg': JPEG, '.2.jpg.icloud': b'bplist00', 'a/.3.HEIC.icloud': b'bplist00'},
    ['1.jpg'],
    [],
    {'.icloud': 2},
  ),
  'HEIC called JPEG': ({'1.jpg': JPEG, '2.jpg': HEIC}, ['1.jpg'], ['2.jpg'], {}),
  'JPEG called HEIC': ({'1.heic': JPEG}, ['1.heic'], [], {}),
  'a scanner': ({'a.tif': TIFF, 'b.pdf': b'%PDF-1.7', 'c.TIFF': TIFF}, ['a.tif', 'c.TIFF'], [], {'.pdf': 1}),
  'a scraped set': (
    {'1.jpg': JPEG, '2.jpg': HTML, '3.jpg': b'', '4.png': b'\x89PN', 'log.txt': b'ok'},
    ['1.jpg'],
    ['2.jpg', '3.jpg', '4.png'],
    {'.txt': 1},
  ),
  'a set of a competition': (
    {'train.csv': b'id', 'train/1.jpg': JPEG, 'train/2.jpg': JPEG, 'test/3.jpg': JPEG, 'sample_submission.csv': b'id'},
    ['train/1.jpg', 'train/2.jpg'],
    [],
    {'.csv': 2},
  ),
  'an annotated set': (
    {'JPEGImages/1.jpg': JPEG, 'Annotations/1.xml': b'<annotation>', 'ImageSets/Main/train.txt': b'1'},
    ['JPEGImages/1.jpg'],
    [],
    {'.xml': 1, '.txt': 1},
  ),
  'every suffix that is used': (
    {
      'a.jfif': JPEG,
      'a.jpe': JPEG,
      'a': PNG,
      'a.webp': folders.encode(format_='WEBP'),
      'a.bmp': folders.encode(format_='BMP'),
      'a.gif': folders.encode(format_='GIF'),
      'a.avif': folders.encode(format_='AVIF'),
    },
    ['a', 'a.avif', 'a.bmp', 'a.gif', 'a.jfif', 'a.jpe', 'a.webp'],
    [],
    {},
  ),
  'any suffix, by content': ({'a.dat': PNG, 'b.png.1': PNG, 'c.dat': b'data'}, ['a.dat', 'b.png.1'], [], {'.dat': 1}),
  'copies, parts and previews': (
    {'a.jpg': JPEG, 'a.jpg~': JPEG, 'b.jpg.part': JPEG, 'c.jpg.crdownload': JPEG, 'film.THM': JPEG, 'd.png.bak': PNG},
    ['a.jpg'],
    [],
    {'.jpg~': 1, '.part': 1, '.crdownload': 1, '.thm': 1, '.bak': 1},
  ),
  'a camera that writes both': ({'1.jpg': JPEG, '1.NEF': TIFF, '2.dng': TIFF}, ['1.jpg'], [], {'.nef': 1, '.dng': 1}),
  'TIFF without a suffix': ({'scan': TIFF, 'scan.bin': TIFF}, ['scan', 'scan.bin'], [], {}),
  'an archive among images': ({'a.png': PNG, 'more.zip': b'PK\3\4' + bytes(30)}, ['a.png'], [], {'.zip': 1}),
  'empty files': ({'a.png': PNG, 'b': b'', 'c.txt': b''}, ['a.png'], [], {'without a suffix': 1, '.txt': 1}),
  'images beside the splits': ({'train/a.png': PNG, 'b.png': PNG}, ['train/a.png'], [], {'outside of the splits': 1}),
  'damaged ones outside of the splits': ({'train/a.png': PNG, 'b.png': b'x'}, ['train/a.png'], ['b.png'], {}),
}

_HIDDEN = {
  'a.png': PNG,
  '.a.png': PNG,
  '.thumbnails/large/a.png': PNG,
  '.thumbnails/b.png': PNG,
  '__MACOSX/._a.png': PNG,
  '@eaDir/a.png/SYNOPHOTO_THUMB.jpg': JPEG,
  'Thumbs.db': b'x',
  'sub/desktop.ini': b'x',
  'sub/b.png': PNG,
}

_RUN = {
  'config.json': b'{}',
  'train.lock': b'',
  'checkpoints/4/state': b'x',
  'samples/training_00000004.png': PNG,
  'data/training_images.png': PNG,
}


def counted(found):
  """Reasons to numbers, the reasons without what they say beside the suffix."""
  return {
    reason.partition(' (')[0]: number
    for reason, number in inventory.reasons(file for file in found.files if not file.is_damaged).items()
  }


class InventoryTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = self.enterContext(tempfile.TemporaryDirectory())
    self.path = os.path.join(self.root, 'photos')

  def take(self, contents=None, split='train', pack=folders.write, path=None, **changes):
    path = path or self.path
    if contents is not None:
      path = pack(path, contents)
    return inventory.take(folders.section(path, **changes), split)

  def used(self, found, split='train'):
    return [file.name for file in found.of(split)]

  def said(self, contents, **changes):
    """What is logged."""
    with self.assertLogs('diffusion_ebm') as logs:
      self.take(contents, **changes)
    return '\n'.join(record.getMessage() for record in logs.records)

  def refused(self, pattern, contents=None, **changes):
    """Expects one line; matches from its beginning, in which the folder of the test is DIR."""
    with self.assertRaises(UserError) as caught:
      self.take(contents, **changes)
    message = str(caught.exception).replace(self.root, 'DIR')
    self.assertRegex(message, rf'\A{pattern}')
    self.assertTrue(message.isprintable(), message)

  # What is found.

  @parameterized.named_parameters(
    (f'{name}, {pack.__name__}', pack, *case)
    for name, case in _SETS.items()
    for pack in (folders.write, folders.write_zip, folders.write_tar)
  )
  def test_set(self, pack, contents, used, damaged, others):
    found = self.take(contents, pack=pack)
    self.assertEqual(self.used(found), used)
    self.assertEqual([file.name for file in found.files if file.is_damaged], damaged)
    self.assertEqual(counted(found), others)
    self.assertEqual([file.name for file in found.files], sorted(contents))
    self.assertEqual([file.size for file in found.files], [len(contents[name]) for name in sorted(contents)])
    self.assertEqual(found.read(used[0]), contents[used[0]])

  @parameterized.parameters(folders.write, folders.write_zip, folders.write_tar)
  def test_hidden_files_are_passed_over_and_counted(self, pack):
    found = self.take(_HIDDEN, pack=pack)
    self.assertEqual([file.name for file in found.files], ['a.png', 'sub/b.png'])
    self.assertEqual(found.hidden, 6)

  def test_only_hidden_files_is_said(self):
    message = r'DIR/photos holds no images \(.*\); it holds 1 \.txt, 2 hidden \(passed over\): set'
    self.refused(message, {'.a.png': PNG, '@eaDir/a.png': PNG, 'b.txt': b'x'})

  @parameterized.parameters('Thumbs.db', 'thumbs.db', '.DS_Store', '._a.png', '$RECYCLE.BIN')
  def test_what_systems_leave_behind_is_hidden(self, name):
    self.assertEqual(self.take({'a.png': PNG, name: PNG}).hidden, 1)

  def test_what_kind_a_file_is_and_why_it_is_left_out_is_known(self):
    found = self.take({'a.png': PNG, 'b.jpg': HTML, 'c.heic': HEIC, 'd.txt': b'x', 'e.tif': LFS})
    self.assertEqual([file.kind for file in found.files], ['PNG', '', '', '', ''])
    reasons = [file.left_out for file in found.files]
    self.assertEqual(reasons[0], '')
    for reason, pattern in zip(reasons[1:], ('damaged: HTML', 'HEIC', 'not an image', 'damaged: git LFS'), strict=True):
      self.assertStartsWith(reason, pattern)

  def test_times_are_those_of_the_files(self):
    folders.write(self.path, {'a.png': PNG})
    os.utime(os.path.join(self.path, 'a.png'), ns=(0, 1_700_000_000_123_456_000))
    self.assertEqual(self.take().files[0].modified, '2023-11-14T22:13:20.123456Z')
    for time_ in (-5, 2**34):  # before 1970; after 2500
      os.utime(os.path.join(self.path, 'a.png'), (time_, time_))
      self.assertRegex(self.take().files[0].modified, r'\A\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.000000Z\Z')

  @parameterized.parameters(folders.write, folders.write_zip, folders.write_tar)
  def test_odd_names_are_read(self, pack):
    names = [
      '🐈‍⬛.png',
      'new\nline.png',
      'b\\c.png' if pack is folders.write else 'bc.png',
      "it's (1) [x].png",
      'Screenshot 10:30:00.png',
      'ü' * 80 + '.png',
    ]
    if pack is folders.write:
      names.append('not utf-8 \udcff.png')
    contents = {name: folders.encode(seed) for seed, name in enumerate(names)}
    found = self.take(contents, pack=pack)
    self.assertEqual(self.used(found), sorted(names))
    for name in names:
      self.assertEqual(found.read(name), contents[name])

  @parameterized.parameters(folders.write, folders.write_zip, folders.write_tar)
  def test_a_hundred_levels_of_folders_are_read(self, pack):
    name = 'd/' * 100 + 'a.png'
    self.assertEqual(self.used(self.take({name: PNG}, pack=pack)), [name])

  def test_links_may_run_in_circles_and_hang_loose(self):
    folders.write(self.path, {'a/1.png': PNG})
    os.symlink(self.path, os.path.join(self.path, 'a', 'up'))
    os.symlink('self.png', os.path.join(self.path, 'self.png'))
    os.symlink('nowhere', os.path.join(self.path, 'loose.jpg'))
    os.symlink('a/1.png', os.path.join(self.path, 'link.png'))
    found = self.take()
    self.assertEqual(self.used(found), ['a/1.png', 'link.png'])
    self.assertEqual([file.name for file in found.files if file.is_damaged], ['loose.jpg', 'self.png'])

  def test_links_to_folders_that_are_read_already_are_named(self):
    folders.write(self.path, {'all/cat/1.png': PNG, 'all/dog/2.png': PNG})
    for split, name in (('train', 'cat'), ('test', 'dog')):
      os.mkdir(os.path.join(self.path, split))
      os.symlink(os.path.join(self.path, 'all', name), os.path.join(self.path, split, name))
    os.symlink(self.path, os.path.join(self.path, 'all', 'round'))
    said = self.said(None)
    self.assertIn('under another name are left out (test/dog, train/cat): put the folders there instead', said)
    self.assertEqual(self.used(self.take()), ['all/cat/1.png', 'all/dog/2.png'])
    self.assertEqual(self.take().links, ('test/dog', 'train/cat'))

  def test_pipes_are_not_opened(self):
    folders.write(self.path, {'a.png': PNG})
    for name in ('b.png', 'pipe'):
      os.mkfifo(os.path.join(self.path, name))
    found = self.take()
    self.assertEqual((self.used(found), counted(found)), (['a.png'], {'without a suffix': 1}))
    self.assertEqual(found.files[1].left_out, 'damaged: cannot be read (not a file)')

  # Splits.

  def test_windows_separators_in_a_zip_are_folders(self):
    names = {'train\\': b'', 'train\\cat\\a.png': PNG, 'train\\dog\\b.png': PNG, 'test\\cat\\c.png': PNG}
    found = self.take(names, pack=folders.write_zip)
    self.assertEqual(self.used(found), ['train/cat/a.png', 'train/dog/b.png'])
    self.assertEqual(self.used(found, 'test'), ['test/cat/c.png'])
    self.assertEqual(inventory.classes(found, 'test'), ('cat', 'dog'))
    self.assertEqual(found.read('test/cat/c.png'), PNG)

  def test_points_and_double_slashes_in_an_archive_mean_nothing(self):
    for pack in (folders.write_zip, folders.write_tar):
      self.assertEqual(self.used(self.take({'./train//a.png': PNG, './test/b.png': PNG}, pack=pack)), ['train/a.png'])

  def test_files_that_are_no_images_do_not_count_for_folders(self):
    found = self.take({'set/train/a.png': PNG, 'set/test/b.png': PNG, 'README.md': b'x', 'other/c.txt': b'x'})
    self.assertEqual((self.used(found), self.used(found, 'test')), (['set/train/a.png'], ['set/test/b.png']))

  def test_what_lies_outside_of_the_splits_is_counted_and_named(self):
    said = self.said({'train/a.png': PNG, 'test/b.png': PNG} | {f'{n}.png': PNG for n in range(4)})
    self.assertIn('4 images outside of train, test left out (0.png, 1.png, 2.png, ...)', said)

  def test_folders_that_look_like_splits_are_named(self):
    said = self.said({'cat/a.png': PNG, 'dog/a.png': PNG, 'Valid/a.png': PNG})
    self.assertIn('called like splits are not used as such (Valid): call them train and test, side by side', said)
    self.assertIn('like splits', self.said({'train2017/a.png': PNG, 'val2017/b.png': PNG}, path=f'{self.path} 2'))
    self.assertNotIn('like splits', self.said({'Train/a.png': PNG, 'Valid/a.png': PNG}, path=self.path))

  def test_a_fraction_is_set_aside_and_new_files_do_not_move_old_ones(self):
    contents = {f'{n}.png': PNG for n in range(40)}
    found = self.take(contents, test_fraction=0.3)
    train, test = self.used(found), self.used(found, 'test')
    self.assertEqual(sorted(train + test), sorted(contents))
    self.assertBetween(len(test), 5, 20)
    more = self.take({f'new/{n}.png': PNG for n in range(40)}, test_fraction=0.3)
    self.assertEqual([name for name in self.used(more) if '/' not in name], train)
    self.assertEqual([name for name in self.used(more, 'test') if '/' not in name], test)
    self.assertIn(f'{len(self.used(more, "test"))} images set aside for testing', self.said(None, test_fraction=0.3))

  def test_a_fraction_is_of_the_folder_for_training(self):
    contents = {f'train/{n}.png': PNG for n in range(40)} | {'other.png': PNG}
    found = self.take(contents, test_fraction=0.3)
    self.assertBetween(len(self.used(found, 'test')), 5, 20)
    self.assertNotIn('other.png', self.used(found) + self.used(found, 'test'))

  def test_a_fraction_beside_a_folder_for_testing_is_refused(self):
    contents = {'train/a.png': PNG, 'val/b.png': PNG}
    for split in ('train', 'test'):
      self.refused(
        r'--config\.data\.test_fraction=0\.5 is .*, but DIR/photos has val: leave it out',
        contents,
        test_fraction=0.5,
        split=split,
      )

  def test_a_fraction_that_leaves_nothing_is_refused(self):
    self.refused(
      r'.*test_fraction=0\.001 leaves no images to test on', {'a.png': PNG}, test_fraction=0.001, split='test'
    )

  def test_a_split_without_images_is_refused(self):
    self.refused(
      r"DIR/photos has no folder 'test' with images to test on: .*data\.test_fraction=0\.1 in a new run",
      {'train/a.png': PNG},
      split='test',
    )
    self.refused(
      r"DIR/photos has no folder 'trian' with images to train on: .*--config\.data\.train_split", train_split='trian'
    )

  def test_a_class_has_one_number_in_both_splits(self):
    names = ('train/b/1.png', 'train/d/1.png', 'test/a/1.png', 'test/d/1.png')
    found = self.take(dict.fromkeys(names, PNG))
    for split in ('train', 'test'):
      self.assertEqual(inventory.classes(found, split), ('b', 'd', 'a'))

  def test_an_image_beside_the_classes_leaves_none(self):
    said = self.said({'a/1.png': PNG, 'b/1.png': PNG, '1.png': PNG})
    self.assertIn('no classes, as 1 image lie beside the folders (1.png)', said)
    self.assertIsNone(inventory.classes(self.take(), 'train'))

  # Workdirs of runs.

  @parameterized.parameters(folders.write, folders.write_zip, folders.write_tar)
  def test_a_workdir_is_never_data(self, pack):
    contents = {'a.png': PNG} | {f'runs/photos/{name}': content for name, content in _RUN.items()}
    with self.assertLogs('diffusion_ebm', 'WARNING') as logs:
      found = self.take(contents, pack=pack)
    self.assertEqual([file.name for file in found.files], ['a.png'])
    self.assertEqual(found.workdirs, ('runs/photos',))
    self.assertIn('runs/photos is the workdir of a run, whose images are not data', logs.output[0])

  def test_several_workdirs_are_named(self):
    contents = {f'{run}/{name}': content for run in ('run', 'again/run') for name, content in _RUN.items()}
    said = self.said({'a.png': PNG} | contents)
    self.assertIn('photos: again/run, run are workdirs of runs, whose images are not data', said)

  def test_a_folder_in_a_workdir_is_taken_literally(self):
    folders.write(self.path, _RUN)
    for name in ('samples', 'checkpoints'):
      folders.write(self.path, {f'{name}/x.png': PNG})
      self.assertIn('x.png', self.used(self.take(path=os.path.join(self.path, name))))

  def test_a_workdir_is_not_a_folder_of_images(self):
    self.refused(r'DIR/photos is the workdir of a run, not a folder of images: keep images in a folder', _RUN)

  def test_only_workdirs_is_said(self):
    self.refused(
      r'DIR/photos holds no images .*; it holds the workdir of a run, which is not read: run: set',
      {f'run/{name}': content for name, content in _RUN.items()},
    )

  def test_a_configuration_alone_makes_no_workdir(self):
    self.assertLen(self.used(self.take({'config.json': b'{}', 'a/config.json': b'{}', 'a/1.png': PNG})), 1)

  def test_a_workdir_is_known_as_soon_as_it_is_locked(self):
    folders.write(self.path, {'a.png': PNG, 'run/train.lock': b'', 'run/x.png': PNG})
    config_lib.save(digits.get_config(), os.path.join(self.path, 'run'))
    self.assertEqual(self.used(self.take()), ['a.png'])

  def test_what_a_run_keeps_of_its_data_is_not_read_as_such(self):
    kept = {'files.csv': b'x', 'summary.json': b'{}', 'training_images.png': PNG}
    self.assertEqual([file.name for file in self.take({'a.png': PNG} | kept).files], ['a.png'])
    os.remove(os.path.join(self.path, 'files.csv'))
    self.assertIn('training_images.png', self.used(self.take()))

  # What cannot be read.

  def test_what_is_no_folder_or_archive_is_said_to_be_that(self):
    contents = {
      'a.png': PNG,
      'a.tar.gz': b'\x1f\x8b\x08' + bytes(30),
      'a.tgz': b'\x1f\x8b\x08' + bytes(30),
      'a.tar.xz': b'\xfd7zXZ\0' + bytes(30),
      'a.7z': b"7z\xbc\xaf'\x1c" + bytes(30),
      'a.rar': b'Rar!\x1a\x07\x01' + bytes(30),
      'a.txt': b'text',
      'page.zip': HTML,
      'pointer.zip': LFS,
      'a.heic': HEIC,
      'a.pdf': b'%PDF-1.7',
      'empty.tar': b'',
    }
    folders.write(self.path, contents)
    unpack = r', out of which single images cannot be read: unpack it, and set --config\.data\.path to the folder'
    for name, pattern in (
      ('a.png', r'DIR/photos/a\.png is a single image \(PNG\): set --config\.data\.path to the folder that it is in'),
      ('a.tar.gz', rf'DIR/photos/a\.tar\.gz is packed by gzip{unpack}'),
      ('a.tgz', rf'DIR/photos/a\.tgz is packed by gzip{unpack}'),
      ('a.tar.xz', rf'DIR/photos/a\.tar\.xz is packed by xz{unpack}'),
      ('a.7z', rf'DIR/photos/a\.7z is packed by 7z{unpack}'),
      ('a.rar', rf'DIR/photos/a\.rar is packed by RAR{unpack}'),
      ('a.txt', r'DIR/photos/a\.txt is neither a folder nor a \.zip or \.tar that can be read'),
      ('page.zip', r'.* that can be read \(HTML page, .*\): set .* or fetch the archive again'),
      ('pointer.zip', r'.* that can be read \(git LFS pointer: run git lfs pull\)'),
      ('a.heic', r'.* that can be read \(HEIC: convert it to JPEG or PNG'),
      ('a.pdf', r'.* that can be read \(document: export its pages as PNG\)'),
      ('empty.tar', r'.* that can be read \(empty: fetch it again\)'),
      ('none.zip', r'DIR/photos/none\.zip does not exist: set --config\.data\.path to a folder or an archive'),
    ):
      self.refused(pattern, path=os.path.join(self.path, name))

  @parameterized.parameters('https://example.com/a.zip', 'http://a/b', 'ftp://a/b.tar')
  def test_a_web_address_is_to_be_downloaded(self, path):
    self.refused(rf'--config\.data\.path={path} is a web address: download it, and name the folder', path=path)

  def test_a_missing_folder_is_named_with_where_it_was_looked_for(self):
    before = os.getcwd()
    os.chdir(self.root)
    try:
      self.refused('DIR/nowhere does not exist', path='nowhere')
    finally:
      os.chdir(before)

  def test_deflate64_is_to_be_unpacked(self):
    path = pathlib.Path(folders.write_zip(self.path, {'a.png': PNG}))
    content = path.read_bytes()
    for sign, offset in ((b'PK\1\2', 10), (b'PK\3\4', 8)):
      at = content.index(sign) + offset
      content = content[:at] + b'\x09' + content[at + 1 :]
    path.write_bytes(content)
    self.refused('DIR/photos is packed by deflate64, which is not read: unpack it, and set')

  def test_a_tar_that_ends_with_a_zip_is_a_tar(self):
    inner = pathlib.Path(folders.write_zip(os.path.join(self.root, 'inner'), {'b.png': PNG})).read_bytes()
    found = self.take({'a.png': PNG, 'z.zip': inner}, pack=folders.write_tar)
    self.assertEqual((self.used(found), counted(found)), (['a.png'], {'.zip': 1}))

  def test_links_in_a_tar_are_the_files_in_it(self):
    with tarfile.open(folders.write_tar(self.path, {'a.png': PNG}), 'a') as archive:
      for name, kind, target in (
        ('hard.png', tarfile.LNKTYPE, 'a.png'),
        ('gone.png', tarfile.LNKTYPE, 'nothing'),
        ('out.png', tarfile.SYMTYPE, '/etc/passwd'),
        ('pipe.png', tarfile.FIFOTYPE, ''),
      ):
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname = kind, target
        archive.addfile(entry)
    found = self.take()
    self.assertEqual([file.name for file in found.files], ['a.png', 'hard.png'])
    self.assertEqual(found.read('hard.png'), PNG)

  @parameterized.parameters('../a.png', 'a/../../b.png', '/etc/a.png')
  def test_a_tar_whose_names_lead_out_of_it_is_refused(self, name):
    pattern = f"DIR/photos holds '{re.escape(name)}', a name that leads out of the archive"
    self.refused(pattern, {'a.png': PNG, name: PNG}, pack=folders.write_tar)

  def test_a_tar_that_is_cut_off_is_refused(self):
    path = pathlib.Path(folders.write_tar(self.path, {'a.png': PNG, 'b.png': bytes(5000)}))
    path.write_bytes(path.read_bytes()[:3000])
    self.refused(r'DIR/photos is neither a folder nor a \.zip or \.tar that can be read \(unexpected end of data\)')

  @parameterized.parameters(zipfile.ZIP_STORED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
  def test_every_method_of_packing_is_read(self, method):
    found = self.take({'a.png': PNG}, pack=lambda *args: folders.write_zip(*args, compression=method))
    self.assertEqual(found.read('a.png'), PNG)

  def test_zip64_is_read(self):
    with zipfile.ZipFile(self.path, 'w') as archive, archive.open('a.png', 'w', force_zip64=True) as file:
      file.write(PNG)
    self.assertEqual(self.take().read('a.png'), PNG)

  def test_an_entry_with_a_wrong_checksum_cannot_be_read(self):
    path = pathlib.Path(folders.write_zip(self.path, {'a.png': PNG}, zipfile.ZIP_STORED))
    path.write_bytes(path.read_bytes().replace(PNG, PNG[:-1] + b'!'))
    found = self.take()
    with self.assertRaisesRegex(zipfile.BadZipFile, 'CRC'):
      found.read('a.png')

  def test_files_too_large_for_an_image_are_not_read(self):
    with mock.patch.object(decode, 'MAX_BYTES', len(PNG)):
      for pack in (folders.write, folders.write_zip, folders.write_tar):
        path = pack(f'{self.path} {pack.__name__}', {'a.png': PNG, 'b.png': PNG + b'!'})
        found = self.take(path=path)
        self.assertEqual(self.used(found), ['a.png'])
        self.assertEqual(found.files[1].left_out, f'damaged: {len(PNG) + 1} bytes are more than {len(PNG)}')

  def test_a_tar_that_unpacks_to_many_times_its_size_is_refused(self):
    with mock.patch.object(archives, '_SUSPICIOUS_BYTES', 0), mock.patch.object(archives, '_SUSPICIOUS_RATIO', 0.01):
      self.refused('DIR/photos has 10240 bytes but unpacks to', {'a.png': PNG}, pack=folders.write_tar)

  def test_control_characters_never_reach_the_terminal(self):
    odd = '\x1b[31m\r\nred\u202e'
    shown = r'\x1b[31m\r\nred\u202e'
    said = self.said({f'{odd}.png': PNG, f'train/{odd}.jpg': JPEG, 'test/a.png': PNG, f'b.{odd}': b'x'})
    self.assertIn(f'({shown}.png)', said)
    self.assertTrue(said.replace('\n', '').isprintable())
    self.refused(
      rf"DIR/photos{re.escape(shown)} holds '\.\./{re.escape(shown)}'",
      {f'../{odd}': PNG},
      pack=lambda path, contents: folders.write_zip(path + odd, contents),
    )
    self.refused(rf'DIR/none{re.escape(shown)} does not exist', path=f'{self.root}/none{odd}')

  # A share that goes away.

  def test_a_share_that_goes_away_while_it_is_listed_is_said_so(self):
    folders.write(self.path, dict.fromkeys(('a.png', 'b.png'), PNG))
    stat = os.stat

    def gone(path, **kwargs):
      if os.path.basename(path) == 'b.png':
        os.rename(self.path, self.path + ' away')
        os.mkdir(self.path)
      return stat(path, **kwargs)

    with mock.patch.object(os, 'stat', gone):
      self.refused(
        r'b\.png in DIR/photos was there, but cannot be read any more \(No such file or directory\): see that'
      )

  @parameterized.parameters('Input/output error', 'Stale file handle', 'Transport endpoint is not connected')
  def test_errors_of_the_disk_are_not_taken_for_damaged_images(self, words):
    number = next(n for n in range(1, 140) if os.strerror(n) == words)
    folders.write(self.path, {'a.png': PNG})
    found = self.take()
    error = OSError(number, words)
    with mock.patch('builtins.open', side_effect=error):
      self.refused(rf'a\.png in DIR/photos was there, but cannot be read any more \({words}\): see that the disk')
      with self.assertRaisesRegex(UserError, rf'a\.png in .* cannot be read any more \({words}\)'):
        found.read('a.png')

  def test_a_folder_that_cannot_be_listed_is_refused(self):
    folders.write(self.path, {'a.png': PNG, 'b/c.png': PNG})
    scan = os.scandir

    def fail(path):
      if str(path).endswith('b'):
        raise PermissionError(13, 'Permission denied')
      return scan(path)

    with mock.patch.object(os, 'scandir', fail):
      self.refused(r'DIR/photos/b cannot be listed \(Permission denied\): allow it to be read, or remove it')

  def test_a_slow_share_is_listed_side_by_side_and_not_in_silence(self):
    folders.write(self.path, {f'{n}.png': PNG for n in range(100)})
    stat = os.stat

    lock, now, most = threading.Lock(), 0, 0

    def slow(path, **kwargs):
      nonlocal now, most
      with lock:
        now += 1
        most = max(most, now)
      time.sleep(0.01)
      with lock:
        now -= 1
      return stat(path, **kwargs)

    logging.getLogger('diffusion_ebm').setLevel(logging.INFO)
    with (
      mock.patch.object(os, 'stat', slow),
      mock.patch.object(inventory, '_CHUNK', 5),
      mock.patch('diffusion_ebm.run.progress._SECONDS_BETWEEN_LINES', 0.02),
      self.assertLogs('diffusion_ebm', 'INFO') as logs,
    ):
      self.take()
    self.assertGreater(most, 4)
    self.assertRegex('\n'.join(logs.output), r'looking at files \d+/100 files, 00:\d\d left')


class FingerprintTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.path = os.path.join(self.enterContext(tempfile.TemporaryDirectory()), 'photos')
    folders.write(self.path, {'train/a.png': PNG, 'train/b.png': JPEG, 'test/c.png': PNG, 'notes.txt': b'x'})

  def of(self, split='train', path=None):
    return inventory.fingerprint(inventory.take(folders.section(path or self.path), split).of(split))

  def test_it_is_the_same_while_nothing_changes_and_of_each_split(self):
    self.assertEqual(self.of(), self.of())
    self.assertNotEqual(self.of('test'), self.of('train'))
    folders.write(self.path, {'notes.txt': b'more', 'test/d.png': PNG})
    before = self.of()
    folders.write(self.path, {'test/e.png': PNG})
    self.assertEqual(self.of(), before)

  def test_it_changes_with_names_sizes_and_times(self):
    seen = {self.of()}
    path = os.path.join(self.path, 'train', 'a.png')
    os.utime(path, ns=(0, os.stat(path).st_mtime_ns + 1000))
    seen.add(self.of())
    os.rename(path, os.path.join(self.path, 'train', 'z.png'))
    seen.add(self.of())
    folders.write(self.path, {'train/x.png': PNG})
    seen.add(self.of())
    os.remove(os.path.join(self.path, 'train', 'x.png'))
    os.remove(os.path.join(self.path, 'train', 'z.png'))
    seen.add(self.of())
    self.assertLen(seen, 5)

  def test_in_a_zip_it_changes_with_the_content(self):
    one, two = PNG[:-1] + b'\0', PNG[:-1] + b'\1'
    with mock.patch('time.time', return_value=1_700_000_000):
      paths = [folders.write_zip(f'{self.path}{n}.zip', {'a.png': each}) for n, each in enumerate((one, two, one))]
    first, second, third = (self.of(path=path) for path in paths)
    self.assertNotEqual(first, second)
    self.assertEqual(first, third)


if __name__ == '__main__':
  absltest.main()
