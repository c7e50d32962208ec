"""A classifier for free: a model that is told classes says how probable each is.

By Bayes' rule `p(c | x_t) ~ p(c) exp(log p(x_t | c))`, and the energies give `log p(x_t | c)` up to the normaliser of
each class, which is not known. One bias for each class takes its place, and a scale makes up for energies that are too
steep or too flat; both are fitted to labelled data at each level. An image is diffused to the level several times, and
the log densities are averaged.

Source: Grathwohl et al. 2020, Your classifier is secretly an energy based model; Guo et al. 2017, On calibration of
modern neural networks, section 4.2.
"""

from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
from scipy import special

from diffusion_ebm import composition, langevin, marginal_density, random_keys

_NUM_DRAWS = 8  # of the noise, the same for all images


class Calibration(NamedTuple):
  """What turns energies into probabilities.

  Attributes:
    level: at which they are the most reliable, int.
    scale: of each level, (T,); NaN where it is not known.
    bias: of each level and class, (T, C).
  """

  level: Any
  scale: Any
  bias: Any


def log_densities(ebm, x, levels, num_classes: int):
  """The log density of each class, unnormalised, of data diffused to some levels, averaged over their noise.

  Args:
    ebm: a model that is told classes, with the empty one.
    x: data, (B, ...).
    levels: int (L,).
    num_classes: C.

  Returns:
    (B, L, C), in nats.
  """
  keys = random_keys.sample_keys(0, jnp.arange(_NUM_DRAWS), random_keys.CLASSES)
  eps = langevin.normal_noise(keys, x.shape[1:])(0)

  def of_class(label):
    return marginal_density.diffused_log_density(composition.of_class(ebm, label), x, levels, eps)

  return jnp.moveaxis(lax.map(of_class, 1 + jnp.arange(num_classes)), 0, 2)


def log_prob(ebm, x, level, calibration: Calibration):
  """Log probabilities of the classes, (B, C), of data at a level; arguments as of `log_densities`."""
  scale, bias = (jnp.asarray(values, jnp.float32)[level] for values in calibration[1:])
  values = log_densities(ebm, x, level[None], len(bias))[:, 0]
  return jax.nn.log_softmax(scale * (values - jnp.max(values, axis=1, keepdims=True)) + bias)


def fit(values: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
  """The scale and the biases under which labelled examples are the most probable.

  Args:
    values: `log_densities`, (N, C).
    labels: of the examples, int (N,).

  Returns:
    `(scale, bias)`, the latter (C,) with mean 0.
  """
  from scipy import optimize  # only here: every job that loads a model would wait for it

  values = np.asarray(values, np.float64)
  values = values - values.mean(axis=1, keepdims=True)
  unit = values.std() or 1.0
  onehot = np.eye(values.shape[1])[labels]

  def loss(parameters):
    scale, bias = np.exp(parameters[0]) / unit, parameters[1:]
    residual = special.softmax(scale * values + bias, axis=1) - onehot
    slope = np.mean(np.sum(residual * scale * values, axis=1))
    return mean_log_loss(scale * values + bias, labels), np.concatenate([[slope], residual.mean(axis=0)])

  found = optimize.minimize(loss, np.zeros(1 + values.shape[1]), jac=True, method='L-BFGS-B').x
  return float(np.exp(found[0]) / unit), found[1:] - found[1:].mean()


def mean_log_loss(logits: np.ndarray, labels: np.ndarray) -> float:
  """The mean of `-log p(label)`, in nats, of logits (N, C)."""
  return float(np.mean(special.logsumexp(logits, axis=1) - logits[np.arange(len(labels)), labels]))
