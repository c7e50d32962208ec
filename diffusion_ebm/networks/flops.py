"""Floating-point operations of a model, counted by hand: two for each multiplication and addition of its products.

Only convolutions and products of matrices count, each as if it were done directly, whatever algorithm does it.
"""

import functools
import math

import jax
import jax.numpy as jnp


def forward(network, shape) -> tuple[int, int]:
  """Operations of one example: of f, given the embedding of the level, and of the embedding.

  Args:
    network: of `networks.make_network`.
    shape: of one example.

  Returns:
    The two counts.
  """
  y, t = jax.ShapeDtypeStruct((1, *shape), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32)
  variables = jax.eval_shape(network.init, jax.random.key(0), y, t)
  embed = functools.partial(network.apply, method='embed')
  level = jax.eval_shape(embed, variables, t)
  f = jax.make_jaxpr(functools.partial(network.apply, method='f'))(variables, y, level)
  return _count(f.jaxpr), _count(jax.make_jaxpr(embed)(variables, t).jaxpr)


def train_step(network, shape, batch_size: int, num_langevin_steps: int, proposal_network=None) -> int:
  """Operations of a training step.

  A gradient with respect to y costs two passes of f, one with respect to the parameters as well three: K of the first
  kind, and two (positives and negatives) of the second. The chain needs the embedding once, the loss twice with its
  gradient. A proposal is evaluated once for the chains, and once with its gradient.
  """
  f, embedding = forward(network, shape)
  example = f * (2 * num_langevin_steps + 2 * 3) + embedding * (1 + 2 * 3)
  if proposal_network is not None:
    example += _of_proposal(proposal_network, shape) * (1 + 3)
  return batch_size * example


def sampler(network, shape, num_gradients: int, num_levels: int, proposal_network=None, terms: int = 1) -> int:
  """Operations of a sample.

  Args:
    network: as of `forward`.
    shape: likewise.
    num_gradients: with respect to y, of all levels.
    num_levels: at each of which the embedding is computed, and the proposal, if there is one.
    proposal_network: of `networks.make_proposal_network`, or None.
    terms: of a weighted sum, as guidance is one of two, that are evaluated for each.
  """
  f, embedding = forward(network, shape)
  example = 2 * f * num_gradients + embedding * num_levels
  if proposal_network is not None:
    example += _of_proposal(proposal_network, shape) * num_levels
  return terms * example


def _of_proposal(network, shape) -> int:
  x, t = jax.ShapeDtypeStruct((1, *shape), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32)
  variables = jax.eval_shape(network.init, jax.random.key(0), x, t)
  return _count(jax.make_jaxpr(network.apply)(variables, x, t).jaxpr)


def _count(jaxpr) -> int:
  return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation) -> int:
  name, params = equation.primitive.name, equation.params
  if name == 'dot_general':
    (contracted, _), _ = params['dimension_numbers']
    lengths = [equation.invars[0].aval.shape[axis] for axis in contracted]
    return 2 * math.prod(lengths) * equation.outvars[0].aval.size
  if name == 'conv_general_dilated':
    kernel, spec = equation.invars[1].aval.shape, params['dimension_numbers'].rhs_spec
    return 2 * math.prod(kernel[axis] for axis in spec[1:]) * equation.outvars[0].aval.size
  if name == 'cond':  # of the platform: the last branch is the direct one
    return _count(params['branches'][-1].jaxpr)
  inner = [params[key] for key in ('jaxpr', 'call_jaxpr', 'fun_jaxpr') if key in params]
  return sum(_count(getattr(closed, 'jaxpr', closed)) for closed in inner) * params.get('length', 1)
