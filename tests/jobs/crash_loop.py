"""Kills a training run again and again, and holds what it ends with against the run that was never disturbed.

  python -m tests.jobs.crash_loop [--kills=20] [--signal=KILL|TERM] [--seed=0] [--workdir=DIR]

Each attempt is main.py in a process of its own, on a folder of images. The kills come at random moments of each phase
in turn: while the images are read, during compilation, in training, while a checkpoint is written, while samples are
drawn. At the end every array of the state must equal, bit for bit, that of an undisturbed run, the metrics must be the
same, and, with SIGTERM, no step may have been done twice.
"""

import argparse
import collections
import glob
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time

import jax
import numpy as np

from tests import forks, testing

# Where an attempt is, by the last of these that it has logged.
_PHASES = (
  ('reading', 'data preparation'),
  ('examples of shape', 'setting up'),
  ('compiling the training step', 'compilation'),
  ('compiled in', 'training'),
  ('drawing samples', 'drawing samples'),
)
_SAVING = 'writing a checkpoint'
# When to strike, in turn, and the longest wait from the beginning of the phase, in seconds.
_KINDS = ('training', _SAVING, 'data preparation', _SAVING, 'drawing samples', 'compilation')
_LONGEST = {'training': 1.0, 'data preparation': 0.3, 'drawing samples': 1.0, 'compilation': 0.5}


def _images(folder, count):
  """Writes images, large enough that reading them takes a moment."""
  from PIL import Image

  os.makedirs(folder)
  rng = np.random.default_rng(0)
  for number in range(count):
    pixels = rng.integers(256, size=(4, 4, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((256, 256), Image.Resampling.BICUBIC).save(os.path.join(folder, f'{number:04d}.png'))


def _config(images):
  from configs import images as images_config
  from diffusion_ebm import config as config_lib

  config = images_config.get_config()
  config.data.update({'path': images, 'image_size': 8, 'num_workers': 1, 'train_split': '', 'test_split': ''})
  config.model.update({'ch': 8, 'ch_mult': (1,), 'num_res_blocks': 1})
  config.sampling.update({'num_steps': 2})
  config.train.update(
    {
      'batch_size': 8,
      'num_steps': 1_000_000,
      'warmup_steps': 1,
      'log_every': 1,
      'checkpoint_every': 4,
      'sample_every': 40,
      'keep_checkpoints': 2,
      'keep_every': 0,
    }
  )
  return config_lib.resolve(config)


class _Attempt:
  """main.py on a workdir, in a fork of this process."""

  def __init__(self, workdir, *args):
    self._workdir, self._log = workdir, f'{workdir}.log'
    log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    self.pid = os.fork()
    if not self.pid:
      import runpy

      os.dup2(log, 2)
      sys.argv = ['main.py', f'--workdir={workdir}', *args]
      runpy.run_path(os.path.join(testing.ROOT, 'main.py'), run_name='__main__')
      sys.exit(0)
    os.close(log)

  def output(self):
    with open(self._log, encoding='utf-8') as file:
      return file.read()

  def running(self):
    """Whether it still is; afterwards `code` is its exit code."""
    pid, status = os.waitpid(self.pid, os.WNOHANG)
    if pid:
      self.code = os.waitstatus_to_exitcode(status)
    return not pid

  def is_saving(self):
    return bool(glob.glob(os.path.join(self._workdir, 'checkpoints', '*orbax-checkpoint-tmp*')))

  def phase(self):
    text = self.output()
    if 'compiled in' in text and self.is_saving():  # earlier, it is what the last attempt has left
      return _SAVING
    return max(((text.rfind(said), name) for said, name in _PHASES), default=(0, ''))[1]

  def finish(self):
    while self.running():
      time.sleep(0.02)
    return self.output()


def _strike(attempt, rng, kind):
  """Waits for the moment at which to kill, and returns the phase in which it came."""
  share, patience = rng.random(), rng.random()
  marks = dict((phase, said) for said, phase in _PHASES)
  began = None
  while attempt.running():
    if began is None and marks.get(kind, 'compiled in') in attempt.output():
      began = time.monotonic()
    if kind == _SAVING and began and time.monotonic() > began + patience and attempt.is_saving():
      time.sleep(0.02 * share)
      return attempt.phase()
    if kind in marks and began:
      time.sleep(share * _LONGEST[kind])
      return attempt.phase()
    time.sleep(0.001)
  raise AssertionError(f'the run ended by itself, with {attempt.code}: {attempt.output()}')


def _state(workdir):
  from diffusion_ebm import config as config_lib

  state, batches = testing.restore(config_lib.load(workdir), workdir)
  return [np.asarray(leaf) for leaf in jax.tree.leaves(state)] + [np.asarray(batches)]


def _losses(workdir):
  with open(os.path.join(workdir, 'metrics.jsonl'), encoding='utf-8') as file:
    return [(record['step'], record['loss'], record['grad_norm']) for record in map(json.loads, file)]


def crash_loop(folder, kills, number, seed=0, say=print):
  """Runs the loop; raises an `AssertionError` if anything is not as in the undisturbed run.

  Args:
    folder: an empty one.
    kills: how many.
    number: of the signal.
    seed: of the moments.
    say: called with lines of report.
  """
  from ml_collections import config_flags  # noqa: F401

  from diffusion_ebm import config as config_lib
  from diffusion_ebm.jobs import evaluate, sample, train  # noqa: F401 (imported before the forks)

  rng = random.Random(seed)
  images = os.path.join(folder, 'images')
  _images(images, 128)
  undisturbed, workdir = os.path.join(folder, 'undisturbed'), os.path.join(folder, 'crashed')
  for each in (undisturbed, workdir):
    os.mkdir(each)
    config_lib.save(_config(images), each)

  began, phases, repeated, reached = time.monotonic(), collections.Counter(), 0, 0
  for strike in range(kills):
    attempt = _Attempt(workdir)
    phase = _strike(attempt, rng, _KINDS[strike % len(_KINDS)])
    os.kill(attempt.pid, number)
    text = attempt.finish()
    stopped = re.search(r'stopped at step (\d+), which is saved', text)
    assert 'Traceback' not in text and attempt.code == (143 if stopped else -number), (attempt.code, text)
    phases[phase] += 1
    trained = [int(step) for step in re.findall(r'training (\d+)/', text)]
    if trained:
      repeated += reached - (min(trained) - 1)
      reached = int(stopped[1]) if stopped else max(trained)
  say(
    f'{kills} times SIG{signal.Signals(number).name[3:]} in {time.monotonic() - began:.0f} s: '
    + ', '.join(f'{count} in {phase}' for phase, count in phases.most_common())
  )

  steps = reached + 8
  for each in (workdir, undisturbed):
    attempt = _Attempt(each, f'--config.train.num_steps={steps}')
    text = attempt.finish()
    assert attempt.code == 0, text
    if each == workdir and reached:
      repeated += reached - int(re.search(r'going on from step (\d+)', text)[1])
  if number == signal.SIGTERM:
    assert not repeated, f'{repeated} steps were lost'
  for ours, theirs in zip(_state(workdir), _state(undisturbed), strict=True):
    np.testing.assert_array_equal(ours, theirs)
  assert _losses(workdir) == _losses(undisturbed)
  say(f'{repeated} of {steps} steps were done again; state and metrics are bit for bit those of the undisturbed run')
  return phases


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--kills', type=int, default=20)
  parser.add_argument('--signal', choices=('KILL', 'TERM'), default='KILL')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--workdir', help='keeps everything in this new folder')
  args = parser.parse_args()
  process, folder = os.getpid(), args.workdir or tempfile.mkdtemp()
  os.makedirs(folder, exist_ok=not args.workdir)
  try:
    os.environ['XLA_FLAGS'] = forks.xla_flags(1)
    jax.config.update('jax_platforms', 'cpu')
    if not jax.config.jax_compilation_cache_dir:  # attempts share what they compile
      jax.config.update('jax_compilation_cache_dir', os.path.join(folder, 'compiled'))
      jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.3)
    crash_loop(folder, args.kills, getattr(signal, f'SIG{args.signal}'), args.seed)
  finally:
    if not args.workdir and os.getpid() == process:  # not in the forks
      shutil.rmtree(folder)


if __name__ == '__main__':
  main()
