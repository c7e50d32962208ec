"""Agreement with the published implementation: its weights, inputs and outputs are in `tests/fixtures`.

Each file holds one variant of the network; its numbers were computed in float32, hence the tolerances: 1e-4
relative, 2e-3 after a chain.
"""

import functools
import json
import os
import pathlib
import subprocess
import sys

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_ebm import noise_levels, recovery
from diffusion_ebm.ebm import Ebm
from diffusion_ebm.networks import published_weights, resnet, spectral_norm
from tests import forks, testing

VARIANTS = ('base', 'attention_swish', 'resample_conv_nin', 'no_spectral_norm')
GRADIENTS = {
  'conv_in': ('body', 'conv_in'),
  'level_0/block_0/conv_2': ('body', 'level_0_block_0', 'conv_2'),
  'temb_dense_out': ('embedding', 'head'),
  'temb_dense_0': ('embedding', 'dense_0'),
}


def assert_close(actual, expected, tolerance=1e-4):
  """Largest difference, relative to the largest value."""
  actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
  np.testing.assert_array_less(np.max(np.abs(actual - expected)), tolerance * np.max(np.abs(expected)) + 1e-30)


def per_level(values, t):
  return np.array([np.mean(values[t == level]) if np.any(t == level) else 0.0 for level in range(6)])


@functools.cache
def variant(name):
  """The reference's arrays, and what ours computes from the same weights and inputs."""
  with np.load(pathlib.Path(__file__).parents[1] / 'fixtures' / f'{name}.npz', allow_pickle=False) as file:
    given = dict(file)
  meta = json.loads(str(given['meta']))
  network = resnet.ResNet(
    resnet.ResNetSettings(
      ch=meta['ch'],
      ch_mult=tuple(meta['ch_mult']),
      num_res_blocks=meta['nres'],
      act=meta['act'],
      final_act=meta['final_act'],
      use_scale=not meta['no_scale'],
      shortcut='nin' if meta['nin'] else 'conv',
      resample_with_conv=meta['resamp'],
      attention_resolutions=(16,) if meta['attn'] else (),
    )
  )
  params, u = published_weights.from_published(
    {
      key.removeprefix('params/'): value
      for key, value in given.items()
      if key.startswith('params/') and not key.endswith('/lower_bound')
    }
  )
  levels = noise_levels.make_levels(6, meta['step_size_b_square'])
  t = jnp.asarray(given['t'])

  def compute(params, u, t, x, noise_x_t, noise_x_next, langevin_noise):
    u = spectral_norm.iterate(params, u)
    model = Ebm(spectral_norm.normalise(params, u), network, levels).at(t)
    x_t, x_next = noise_levels.diffuse_pair(levels, x, t, noise_x_t, noise_x_next)
    x_neg = recovery.sample_conditional(model, x_next, lambda k: langevin_noise[k], meta['K'])

    def loss(params):
      ebm = Ebm(spectral_norm.normalise(params, u), network, levels)
      losses, f_pos = recovery.recovery_loss(ebm, x_t, x_neg, t)
      return jnp.mean(losses), (losses, f_pos)

    (mean, (losses, f_pos)), grads = jax.value_and_grad(loss, has_aux=True)(params)
    mean, grads = jax.lax.pmean((mean, grads), 'devices')
    each = {
      'f': model.f(x),
      'grad_f': jax.grad(lambda y: jnp.sum(model.f(y)))(x),
      'x_t': x_t,
      'x_t_plus_1': x_next,
      'x_neg': x_neg,
      'losses': losses,
      'f_pos': f_pos,
    }
    return each, {'loss': mean, 'grads': grads}

  # The batch is split over however many devices there are.
  devices = jax.local_device_count()

  def split(array, axis=0):
    return np.stack(np.split(np.asarray(array), devices, axis))

  each, mean = jax.pmap(compute, axis_name='devices', in_axes=(None, None, 0, 0, 0, 0, 0), out_axes=(0, None))(
    params,
    u,
    split(t),
    split(given['x']),
    split(given['noise_x_t']),
    split(given['noise_x_t_plus_1']),
    split(given['langevin_noise'], 1),
  )
  return given, {name: np.concatenate(parts) for name, parts in each.items()} | mean, network, params


class PublishedTest(parameterized.TestCase):
  def test_schedule(self):
    levels = noise_levels.make_noise_levels(6)
    given = variant('base')[0]
    for ours, theirs in (('sigma', 'sigmas'), ('a', 'a_s'), ('a_cum', 'a_s_cum'), ('sigma_cum', 'sigmas_cum')):
      np.testing.assert_allclose(getattr(levels, ours), given[f'schedule/{theirs}'], rtol=1e-12)
    for ours, theirs in (('sigma_y', 'sigmas'), ('a_y', 'a_s_prev'), ('is_recovery', 'is_recovery')):  # by the model
      np.testing.assert_allclose(getattr(levels, ours), given[f'schedule/{theirs}'][1:], rtol=1e-12)

  @parameterized.parameters(*VARIANTS)
  def test_published_names_fill_the_whole_network(self, name):
    given, _, network, params = variant(name)
    expected = jax.eval_shape(network.init, jax.random.key(0), given['x'], given['t'])['params']
    self.assertEqual(jax.tree.map(jnp.shape, expected), jax.tree.map(jnp.shape, params))

  @parameterized.parameters(*VARIANTS)
  def test_network_and_its_input_gradient(self, name):
    given, ours, *_ = variant(name)
    assert_close(ours['f'], given['f'])
    assert_close(ours['grad_f'], given['grad_f'])

  @parameterized.parameters(*VARIANTS)
  def test_diffused_pair(self, name):
    given, ours, *_ = variant(name)
    assert_close(ours['x_t'], given['x_t'])
    assert_close(ours['x_t_plus_1'], given['x_t_plus_1'])

  @parameterized.parameters(*VARIANTS)
  def test_chain_and_its_displacement(self, name):
    given, ours, *_ = variant(name)
    assert_close(ours['x_neg'], given['x_neg'], 2e-3)
    moved = np.sqrt(np.sum((np.asarray(ours['x_neg']) - given['x_t_plus_1']) ** 2, axis=(1, 2, 3)))
    assert_close(per_level(moved, given['t']), given['displacement_per_level'], 2e-3)

  @parameterized.parameters(*VARIANTS)
  def test_chain_moves_as_far_as_published_and_not_back(self, name):
    # The chain moves by little, so the test above says little of its drift: here the start is subtracted.
    given, ours, *_ = variant(name)
    assert_close(ours['x_neg'] - given['x_t_plus_1'], given['x_neg'] - given['x_t_plus_1'], 2e-3)

  @parameterized.parameters(*VARIANTS)
  def test_loss_and_its_levels(self, name):
    given, ours, *_ = variant(name)
    # The loss is a difference of nearly equal f: float32 leaves an error relative to these.
    scale = np.max(np.abs(given['f']))
    self.assertLess(abs(float(ours['loss']) - float(given['loss'])), 2e-3 * abs(given['loss']) + 1e-5 * scale)
    assert_close(per_level(np.abs(ours['losses']), given['t']), given['abs_loss_per_level'], 2e-3)
    assert_close(per_level(np.abs(ours['f_pos']), given['t']), given['abs_f_per_level'])

  @parameterized.parameters(*VARIANTS)
  def test_gradient_of_the_loss(self, name):
    given, ours, *_ = variant(name)
    assert_close(testing.norm(ours['grads']), given['grad_loss_global_norm'], 2e-3)
    for layer, path in GRADIENTS.items():
      grad = ours['grads']
      for part in (*path, 'kernel'):
        grad = grad[part]
      assert_close(grad, given[f'grad_loss/{layer}/kernel'], 2e-3)

  @testing.long
  def test_all_of_this_holds_on_two_devices(self):
    # A process of its own: the number of devices is fixed when JAX starts.
    result = subprocess.run(
      [sys.executable, '-m', 'pytest', '-n0', '-k', 'not two_devices', __file__],
      capture_output=True,
      text=True,
      env=os.environ | {'XLA_FLAGS': forks.xla_flags(2), 'JAX_PLATFORMS': 'cpu'},
      check=False,
    )
    self.assertEqual(result.returncode, 0, result.stdout)
    self.assertRegex(result.stdout, r'\d\d passed')

  def test_a_name_that_is_no_weight_is_refused(self):
    with self.assertRaisesRegex(ValueError, 'momentum'):
      published_weights.from_published({'conv_in/momentum': np.zeros(3)})


if __name__ == '__main__':
  absltest.main()
