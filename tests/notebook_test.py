"""The notebook, from top to bottom, with a few steps of everything; and as it is committed."""

import os
import tempfile
from unittest import mock

from absl.testing import absltest
import nbclient
import nbformat

from tests import forks, testing

_PATH = os.path.join(testing.ROOT, 'notebooks', 'quickstart.ipynb')


class QuickstartTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.notebook = nbformat.read(_PATH, as_version=4)
    self.code = [cell for cell in self.notebook.cells if cell.cell_type == 'code']

  @testing.long
  def test_it_runs_from_top_to_bottom(self):
    workdir = self.enterContext(tempfile.TemporaryDirectory())
    for cell in self.code:
      cell.outputs = []
    client = nbclient.NotebookClient(
      self.notebook, timeout=600, resources={'metadata': {'path': os.path.dirname(_PATH)}}
    )
    quick = {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': forks.QUICK}
    with mock.patch.dict(os.environ, {'QUICKSTART_SHORT': '1', 'QUICKSTART_DIR': workdir} | quick):
      client.execute()  # raises with the cell's own error
    self.assertCountEqual(os.listdir(workdir), ['toy2d', 'digits', 'digits_classes'])
    self.assertEqual(self.pictures(), 11)

  def test_it_is_committed_with_its_outputs(self):
    self.assertLess(os.path.getsize(_PATH), 1.5e6)
    self.assertEqual([cell.execution_count for cell in self.code], list(range(1, len(self.code) + 1)))
    self.assertEqual(self.pictures(), 11)
    self.assertFalse([out for cell in self.code for out in cell.outputs if out.output_type == 'error'])

  def pictures(self):
    return sum('image/png' in out.get('data', {}) for cell in self.code for out in cell.outputs)


if __name__ == '__main__':
  absltest.main()
