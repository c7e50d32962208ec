"""Models made of others: a class, guidance towards a class, and weighted sums of energies.

A sum of energies is a product of densities, and a model again: everything that takes an `Ebm` takes it. What a sum
means at a noisy level is told in docs/composition.md.
"""

import dataclasses
from typing import Any, TypeVar

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_ebm.ebm import AllLevels, Ebm, LevelEbm
from diffusion_ebm.noise_levels import Levels
from diffusion_ebm.proposal import NormalProposal, Proposal

Model = TypeVar('Model', Ebm, Proposal)


def of_class(model: Model, label) -> Model:
  """The model of a class.

  Args:
    model: a model that is told classes, or its proposal.
    label: the class, int in 0..num_classes with 0 for none in particular, or one for each example, (B,).
  """
  return model.replace(labels=jnp.reshape(label, (1, -1)), coefficients=None)


def guided(model: Model, label, guidance: float) -> Model:
  """The model of a class, and more of what tells it from all: `f(y | label) + w (f(y | label) - f(y))`.

  Args:
    model: as of `of_class`, like the label.
    label: the class.
    guidance: w; 0 for the class itself.

  Source: Ho and Salimans 2022, Classifier-free diffusion guidance, equation 6; Zhu et al. 2024, section 4.
  """
  if not guidance:
    return of_class(model, label)
  label = jnp.reshape(label, -1)
  return weighted(model, (label, 1 + guidance), (jnp.zeros_like(label), -guidance))


def conjunction(model: Model, labels) -> Model:
  """What is of all classes at once, each of which tells something of its own: `sum_i f(y | label_i) - (n - 1) f(y)`.

  Args:
    model: as of `of_class`.
    labels: n classes.

  Source: Du, Li and Mordatch 2020, Compositional visual generation with energy based models, section 3.2.
  """
  return weighted(model, *((label, 1.0) for label in labels), (0, 1.0 - len(labels)))


def weighted(model: Model, *terms) -> Model:
  """The weighted sum `sum_m c_m f(y | label_m)` of a model's classes.

  Args:
    model: as of `of_class`.
    *terms: `(label, coefficient)` of each.
  """
  labels = jnp.stack(jnp.broadcast_arrays(*(jnp.reshape(label, -1) for label, _ in terms)))
  return model.replace(labels=labels, coefficients=jnp.asarray([c for _, c in terms], jnp.float32))


class Sum(AllLevels, struct.PyTreeNode):
  """The weighted sum `sum_m c_m f_m(y)` of models with the same levels, made by `add`: a product of their densities.

  Attributes:
    parts: the models, M.
    coefficients: c, float32 (M,).
  """

  parts: tuple
  coefficients: Any

  @property
  def levels(self) -> Levels:
    return self.parts[0].levels

  def at(self, t) -> LevelEbm:
    """As of `Ebm`."""
    models = [part.at(t) for part in self.parts]
    return LevelEbm(
      self.levels, t, lambda y: sum(c * model.f(y) for c, model in zip(self.coefficients, models, strict=True))
    )


def add(*terms) -> Sum:
  """A weighted sum of models.

  Args:
    *terms: `(model, coefficient)` of each; models of examples of one shape, each an `Ebm` or made of them.

  Raises:
    ValueError: the models have different noise levels, step sizes or temperatures.
  """
  _same_levels(model for model, _ in terms)
  return Sum(tuple(model for model, _ in terms), jnp.asarray([c for _, c in terms], jnp.float32))


class MeanProposal(NormalProposal, struct.PyTreeNode):
  """Where chains on a sum may start, made by `add_proposals`: at the weighted mean of the parts' means.

  Attributes:
    parts: the proposals, M.
    coefficients: of the parts in the sum, (M,); the weights are these over their own sum.
  """

  parts: tuple
  coefficients: tuple[float, ...] = struct.field(pytree_node=False)

  @property
  def levels(self) -> Levels:
    return self.parts[0].levels

  def mean(self, x_next, t):
    """As of `Proposal`."""
    means = (c * part.mean(x_next, t) for c, part in zip(self.coefficients, self.parts, strict=True))
    return sum(means) / sum(self.coefficients)


def add_proposals(*terms) -> MeanProposal | None:
  """The proposal of a sum.

  Args:
    *terms: `(proposal, coefficient)` of each term of the sum; None for a part without one.

  Returns:
    Its mean is that of the means, with the coefficients as weights; None where a part has none, or the coefficients add
    up to 0 or less.
  """
  parts, coefficients = [], []
  for proposal, coefficient in terms:
    of_sum = isinstance(proposal, MeanProposal)  # whose terms are terms of this sum
    parts += proposal.parts if of_sum else [proposal]
    coefficients += [coefficient * c for c in proposal.coefficients] if of_sum else [coefficient]
  return None if None in parts or sum(coefficients) <= 0 else MeanProposal(tuple(parts), tuple(coefficients))


class Mixture(AllLevels, struct.PyTreeNode):
  """What is of any of several models with the same levels, made by `either`: `log sum_m exp(log w_m + log p_m(y))`.

  Attributes:
    parts: the models, M.
    log_weights: of each part and level, float32 (M, T).
  """

  parts: tuple
  log_weights: Any

  @property
  def levels(self) -> Levels:
    return self.parts[0].levels

  def at(self, t) -> LevelEbm:
    """As of `Ebm`; t are integers."""
    models = [part.at(t) for part in self.parts]
    temperature = jnp.asarray(self.levels.temperature, jnp.float32)[t]

    def f(y):
      terms = [weights[t] + model.log_density(y) for weights, model in zip(self.log_weights, models, strict=True)]
      return temperature * jax.nn.logsumexp(jnp.stack(terms), axis=0)

    return LevelEbm(self.levels, t, f)


def either(*terms) -> Mixture:
  """The mixture of models: what is of any of them.

  Args:
    *terms: `(model, log_weight)` of each; the logarithm, in nats, of its share divided by its normaliser, of all levels
      or of each, (T,). 0 for all takes the energies as they are.

  Raises:
    ValueError: as of `add`.

  Source: Du, Li and Mordatch 2020, Compositional visual generation with energy based models, section 3.2.
  """
  first = _same_levels(model for model, _ in terms)
  log_weights = [jnp.broadcast_to(jnp.asarray(weight, jnp.float32), first.num_models) for _, weight in terms]
  return Mixture(tuple(model for model, _ in terms), jnp.stack(log_weights))


def _same_levels(models) -> Levels:
  """Those of all models; raises a `ValueError` where they differ."""
  first, *others = (model.levels for model in models)
  for other in others:
    if differing := differences(first, other):
      raise ValueError(f'models of different {differing} cannot be added')
  return first


def differences(a: Levels, b: Levels) -> str:
  """In what two models' levels differ: '' if in nothing that a sum depends on."""
  if a.num_models != b.num_models:
    return f'numbers of levels ({a.num_models} and {b.num_models})'
  names = {'a_cum': 'noise levels', 'step_variance': 'step sizes', 'temperature': 'temperatures'}
  return next((said for name, said in names.items() if not np.allclose(getattr(a, name), getattr(b, name))), '')


class Window(AllLevels, struct.PyTreeNode):
  """A model of a part of a larger image, which says nothing of the rest.

  Where windows cover an image and do not overlap, their sum is exact at every level: the parts are independent.

  Attributes:
    ebm: the model.
    rows: `(first, after the last)` of the part.
    columns: likewise.
  """

  ebm: Any
  rows: tuple[int, int] = struct.field(pytree_node=False)
  columns: tuple[int, int] = struct.field(pytree_node=False)

  @property
  def levels(self) -> Levels:
    return self.ebm.levels

  def at(self, t) -> LevelEbm:
    """As of `Ebm`."""
    inner = self.ebm.at(t)
    return dataclasses.replace(inner, f=lambda y: inner.f(y[:, slice(*self.rows), slice(*self.columns)]))


class SideBySide(NormalProposal, struct.PyTreeNode):
  """The proposal of a wide image whose parts, from left to right, have one each.

  Attributes:
    parts: the proposals.
    columns: where each part begins, but for the first.
  """

  parts: tuple
  columns: tuple[int, ...] = struct.field(pytree_node=False)

  @property
  def levels(self) -> Levels:
    return self.parts[0].levels

  def mean(self, x_next, t):
    """As of `Proposal`."""
    pieces = jnp.split(x_next, self.columns, axis=2)
    return jnp.concatenate([part.mean(piece, t) for part, piece in zip(self.parts, pieces, strict=True)], axis=2)
