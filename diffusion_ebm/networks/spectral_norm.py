"""Spectral normalisation as a pure transformation of the parameters, done once for each update.

The networks know nothing of it: they are applied to the normalised parameters.

Source: Miyato et al. 2018, algorithm 1; which kernels, and the bounded variant, as in the published implementation.
"""

from flax import traverse_util
import jax
from jax import lax
import jax.numpy as jnp

# Kernels that are left alone: the head's linear map and the attention's.
_FREE = ('head', 'attn_q', 'attn_k', 'attn_v', 'attn_proj_out')
# Kernels that may start at zero, and are then only kept from growing beyond one.
_BOUNDED = ('conv_2',)


def _kernels(params):
  """The normalised kernels as matrices: path to (inputs, outputs)."""
  return {
    path: w.reshape(-1, w.shape[-1])
    for path, w in traverse_util.flatten_dict(params).items()
    if path[-1] == 'kernel' and path[-2] not in _FREE
  }


def _unit(x):
  return x * lax.rsqrt(jnp.maximum(jnp.sum(x**2), 1e-12))


def init(key, params):
  """The vectors of the power iteration, converged.

  Args:
    key: a random key.
    params: the network's parameters.

  Returns:
    `u`, shaped like the normalised kernels' part of `params`: a vector (outputs,) for each kernel.
  """
  kernels = _kernels(params)
  keys = jax.random.split(key, max(len(kernels), 1))
  u = {path: _unit(jax.random.normal(k, w.shape[1:])) for k, (path, w) in zip(keys, kernels.items(), strict=False)}
  return iterate(params, traverse_util.unflatten_dict(u), 50)


@jax.default_matmul_precision('highest')
def iterate(params, u, num_iterations: int = 1):
  """Advances the power iteration; no gradient flows through it. Returns the new `u`."""
  kernels = _kernels(lax.stop_gradient(params))
  u = traverse_util.flatten_dict(u)
  u = lax.fori_loop(
    0, num_iterations, lambda _, u: {path: _unit(_unit(kernels[path] @ u[path]) @ kernels[path]) for path in u}, u
  )
  return traverse_util.unflatten_dict(u)


@jax.default_matmul_precision('highest')
def normalise(params, u, bounded: bool = True, raw=None):
  """Divides each kernel by its spectral norm `sigma = v W u`, gradients not through `u` and `v`.

  A kernel that starts at zero becomes `W / s * min(s, 1)` with `s = sigma + 1e-6`: bounded by one.

  Args:
    params: the network's parameters.
    u: vectors of `iterate`; empty for no normalisation.
    bounded: whether the last convolution of each block starts at zero; otherwise it is divided like the others.
    raw: parameters to which `u` belongs, if not to `params`: averaged kernels `W` are divided by `v W u` with `v` and
      `u` of the raw ones, as in the implementation of Zhu et al. 2024.

  Returns:
    Parameters for the network.
  """
  flat = traverse_util.flatten_dict(params)
  of_u = flat if raw is None else traverse_util.flatten_dict(raw)
  for path, vector in traverse_util.flatten_dict(u).items():
    w = flat[path].reshape(-1, flat[path].shape[-1])
    v = lax.stop_gradient(_unit(of_u[path].reshape(w.shape) @ vector))
    sigma = v @ (w @ lax.stop_gradient(vector))  # the product of which v is made
    if bounded and path[-2] in _BOUNDED:
      sigma = sigma + 1e-6
      flat[path] = flat[path] / sigma * jnp.minimum(sigma, 1.0)
    else:
      flat[path] = flat[path] / sigma
  return traverse_util.unflatten_dict(flat)
