"""The bound of the sampler's density beside its definition, path by path, and beside exact densities of Gaussians."""

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from diffusion_ebm import noise_levels
from diffusion_ebm.density import bound
from tests import testing

DATA_STD = 0.5


def normal(levels, spread=1.0):
  """The model of normal data with another standard deviation, `spread` times theirs; and its precisions, (T,)."""
  precision = 1 / (levels.a_y**2 * (DATA_STD**2 * levels.a_cum[:-1] ** 2 + levels.sigma_cum[:-1] ** 2)) / spread**2
  halves = jnp.asarray(0.5 * precision, jnp.float32)
  return testing.function_ebm(levels, lambda y, t: -halves[t] * jnp.sum(y**2, axis=1)), precision


class BoundTest(absltest.TestCase):
  def test_it_is_the_expectation_over_paths_of_the_forward_process(self):
    noise = noise_levels.from_retention([0.95, 0.9, 0.8, 0.6])
    levels = noise_levels.with_steps(noise, np.ones(3))
    (ebm, precision), n, x0 = normal(levels, 1.2), 200_000, 0.7
    # By the definition: the ratio of both densities of a path x_1 .. x_T, drawn from x_0 up.
    rng = np.random.default_rng(0)
    path, log_q = [np.full(n, x0)], 0.0
    for a, sigma in zip(noise.a[1:], noise.sigma[1:], strict=True):
      path.append(a * path[-1] + sigma * rng.standard_normal(n))
      log_q += stats.norm.logpdf(path[-1], a * path[-2], sigma)
    log_p = stats.norm.logpdf(path[-1])
    for t in range(3):
      x_next, sigma, a = path[t + 1], noise.sigma[t + 1], noise.a_y[t]
      drift = (1.0 if t < 2 else 0.5) * sigma**2
      log_p += stats.norm.logpdf(path[t], (x_next - drift * precision[t] * x_next) / a, sigma / a)
    expected = log_p - log_q
    found = np.asarray(
      bound.variational_bound(ebm, jnp.full((n, 1), x0), jax.random.split(jax.random.key(0), n)), np.float64
    )
    error = np.sqrt((found.var() + expected.var()) / n)
    self.assertLess(error, 0.01)
    self.assertAlmostEqual(found.mean(), expected.mean(), delta=4 * error)
    self.assertLess(found.var(), expected.var())

  def test_it_is_below_the_exact_density_of_the_sampler_and_near_it(self):
    # Many small steps away from the data's end; x_0 itself has a spread that is wide beside them.
    noise = noise_levels.from_retention(np.append(0.8, np.sqrt(np.full(400, 0.985))))
    levels = noise_levels.with_steps(noise, np.ones(400))
    ebm, precision = normal(levels)
    # The sampler is a chain of linear maps of normal numbers.
    variance = 1.0
    for t in reversed(range(400)):
      sigma2, a = noise.sigma[t + 1] ** 2, noise.a_y[t]
      drift = (1.0 if t < 399 else 0.5) * sigma2
      variance = (variance * (1 - drift * precision[t]) ** 2 + sigma2) / a**2
    x = np.linspace(-1.5, 1.5, 7)
    keys = jax.random.split(jax.random.key(0), 7 * 500)
    found = np.asarray(
      jax.jit(lambda x, keys: bound.variational_bound(ebm, x, keys))(
        jnp.asarray(np.repeat(x, 500)[:, None], jnp.float32), keys
      ),
      np.float64,
    ).reshape(7, 500)
    exact = stats.norm.logpdf(x, scale=np.sqrt(variance))
    error = found.std(1) / np.sqrt(500)
    np.testing.assert_array_less(found.mean(1) - 3 * error, exact)
    # What is lost: the posterior of the first steps is narrower than the sampler's normal densities.
    ratio = (
      noise_levels.from_retention(noise.a[1:]).sigma_cum[:-1] / noise_levels.from_retention(noise.a[1:]).sigma_cum[1:]
    ) ** 2
    lost = 0.5 * np.sum(ratio - 1 - np.log(ratio))
    np.testing.assert_allclose(exact - found.mean(1), lost, atol=0.05 + 4 * error.max())


if __name__ == '__main__':
  absltest.main()
