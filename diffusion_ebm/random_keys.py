"""Random keys: each depends on a seed, on what the numbers are for and on the number of the example alone.

So results depend neither on the batch, nor on how many devices or processes share it.
"""

import math

import jax
import jax.numpy as jnp

# What the random numbers are for; training has the seed's own key, and each job that draws has a stream of its own.
SAMPLES, SHOWN_DATA, TUNING, CLASSES = 0x5A3D, 0xDA7A, 0x7E57, 0xC1A5


def seed_key(seed: int):
  """The key of a seed. It carries its implementation: with others, examples depend on their batch."""
  return jax.random.key(seed, impl='threefry2x32')


def stream_key(seed: int, stream: int = SAMPLES):
  """The key of all examples of a seed; the samples of `--mode=sample` are those of `DiffusionEBM.sample` with it."""
  return jax.random.fold_in(seed_key(seed), stream)


def example_keys(key, index):
  """A key for each number of `index`, int (B,)."""
  return jax.vmap(lambda i: jax.random.fold_in(key, i))(index)


def sample_keys(seed: int, index, stream: int = SAMPLES):
  """The key of each sample: of the seed, the stream and the sample's number, int (B,), alone."""
  return example_keys(stream_key(seed, stream), index)


def fold_in(keys, number):
  """Each of the keys, (B,), with a number folded in."""
  return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


def draw(distribution, keys, shape):
  """Random numbers of each example's own key.

  Args:
    distribution: draws as `jax.random.normal` does, from a key and a shape.
    keys: one for each example, (B,).
    shape: of one example.

  Returns:
    (B, *shape): the numbers that `distribution(key, shape)` gives. They are drawn in one dimension: XLA's compiler for
    CPUs takes several times as long for images, and what it makes three times.
  """
  flat = jax.vmap(lambda key: distribution(key, (math.prod(shape),)))(keys)
  return flat.reshape(len(flat), *shape)


def split(keys, num: int = 2):
  """`num` keys of each of the keys, (B,): (num, B)."""
  return jnp.moveaxis(jax.vmap(lambda key: jax.random.split(key, num))(keys), 1, 0)
