"""A script: runs the Python blocks of pages, and prints what they say and what is so.

It imports nothing of the project, so that the examples find only what is installed.
"""

import ast
import json
import re
import sys


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


def main(paths):
  found = []
  for path in paths:
    with open(path, encoding='utf-8') as file:
      blocks = re.findall(r'^```python\n(.*?)^```$', file.read(), re.DOTALL | re.MULTILINE)
    names = {}
    found.append([pair for block in blocks for pair in run(block, names)])
  print(json.dumps(found))


if __name__ == '__main__':
  main(sys.argv[1:])
