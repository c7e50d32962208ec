"""Names for results: those of other inputs are never overwritten."""

import concurrent.futures
import json
import os
import tempfile
import time
from unittest import mock

from absl.testing import absltest

from diffusion_ebm.run import files, workdir


class ClaimTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = self.enterContext(tempfile.TemporaryDirectory())

  def path(self, name):
    return os.path.join(self.folder, name)

  def claim(self, *suffixes, **inputs):
    return workdir.claim(self.folder, 'x_7', inputs, suffixes)

  def test_equal_inputs_have_the_same_name_and_others_a_number(self):
    self.assertEqual(self.claim(a=1, b=(2, 3)), self.path('x_7'))
    self.assertEqual(files.read_json(self.path('x_7.json')), {'inputs': {'a': 1, 'b': [2, 3]}})
    with self.assertNoLogs('diffusion_ebm', 'INFO'):
      self.assertEqual(self.claim(b=(2, 3), a=1), self.path('x_7'))
    with self.assertLogs('diffusion_ebm', 'INFO') as logs:
      self.assertEqual(self.claim(a=1, b=(2, 4)), self.path('x_7_2'))
    self.assertEqual(logs.records[0].getMessage(), 'x_7 holds results of other inputs (b): these are in x_7_2')
    self.assertEqual(self.claim(a=2, b=(2, 4)), self.path('x_7_3'))
    self.assertEqual(self.claim(a=1, b=(2, 4)), self.path('x_7_2'))
    files.write_json(self.path('x_7_2.json'), {'inputs': {'a': 1, 'b': [2, 4]}, 'result': 5})
    self.assertEqual(self.claim(a=1, b=(2, 4)), self.path('x_7_2'))
    self.assertEqual(files.read_json(self.path('x_7_2.json'))['result'], 5)

  def test_what_does_not_say_its_inputs_is_left_alone(self):
    for number, (suffix, content) in enumerate(
      (('', ''), ('.npz', ''), ('.json', '{'), ('.json', '[]'), ('.json', '{"inputs": 1}'), ('_more.png', ''))
    ):
      with self.subTest(suffix + content):
        name = f'old_{number}'
        with open(self.path(name + suffix), 'w', encoding='utf-8') as file:
          file.write(content)
        expected = self.path(f'{name}_2' if suffix else name)  # without a suffix it is no result
        for _ in range(2):
          self.assertEqual(workdir.claim(self.folder, name, {'a': 1}, ('.npz', '_more.png')), expected)
        with open(self.path(name + suffix), encoding='utf-8') as file:
          self.assertEqual(file.read(), content)

  def test_jobs_that_choose_at_the_same_moment_get_names_of_their_own(self):
    write = files.write_json

    def write_slowly(*args):
      time.sleep(0.05)  # as long as the others need to look
      write(*args)

    with mock.patch.object(files, 'write_json', write_slowly), concurrent.futures.ThreadPoolExecutor(8) as pool:
      bases = list(pool.map(lambda n: workdir.claim(self.folder, 'x', {'number': n % 10}), range(40)))
    self.assertLen(set(bases), 10)
    for n, base in enumerate(bases):
      with open(f'{base}.json', encoding='utf-8') as file:
        self.assertEqual(json.load(file), {'inputs': {'number': n % 10}})

  def test_a_name_becomes_one_that_file_systems_and_shells_take(self):
    self.assertEqual(workdir.file_name('ood', '7_seed1', 'a/b c', 'my+photos.zip'), 'ood_7_seed1_a_b_c_my+photos.zip')
    self.assertEqual(workdir.file_name('$(x)', '\x1b[2J', "'"), '_x___2J__')
    self.assertLessEqual(len(workdir.file_name('猫' * 300).encode()), 160)


if __name__ == '__main__':
  absltest.main()
