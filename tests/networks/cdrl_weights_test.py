"""Agreement with CDRL's published implementation: its weights, inputs and outputs are in `tests/fixtures`.

Numbers of `cdrl_uncond.npz` and `cdrl_cond.npz` (three classes) were computed in float64 and are kept as float32.
Float32 here gives 1e-4 of their root mean square, 5e-4 after a chain. Where the slope of a leaky ReLU jumps, a
rounding error may move one image's chain by more: chains therefore start from the published proposals.
"""

import functools
import json
import pathlib

from absl.testing import absltest, parameterized
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from configs import cifar10_cdrl
from diffusion_ebm import composition, noise_levels, recovery, sampling
from diffusion_ebm import config as config_lib
from diffusion_ebm import model as model_lib
from diffusion_ebm.networks import cdrl_weights, spectral_norm
from diffusion_ebm.proposal import teaching_loss
from tests import testing

FIXTURES = pathlib.Path(__file__).parents[1] / 'fixtures'


def images(array):
  """NCHW to NHWC, whatever axes are in front."""
  return jnp.asarray(np.moveaxis(array, -3, -1), jnp.float32)


def generation_noise(array, num_steps):
  """`(white, noise)` of `sampling.descend` from images in CDRL's order: white noise; then, level by level from the top,
  the proposal's and the steps'."""
  array, top = images(array), (len(array) - 1) // (num_steps + 1) - 1

  def noise(t):
    first = 1 + (top - t) * (num_steps + 1)
    return lambda k: array[jnp.where(k == num_steps, first, first + 1 + k)]

  return array[0], noise


def assert_close(actual, expected, tolerance=1e-4):
  """Largest difference, relative to the root mean square."""
  actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
  np.testing.assert_equal(actual.shape, expected.shape)
  np.testing.assert_array_less(np.max(np.abs(actual - expected)), tolerance * np.sqrt(np.mean(expected**2)))


class Published:
  """The published figures, and the model with their weights."""

  def __init__(self, name):
    with np.load(FIXTURES / f'{name}.npz', allow_pickle=False) as file:
      self.all = dict(file)
    self.settings = json.loads(str(self.all['settings']))
    self.energy, self.initialiser = self.part('energy'), self.part('initialiser')
    self.figure, self.input = self.part('figure'), self.part('input')
    config = cifar10_cdrl.get_config()
    config.data.image_size = self.settings['size']
    config.model.update(cdrl_weights.energy_shape(shapes(self.energy)))
    config.proposal.update(cdrl_weights.proposal_shape(shapes(self.initialiser), self.settings['size']))
    self.model = model_lib.build(config)
    self.params, self.spectral = cdrl_weights.energy(self.energy)
    self.proposal = self.model.proposal(cdrl_weights.proposal(self.initialiser))
    self.t = jnp.asarray(self.input['level']) - 1
    self.label = jnp.asarray(self.input['label'])[None] if config.model.num_classes else None
    self.proposal = self.proposal.replace(labels=self.label)
    self.ebm = self.make_ebm(self.params)

  def part(self, name):
    return {key.removeprefix(f'{name}/'): value for key, value in self.all.items() if key.startswith(f'{name}/')}

  def make_ebm(self, params):
    ebm = self.model.ebm(spectral_norm.normalise(params, self.spectral, self.model.zero_init))
    return ebm.replace(labels=self.label)


@functools.cache
def published(name='cdrl_uncond'):
  return Published(name)


def shapes(arrays):
  return {name: array.shape for name, array in arrays.items()}


class FiguresTest(parameterized.TestCase):
  """Without classes; the same with classes below."""

  name = 'cdrl_uncond'
  energy_made_of = {'ch': 16, 'ch_mult': (1, 2), 'num_res_blocks': 2, 'spectral_norm': True, 'num_classes': 0}
  proposal_made_of = {'ch': 32, 'ch_mult': (1, 1), 'num_res_blocks': 1, 'attention_resolutions': (8,), 'name': 'unet'}
  guidance = 0.0

  def setUp(self):
    super().setUp()
    self.given = published(self.name)
    self.levels, self.figure, self.t = self.given.model.levels, self.given.figure, self.given.t
    self.x_i, self.x_previous = images(self.figure['x_i']), images(self.figure['x_previous'])
    self.chain = images(self.figure['chain'])

  def test_schedule(self):
    levels = self.levels
    for ours, theirs in (
      (2 * levels.log_snr, 'logsnr'),
      (levels.a_cum, 'sqrt_abar'),
      (levels.sigma_cum, 'sbar'),
      (levels.a[1:] ** 2, 'alpha'),
      (levels.sigma_y, 'sigma'),
      (levels.posterior_sigma / levels.a_y, 'posterior'),
      (np.sqrt(levels.step_variance), 'step_size'),
      (levels.sigma_cum[:-1] / levels.sigma_cum[0], 'c'),
    ):
      expected = np.sqrt(self.figure['btilde']) if theirs == 'posterior' else self.figure[theirs]
      np.testing.assert_allclose(ours, expected, rtol=1e-6, err_msg=theirs)

  def test_weights_fill_both_networks(self):
    state = self.given.model.abstract_state
    for ours, expected in (
      (self.given.params, state.params),
      (self.given.spectral, state.spectral),
      (self.given.proposal.weights, state.proposal.params),
    ):
      self.assertEqual(jax.tree.map(jnp.shape, ours), jax.tree.map(jnp.shape, expected))

  def test_shapes_say_what_the_networks_are_made_of(self):
    energy = cdrl_weights.energy_shape(shapes(self.given.energy))
    self.assertEqual({key: energy[key] for key in self.energy_made_of}, self.energy_made_of)
    proposal = cdrl_weights.proposal_shape(shapes(self.given.initialiser), self.given.settings['size'])
    self.assertEqual(proposal, self.proposal_made_of)

  def test_pair_with_one_noise(self):
    x_previous, x_i = noise_levels.diffuse_together(
      self.levels, images(self.given.input['x_0']), self.t, images(self.given.input['eps'])
    )
    assert_close(x_previous, self.x_previous)
    assert_close(x_i, self.x_i)

  def test_energy_and_its_gradient(self):
    @jax.jit
    def compute(ebm, y):
      model = ebm.at(self.t)
      return model.f(y), jax.grad(lambda y: jnp.sum(model.f(y)))(y)

    f, gradient = compute(self.given.ebm, self.levels.to_y(self.x_previous, self.t))
    assert_close(f, self.figure['f_positive'])
    assert_close(gradient, images(self.figure['grad_f_positive']))
    f, _ = compute(self.given.ebm, self.levels.to_y(self.chain, self.t))
    assert_close(f, self.figure['f_negative'])

  def test_proposal(self):
    proposal = self.given.proposal
    z = images(self.given.input['z'])
    mean, y = jax.jit(lambda p: (p.mean(self.x_i, self.t), p.sample(self.x_i, self.t, z)))(proposal)
    assert_close(mean, images(self.figure['proposal_mean']))
    assert_close(y, images(self.figure['proposal']))

  def test_chain_and_how_far_it_moves(self):
    noise, start = images(self.given.input['chain_noise']), images(self.figure['proposal'])
    for num_steps, name, tolerance in (
      (1, 'chain_one_step', 1e-4),
      (self.given.settings['chain_steps'], 'chain', 5e-4),
    ):
      y = jax.jit(
        lambda ebm, num_steps=num_steps: recovery.refine(ebm.at(self.t), start, self.x_i, lambda k: noise[k], num_steps)
      )(self.given.ebm)
      expected = images(self.figure[name])
      assert_close(self.levels.to_x(y, self.t), expected, tolerance)
      assert_close(y - start, self.levels.to_y(expected, self.t) - start, tolerance)

  def test_loss_of_the_energy_and_the_gradient_of_each_weight(self):
    def loss(params):
      return jnp.mean(recovery.recovery_loss(self.given.make_ebm(params), self.x_previous, self.chain, self.t)[0])

    value, grads = jax.jit(jax.value_and_grad(loss))(self.given.params)
    # A difference of nearly equal means.
    expected = self.figure['negative_mean'] - self.figure['positive_mean']
    np.testing.assert_allclose(value, expected, atol=1e-4 * abs(self.figure['negative_mean']))
    f, weight = self.figure['f_negative'], self.figure['loss_weight']
    np.testing.assert_allclose(np.mean(weight * f), self.figure['negative_mean'], rtol=1e-5)
    np.testing.assert_allclose((self.levels.weight / self.levels.temperature)[self.t], weight, rtol=1e-6)
    self.assert_gradients('energy', grads, lambda arrays: cdrl_weights.energy(arrays)[0])

  @testing.long
  def test_loss_of_the_initialiser_and_the_gradient_of_each_weight(self):
    y, z = self.levels.to_y(self.chain, self.t), images(self.given.input['z'])

    def loss(weights):
      return jnp.mean(teaching_loss(self.given.proposal.replace(weights=weights), self.x_i, y, self.t, z))

    value, grads = jax.jit(jax.value_and_grad(loss))(self.given.proposal.weights)
    np.testing.assert_allclose(value, self.figure['initialiser_loss'], rtol=1e-4)
    self.assert_gradients('initialiser', grads, cdrl_weights.proposal)

  def assert_gradients(self, network, grads, convert):
    """Compares the norm of each array's gradient: arrays full of their own number say where each lies here."""
    arrays = {name: a for name, a in getattr(self.given, network).items() if not name.endswith('weight_u')}
    numbers = {name: np.full(array.shape, i, np.float32) for i, (name, array) in enumerate(arrays.items())}
    squares = np.zeros(len(arrays))
    places = traverse_util.flatten_dict(convert(numbers))
    for path, grad in traverse_util.flatten_dict(grads).items():
      squares[int(places[path].flat[0])] += np.sum(np.asarray(grad, np.float64) ** 2)
    found = dict(zip(arrays, np.sqrt(squares), strict=True))
    expected = self.given.part(f'figure/grad_norm/{network}')
    self.assertGreater(len(expected), 0.9 * len(arrays))
    for name, norm in expected.items():
      np.testing.assert_allclose(found[name], norm, rtol=5e-4, atol=1e-6, err_msg=name)

  @testing.long
  def test_samples_with_the_published_step_at_the_end(self):
    num_steps = self.given.settings['chain_steps']
    white, noise = generation_noise(self.given.input['generation_noise'], num_steps)
    settings = sampling.Settings(num_steps, denoised=True, denoise_factor=2.0)
    models = self.given.ebm, self.given.proposal
    if self.guidance:
      label = jnp.asarray(self.given.input['generation_label'])
      models = (composition.guided(model, label, self.guidance) for model in models)
    samples, _ = jax.jit(lambda ebm, proposal: sampling.descend(ebm, white, noise, settings, proposal=proposal))(
      *models
    )
    assert_close(samples, images(self.figure['samples']), 5e-4)


class ClassesTest(FiguresTest):
  """The same with classes, and guidance."""

  name = 'cdrl_cond'
  energy_made_of = {'ch': 16, 'ch_mult': (1, 2), 'num_res_blocks': 2, 'spectral_norm': True, 'num_classes': 3}
  proposal_made_of = {'ch': 64, 'ch_mult': (1,), 'num_res_blocks': 1, 'attention_resolutions': (8,), 'name': 'unet'}
  guidance = 0.7

  @parameterized.parameters(0.0, 0.7, 3.0)
  def test_guidance(self, weight):
    ebm, proposal = (composition.guided(m, self.given.label[0], weight) for m in (self.given.ebm, self.given.proposal))
    noise, start = images(self.given.input['chain_noise']), images(self.figure['proposal'])
    y, num_steps = self.levels.to_y(self.x_previous, self.t), self.given.settings['chain_steps']

    @jax.jit
    def compute(ebm, proposal):
      model = ebm.at(self.t)
      gradient = jax.grad(lambda y: jnp.sum(model.f(y)))(y)
      chain = recovery.refine(model, start, self.x_i, lambda k: noise[k], num_steps)
      return model.f(y), gradient, proposal.mean(self.x_i, self.t), self.levels.to_x(chain, self.t)

    f, gradient, mean, chain = compute(ebm, proposal)
    assert_close(f, self.figure[f'guided_f/w{weight}'])
    assert_close(gradient, images(self.figure[f'guided_grad/w{weight}']))
    assert_close(mean, images(self.figure[f'guided_proposal_mean/w{weight}']))
    assert_close(chain, images(self.figure[f'guided_chain/w{weight}']), 5e-4)


class RefusedTest(parameterized.TestCase):
  @parameterized.parameters(
    ({}, 'it has no module_list'),
    ({'module_list.1.conv1.weight': (8, 8, 3, 3)}, r'module_list\.0\.weight is missing'),
    ({'module_list.0.weight_orig': ()}, r'module_list\.0\.weight_orig is missing or empty'),
    ({'module_list.0.weight': (0, 3, 3, 3)}, r'module_list\.0\.weight is missing or empty'),
    ({'module_list.0.weight': (8, 3, 3, 3)}, 'the blocks of its energy network'),
    ({'module_list.0.weight': (8,), 'module_list.1.conv1.bias': (8,)}, r'module_list\.1\.conv1\.weight is missing'),
    ({'module_list.0.weight': (8,), 'module_list.1.conv1.weight': (9,)}, 'the blocks of its energy network'),
    (
      {'module_list.0.weight': (8,)} | {f'module_list.{i}.conv1.weight': (8,) for i in (1, 2, 4)},
      'the blocks of its energy network',
    ),
    (
      {'module_list.0.weight': (8,), 'module_list.1.conv1.weight': (8,), 'module_list.2.conv1.weight': (16,)},
      'the blocks of its energy network',
    ),
  )
  def test_shapes_of_another_energy_network(self, given, message):
    with self.assertRaisesRegex(ValueError, message):
      cdrl_weights.energy_shape(given)

  @parameterized.parameters(
    ({}, r'init_conv\.weight is missing'),
    ({'init_conv.weight': (8, 3, 3, 3)}, 'the blocks of its initialiser'),
    ({'init_conv.weight': (8,), 'downs.0.0.conv1.weight': (12,)}, 'the blocks of its initialiser'),
    ({'init_conv.weight': (8,), 'downs.0.0.to_qkv.weight': (24,)}, 'the blocks of its initialiser'),
    ({'init_conv.weight': (8,)} | {f'downs.{i}.0.conv1.weight': (8,) for i in (0, 1)}, 'the blocks of its initialiser'),
  )
  def test_shapes_of_another_initialiser(self, given, message):
    with self.assertRaisesRegex(ValueError, message):
      cdrl_weights.proposal_shape(given, 32)

  @parameterized.parameters(
    'temb_map3.weight', 'module_list.0.momentum', 'module_list.9.g', 'module_list.0', 'x.y.bias'
  )
  def test_names_that_the_energy_has_not(self, name):
    with self.assertRaisesRegex(ValueError, f'{name} is unknown'):
      cdrl_weights.energy(published().energy | {name: np.zeros(16)})

  @parameterized.parameters('norm.running_mean', 'downs.0.0.conv3.weight', 'downs.5.0.conv2.bias', 'mid_attn.to_k.bias')
  def test_names_that_the_initialiser_has_not(self, name):
    with self.assertRaisesRegex(ValueError, f'{name} is unknown'):
      cdrl_weights.proposal(published().initialiser | {name: np.zeros(32)})

  def test_averages_are_named_in_the_order_of_the_parameters(self):
    weights = {'a.bias': 1, 'a.weight_orig': 2, 'a.weight_u': 3, 'a.weight_v': 4, 'b.weight': 5}
    self.assertEqual(cdrl_weights.averaged(weights, [6, 7, 8]), {'a.bias': 6, 'a.weight_orig': 7, 'b.weight': 8})
    for averages in ([], [6, 7], [6, 7, 8, 9, 10]):
      with self.assertRaisesRegex(ValueError, rf'{len(averages)} averages \(shadow_params\) for 3 weights'):
        cdrl_weights.averaged(weights, averages)


class SizeTest(absltest.TestCase):
  def test_the_published_networks_have_as_many_parameters_as_theirs(self):
    def count(tree):
      return sum(leaf.size for leaf in jax.tree.leaves(tree))

    config = config_lib.resolve(cifar10_cdrl.get_config())
    state = model_lib.build(config).abstract_state
    self.assertEqual((count(state.params), count(state.proposal.params)), (34_833_152, 3_769_795))
    config.model.ch = 256  # the paper's large network, 145 million in all
    self.assertAlmostEqual(count(model_lib.build(config).abstract_state.params) / 1e6, 139.3, places=1)


if __name__ == '__main__':
  absltest.main()
