from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_ebm import flow_sampling, noise_levels, sampling
from tests import testing

SPREAD = 0.5


def spread(levels):
  """The standard deviation of data of standard deviation 0.5 at each level."""
  return np.sqrt(SPREAD**2 * levels.a_cum**2 + levels.sigma_cum**2)


class FlowSamplingTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.levels = noise_levels.make_levels(400, 0.2, schedule='cosine')
    self.ebm = testing.gaussian_ebm(self.levels, np.array([[SPREAD**2]]))
    self.white = jax.random.normal(jax.random.key(0), (5, 1))

  def factor(self, num_steps, keep=()):
    """By how much the flow of normal data multiplies white noise, until each of the levels 0 and `keep`."""
    x, path = flow_sampling.descend(self.ebm, self.white, num_steps, (0, *keep))
    np.testing.assert_array_equal(x, path[0])
    factor = path / self.white
    np.testing.assert_allclose(factor, jnp.broadcast_to(factor[:, :1], factor.shape), rtol=1e-4)
    return np.asarray(factor[:, 0, 0])

  def test_the_flow_of_normal_data_is_the_closed_form_to_second_order(self):
    truth = spread(self.levels)[[0, 100]] / spread(self.levels)[-1]
    at_0, errors = np.transpose([abs(self.factor(n, (100,)) / truth - 1) for n in (12, 24, 48)])
    self.assertLess(np.max(at_0), 0.02)
    self.assertLess(at_0[-1], 0.005)
    self.assertLess(errors[-1], 0.001)
    for coarse, fine in zip(errors[:-1], errors[1:], strict=True):
      self.assertGreater(coarse / fine, 3)  # 4 in the limit; a method of first order halves them

  def test_levels_between_the_steps_are_kept(self):
    keep = (399, 390, 200, 33, 1)
    truth = spread(self.levels)[[0, *keep]] / spread(self.levels)[-1]
    np.testing.assert_allclose(self.factor(60, keep), truth, rtol=0.006)

  def test_each_step_takes_another_level_and_the_last_one_ends_at_0(self):
    for levels in (self.levels, noise_levels.make_levels(1000, 0.2), noise_levels.make_levels(6, 0.2)):
      top = levels.num_models
      for num_steps in {1, 2, 5, top // 2, top - 1, top}:
        grid = flow_sampling.grid(levels, num_steps)
        self.assertEqual((grid[0], grid[-1], len(grid)), (top, 0, num_steps + 1))
        self.assertLess(np.max(np.diff(grid)), 0)
    np.testing.assert_array_equal(flow_sampling.grid(self.levels, 4), [400, 300, 200, 100, 0])

  def test_samples_are_those_of_the_flow_whatever_the_chains_would_do(self):
    keys = jax.random.split(jax.random.key(1), 5)
    drawn = [
      sampling.sample(self.ebm, keys, (1,), sampling.Settings(steps, noise_scale, flow_steps=12), (0, 7))
      for steps, noise_scale in ((0, 1.0), (30, 0.5))
    ]
    np.testing.assert_array_equal(drawn[0][1], drawn[1][1])
    white, _ = sampling.trajectory_noise(self.levels, keys, (1,), sampling.Settings(0))
    x, _ = flow_sampling.descend(self.ebm, white, 12)
    np.testing.assert_allclose(drawn[0][0], x, rtol=1e-5)


if __name__ == '__main__':
  absltest.main()
