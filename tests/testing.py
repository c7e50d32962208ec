"""What several tests share: models with known densities, and tiny runs for the tests of the jobs."""

import contextlib
import json
import logging
import os
import resource
import unittest
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from configs import digits_drl, toy2d
from diffusion_ebm import config as config_lib
from diffusion_ebm import model as model_lib
from diffusion_ebm import noise_levels, older_versions
from diffusion_ebm.ebm import Ebm
from diffusion_ebm.evaluate import classifier
from diffusion_ebm.jobs import inpaint, interpolate, ood, sample, train
from diffusion_ebm.run import checkpoints, parallel

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


# Tests that take long run with `python -m pytest --long`, as CI does.
long = unittest.skipUnless(os.environ.get('LONG_TESTS'), 'takes long: runs with --long')


class FunctionNetwork:
  """A stand-in for a network: a function f(y, t), from (B, ...) and (B,) to (B,), or f(y, t, weights)."""

  def __init__(self, function):
    self._function = function

  def apply(self, variables, *args, method):
    if method == 'embed':
      return args[0]
    y, t, _ = args
    weights = variables['params']
    return self._function(y, t, weights) if weights else self._function(y, t)


def function_ebm(levels, function, weights=None):
  """The model whose network is a function f(y, t), or f(y, t, weights)."""
  return Ebm(weights or {}, FunctionNetwork(function), levels)


class GaussianNetwork:
  """A stand-in for a network: exact energies of Gaussian data of mean zero."""

  def __init__(self, levels, covariance):
    """Takes the levels and the data's covariance, (D, D)."""
    eye = np.eye(len(covariance))
    self.covariance = np.stack(
      [  # of y_t, (T, D, D)
        levels.a_y[t] ** 2 * (levels.a_cum[t] ** 2 * np.asarray(covariance) + levels.sigma_cum[t] ** 2 * eye)
        for t in range(levels.num_models)
      ]
    )
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


def gaussian_ebm(levels, covariance):
  """The exact model of Gaussian data of mean zero; its `network` is a `GaussianNetwork`."""
  return Ebm({}, GaussianNetwork(levels, covariance), levels)


def mixture_ebm(levels, means, weights, width, log_z=0.0):
  """The exact model of a mixture of normal densities of standard deviation `width`, at integer and at real levels.

  `exp(F(y, t))` has the normaliser `exp(log_z)` at every level; `levels` are of temperature one.
  """
  means, log_weights = jnp.asarray(means, jnp.float32), jnp.log(jnp.asarray(weights, jnp.float32))

  def f(y, t):
    t = jnp.broadcast_to(jnp.asarray(t, jnp.float32), len(y))
    a_y, dim = noise_levels.at(levels.a_y, t, t), y.shape[1]
    a_cum2, sigma_cum2 = noise_levels.powers_between(levels.log_snr[:-1], t, t)
    variance = (a_y**2 * (a_cum2 * width**2 + sigma_cum2))[:, None]
    centres = (a_y * jnp.sqrt(a_cum2))[:, None, None] * means
    squares = jnp.sum((y[:, None] - centres) ** 2, -1)
    parts = log_weights - 0.5 * squares / variance - 0.5 * dim * jnp.log(2 * np.pi * variance)
    return jax.scipy.special.logsumexp(parts, axis=1) + log_z

  return function_ebm(levels, f)


def digits_config(**changes):
  """Digits, 4 steps of a tiny perceptron; `changes` are of the `train` section.

  Its activations are smooth: where a ReLU is close to zero, other roundings (on other numbers of devices) flip it.
  Convolutions are slower to compile: where they matter, `convolutional`.
  """
  config = digits_drl.get_config()
  config.model.update({'name': 'mlp', 'ch': 8, 'num_layers': 1, 'act': 'swish'})
  config.sampling.update({'num_steps': 2, 'generation_steps': 0, 'batch_size': 5})
  config.train.update(
    {'batch_size': 8, 'num_steps': 4, 'warmup_steps': 1, 'log_every': 1, 'sample_every': 4, 'checkpoint_every': 2}
    | changes
  )
  return config


def convolutional(config):
  """The same configuration with a tiny residual network."""
  config.model.update({'name': 'resnet', 'ch_mult': (1,), 'final_act': 'swish'})
  return config


def images_config(path, **changes):
  """Likewise for a folder of images, at 4x4."""
  config = digits_config(**changes)
  config.data.update({'name': 'images', 'path': path, 'image_size': 4, 'num_channels': 3})
  config.sampling.num_samples = 5
  return config


def toy2d_config(**changes):
  """Likewise for toy2d."""
  config = toy2d.get_config()
  config.model.update({'ch': 8, 'num_layers': 1})
  config.sampling.update({'num_steps': 2, 'batch_size': 16})
  config.train.update(
    {
      'batch_size': 8,
      'num_steps': 4,
      'cosine_decay': False,
      'warmup_steps': 1,
      'log_every': 1,
      'sample_every': 4,
      'checkpoint_every': 2,
    }
    | changes
  )
  return config


_FIRST = {}


def first_state(config):
  """The state before the first step; that of an equal configuration is computed once in a process."""
  sections = (config[name].to_json_best_effort() for name in ('data', 'model', 'proposal', 'diffusion', 'train'))
  key = (config.seed, *sections)
  if key not in _FIRST:
    _FIRST[key] = model_lib.build(config).state
  return _FIRST[key]


def nothing(config):
  """Parameters of a configuration's network that are all NaN."""
  shapes = model_lib.build(config).described_state.params
  return jax.tree.map(lambda a: np.full(a.shape, np.nan, a.dtype), shapes)


def save_first_state(config, workdir, step=0, **changes):
  """Makes a workdir with one checkpoint, of the state before the first step with some `changes`."""
  config_lib.save(config_lib.resolve(config), workdir)
  state = first_state(config)
  saver = checkpoints.Saver(workdir, 3, 0)
  saver.save(state.replace(step=state.step + step, **changes), step)
  saver.close()


def steps_of(workdir):
  """The steps of which there are checkpoints, and nothing else."""
  return sorted(int(name) for name in os.listdir(checkpoints.directory(workdir)))


def restore(config, workdir, step=None):
  """`(state, batches_read)` of a checkpoint."""
  manager = checkpoints.open_for_reading(workdir)
  state = model_lib.build(config_lib.resolve(config)).abstract_state
  restored = checkpoints.restore(manager, state, step, lacking=older_versions.LACKING)
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


def assert_same_images(one, other):
  """uint8 images; sums of float32 in another order may round a value to either side."""
  np.testing.assert_equal(one.shape, other.shape)
  difference = np.abs(one.astype(int) - other)
  np.testing.assert_array_less(np.max(difference), 2)
  np.testing.assert_array_less(np.mean(difference > 0), 0.02)


def norm(tree):
  """The Euclidean norm of all numbers of a tree; NumPy's, as JAX would compile it for each shape."""
  return np.sqrt(sum(np.sum(np.square(a, dtype=np.float64)) for a in jax.tree.leaves(tree)))


def contents(folder):
  """Every file below the folder, as bytes."""
  files = {}
  for path, _, names in os.walk(folder):
    for name in names:
      with open(os.path.join(path, name), 'rb') as file:
        files[os.path.relpath(os.path.join(path, name), folder)] = file.read()
  return files


def proposal_config(num_steps):
  """Digits with a proposal, all of whose options that draw random numbers are on."""
  config = digits_config(num_steps=num_steps, checkpoint_every=num_steps // 2, sample_every=num_steps, log_every=5)
  config.train.shared_noise = True
  config.proposal.update({'name': 'mlp', 'ch': 16, 'warmup_steps': 1, 'learning_rate': 1e-3})
  return config


def train_on_devices(folder, num_steps):
  """For a process of its own with 8 devices: trains and samples on 1, 2, 4 and 8 of them."""
  config = convolutional(proposal_config(int(num_steps)))
  devices = jax.devices()
  no_picture = mock.patch.object(train, '_make_picture', lambda *_: lambda *_: None)
  for number in (1, 2, 4, 8):
    with no_picture, mock.patch.object(parallel, 'devices', lambda number=number: devices[:number]):
      workdir = os.path.join(folder, str(number))
      train.run(config, workdir)
      config.sampling.num_samples = 5
      sample.run(config, workdir)
      print(parallel.num_devices())


def jobs_config():
  """Digits, and a little of each job on a trained model."""
  config = convolutional(digits_config())
  config.inpaint.update({'mask': 'top', 'num_images': 3, 'completions': 2, 'repeats': 2})
  config.interpolate.update({'num_strips': 2, 'frames': 3})
  config.ood.update({'against': ('noise', 'shuffle'), 'num_examples': 50})
  return config


def sample_and_more(workdir):
  """For a process of its own: all that is done with a trained model."""
  config = jobs_config()
  classifier._STEPS = 5
  logging.basicConfig(level=logging.INFO, force=True)  # imports have set it up already
  for job in (inpaint, interpolate, ood):
    job.run(config, workdir)
  print(jax.device_count(), 'devices')
