"""Tables that a job fills in row by row."""

import os
import tempfile
from typing import NamedTuple

from absl.testing import absltest

from diffusion_ebm.run import table
from diffusion_ebm.run.errors import UserError


class Row(NamedTuple):
  whole: int
  number: float | None
  truth: bool


class TableTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.path = os.path.join(self.enterContext(tempfile.TemporaryDirectory()), 'table.csv')

  def test_what_is_written_is_read(self):
    rows = [Row(1, 0.1 + 0.2, True), Row(-2, None, False), Row(0, 1e-300, True)]
    table.write(self.path, rows)
    self.assertEqual(table.read(self.path, Row), rows)
    with open(self.path, encoding='utf-8') as file:
      self.assertEqual(file.readline(), 'whole,number,truth\n')

  def test_no_file_has_no_rows(self):
    self.assertEqual(table.read(self.path, Row), [])

  def test_damaged_files_are_named(self):
    for text in ('whole,number\n1,2\n', 'whole,number,truth\n1,x,True\n', 'whole,number,truth\n1,2,True,4\n', '\0\n'):
      with open(self.path, 'w', encoding='utf-8') as file:
        file.write(text + '1\n' if text == '\0\n' else text)
      with self.subTest(text), self.assertRaisesRegex(UserError, r'table\.csv cannot be read .*: delete it'):
        table.read(self.path, Row)


if __name__ == '__main__':
  absltest.main()
