"""Runs on a folder of images: what they keep of it, and what they read of it."""

import contextlib
import io
import json
import os
import shutil
import tempfile
from unittest import mock

from absl.testing import absltest
import numpy as np
from PIL import Image

from diffusion_ebm import config as config_lib
from diffusion_ebm.data import images
from diffusion_ebm.jobs import evaluate, sample, train
from diffusion_ebm.run.errors import UserError
from tests import testing
from tests.data import folders


class OwnImagesTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.root = os.path.realpath(self.enterContext(tempfile.TemporaryDirectory()))
    self.path, self.workdir = os.path.join(self.root, 'photos'), os.path.join(self.root, 'run')
    contents = {f'train/{n}.png': folders.encode(n) for n in range(12)}
    folders.write(self.path, contents | {f'test/{n}.png': folders.encode(100 + n) for n in range(10)})

  @contextlib.contextmanager
  def said(self):
    """What is logged in the context, a line each."""
    lines = []
    with self.assertLogs('diffusion_ebm', 'INFO') as logs:
      yield lines
    lines += [record.getMessage() for record in logs.records]

  def train(self, num_steps=1, path=None, workdir=None, **data):
    """Starts a training that ends before anything is compiled; what is logged."""
    config = testing.images_config(path or self.path, num_steps=num_steps, sample_every=100, checkpoint_every=1)
    config.data.update(data)
    stop = mock.patch.object(train, 'compile_step', side_effect=InterruptedError)
    with self.said() as lines, stop, contextlib.suppress(InterruptedError):
      train.run(config, workdir or self.workdir)
    return lines

  def test_what_is_trained_on_is_kept_and_changes_are_named_once_each_start(self):
    lines = self.train()
    self.assertIn('12 training images, 4x4', lines)
    before = testing.contents(os.path.join(self.workdir, 'data'))
    self.assertCountEqual(before, ['files.csv', 'summary.json', 'training_images.png'])
    with Image.open(os.path.join(self.workdir, 'data', 'training_images.png')) as picture:
      self.assertGreater(np.asarray(picture).std(), 10)
    with open(os.path.join(self.workdir, 'data', 'summary.json'), encoding='utf-8') as file:
      self.assertEqual(json.load(file)['path'], self.path)
    self.assertNotIn('since the run began', '\n'.join(self.train(2)))
    folders.write(self.path, {'train/new.png': folders.encode(50), 'train/3.png': folders.encode(51)})
    os.remove(os.path.join(self.path, 'train', '5.png'))
    for num_steps in (3, 4):
      lines = [line for line in self.train(num_steps) if 'since the run began' in line]
      self.assertEqual(
        lines,
        [
          'since the run began: 1 image added (train/new.png), 1 image removed (train/5.png), 1 image changed '
          '(train/3.png)'
        ],
      )
    self.assertEqual(testing.contents(os.path.join(self.workdir, 'data')), before)

  def test_a_run_on_a_built_in_set_keeps_a_picture(self):
    for config in (testing.digits_config(num_steps=1), testing.toy2d_config(num_steps=1)):
      workdir = os.path.join(self.root, config.data.name)
      with mock.patch.object(train, '_train'):
        train.run(config, workdir)
      self.assertCountEqual(os.listdir(os.path.join(workdir, 'data')), ['summary.json', 'training_images.png'])

  @testing.long
  def test_a_disk_without_room_for_it_does_not_end_the_run(self):
    with mock.patch('diffusion_ebm.data.kept.keep', side_effect=OSError(28, 'No space left on device')):
      lines = self.train()
    self.assertIn('a file could not be written (No space left on device): free space; going on', lines)

  def test_going_on_from_another_folder_trains_on_the_same_images(self):
    before = os.getcwd()
    self.addCleanup(os.chdir, before)
    os.chdir(self.root)
    self.train(path='photos')
    config = config_lib.load(self.workdir)
    self.assertEqual(config.data.path, self.path)
    elsewhere = folders.write(os.path.join(self.root, 'elsewhere'), {'photos/train/x.png': folders.encode()})
    os.chdir(elsewhere)
    with self.said() as lines, mock.patch.object(train, '_train'):
      train.run(config, self.workdir)
    self.assertIn('12 training images, 4x4', lines)

  @testing.long
  def test_a_run_in_the_folder_of_its_images_reads_no_results(self):
    os.rename(os.path.join(self.path, 'train'), os.path.join(self.path, 'cats'))
    shutil.rmtree(os.path.join(self.path, 'test'))
    workdir = os.path.join(self.path, 'run')
    for num_steps in (1, 2, 3):
      lines = self.train(num_steps, workdir=workdir)
      self.assertIn('12 training images, 4x4', lines)
      if num_steps > 1:
        self.assertIn(f'{self.path}: run is the workdir of a run, whose images are not data', lines)
    self.assertNotIn('since the run began', '\n'.join(lines))

  def test_images_in_the_folder_data_of_the_workdir_stay_alone(self):
    path = os.path.join(self.workdir, 'data')
    shutil.copytree(os.path.join(self.path, 'train'), path)
    for num_steps in (1, 2):
      self.assertIn('12 training images, 4x4', self.train(num_steps, path=path))

  def test_the_workdir_is_not_the_folder_of_the_images(self):
    with self.assertRaisesRegex(UserError, r'\A--workdir=.*photos is the folder of the images, which would be mixed'):
      self.train(workdir=self.path)
    self.assertCountEqual(os.listdir(self.path), ['train', 'test'])

  def test_the_split_for_testing_may_change_and_the_fraction_may_not(self):
    self.train()
    self.train(2, test_split='later')
    with self.assertRaisesRegex(UserError, r'data\.test_fraction \(0\.0 there, 0\.1 here\)'):
      self.train(3, test_split='', test_fraction=0.1)

  def test_few_images_are_remarked_on(self):
    said = '\n'.join(self.train())
    self.assertNotIn('more than once', said)
    for count, said in ((3, 'a batch of 8 holds each of the 3 examples more than once'), (1, 'there is one example')):
      path = os.path.join(self.root, f'few {count}')
      folders.write(path, {f'{n}.png': folders.encode(n) for n in range(count)})
      lines = self.train(path=path, workdir=os.path.join(self.root, f'run {count}'))
      self.assertIn(said, '\n'.join(lines))

  @testing.long
  def test_sampling_decodes_what_it_shows(self):
    folders.write(self.path, {f'train/more {n}.png': folders.encode(n) for n in range(50)})
    config = testing.images_config(self.path)
    os.mkdir(self.workdir)
    testing.save_first_state(config, self.workdir)
    with mock.patch.object(images, 'decode', wraps=images.decode) as decode:
      sample.run(config, self.workdir)
    self.assertBetween(decode.call_count, 1, 5)
    self.assertTrue(os.path.exists(os.path.join(self.workdir, 'samples', 'samples_0_levels.png')))

  @testing.long
  def test_sampling_does_without_the_images(self):
    config = testing.images_config(self.path)
    os.mkdir(self.workdir)
    testing.save_first_state(config, self.workdir)
    shutil.rmtree(self.path)
    with self.assertLogs('diffusion_ebm', 'WARNING') as logs:
      sample.run(config, self.workdir)
    self.assertIn('photos does not exist', logs.output[0])
    names = ['samples_0.json', 'samples_0.npz', 'samples_0.png']
    self.assertCountEqual(os.listdir(os.path.join(self.workdir, 'samples')), names)

  @testing.long
  def test_replaced_test_images_are_scored_anew(self):
    config = testing.images_config(self.path, num_steps=1)
    config.eval.update({'num_samples': 20, 'extractor': 'pixels', 'split': 'test', 'max_wait_minutes': 0.0})
    os.mkdir(self.workdir)
    testing.save_first_state(config, self.workdir, 1)

    def score(workdir):
      evaluate.run(config, workdir)
      with open(os.path.join(workdir, 'eval', 'results.jsonl'), encoding='utf-8') as file:
        return [json.loads(line) for line in file]

    (first,) = score(self.workdir)
    self.assertLen(score(self.workdir), 1)  # nothing has changed: scored already
    buffer = io.BytesIO()
    Image.new('RGB', (4, 4), (255, 0, 0)).save(buffer, 'PNG')
    red = buffer.getvalue()
    folders.write(self.path, {f'test/{n}.png': red for n in range(10)})
    *_, again = score(self.workdir)
    fresh = os.path.join(self.root, 'fresh')
    os.mkdir(fresh)
    testing.save_first_state(config, fresh, 1)
    (expected,) = score(fresh)
    self.assertNotEqual(first['settings'], again['settings'])
    self.assertEqual(again['fid'], expected['fid'])
    self.assertEqual(again['baselines'], expected['baselines'])
    self.assertNotAlmostEqual(first['fid'], again['fid'], places=3)


if __name__ == '__main__':
  absltest.main()
