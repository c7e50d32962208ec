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
  path = os.path.join(workdir, 'density', 'results.json')
  try:
    with open(path, encoding='utf-8') as file:
      record = json.load(file)
    found, entry = record['step'], record['log_z'][0]
  except (FileNotFoundError, NotADirectoryError):
    found = None
  except (OSError, ValueError, LookupError) as error:
    raise UserError(f'{path} cannot be read ({error}): run --mode=density again') from error
  if found != step:
    known = '' if found is None else f' (only of step {found})'
    raise UserError(f'log Z of step {step} is not known{known}: run --mode=density --workdir={workdir} --step={step}')
  return {key: entry[key] for key in ('log_z', 'lower', 'upper')}
