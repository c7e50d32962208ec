"""The examples in docs/, on a tiny run: what stands behind an expression as a comment is its value."""

import ast
import json
import os
import re
import tempfile

from absl.testing import absltest

from configs import digits
from tests import testing


def examples(name):
  """The Python blocks of a page."""
  with open(os.path.join(testing.ROOT, 'docs', name), encoding='utf-8') as file:
    return re.findall(r'^```python\n(.*?)^```$', file.read(), re.DOTALL | re.MULTILINE)


def run(block, names):
  """Runs a block; returns `(what it says, what is so)` for each expression with a comment."""
  lines, checked = block.splitlines(), []
  for statement in ast.parse(block).body:
    _, hash_mark, expected = lines[statement.end_lineno - 1].partition('  # ')
    if isinstance(statement, ast.Expr) and hash_mark:
      checked.append((expected, repr(eval(ast.unparse(statement), names))))
    else:
      exec(compile(ast.Module([statement], []), 'example', 'exec'), names)
  return checked


@testing.long
class DocsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.addCleanup(os.chdir, os.getcwd())
    os.chdir(folder)
    os.makedirs('runs/digits/density')
    config = digits.get_config()
    config.model.update({'ch': 8, 'ch_mult': (1,)})
    config.sampling.update({'num_steps': 2, 'generation_steps': 2})
    testing.save_first_state(config, 'runs/digits')
    with open('runs/digits/density/results.json', 'w', encoding='utf-8') as file:
      json.dump({'step': 0, 'log_z': [{'level': 0, 'log_z': 1.0}]}, file)

  def test_examples_say_what_is_so(self):
    for name, least in (('api.md', 15), ('tuning.md', 1), ('../README.md', 0)):
      names, checked = {}, []
      for block in examples(name):
        checked += run(block, names)
      self.assertEqual([said for said, _ in checked], [found for _, found in checked], name)
      self.assertGreaterEqual(len(checked), least)


if __name__ == '__main__':
  absltest.main()
