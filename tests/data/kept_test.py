"""What a run keeps of its data, and what a later start says of it."""

import csv
import json
import os
import shutil
import tempfile

from absl.testing import absltest
import numpy as np

from diffusion_ebm.data import kept, load_source
from diffusion_ebm.run import files
from tests import testing
from tests.data import folders

PNG, JPEG = folders.encode(), folders.encode(format_='JPEG')
PICTURE = np.zeros((2, 2, 3), np.uint8)


class KeptTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.root = self.enterContext(tempfile.TemporaryDirectory())
    self.path, self.folder = os.path.join(self.root, 'photos'), os.path.join(self.root, 'data')
    os.mkdir(self.folder)
    folders.write(self.path, {f'train/{n}.png': PNG for n in range(5)} | {'test/t.png': PNG, 'notes.txt': b'x'})

  def load(self, **changes):
    return load_source(folders.section(self.path, **changes), 'train')

  def keep(self):
    kept.keep(self.folder, self.load(), 'images', PICTURE)

  def changes(self, **changes):
    return kept.changes(self.folder, self.load(**changes))

  def test_files_and_their_summary_are_written(self):
    folders.write(self.path, {'train/bad.png': b'', 'train/odd \udcff\n.png': PNG})
    self.assertFalse(kept.is_kept(self.folder))
    self.keep()
    self.assertTrue(kept.is_kept(self.folder))
    self.assertCountEqual(os.listdir(self.folder), ['files.csv', 'summary.json', 'training_images.png'])
    with open(os.path.join(self.folder, 'files.csv'), encoding='utf-8', errors='surrogateescape', newline='') as file:
      rows = {row['name']: row for row in csv.DictReader(file)}
    self.assertLen(rows, 9)
    self.assertEqual((rows['train/0.png']['kind'], rows['train/0.png']['split']), ('PNG', 'train'))
    self.assertEqual((rows['test/t.png']['split'], rows['test/t.png']['left_out']), ('test', ''))
    self.assertEqual(rows['notes.txt']['left_out'], 'not an image')
    self.assertStartsWith(rows['train/bad.png']['left_out'], 'damaged: empty')
    self.assertIn('train/odd \udcff\n.png', rows)
    summary = files.read_json(os.path.join(self.folder, 'summary.json'))
    self.assertEqual((summary['path'], summary['examples'], summary['test_images']), (self.path, 6, 1))
    self.assertEqual(summary['train']['left_out'], {'damaged': 1, '.txt': 1})
    self.assertEqual(self.changes(), '')

  def test_nothing_is_said_while_nothing_changes(self):
    self.keep()
    self.assertEqual(self.changes(), '')
    # Other files are not the data, a damaged one that stays so is nothing new, nor is another way to read them.
    folders.write(self.path, {'more.txt': b'x', '.hidden.png': PNG})
    self.assertEqual(self.changes(max_memory_gb=1e-9), '')

  def test_what_is_added_removed_and_changed_is_named(self):
    self.keep()
    os.remove(os.path.join(self.path, 'train', '1.png'))
    folders.write(self.path, {'train/2.png': JPEG} | {f'train/new {n}.png': PNG for n in range(4)})
    self.assertEqual(
      self.changes(),
      'since the run began: 4 images added (train/new 0.png, train/new 1.png, train/new 2.png, ...), 1 image removed '
      '(train/1.png), 1 image changed (train/2.png)',
    )
    folders.write(self.path, {'test/t.png': JPEG})
    self.assertIn('2 images changed (test/t.png, train/2.png)', self.changes())

  def test_the_same_size_at_another_time_is_a_change(self):
    self.keep()
    path = os.path.join(self.path, 'train', '3.png')
    os.utime(path, ns=(0, os.stat(path).st_mtime_ns + 1_000_000))
    self.assertEqual(self.changes(), 'since the run began: 1 image changed (train/3.png)')

  def test_copies_are_known_as_such(self):
    self.keep()
    shutil.copytree(self.path, self.path + ' copy', copy_function=shutil.copyfile)
    self.path += ' copy'
    self.assertEqual(
      self.changes(),
      'since the run began, all images got another time of change, but no other name or size: are they copies?',
    )
    shutil.rmtree(self.path)
    shutil.copytree(self.path.removesuffix(' copy'), self.path)  # with their times
    self.assertEqual(self.changes(), '')

  def test_what_cannot_be_read_is_said_in_a_line(self):
    self.keep()
    folders.write(self.path, {'train/2.png': JPEG})
    for name, content in (('files.csv', b'nothing'), ('summary.json', b'{'), ('summary.json', b'[]')):
      folders.write(self.folder, {name: content})
      self.assertRegex(self.changes(), r'\Awhether the images are those of the first start is not known: .*data cannot')

  def test_built_in_sets_do_not_change(self):
    source = load_source(testing.digits_config().data, 'train')
    kept.keep(self.folder, source, 'digits', PICTURE)
    self.assertCountEqual(os.listdir(self.folder), ['summary.json', 'training_images.png'])
    with open(os.path.join(self.folder, 'summary.json'), encoding='utf-8') as file:
      expected = {'name': 'digits', 'examples': 1437, 'shape': [8, 8, 1], 'classes': [*'0123456789']}
      self.assertEqual(json.load(file), expected)
    self.assertEqual(kept.changes(self.folder, source), '')

  def test_names_cannot_reach_the_terminal(self):
    self.keep()
    folders.write(self.path, {'train/\x1b[2J\n.png': PNG})
    self.assertEqual(self.changes(), r'since the run began: 1 image added (train/\x1b[2J\n.png)')


if __name__ == '__main__':
  absltest.main()
