"""Class probabilities from energies, against their definition and against known ones."""

from absl.testing import absltest
import jax.numpy as jnp
import numpy as np
from scipy import special

from diffusion_ebm import class_probabilities, composition, langevin, marginal_density, noise_levels, random_keys
from tests import composition_test, testing


class LogDensitiesTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    slopes = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    self.ebm = testing.function_ebm(composition_test.levels(), None).replace(network=composition_test.Labelled(slopes))
    self.x = jnp.asarray(np.random.default_rng(1).normal(size=(5, 3)), jnp.float32)

  def test_they_are_means_over_noise_that_all_examples_share(self):
    values = class_probabilities.log_densities(self.ebm, self.x, jnp.array([1, 4]), 3)
    keys = random_keys.sample_keys(0, jnp.arange(8), random_keys.CLASSES)
    eps = langevin.normal_noise(keys, (3,))(0)
    for i, t in enumerate((1, 4)):
      level = jnp.full(5, t)
      for label in range(3):
        model = composition.of_class(self.ebm, label + 1)
        each = [noise_levels.diffuse(model.levels, self.x, level, e + 0 * self.x) for e in eps]
        expected = np.mean([marginal_density.log_density(model, x_t, level) for x_t in each], axis=0)
        np.testing.assert_allclose(values[:, i, label], expected, rtol=1e-4, atol=1e-3)

  def test_log_probabilities_are_those_of_the_calibration(self):
    bias = np.random.default_rng(2).normal(size=(6, 3))
    calibration = class_probabilities.Calibration(4, np.linspace(0.1, 1, 6), bias)
    found = class_probabilities.log_prob(self.ebm, self.x, jnp.array(4), calibration)
    values = np.asarray(class_probabilities.log_densities(self.ebm, self.x, jnp.array([4]), 3))[:, 0]
    expected = special.log_softmax(calibration.scale[4] * values + bias[4], axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(np.sum(np.exp(found), axis=1), 1, rtol=1e-5)


class FitTest(absltest.TestCase):
  def test_known_scale_and_biases_are_found(self):
    rng = np.random.default_rng(0)
    values, bias = rng.normal(0, 300, size=(40_000, 3)) - 5000, np.array([0.5, -1.0, 0.5])
    probabilities = special.softmax(0.01 * values + bias, axis=1)
    labels = (rng.random((len(values), 1)) > np.cumsum(probabilities, axis=1)).sum(axis=1)
    scale, found = class_probabilities.fit(values.astype(np.float32), labels)
    self.assertAlmostEqual(scale, 0.01, delta=4e-4)
    np.testing.assert_allclose(found, bias, atol=0.05)

  def test_unknown_normalisers_are_made_up_for(self):
    """Two normal densities of different widths: energies alone would take the wider one's class too often."""
    rng = np.random.default_rng(1)
    labels = rng.integers(2, size=20_000)
    x = rng.normal(size=(len(labels), 2)) * np.where(labels, 2.0, 0.5)[:, None]
    energies = -0.5 * np.sum(x**2, axis=1)[:, None] / np.array([0.5, 2.0]) ** 2
    scale, bias = class_probabilities.fit(energies, labels)
    self.assertAlmostEqual(scale, 1, delta=0.03)
    self.assertAlmostEqual(bias[0] - bias[1], 2 * np.log(4), delta=0.15)

  def test_log_loss(self):
    logits, labels = np.array([[0.0, 0.0], [1.0, -1.0]]), np.array([0, 1])
    self.assertAlmostEqual(
      class_probabilities.mean_log_loss(logits, labels), (np.log(2) + np.log(1 + np.exp(2))) / 2, places=12
    )


if __name__ == '__main__':
  absltest.main()
