"""Weighted sums over classes of one network's outputs, all terms of which are evaluated as one batch."""

import jax.numpy as jnp


def levels_and_labels(t, labels):
  """Levels and classes of all terms, one term after another.

  Args:
    t: levels, (L,).
    labels: classes of M terms, int (M, 1) or (M, B); repeated where L is a multiple of B; or None.

  Returns:
    `(t, label)`, each (M L,), or (M B,) if L is 1; `t` and None without labels.
  """
  if labels is None:
    return t, None
  width = max(len(t), labels.shape[1])
  return jnp.tile(t, len(labels) * width // len(t)), jnp.tile(labels, (1, width // labels.shape[1])).ravel()


def weighted_sum(function, x, coefficients):
  """`sum_m c_m function_m(x)`.

  Args:
    function: evaluates all terms: from M copies of `x`, one after another, (M B, ...), to values, (M B, ...).
    x: (B, ...).
    coefficients: c, (M,); None for one term of weight 1.

  Returns:
    (B, ...).
  """
  if coefficients is None:
    return function(x)
  values = function(jnp.tile(x, (len(coefficients), *(1,) * (x.ndim - 1))))
  values = values.reshape(len(coefficients), len(x), *values.shape[1:])
  return jnp.tensordot(coefficients, values, 1, precision='highest')
