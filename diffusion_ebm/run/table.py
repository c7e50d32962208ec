"""Tables that a job fills in row by row: a .csv that is whole at every moment, and read again by who goes on."""

import ast
import csv
import io

from diffusion_ebm.run import files
from diffusion_ebm.run.errors import UserError


def write(path, rows: list):
  """Writes rows of one kind of named tuple, under the names of their fields; None as an empty cell."""
  text = io.StringIO()
  csv.writer(text, lineterminator='\n').writerows([rows[0]._fields, *rows])
  files.write_text(path, text.getvalue())


def read(path, row: type) -> list:
  """The rows of a file that `write` made of named tuples `row`, of numbers and truth values; [] if there is none.

  Raises:
    UserError: the file is damaged.
  """
  try:
    with open(path, newline='', encoding='utf-8') as file:
      return [
        row(**{name: ast.literal_eval(text) if text else None for name, text in each.items()})
        for each in csv.DictReader(file)
      ]
  except FileNotFoundError:
    return []
  except (ValueError, TypeError, SyntaxError, csv.Error) as error:
    raise UserError(f'{path} cannot be read ({error}): delete it to start again') from error
