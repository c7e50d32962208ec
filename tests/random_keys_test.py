from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_ebm import random_keys


class DrawTest(parameterized.TestCase):
  @parameterized.product(
    distribution=(jax.random.normal, lambda key, shape: jax.random.bernoulli(key, 0.3, shape)),
    shape=((), (3,), (4, 4, 3)),
    batch=(0, 5),
  )
  def test_each_example_has_the_numbers_of_its_own_key(self, distribution, shape, batch):
    keys = random_keys.sample_keys(1, jnp.arange(batch))
    found = random_keys.draw(distribution, keys, shape)
    self.assertEqual(found.shape, (batch, *shape))
    for key, numbers in zip(keys, found, strict=True):
      np.testing.assert_array_equal(numbers, distribution(key, shape))


if __name__ == '__main__':
  absltest.main()
