"""Tiny runs for the tests of the jobs."""

import contextlib
import json
import logging
import os
import resource
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from configs import digits, toy2d
from diffusion_ebm import checkpoints, inpaint, interpolate, ood, parallel, sample, train
from diffusion_ebm import config as config_lib
from diffusion_ebm import model as model_lib
from diffusion_ebm.evaluate import classifier

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class GaussianNetwork:
  """A stand-in for a network: exact energies of Gaussian data of mean zero."""

  def __init__(self, levels, covariance):
    """Takes the levels and the data's covariance, (D, D)."""
    noise, eye = levels.noise, np.eye(len(covariance))
    self.covariance = np.stack([  # of y_t, (T, D, D)
        noise.a_y[t + 1]**2 * (noise.a_cum[t]**2 * np.asarray(covariance) + noise.sigma_cum[t]**2 * eye)
        for t in range(levels.num_models)])
    self._precision = levels.step_variance[:, None, None] * np.linalg.inv(self.covariance)

  def apply(self, variables, *args, method):
    del variables
    if method == 'embed':
      return jnp.asarray(self._precision, jnp.float32)[args[0]]
    y, precision, _ = args
    return -0.5 * jnp.einsum('bi,bij,bj->b', y, precision, y)

  def log_z(self):
    """Log of the normaliser of `exp(f / s_t^2)`, (T,)."""
    return 0.5 * np.linalg.slogdet(2 * np.pi * self.covariance)[1]


def digits_config(**changes):
  """Digits, 4 steps of a tiny network; `changes` are of the `train` section.

  Its activations are smooth: where a ReLU is close to zero, other roundings (on other numbers of devices) flip it.
  """
  config = digits.get_config()
  config.model.update({'ch': 8, 'ch_mult': (1,), 'act': 'swish', 'final_act': 'swish'})
  config.sampling.update({'num_steps': 2, 'generation_steps': 0, 'batch_size': 5})
  config.train.update({
      'batch_size': 8, 'num_steps': 4, 'warmup_steps': 1, 'log_every': 1, 'sample_every': 4,
      'checkpoint_every': 2} | changes)
  return config


def toy2d_config(**changes):
  """Likewise for toy2d."""
  config = toy2d.get_config()
  config.model.update({'ch': 8, 'num_layers': 1})
  config.sampling.update({'num_steps': 2, 'batch_size': 16})
  config.train.update({
      'batch_size': 8, 'num_steps': 4, 'cosine_decay': False, 'warmup_steps': 1, 'log_every': 1, 'sample_every': 4,
      'checkpoint_every': 2} | changes)
  return config


def save_first_state(config, workdir, step=0, **changes):
  """Makes a workdir with one checkpoint, of the state before the first step with some `changes`."""
  config_lib.save(config_lib.resolve(config), workdir)
  state = model_lib.build(config).state
  saver = checkpoints.Saver(workdir, 3, 0)
  saver.save(state.replace(step=state.step + step, **changes), step)
  saver.close()


def steps_of(workdir):
  """The steps of which there are checkpoints, and nothing else."""
  return sorted(int(name) for name in os.listdir(checkpoints.directory(workdir)))


def restore(config, workdir, step=None):
  """`(state, batches_read)` of a checkpoint."""
  manager = checkpoints.open_for_reading(workdir)
  restored = checkpoints.restore(manager, model_lib.build(config_lib.resolve(config)).state, step)
  manager.close()
  return restored


@contextlib.contextmanager
def full_disk(size=64):
  """As if the disk were full: no file may grow beyond so many bytes. Any user can do that."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def records(workdir):
  """What is in `metrics.jsonl`."""
  with open(os.path.join(workdir, 'metrics.jsonl'), encoding='utf-8') as file:
    return [json.loads(line) for line in file]


def contents(folder):
  """Every file below the folder, as bytes."""
  files = {}
  for path, _, names in os.walk(folder):
    for name in names:
      with open(os.path.join(path, name), 'rb') as file:
        files[os.path.relpath(os.path.join(path, name), folder)] = file.read()
  return files


def train_on_devices(folder, num_steps):
  """For a process of its own with 8 devices: trains and samples on 1, 2, 4 and 8 of them."""
  config = digits_config(num_steps=int(num_steps), checkpoint_every=10, sample_every=int(num_steps), log_every=5)
  devices = jax.devices()
  no_picture = mock.patch.object(train, '_make_picture', lambda *_: lambda *_: None)
  for number in (1, 2, 4, 8):
    with no_picture, mock.patch.object(parallel, 'devices', lambda number=number: devices[:number]):
      workdir = os.path.join(folder, str(number))
      train.train(config, workdir)
      sample.sample(config, workdir, 5, 0)
      print(parallel.num_devices())


def sample_and_more(workdir):
  """For a process of its own: all that is done with a trained model."""
  config = digits_config()
  classifier._STEPS = 5
  logging.basicConfig(level=logging.INFO, force=True)  # imports have set it up already
  inpaint.inpaint(config, workdir, 'top', '', 3, 2, 2, 0)
  interpolate.interpolate(config, workdir, 2, 3, 0)
  ood.ood(config, workdir, ['noise', 'shuffle'], 50, 0)
  print(jax.device_count(), 'devices')
