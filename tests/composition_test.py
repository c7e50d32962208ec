"""Sums of energies against closed forms: Gaussians, and mixtures on a grid."""

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_ebm import composition, corrected_sampling, noise_levels, recovery, sampling
from tests import composition_figures, testing


def levels():
  return noise_levels.make_levels(6, 0.06, 'conditional', 'one')


def gaussian(mean, variance, levels):
  """Exact energies of normal data, whose log density at a level is normalised up to a constant."""
  a_y, a_cum, sigma_cum = (jnp.asarray(v, jnp.float32) for v in (levels.a_y, levels.a_cum, levels.sigma_cum))

  def f(y, t):
    variance_t = a_y[t] ** 2 * (a_cum[t] ** 2 * variance + sigma_cum[t] ** 2)
    return -0.5 * jnp.sum((y - (a_y[t] * a_cum[t])[:, None] * jnp.asarray(mean)) ** 2, axis=1) / variance_t

  return testing.function_ebm(levels, f)


class Labelled:
  """A stand-in for a network that is told classes: f is the class's own row of slopes times y, and the level."""

  def __init__(self, slopes):
    self.slopes = jnp.asarray(slopes)

  def apply(self, variables, *args, method):
    del variables
    if method == 'embed':
      t, label = args
      label = jnp.zeros(len(t), int) if label is None else label
      return {'slope': self.slopes[label], 't': t.astype(jnp.float32)}
    y, level, _ = args
    return jnp.sum(level['slope'] * y, axis=1) * (1 + level['t'])


class TermsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.slopes = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    self.ebm = testing.function_ebm(levels(), None).replace(network=Labelled(self.slopes))
    self.y = jnp.asarray(np.random.default_rng(1).normal(size=(5, 3)), jnp.float32)
    self.t = jnp.array([0, 1, 2, 3, 4])

  def value(self, label, t=None):
    t = self.t if t is None else t
    return np.sum(self.slopes[label] * np.asarray(self.y), axis=1) * (1 + np.asarray(t))

  def test_without_a_label_it_is_the_empty_class(self):
    np.testing.assert_allclose(self.ebm.f(self.y, self.t), self.value(0), rtol=1e-6)

  @parameterized.parameters(2, (0, 1, 2, 3, 1))
  def test_guidance_is_the_difference_from_the_empty_class(self, *label):
    label = np.array(label[0] if len(label) == 1 else label)
    for weight in (0.0, 0.5, 3.0):
      ebm = composition.guided(self.ebm, label, weight)
      expected = (1 + weight) * self.value(label) - weight * self.value(0)
      np.testing.assert_allclose(ebm.f(self.y, self.t), expected, rtol=1e-5, atol=1e-5)

  def test_one_level_for_all_examples(self):
    ebm = composition.guided(self.ebm, 2, 0.5)
    expected = 1.5 * self.value(2, 3) - 0.5 * self.value(0, 3)
    np.testing.assert_allclose(ebm.at(jnp.array([3])).f(self.y), expected, rtol=1e-5, atol=1e-5)
    each = composition.of_class(self.ebm, np.array([0, 1, 2, 3, 1]))
    np.testing.assert_allclose(each.at(jnp.array([3])).f(self.y), self.value([0, 1, 2, 3, 1], 3), rtol=1e-5, atol=1e-5)

  def test_labels_repeat_for_positives_and_negatives(self):
    label = np.array([0, 1, 2, 3, 1])
    loss, f_pos = recovery.recovery_loss(composition.of_class(self.ebm, label), self.y, -self.y, self.t)
    y_pos = self.ebm.levels.to_y(self.y, self.t)
    expected = np.sum(self.slopes[label] * y_pos, axis=1) * (1 + np.asarray(self.t))
    np.testing.assert_allclose(f_pos, expected, rtol=1e-5, atol=1e-5)
    weight = self.ebm.levels.weight[np.asarray(self.t)] / self.ebm.levels.temperature[np.asarray(self.t)]
    np.testing.assert_allclose(loss, -2 * weight * expected, rtol=1e-4, atol=1e-4)

  def test_conjunction(self):
    expected = self.value(1) + self.value(2) + self.value(3) - 2 * self.value(0)
    np.testing.assert_allclose(
      composition.conjunction(self.ebm, (1, 2, 3)).f(self.y, self.t), expected, rtol=1e-5, atol=1e-5
    )


class SumTest(parameterized.TestCase):
  def test_a_product_of_two_gaussians_is_sampled_exactly(self):
    given = levels()
    a, b = gaussian((0.5, 0.0), 0.2, given), gaussian((-0.2, 0.3), 0.1, given)
    ebm = composition.add((a, 1.0), (b, 1.0))
    settings = corrected_sampling.Settings(num_steps=60, num_tuning_steps=60)
    step_sizes = corrected_sampling.tune(ebm, jax.random.split(jax.random.key(1), 64), (2,), settings)
    keys = jax.random.split(jax.random.key(0), 8000)
    x, _, acceptance = jax.jit(lambda e, k, s: corrected_sampling.sample(e, k, (2,), settings, s))(
      ebm, keys, step_sizes
    )
    a0, s0 = given.a_cum[0], given.sigma_cum[0]
    precisions = [1 / (a0**2 * v + s0**2) for v in (0.2, 0.1)]
    mean = (precisions[0] * a0 * np.array([0.5, 0.0]) + precisions[1] * a0 * np.array([-0.2, 0.3])) / sum(precisions)
    np.testing.assert_allclose(np.mean(x, 0), mean, atol=4 * np.sqrt(1 / sum(precisions) / 8000) + 0.005)
    np.testing.assert_allclose(np.var(x, axis=0), 1 / sum(precisions), rtol=0.08)
    np.testing.assert_allclose(acceptance, 0.574, atol=0.12)

  @testing.long
  @parameterized.parameters('ring, not row', 'guidance 2')
  def test_corrected_chains_sample_compositions_exactly_and_plain_ones_do_not(self, name):
    corrected, plain = composition_figures.kl_of_both(name)
    self.assertLess(corrected, 0.035)  # of which 0.01 to 0.015 is the bias of counting
    self.assertGreater(plain, 1.5 * corrected)

  def test_models_of_other_levels_are_refused(self):
    given = gaussian((0.0, 0.0), 1.0, levels())
    for other, message in (
      (noise_levels.make_levels(7, 0.06, 'conditional', 'one'), r'numbers of levels \(6 and 7\)'),
      (noise_levels.make_levels(6, 0.06, 'conditional', 'one', schedule='cosine'), 'noise levels'),
      (noise_levels.make_levels(6, 0.03, 'conditional', 'one'), 'step sizes'),
      (noise_levels.make_levels(6, 0.06, 'conditional', 'step_size'), 'temperatures'),
    ):
      with self.assertRaisesRegex(ValueError, f'models of different {message} cannot be added'):
        composition.add((given, 1.0), (gaussian((0.0, 0.0), 1.0, other), 1.0))

  def test_either_is_the_mixture_of_the_densities(self):
    given = levels()
    a, b = gaussian((0.5, 0.0), 0.2, given), gaussian((-0.2, 0.3), 0.1, given)
    weights = np.log([[0.3] * 6, np.linspace(0.2, 0.7, 6)])
    ebm = composition.either((a, np.log(0.3)), (b, weights[1]))
    y, t = jnp.asarray(np.random.default_rng(0).normal(size=(6, 2)), jnp.float32), jnp.arange(6)
    densities = [np.exp(np.asarray(model.log_density(y, t), np.float64)) for model in (a, b)]
    expected = np.log(0.3 * densities[0] + np.exp(weights[1]) * densities[1])
    np.testing.assert_allclose(ebm.log_density(y, t), expected, rtol=1e-4, atol=1e-4)
    one = composition.either((a, 0.0)).at(jnp.array([2]))  # a level for all, and one part
    np.testing.assert_allclose(one.score(y), a.at(jnp.full(6, 2)).score(y), rtol=1e-4, atol=1e-5)
    other = noise_levels.make_levels(7, 0.06, 'conditional', 'one')
    with self.assertRaisesRegex(ValueError, r'numbers of levels \(6 and 7\)'):
      composition.either((a, 0.0), (gaussian((0.0, 0.0), 1.0, other), 0.0))

  def test_windows_side_by_side_are_independent(self):
    given = levels()

    def images(mean):
      return testing.function_ebm(given, lambda y, t: -0.5 * jnp.sum((y - mean) ** 2, axis=(1, 2, 3)))

    ebm = composition.add(
      (composition.Window(images(0.2), (0, 4), (0, 4)), 1.0), (composition.Window(images(-0.1), (0, 4), (4, 8)), 1.0)
    )
    y = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 8, 1)), jnp.float32)
    t = jnp.array([0, 2, 5])
    expected = images(0.2).f(y[:, :, :4], t) + images(-0.1).f(y[:, :, 4:], t)
    np.testing.assert_allclose(ebm.f(y, t), expected, rtol=1e-6)
    keys = jax.random.split(jax.random.key(0), 3)
    self.assertEqual(sampling.sample(ebm, keys, (4, 8, 1), sampling.Settings(2))[0].shape, (3, 4, 8, 1))


if __name__ == '__main__':
  absltest.main()
