"""The file that keeps what the density job found."""

import json
import os

from diffusion_ebm.errors import UserError


def write(folder: str, record: dict):
  """Writes `results.json`, whole or not at all."""
  path = os.path.join(folder, 'results.json')
  with open(path + '.tmp', 'w', encoding='utf-8') as file:
    json.dump(record, file, indent=2)
    file.write('\n')
  os.replace(path + '.tmp', path)


def read(workdir: str, extract):
  """What the density job kept in a workdir.

  Args:
    workdir: of the run.
    extract: from the record to what is wanted of it.

  Returns:
    What `extract` returned; None where the job has not been run.

  Raises:
    UserError: the file cannot be read, or does not hold what is wanted.
  """
  path = os.path.join(workdir, 'density', 'results.json')
  try:
    with open(path, encoding='utf-8') as file:
      return extract(json.load(file))
  except (FileNotFoundError, NotADirectoryError):
    return None
  except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
    raise UserError(f'{path} cannot be read ({error}): run --mode=density again') from error


def load_log_z(workdir: str, step: int) -> dict:
  """Log Z of the cleanest level of a checkpoint.

  Args:
    workdir: of the run.
    step: the checkpoint's.

  Returns:
    `log_z`, `lower` and `upper`, in nats, of `exp(F(y, 0))`.

  Raises:
    UserError: the density job has not been run for that checkpoint.
  """
  found, entry = read(workdir, lambda record: (record['step'], record['log_z'][0])) or (None, None)
  if found != step:
    known = '' if found is None else f' (only of step {found})'
    raise UserError(f'log Z of step {step} is not known{known}: run --mode=density --workdir={workdir} --step={step}')
  return {key: entry[key] for key in ('log_z', 'lower', 'upper')}
