"""The ladder of levels on exact energies of normal data, whose normalisers are known."""

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_ebm import langevin, noise_levels
from diffusion_ebm.density import ais, ladder, log_prob
from tests import testing

DIM = 2


class LadderTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.levels = noise_levels.make_levels(6, 0.06, 'conditional')
    cls.ebm = testing.gaussian_ebm(cls.levels, 0.25 * np.eye(DIM))
    cls.variance = 0.25 * cls.levels.a_cum**2 + cls.levels.sigma_cum**2  # of x_t
    cls.kernel = staticmethod(langevin.make_kernel('hmc', 4))
    cls.reached = []
    cls.rungs, cls.step_sizes = ladder.choose(
      cls.ebm,
      jax.random.split(jax.random.key(0), 200),
      (DIM,),
      cls.kernel,
      ladder.Pilot(1, 0.99, 0.8, 0.3),
      lambda *each: cls.reached.append(each),
    )

  def log_density(self, level, fraction, x):
    rung = ladder.Rungs(jnp.int32(level), jnp.float32(fraction))
    return ladder.rung_log_density(self.ebm, rung)(x)

  def test_rungs_run_from_white_noise_through_every_level(self):
    np.testing.assert_array_equal((self.rungs.level[0], self.rungs.fraction[0]), (5, 0))
    np.testing.assert_array_equal(self.rungs.level[self.rungs.fraction == 1], [5, 4, 3, 2, 1, 0])
    position = self.rungs.fraction - self.rungs.level
    done, count = zip(*self.reached, strict=True)
    np.testing.assert_allclose(done, 5 + position[1:], rtol=1e-6)
    self.assertEqual((done[-1], count), (6, tuple(range(1, len(position)))))
    self.assertTrue(np.all(np.diff(position) > 0))

  def test_the_first_rung_is_the_normal_density_and_others_are_between_the_levels(self):
    x = jnp.array([[0.3, -0.5], [1.0, 2.0]])
    squares = np.sum(np.asarray(x) ** 2, 1)
    np.testing.assert_allclose(self.log_density(5, 0.0, x), -0.5 * squares - np.log(2 * np.pi), rtol=1e-5)
    np.testing.assert_allclose(self.log_density(2, 1.0, x), -0.5 * squares / self.variance[2], rtol=1e-4)
    np.testing.assert_allclose(
      self.log_density(2, 0.25, x), -0.5 * squares * (0.25 / self.variance[2] + 0.75 / self.variance[3]), rtol=1e-4
    )

  def test_both_ends_find_the_normaliser_of_each_level(self):
    n = 400
    keys = jax.random.split(jax.random.key(1), n)
    white, noise = jax.random.normal(jax.random.key(2), (2, n, DIM))
    target_of = lambda rung: ladder.rung_log_density(self.ebm, rung)  # noqa: E731
    run = jax.jit(lambda rungs, steps, x: ais.anneal(target_of, self.kernel, rungs, steps, x, keys, 1))
    _, gains, acceptance = run(self.rungs, self.step_sizes, white)
    weights = np.cumsum(np.asarray(gains, np.float64), axis=0)
    self.assertGreater(float(acceptance.mean()), 0.6)
    exact = 0.5 * DIM * np.log(2 * np.pi * self.variance)
    for k in np.flatnonzero(self.rungs.fraction == 1):
      forward = ais.estimate(weights[k - 1])
      self.assertAlmostEqual(forward.log_z, exact[self.rungs.level[k]], delta=4 * forward.standard_error + 1e-3)
    self.assertLess(forward.standard_error, 0.05)
    back = jax.tree.map(lambda a: a[::-1], self.rungs)
    _, gains, _ = run(back, self.step_sizes[::-1], np.sqrt(self.variance[0]) * noise)
    reverse = ais.reverse_estimate(np.sum(np.asarray(gains, np.float64), axis=0))
    self.assertAlmostEqual(reverse.log_z, exact[0], delta=4 * reverse.standard_error)

  def test_log_density_of_data_is_normalised(self):
    # q(x) = a_0^D p_0(a_0 x): that of normal data, up to the noise of level 0, which it does not undo.
    log_z = 0.5 * np.log(2 * np.pi * self.variance[0] * self.levels.a_y[0] ** 2)
    x = jnp.linspace(-6, 6, 4001)[:, None]
    q = log_prob.log_prob(testing.gaussian_ebm(self.levels, [[0.25]]), x, log_z)
    std = np.sqrt(self.variance[0]) / self.levels.a_cum[0]
    np.testing.assert_allclose(q, -0.5 * (x[:, 0] / std) ** 2 - 0.5 * np.log(2 * np.pi * std**2), rtol=1e-4, atol=1e-4)
    self.assertAlmostEqual(float(jnp.sum(jnp.exp(q)) * 12 / 4000), 1, places=4)

  def test_bits_per_dimension_of_a_uniform_density_are_those_of_the_grey_levels(self):
    # Uniform over the bins of all n levels, [-1 - w / 2, 1 + w / 2]: log2 n bits for each number.
    for n in (17, 256):
      width = 2 / (n - 1)
      log_density = -64 * np.log(2 + width)
      self.assertAlmostEqual(log_prob.bits_per_dim(log_density, 64, width), np.log2(n), places=9)


if __name__ == '__main__':
  absltest.main()
