"""Many command lines of main.py without many starts: forks of one process that has imported what takes long.

The number of devices is fixed when JAX starts, so each fork has its own.
"""

import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from unittest import mock

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


# Quick compilation, for processes whose programs are small: a quarter of the time, and neither flag alone does much.
QUICK = '--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false'
# Options of a program that runs for longer than it takes to compile.
OPTIMIZED = {'xla_backend_optimization_level': 3, 'xla_cpu_use_fusion_emitters': True}


def xla_flags(devices):
  """So many devices, and quick compilation."""
  return f'--xla_force_host_platform_device_count={devices} {QUICK}'


def run(waves):
  """Runs command lines; those of a wave at the same time.

  Args:
    waves: lists of `{'args': [...]}`, the arguments of main.py, with `devices`: how many the process has (1), and
      `term_at`: the step after which it sends itself SIGTERM (none).

  Returns:
    For each wave the `(exit code, stderr)` of each command.
  """
  result = subprocess.run(
    [sys.executable, '-m', 'tests.forks'],
    input=json.dumps(waves),
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
  )
  if result.returncode:
    raise AssertionError(result.stderr)
  return [[tuple(each) for each in wave] for wave in json.loads(result.stdout.splitlines()[-1])]


def _start(command):
  log = tempfile.TemporaryFile('w+')  # noqa: SIM115 (closed with the process)
  if pid := os.fork():
    return pid, log
  os.dup2(log.fileno(), 2)
  os.environ['XLA_FLAGS'] = xla_flags(command.get('devices', 1))
  sys.argv = ['main.py', *command['args']]
  with _terminated(command.get('term_at')):
    runpy.run_path(os.path.join(ROOT, 'main.py'), run_name='__main__')
  sys.exit(0)


def _terminated(step):
  """As if SIGTERM came after that step."""
  from diffusion_ebm.jobs import train

  add = train._Report.add

  def terminating(report, number, *args):
    add(report, number, *args)
    if number == step:
      os.kill(os.getpid(), signal.SIGTERM)

  return mock.patch.object(train._Report, 'add', terminating)


def _finish(pid, log):
  code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
  log.seek(0)
  return code, log.read()


def main():
  from ml_collections import config_flags  # noqa: F401

  from diffusion_ebm.jobs import evaluate, inpaint, interpolate, ood, sample, train  # noqa: F401 (before the forks)

  results = []
  for wave in json.load(sys.stdin):
    results.append([_finish(*process) for process in [_start(command) for command in wave]])
  print(json.dumps(results))


if __name__ == '__main__':
  main()
