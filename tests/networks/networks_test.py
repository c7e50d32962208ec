import functools

from absl.testing import absltest, parameterized
from flax import traverse_util
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from configs import default
from diffusion_ebm import marginal_density, networks, noise_levels
from diffusion_ebm.ebm import Ebm
from diffusion_ebm.networks import convolution, layers, mlp, resnet, spectral_norm, unet
from diffusion_ebm.run import compilation
from tests import testing

BASE = {'ch': 8, 'ch_mult': (1, 2), 'num_res_blocks': 1}


def make_resnet(**options):
  return resnet.ResNet(resnet.ResNetSettings(**(BASE | options)))


def make_mlp(**options):
  return mlp.MLP(mlp.MLPSettings(**({'ch': 16} | options)))


def images(batch=2, size=8, channels=3):
  return jax.random.normal(jax.random.key(0), (batch, size, size, channels))


def start(network, *args):
  """The network's parameters before training."""
  return compilation.once(network.init)(jax.random.key(0), *args)['params']


def randomised(params, seed=1):
  """Parameters of which none is zero, so that every layer matters."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda p: p + 0.2 * rng.standard_normal(p.shape).astype(p.dtype), params)


def random_parameters(network, *args):
  """Likewise, without compiling what draws a network's first parameters: scales are near one, all else near zero."""
  shapes = jax.eval_shape(network.init, jax.random.key(0), *args)['params']
  return randomised(jax.tree.map_with_path(lambda path, a: np.full(a.shape, path[-1].key == 'scale', a.dtype), shapes))


class ConvTest(parameterized.TestCase):
  @parameterized.product(stride=(1, 2), size=(8, 7), width=(1, 3))
  def test_values_and_gradients_are_those_of_lax(self, stride, size, width):
    x, kernel = images(2, size, 3), jax.random.normal(jax.random.key(1), (width, width, 3, 4))

    def reference(x, kernel):
      return lax.conv_general_dilated(x, kernel, (stride, stride), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))

    ours, vjp = jax.vjp(lambda x, k: convolution.conv2d(x, k, stride), x, kernel)
    theirs, their_vjp = jax.vjp(reference, x, kernel)
    np.testing.assert_array_equal(ours, theirs)
    g = jax.random.normal(jax.random.key(2), ours.shape)
    for a, b in zip(vjp(g), their_vjp(g), strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)

  @parameterized.parameters((8, 8, 64, 96), (6, 8, 128, 64), (7, 8, 64, 64))
  def test_wide_kernels_give_the_same_in_float32(self, height, width, channels, features):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (2, height, width, channels))
    kernel = jax.random.normal(keys[1], (3, 3, channels, features)) / jnp.sqrt(9 * channels)
    g = jax.random.normal(keys[2], (2, height, width, features))

    def reference(x, kernel):
      return lax.conv_general_dilated(x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))

    tiles = convolution.prepare({'layer': {'kernel': kernel}})['layer']['tiles']
    theirs, their_vjp = jax.vjp(reference, x, kernel)
    for prepared in (None, tiles):
      ours, vjp = jax.vjp(lambda x, k, prepared=prepared: convolution.conv2d(x, k, 1, prepared), x, kernel)
      # Values of order one, sums of some hundred terms: a few float32 epsilons, 6e-8, times their root.
      for a, b in zip((ours, *vjp(g)), (theirs, *their_vjp(g)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=5e-6 * np.abs(b).max())

  def test_a_gradient_of_the_gradient_is_that_of_lax(self):
    x, kernel = images(2, 8, 3), jax.random.normal(jax.random.key(1), (3, 3, 3, 4))

    def second(f):
      inner = lambda x: jnp.sum(jnp.sin(f(x, kernel)))  # noqa: E731
      return jax.grad(lambda x: jnp.sum(jax.grad(inner)(x) ** 2))(x)

    ours = second(convolution.conv2d)
    theirs = second(
      lambda x, k: lax.conv_general_dilated(x, k, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-3)

  def test_few_outputs_give_the_same(self):
    x, kernel = images(2, 6, 16), jax.random.normal(jax.random.key(1), (3, 3, 16, 3))
    theirs = lax.conv_general_dilated(x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
    np.testing.assert_allclose(convolution._few_outputs(x, kernel), theirs, rtol=1e-5, atol=1e-5)

  @parameterized.parameters((128, 'tpu', True), (64, 'tpu', False), (128, 'cuda', False))
  def test_where_few_outputs_are_products_first(self, size, platform, expected):
    x, kernel = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32), jnp.ones((3, 3, 3, 16))
    score = jax.jit(jax.grad(lambda x: jnp.sum(convolution.conv2d(x, kernel) ** 2)))
    text = score.trace(x).lower(lowering_platforms=(platform,)).as_text()
    self.assertEqual('dot_general' in text, expected)

  def test_only_wide_3x3_kernels_are_prepared(self):
    shapes = {'wide': (3, 3, 64, 64), 'narrow': (3, 3, 3, 64), 'point': (1, 1, 64, 64), 'dense': (64, 64)}
    prepared = convolution.prepare({name: {'kernel': jnp.ones(shape)} for name, shape in shapes.items()})
    self.assertEqual(list(prepared), ['wide'])


@testing.long
class BfloatTest(absltest.TestCase):
  def test_energy_and_score_stay_close_to_float32_and_are_float32(self):
    options = {'ch': 16, 'ch_mult': (1, 2), 'num_res_blocks': 2}
    exact, rough = make_resnet(**options), make_resnet(**options, dtype=jnp.bfloat16)
    y, t = images(4), jnp.array([0, 1, 3, 5])
    raw = random_parameters(exact, y, t)
    params = spectral_norm.normalise(raw, spectral_norm.init(jax.random.key(1), raw))

    def all_of(network):
      def total(p, y):
        f = network.apply({'params': p}, y, t)
        return jnp.sum(f), f

      (_, f), (grads, score) = compilation.once(jax.value_and_grad(total, (0, 1), has_aux=True))(params, y)
      return f, grads, score

    names = 'f', 'gradient', 'score'
    for name, ours, theirs in zip(names, all_of(rough), all_of(exact), strict=True):
      self.assertEqual({x.dtype for x in jax.tree.leaves(ours)}, {jnp.dtype('float32')}, name)
      distance = testing.norm(jax.tree.map(np.subtract, ours, theirs)) / testing.norm(theirs)
      # bfloat16 has 8 bits, 0.4 % an operation; a dozen layers add up. Seen with three seeds: f at most 0.9 %, the
      # gradient 1.9 %, the score, in which rounding turns some leaky ReLUs over, 7 %.
      self.assertLess(distance, 0.15 if name == 'score' else 0.04, name)
      self.assertGreater(distance, 1e-4, name)  # it was not computed in float32


class ResNetTest(parameterized.TestCase):
  @staticmethod
  @functools.cache
  def values(**options):
    network = make_resnet(**options)
    y, t = images(), jnp.array([0, 4])
    params = random_parameters(network, y, t)
    return compilation.once(network.apply)({'params': params}, y, t), params

  @parameterized.parameters(
    {'act': 'swish'},
    {'final_act': 'swish'},
    {'final_act': 'lrelu'},
    {'norm': 'group'},
    {'use_scale': False},
    {'shortcut': 'nin'},
    {'resample_with_conv': True},
    {'attention_resolutions': (8,)},
    {'num_res_blocks': 2},
    {'ch': 16},
    {'ch_mult': (1, 1)},
    {'dtype': jnp.bfloat16},
  )
  def test_every_option_changes_the_energy(self, **option):
    plain, _ = self.values()
    other, _ = self.values(**option)
    self.assertEqual(other.shape, (2,))
    self.assertEqual(other.dtype, jnp.float32)
    self.assertTrue(np.all(np.isfinite(other)))
    self.assertGreater(np.max(np.abs(plain - other)), 1e-4)

  def test_parameters_are_float32_under_bfloat16(self):
    _, params = self.values(dtype=jnp.bfloat16)
    self.assertEqual({p.dtype for p in jax.tree.leaves(params)}, {jnp.dtype('float32')})

  @testing.long
  def test_bfloat16_is_close_to_float32(self):
    plain, _ = self.values()
    half, _ = self.values(dtype=jnp.bfloat16)
    np.testing.assert_allclose(half, plain, rtol=0.1, atol=0.1 * np.max(np.abs(plain)))

  @testing.long
  def test_remat_changes_nothing_but_the_memory(self):
    y, t = images(), jnp.array([0, 4])
    gradients = []
    for remat in (False, True):
      network = make_resnet(remat=remat)
      params = random_parameters(network, y, t)
      gradients.append(jax.grad(lambda p, n=network: jnp.sum(n.apply({'params': p}, y, t)))(params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), *gradients)

  @testing.long
  @parameterized.parameters('none', 'group')
  def test_an_images_energy_does_not_depend_on_its_batch(self, norm):
    network = make_resnet(norm=norm, attention_resolutions=(4,))
    y, t = images(3), jnp.array([0, 4, 5])
    params = random_parameters(network, y, t)
    together = network.apply({'params': params}, y, t)
    apart = jnp.concatenate([network.apply({'params': params}, y[i : i + 1], t[i : i + 1]) for i in range(3)])
    np.testing.assert_allclose(together, apart, rtol=1e-4, atol=1e-3)

  def test_the_level_matters(self):
    network = make_resnet()
    y = jnp.tile(images(1), (2, 1, 1, 1))
    params = random_parameters(network, y, jnp.array([0, 4]))
    f = network.apply({'params': params}, y, jnp.array([0, 4]))
    self.assertGreater(abs(f[0] - f[1]), 1e-4)

  def test_residual_blocks_start_as_the_identity(self):
    network = make_resnet(ch=8, ch_mult=(1,), num_res_blocks=3, norm='none')
    y, t = images(), jnp.array([0, 4])
    params = start(network, y, t)
    kernel = params['body']['level_0_block_1']['conv_2']['kernel']
    self.assertLess(np.max(np.abs(kernel)), 1e-4)
    h = convolution.conv2d(y, params['body']['conv_in']['kernel'])
    level = network.apply({'params': params}, t, method='embed')['head']
    np.testing.assert_allclose(
      network.apply({'params': params}, y, t), jnp.sum(jnp.sum(jax.nn.relu(h), (1, 2)) * level, 1), rtol=1e-3, atol=1e-3
    )


class NanTest(parameterized.TestCase):
  """NaN comes out as NaN, whatever the batch."""

  @parameterized.parameters(*layers.ACTIVATIONS)
  def test_activations_keep_it(self, name):
    for batch in (1, 2, 4, 8):
      total = jax.jit(lambda x: jnp.sum(layers.ACTIVATIONS[name](x), (1, 2)))
      self.assertTrue(np.all(np.isnan(total(jnp.full((batch, 16, 16, 8), jnp.nan)))))

  @parameterized.product(name=('relu', 'lrelu'), dtype=(jnp.float32, jnp.bfloat16))
  def test_activations_are_the_usual_ones_elsewhere(self, name, dtype):
    ours = layers.ACTIVATIONS[name]
    theirs = {'relu': jax.nn.relu, 'lrelu': lambda x: jax.nn.leaky_relu(x, 0.2)}[name]
    x = jnp.concatenate([jax.random.normal(jax.random.key(0), (1000,)), jnp.array([0.0, -0.0, 3e38, -3e38, jnp.inf])])
    x = x.astype(dtype)
    np.testing.assert_array_equal(ours(x), theirs(x))
    self.assertEqual(ours(x).dtype, dtype)
    np.testing.assert_array_equal(
      *(jax.grad(lambda x, f=f: jnp.sum(f(x) * jnp.arange(1005)))(x) for f in (ours, theirs))
    )

  def check(self, network, shape, batches=(4,)):
    """One example of a batch is NaN: its energy and its score are, and no others."""
    levels = noise_levels.make_levels(6, 0.06)
    params = random_parameters(network, jnp.zeros((1, *shape)), jnp.zeros(1, int))
    ebm = Ebm(params, network, levels)
    for batch in batches:
      x, t = jax.random.normal(jax.random.key(0), (batch, *shape)).at[-1].set(jnp.nan), jnp.arange(batch) % 6
      expected = np.arange(batch) == batch - 1
      np.testing.assert_array_equal(np.isnan(jax.jit(marginal_density.log_density)(ebm, x, t)), expected)
      score = np.isnan(jax.jit(marginal_density.score)(ebm, x, t)).reshape(batch, -1)
      np.testing.assert_array_equal(np.any(score, 1), expected)
      np.testing.assert_array_equal(np.all(score, 1), expected)

  @testing.long
  @parameterized.parameters({}, {'ch': 64, 'ch_mult': (1,)})  # narrow convolutions and wide ones
  def test_energy_and_score_of_the_residual_network_are_nan(self, **options):
    self.check(make_resnet(**options), (16, 16, 3), batches=(1, 4, 8))

  @testing.long
  @parameterized.parameters(
    {'act': 'relu'},
    {'act': 'swish', 'final_act': 'swish'},
    {'final_act': 'lrelu'},
    {'norm': 'group', 'attention_resolutions': (8,), 'resample_with_conv': True},
    {'dtype': jnp.bfloat16},
  )
  def test_energies_and_scores_of_other_residual_networks_are_nan(self, **options):
    self.check(make_resnet(**options), (16, 16, 3))

  @testing.long
  @parameterized.parameters(*layers.ACTIVATIONS)
  def test_energies_and_scores_of_perceptrons_are_nan(self, act):
    self.check(make_mlp(act=act, num_frequencies=2), (2,), batches=(1, 4, 8))


class DropoutTest(absltest.TestCase):
  def test_it_keeps_the_mean_and_the_rate_and_depends_on_the_examples_key(self):
    keys = jax.random.split(jax.random.key(0), 4)
    x = jnp.ones((4, 10_000))
    y = layers.dropout(x, 0.3, keys)
    np.testing.assert_allclose(np.mean(y == 0, axis=1), 0.3, atol=0.03)  # 6 standard errors
    np.testing.assert_allclose(np.mean(y, axis=1), 1.0, atol=0.04)
    np.testing.assert_array_equal(y[2:], layers.dropout(x[2:], 0.3, keys[2:]))
    np.testing.assert_array_equal(layers.dropout(x, 0.3, None), x)

  def test_networks_use_it_only_with_keys(self):
    t, keys = jnp.array([0, 4]), jax.random.split(jax.random.key(0), 2)
    for network, y in ((make_resnet(dropout=0.5), images()), (make_mlp(dropout=0.5), images()[:, 0, 0])):
      params = random_parameters(network, y, t)
      plain = network.apply({'params': params}, y, t)
      dropped = network.apply({'params': params}, y, t, keys)
      self.assertGreater(np.max(np.abs(plain - dropped)), 1e-4)


class UNetTest(absltest.TestCase):
  @testing.long
  def test_an_image_depends_on_its_own_level_and_key_alone_and_gradients_are_means(self):
    settings = unet.UNetSettings(ch=40, ch_mult=(1, 1), num_res_blocks=1, attention_resolutions=(8,), dropout=0.3)
    network = unet.ProposalUNet(settings, tuple(np.linspace(100.0, 900.0, 6).tolist()))
    x, t, keys = images(4), jnp.array([0, 5, 2, 3]), jax.random.split(jax.random.key(2), 4)
    params = random_parameters(network, x, t)

    @compilation.once
    def value_and_gradient(params, x, t, keys):
      apply = lambda p: network.apply({'params': p}, x, t, keys)  # noqa: E731
      return apply(params), jax.grad(lambda p: jnp.mean(apply(p) ** 2))(params)

    whole, gradient = value_and_gradient(params, x, t, keys)
    twice = [jnp.array([i, i + 1, i, i + 1]) for i in (0, 2)]  # each half of the batch two times, in the same program
    halves = [value_and_gradient(params, x[half], t[half], keys[half]) for half in twice]
    np.testing.assert_allclose(whole, jnp.concatenate([value[:2] for value, _ in halves]), rtol=1e-4, atol=1e-4)
    size = testing.norm(gradient)
    jax.tree.map(
      lambda g, a, b: np.testing.assert_allclose(g, (a + b) / 2, rtol=1e-3, atol=1e-5 * size),
      gradient,
      halves[0][1],
      halves[1][1],
    )
    without_dropout = compilation.once(network.apply)({'params': params}, x, t)
    for other in (value_and_gradient(params, x, t, keys[::-1])[0], without_dropout):
      self.assertGreater(np.min(np.max(np.abs(whole - other), axis=(1, 2, 3))), 1e-2)


class EnergyUNetTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.y, cls.t = images(3), jnp.array([0, 5, 2])

  @classmethod
  def make(cls, **options):
    settings = unet.UNetSettings(**(BASE | {'dropout': 0.0} | options))
    network = unet.EnergyUNet(settings, num_classes=2)
    return network, random_parameters(network, cls.y, cls.t)

  @classmethod
  @functools.cache
  def energies(cls, **options):
    network, params = cls.make(**options)
    return compilation.once(network.apply)({'params': params}, cls.y, cls.t)

  def test_the_gradient_is_half_of_the_output_and_of_the_transposed_derivative_times_the_image(self):
    network, params = self.make()

    def s(y):
      level = network.apply({'params': params}, self.t, method='embed')
      return unet._Body(network.settings).apply({'params': params['body']}, y, level['body'], None)

    @compilation.once
    def output(y):
      out, transposed = jax.vjp(s, y)
      return out, transposed(y)[0]

    @compilation.once
    def energy(y):
      total = lambda y: (jnp.sum(energies := network.apply({'params': params}, y, self.t)), energies)  # noqa: E731
      gradient, energies = jax.grad(total, has_aux=True)(y)
      return energies, gradient

    (out, transposed), (energies, gradient) = output(self.y), energy(self.y)
    np.testing.assert_allclose(energies, 0.5 * jnp.sum(self.y * out, (1, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(gradient, 0.5 * (out + transposed), rtol=1e-3, atol=1e-4)

  def test_it_starts_flat(self):
    network, _ = self.make()
    params = start(network, self.y, self.t)
    np.testing.assert_allclose(compilation.once(network.apply)({'params': params}, self.y, self.t), 0, atol=0.05)

  @parameterized.parameters(
    {'ch': 16},
    {'ch_mult': (1, 1)},
    {'num_res_blocks': 2},
    {'attention_resolutions': ()},
    {'act': 'lrelu'},
    {'norm': 'none'},
    {'dtype': jnp.bfloat16},
  )
  def test_every_option_changes_the_energy(self, **option):
    plain, other = self.energies(), self.energies(**option)
    self.assertEqual(other.dtype, jnp.float32)
    self.assertGreater(np.max(np.abs(plain - other)), 1e-4)

  def test_remat_changes_nothing_but_the_memory(self):
    found = []
    for remat in (False, True):
      network, params = self.make(remat=remat, dropout=0.5)
      keys = jax.random.split(jax.random.key(2), 3)
      score = lambda y: jnp.sum(network.apply({'params': params}, y, self.t, keys))  # noqa: B023, E731
      found.append(compilation.once(jax.grad(score))(self.y))
    np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-4)

  def test_the_energy_depends_on_its_own_image_level_and_class_alone(self):
    network, params = self.make()

    @compilation.once
    def f(y, t, label):
      level = network.apply({'params': params}, t, label, method='embed')
      return network.apply({'params': params}, y, level, method='f')

    label = jnp.array([1, 2, 0])
    whole = f(self.y, self.t, label)
    for i in range(3):
      one = slice(i, i + 1)
      np.testing.assert_allclose(whole[one], f(self.y[one], self.t[one], label[one]), rtol=1e-4, atol=1e-4)
    for other in (f(self.y, self.t[::-1], label), f(self.y, self.t, label[::-1])):
      self.assertGreater(np.abs(whole[0] - other[0]), 1e-3)


class MLPTest(parameterized.TestCase):
  @parameterized.parameters(
    {'num_layers': 2},
    {'num_frequencies': 3},
    {'act': 'relu'},
    {'output_scale': 0.1},
    {'ch': 8},
    {'dtype': jnp.bfloat16},
  )
  def test_every_option_changes_the_energy(self, **option):
    y, t = jax.random.normal(jax.random.key(0), (2, 2)), jnp.array([0, 4])
    values = []
    for options in ({}, option):
      network = make_mlp(**options)
      params = random_parameters(network, y, t)
      values.append(network.apply({'params': params}, y, t))
    self.assertEqual(values[1].dtype, jnp.float32)
    self.assertGreater(np.max(np.abs(values[0] - values[1])), 1e-5)

  def test_output_scale_is_a_factor(self):
    y, t = jax.random.normal(jax.random.key(0), (2, 2)), jnp.array([0, 4])
    params = random_parameters(make_mlp(), y, t)
    one, tenth = (make_mlp(output_scale=s).apply({'params': params}, y, t) for s in (1.0, 0.1))
    np.testing.assert_allclose(tenth, 0.1 * one, rtol=1e-5)


class AtLevelTest(absltest.TestCase):
  def test_halves_make_up_the_network(self):
    levels = noise_levels.make_levels(6, 0.06)
    for network, y in ((make_resnet(), images()), (make_mlp(), images()[:, 0, 0])):
      t = jnp.array([0, 4])
      params = random_parameters(network, y, t)
      np.testing.assert_allclose(
        Ebm(params, network, levels).at(t).f(y), network.apply({'params': params}, y, t), rtol=1e-6
      )

  def test_embedding_is_sines_then_cosines(self):
    embedding = layers.sinusoidal_embedding(jnp.array([0, 3]), 7)
    self.assertEqual(embedding.shape, (2, 7))
    np.testing.assert_allclose(embedding[0], [0, 0, 0, 1, 1, 1, 0], atol=1e-6)
    frequencies = np.array([1, 1e-2, 1e-4])
    np.testing.assert_allclose(embedding[1, :3], np.sin(3 * frequencies), rtol=1e-4)

  @testing.long
  def test_levels_can_be_embedded_by_their_noise(self):
    config = default.get_config()
    config.data.image_size = 8
    config.model.update({'ch': 4, 'ch_mult': (1,), 'num_res_blocks': 1, 'level_embedding': 'log_snr'})
    levels = noise_levels.make_noise_levels(config.diffusion.num_levels)
    y, t = images(), jnp.array([0, 4])
    for name in ('resnet', 'mlp'):
      config.model.name = name
      network = networks.make_network(config.model, levels)
      params = random_parameters(network, y, t)
      config.model.level_embedding = 'index'
      plain = networks.make_network(config.model, levels)
      config.model.level_embedding = 'log_snr'
      numbers = jnp.asarray(np.log(levels.a_cum / levels.sigma_cum)[[0, 4]], jnp.float32)
      np.testing.assert_allclose(
        network.apply({'params': params}, y, t), plain.apply({'params': params}, y, numbers), rtol=1e-5
      )
      # Straight lines between the levels.
      middle = jnp.full(2, np.log(levels.a_cum / levels.sigma_cum)[2:4].mean(), jnp.float32)
      np.testing.assert_allclose(
        network.apply({'params': params}, y, jnp.full(2, 2.5)), plain.apply({'params': params}, y, middle), rtol=1e-5
      )


class SpectralNormTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    network = make_resnet(attention_resolutions=(8,))
    y, t = images(), jnp.array([0, 4])
    self.params = jax.tree.map(lambda p: 3 * p, random_parameters(network, y, t))

  def norms(self, params):
    return {
      path: np.linalg.norm(np.reshape(w, (-1, w.shape[-1])), 2)
      for path, w in traverse_util.flatten_dict(params).items()
      if path[-1] == 'kernel'
    }

  def test_kernels_have_norm_one_but_for_the_free_ones(self):
    u = spectral_norm.iterate(self.params, spectral_norm.init(jax.random.key(1), self.params), 200)
    before, after = self.norms(self.params), self.norms(spectral_norm.normalise(self.params, u))
    free = {p for p in before if p[-2] == 'head' or p[-2].startswith('attn_')}
    self.assertLen(free, 1 + 4 * 1)
    for path, norm in after.items():
      self.assertAlmostEqual(norm, before[path] if path in free else 1.0, places=3)

  def test_kernels_that_start_at_zero_may_stay_small(self):
    small = jax.tree.map(lambda p: 0.01 * p, self.params)
    u = spectral_norm.iterate(small, spectral_norm.init(jax.random.key(1), small), 200)
    before, after = self.norms(small), self.norms(spectral_norm.normalise(small, u))
    for path in after:
      if path[-2] == 'conv_2':
        self.assertLess(before[path], 1)
        self.assertAlmostEqual(after[path], before[path], places=4)
      elif path[-2] == 'conv_1':
        self.assertAlmostEqual(after[path], 1.0, places=3)

  def test_one_step_of_the_power_iteration_is_miyatos(self):
    u = spectral_norm.init(jax.random.key(1), self.params)
    path = ('body', 'conv_in', 'kernel')
    start = np.ones(8) / np.sqrt(8)
    moved = traverse_util.flatten_dict(u) | {path: jnp.asarray(start, jnp.float32)}
    after = traverse_util.flatten_dict(spectral_norm.iterate(self.params, traverse_util.unflatten_dict(moved)))[path]
    w = np.reshape(self.params['body']['conv_in']['kernel'], (-1, 8))
    v = w @ start / np.linalg.norm(w @ start)
    np.testing.assert_allclose(after, v @ w / np.linalg.norm(v @ w), rtol=1e-4, atol=1e-6)

  def test_no_gradient_flows_through_the_vectors(self):
    u = spectral_norm.init(jax.random.key(1), self.params)

    def norm(params):
      return jnp.sum(
        spectral_norm.normalise(params, spectral_norm.iterate(params, u))['body']['conv_in']['kernel'] ** 2
      )

    fixed = spectral_norm.iterate(self.params, u)
    expected = jax.grad(lambda p: jnp.sum(spectral_norm.normalise(p, fixed)['body']['conv_in']['kernel'] ** 2))
    kernel = ('body', 'conv_in', 'kernel')
    np.testing.assert_allclose(
      traverse_util.flatten_dict(jax.grad(norm)(self.params))[kernel],
      traverse_util.flatten_dict(expected(self.params))[kernel],
      rtol=1e-4,
      atol=1e-5,
    )

  def test_averaged_kernels_may_be_normalised_with_the_raw_ones_vectors(self):
    u = spectral_norm.iterate(self.params, spectral_norm.init(jax.random.key(1), self.params), 200)
    average = randomised(self.params)
    found = spectral_norm.normalise(average, u, False, self.params)['body']['conv_in']['kernel']
    left, right, raw = (tree['body']['conv_in']['kernel'] for tree in (u, average, self.params))
    raw, right = (np.reshape(kernel, (-1, 8)) for kernel in (raw, right))
    inputs = raw @ left / np.linalg.norm(raw @ left)
    np.testing.assert_allclose(np.reshape(found, (-1, 8)), right / (inputs @ right @ left), rtol=1e-4)
    same = spectral_norm.normalise(self.params, u, False, self.params)
    jax.tree.map(np.testing.assert_array_equal, same, spectral_norm.normalise(self.params, u, False))

  def test_without_vectors_nothing_is_normalised(self):
    jax.tree.map(np.testing.assert_array_equal, spectral_norm.normalise(self.params, {}), self.params)
    self.assertEqual(spectral_norm.iterate(self.params, {}), {})


if __name__ == '__main__':
  absltest.main()
