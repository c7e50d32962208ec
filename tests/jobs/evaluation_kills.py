"""Kills evaluation jobs at random moments and starts them again: `python -m tests.jobs.evaluation_kills --kills=20`."""

import argparse
import json
import multiprocessing
import os
import shutil
import tempfile
import time
from unittest import mock

import numpy as np

from diffusion_ebm.evaluate import results
from diffusion_ebm.jobs import evaluate
from diffusion_ebm.run import checkpoints
from tests import testing

_STEPS = (1, 2, 3, 4)


def eval_config(**changes):
  """Digits in pixels, 30 samples; `changes` are of the `eval` section."""
  config = testing.digits_config()
  config.sampling.batch_size = 15
  config.eval.update(
    {'extractor': 'pixels', 'num_samples': 30, 'batch_size': 512, 'baselines': False, 'max_wait_minutes': 0.0} | changes
  )
  return config


def records(workdir):
  """What is in `eval/results.jsonl`."""
  return results.read(os.path.join(workdir, 'eval', 'results.jsonl'))


def polling_often():
  """As if a look for new checkpoints cost nothing."""
  return mock.patch.object(evaluate, '_POLL_SECONDS', 0.05)


def run_job(workdir, changes=()):
  """An evaluation in a process of its own."""
  with polling_often():
    evaluate.run(eval_config(**dict(changes)), workdir)


def check_done(workdir):
  """Each checkpoint has one whole record and its pictures, and the report shows them all."""
  steps = checkpoints.steps(workdir)
  assert sorted(record['step'] for record in records(workdir)) == steps, records(workdir)
  with open(os.path.join(workdir, 'eval', 'results.jsonl'), encoding='utf-8') as file:
    assert all(json.loads(line)['fid'] > 0 for line in file if line.endswith('}\n'))
  with open(os.path.join(workdir, 'eval', 'report.html'), encoding='utf-8') as file:
    page = file.read()
  for step in steps:
    assert f'<td>step {step}</td>' in page, step
    for name in ('samples', 'neighbours'):
      assert os.path.getsize(os.path.join(workdir, 'eval', f'{name}_{step}.png')) > 0, (name, step)


def kill_loop(workdir: str, kills: int, seed: int = 0, **changes) -> list[int]:
  """Evaluates a workdir with jobs that are killed (SIGKILL) at random moments, and checks what is left of each.

  Args:
    workdir: gets a run with checkpoints of a network that has not learned anything.
    kills: jobs that are killed; when all checkpoints are scored, the results are checked, thrown away and made again.
    seed: of the moments, which are uniform over the time that a job takes if nobody kills it.
    changes: of the `eval` section of the configuration.

  Returns:
    The number of records that were there at each kill.
  """
  context = multiprocessing.get_context('forkserver')  # jobs that need not import everything again
  context.set_forkserver_preload(['tests.jobs.evaluation_kills'])
  rng, there = np.random.default_rng(seed), []
  for step in _STEPS:
    testing.save_first_state(testing.digits_config(checkpoint_every=1), workdir, step)

  def start():
    job = context.Process(target=run_job, args=(workdir, changes))
    job.start()
    return job

  def finish():
    before = records(workdir)
    job = start()
    job.join()
    assert job.exitcode == 0, job.exitcode
    assert records(workdir)[: len(before)] == before, 'a record was changed'
    check_done(workdir)
    shutil.rmtree(os.path.join(workdir, 'eval'))

  finish()
  began = time.monotonic()
  finish()
  duration = time.monotonic() - began
  while len(there) < kills:
    before = records(workdir)
    job = start()
    job.join(rng.uniform(0, duration))
    if job.exitcode is None:
      job.kill()
      job.join()
      there.append(len(records(workdir)))
      assert records(workdir)[: len(before)] == before, 'a record was changed'
    if len(records(workdir)) == len(_STEPS):
      finish()
  if os.path.exists(os.path.join(workdir, 'eval')):
    finish()
  return there


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--kills', type=int, default=20)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--baselines', action='store_true', help='score the baselines too')
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as workdir:
    there = kill_loop(workdir, args.kills, args.seed, baselines=args.baselines)
  print(f'{args.kills} kills: nothing lost, nothing done twice; records at each kill: {there}')


if __name__ == '__main__':
  main()
