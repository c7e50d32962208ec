"""Tests of the two-dimensional distributions and their exact densities."""

import types

from absl.testing import absltest, parameterized
import numpy as np

from diffusion_ebm.data import load_source, toy
from diffusion_ebm.run.errors import UserError

_NAMES = ('checkerboard', 'eight_gaussians', 'rings', 'two_moons')
# The smallest Gaussian width of each; the squares of the checkerboard have none.
_WIDTHS = {'checkerboard': 0.0, 'eight_gaussians': 0.1, 'rings': 0.02, 'two_moons': 0.05}
# Fields of the checkerboard are whole numbers of cells.
_CHECKERBOARD_STEP = 0.01
_DIFFUSIONS = ((1.0, 0.0), (1.0, 0.3), (0.8, 0.6), (0.1, 0.995), (0.5, 0.02))


def _grid(name, a=1.0, sigma=0.0):
  """The middles of the cells of a grid on which sums of the density are as good as integrals.

  For a smooth density with steps of one width the error is about 1e-8.
  """
  if name == 'checkerboard' and sigma == 0:
    step = a * _CHECKERBOARD_STEP
  else:
    step = np.hypot(a * _WIDTHS[name], sigma)
  reach = np.ceil((1.05 * a + 7 * np.hypot(a * _WIDTHS[name], sigma)) / step) * step
  axis = np.arange(-reach + step / 2, reach, step)
  return np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2), step**2


def _diffuse(name, n, a, sigma, seed=0):
  rng = np.random.default_rng(seed)
  samples = toy.distribution(name).sample(rng, n).astype(np.float64)
  return a * samples + sigma * rng.standard_normal((n, 2))


def _grid_cases():
  return [(name, *diffusion) for name in _NAMES for diffusion in _DIFFUSIONS]


class ToyTest(parameterized.TestCase):
  @parameterized.parameters(_grid_cases())
  def test_density_integrates_to_one(self, name, a, sigma):
    points, cell = _grid(name, a, sigma)
    density = np.exp(toy.distribution(name).log_density(points, a, sigma))
    # On the narrowly diffused checkerboard the reach of the grid is what counts.
    self.assertAlmostEqual(np.sum(density) * cell, 1.0, delta=1e-6)

  @parameterized.parameters((name, *d) for name in _NAMES for d in ((1.0, 0.3), (0.8, 0.6), (0.1, 0.995)))
  def test_diffused_density_is_the_convolution_with_the_noise(self, name, a, sigma):
    log_density = toy.distribution(name).log_density
    clean, cell = _grid(name)
    weights = cell * np.exp(log_density(clean))
    points = np.random.default_rng(0).uniform(-1.5, 1.5, size=(60, 2))
    squares = np.sum((points[:, None] - a * clean) ** 2, axis=-1)
    noise = np.exp(-squares / (2 * sigma**2)) / (2 * np.pi * sigma**2)
    expected = np.log(noise @ weights)
    # Cells of the discontinuous checkerboard cost some accuracy.
    tolerance = 5e-4 if name == 'checkerboard' else 1e-6
    np.testing.assert_allclose(log_density(points, a, sigma), expected, atol=tolerance, rtol=0)

  @parameterized.parameters((name, *d) for name in _NAMES for d in ((1.0, 0.0), (0.8, 0.6), (0.5, 0.1)))
  def test_mean_log_density_of_samples_is_minus_the_entropy(self, name, a, sigma):
    log_density = toy.distribution(name).log_density
    points, cell = _grid(name, a, sigma)
    logs = log_density(points, a, sigma)
    inside = logs > -np.inf
    entropy = -cell * np.sum(np.exp(logs[inside]) * logs[inside])
    n = 20_000
    if (a, sigma) == (1.0, 0.0):
      samples = toy.distribution(name).sample(np.random.default_rng(1), n).astype(np.float64)
    else:
      samples = _diffuse(name, n, a, sigma, seed=1)
    of_samples = log_density(samples, a, sigma)
    error = np.std(of_samples) / np.sqrt(n)
    # Four standard errors, plus the quadrature's on the plateaus of the checkerboard.
    self.assertAlmostEqual(np.mean(of_samples), -entropy, delta=4 * error + 1e-6)

  @parameterized.parameters((n, *d) for n in _NAMES for d in ((1.0, 0.0), (0.8, 0.3)))
  def test_histogram_of_samples_matches_the_density(self, name, a, sigma):
    n = 100_000
    samples = _diffuse(name, n, a, sigma)
    edges = np.linspace(-1, 1, 9)
    counts, _, _ = np.histogram2d(samples[:, 1], samples[:, 0], bins=(edges, edges))
    fine = np.arange(-1 + 0.005, 1, 0.01)  # 25 cells to a bin
    points = np.stack(np.meshgrid(fine, fine), axis=-1).reshape(-1, 2)
    density = np.exp(toy.distribution(name).log_density(points, a, sigma)).reshape(8, 25, 8, 25)
    expected = n * 1e-4 * np.sum(density, axis=(1, 3))
    some = expected > 5
    np.testing.assert_array_less(counts[~some], 30)
    # Five standard deviations of 64 Poisson counts, and half a percent for the quadrature.
    deviations = np.abs(counts - expected)[some] - 5e-3 * expected[some]
    np.testing.assert_array_less(deviations, 5 * np.sqrt(expected[some]))

  def test_two_moons_are_exact_to_a_millionth_within_ten_units(self):
    # The reference: 64 panels of 64 nodes on each arc.
    nodes, weights = np.polynomial.legendre.leggauss(64)
    edges = np.linspace(0, np.pi, 65)
    angles = (edges[:-1, None] + (nodes + 1) * np.pi / 128).ravel()
    moons = toy._moons(angles).reshape(-1, 2)
    log_weights = np.log(np.tile(np.tile(weights / 2 / 64, 64) / 2, 2))
    rng = np.random.default_rng(0)
    directions = rng.uniform(0, 2 * np.pi, size=300)
    radii = 10 * rng.random(300) ** 2
    points = radii[:, None] * np.stack([np.cos(directions), np.sin(directions)], axis=1)
    squares = np.sum((points[:, None] - moons) ** 2, axis=-1)
    variance = toy._MOON_STD**2
    expected = np.logaddexp.reduce(log_weights - squares / (2 * variance), axis=1)
    expected -= np.log(2 * np.pi * variance)
    actual = toy.distribution('two_moons').log_density(points)
    np.testing.assert_allclose(actual, expected, atol=1e-6, rtol=1e-12)

  @parameterized.parameters(*_NAMES)
  def test_log_density_is_finite_and_quadratic_far_out(self, name):
    log_density = toy.distribution(name).log_density
    with np.errstate(divide='raise', invalid='raise', over='raise'):
      for distance in (30.0, 300.0, 1e4):
        points = distance * np.array([[1.0, 0.3], [-1, 0], [0, 1], [0, -1], [-0.5, -2]])
        logs = log_density(points, 0.9, 0.4)
        self.assertTrue(np.all(np.isfinite(logs)))
        # The whole distribution is within 2 of the centre, and no wider than twice the noise.
        squares = np.sum(points**2, axis=1)
        np.testing.assert_array_less(logs, -((np.sqrt(squares) - 2) ** 2) / (2 * 0.8**2) + 5)
        self.assertTrue(np.all(logs > -((np.sqrt(squares) + 2) ** 2) / (2 * 0.4**2) - 50))

  def test_clean_checkerboard_is_uniform_on_its_fields(self):
    points = np.array([[-0.9, -0.9], [-0.4, -0.4], [-0.9, -0.4], [1.01, 0.8], [0.1, 0.1], [0, 0.6]])
    np.testing.assert_array_equal(
      np.exp(toy.distribution('checkerboard').log_density(points)), [0.5, 0.5, 0, 0, 0.5, 0]
    )

  def test_eight_gaussians_are_a_mixture(self):
    points = np.random.default_rng(0).normal(size=(5, 2))
    a, sigma = 0.7, 0.2
    variance = (0.1 * a) ** 2 + sigma**2
    density = 0
    for k in range(8):
      mean = a * np.array([np.cos(k * np.pi / 4), np.sin(k * np.pi / 4)])
      squares = np.sum((points - mean) ** 2, axis=1)
      density = density + np.exp(-squares / (2 * variance)) / (2 * np.pi * variance) / 8
    np.testing.assert_allclose(toy.distribution('eight_gaussians').log_density(points, a, sigma), np.log(density))

  @parameterized.parameters(*_NAMES)
  def test_samples_fill_about_the_unit_square(self, name):
    samples = toy.distribution(name).sample(np.random.default_rng(0), 10_000)
    self.assertEqual((samples.shape, samples.dtype), ((10_000, 2), np.float32))
    self.assertLess(np.max(np.abs(samples)), 1.6)
    self.assertGreater(np.max(np.abs(samples)), 0.95)

  def test_source_is_the_same_on_every_run_and_differs_between_splits(self):
    data = types.SimpleNamespace(name='toy2d', distribution='two_moons')
    train, test = load_source(data, 'train'), load_source(data, 'test')
    self.assertEqual((len(train), len(test)), (2**20, 2**14))
    self.assertEqual(train.shape, (2,))
    self.assertIsNone(train.labels)
    first = np.arange(len(test))
    self.assertEqual(train.read(first).dtype, np.float32)
    np.testing.assert_array_equal(train.read(first), load_source(data, 'train').read(first))
    self.assertFalse(np.any(np.all(train.read(first) == test.read(first), axis=1)))

  def test_unknown_distribution_is_refused_with_the_known_ones(self):
    data = types.SimpleNamespace(name='toy2d', distribution='spiral')
    with self.assertRaisesRegex(UserError, f"'spiral'.*{', '.join(_NAMES)}"):
      load_source(data, 'train')


if __name__ == '__main__':
  absltest.main()
