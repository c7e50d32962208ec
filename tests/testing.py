"""Tiny runs for the tests of the jobs."""

import json
import logging
import os

import jax
import jax.numpy as jnp
import numpy as np

from configs import digits, toy2d
from diffusion_ebm import checkpoints, inpaint, interpolate, ood, sample, train
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
  """Digits, 4 steps of a tiny network; `changes` are of the `train` section."""
  config = digits.get_config()
  config.model.update({'ch': 8, 'ch_mult': (1,)})
  config.sampling.update({'num_steps': 2, 'generation_steps': 0, 'batch_size': 5})
  config.train.update({
      'batch_size': 8, 'num_steps': 4, 'cosine_decay': False, 'warmup_steps': 1, 'log_every': 1, 'sample_every': 4,
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
  manager = checkpoints.open_for_writing(workdir, 3, 0)
  checkpoints.save(manager, state.replace(step=state.step + step, **changes), step)
  manager.close()


def steps_of(workdir):
  """The steps of which there are checkpoints."""
  return sorted(int(name) for name in os.listdir(checkpoints.directory(workdir)))


def restore(config, workdir, step=None):
  """`(state, batches_read)` of a checkpoint."""
  manager = checkpoints.open_for_reading(workdir)
  restored = checkpoints.restore(manager, model_lib.build(config_lib.resolve(config)).state, step)
  manager.close()
  return restored


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


def train_and_sample(workdir):
  """For a process of its own: the number of devices is fixed when JAX starts."""
  train.train(digits_config(), workdir)
  sample.sample(digits_config(), workdir, 5, 0)
  print(jax.device_count(), 'devices')


def sample_and_more(workdir):
  """Likewise: all that is done with a trained model."""
  config = digits_config()
  classifier._STEPS = 5
  logging.basicConfig(level=logging.INFO, force=True)  # imports have set it up already
  inpaint.inpaint(config, workdir, 'top', '', 3, 2, 2, 0)
  interpolate.interpolate(config, workdir, 2, 3, 0)
  ood.ood(config, workdir, ['noise', 'shuffle'], 50, 0)
  print(jax.device_count(), 'devices')
