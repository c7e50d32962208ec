"""The proposal of a chain: a normal density of `y_t` given `x_{t+1}`, from which a chain on the model starts.

It learns from the chains alone: towards the sample into which each of its own was refined. It is no part of the
energy-based model.

Source: Zhu et al. 2024, Learning energy-based models by cooperative diffusion recovery likelihood, section 3.2.
"""

from typing import Any

from flax import struct
import jax
import jax.numpy as jnp

from diffusion_ebm import terms
from diffusion_ebm.noise_levels import Levels, at


class NormalProposal:
  """What a proposal does with its `levels` and `mean(x_next, t)`: a normal density of `y_t` given `x_{t+1}`.

  Its variance is that of `y_t` given `x_{t+1}` and the data.
  """

  def sample(self, x_next, t, noise):
    """`y_t`, like `x_next`, at levels int (B,), from standard normal `noise`, like `x_next`."""
    return self.mean(x_next, t) + at(self.levels.posterior_sigma, t, noise) * noise


class Proposal(NormalProposal, struct.PyTreeNode):
  """A normal density of `y_t` at each level, whose mean is a network's; a tree whose leaves are the weights.

  Attributes:
    weights: the network's parameters.
    network: the Flax module, of `networks.make_proposal_network`.
    levels: the noise levels.
    labels: as of `Ebm`, like the others.
    coefficients: of a sum of means; the variance stays.
    dropout_keys: one for each example, (B,), to train with dropout; None for no dropout.
  """

  weights: Any
  network: Any = struct.field(pytree_node=False)
  levels: Levels = struct.field(pytree_node=False)
  labels: Any = None
  coefficients: Any = None
  dropout_keys: Any = None

  def mean(self, x_next, t):
    """The mean of `y_t`, like `x_next` (B, ...), at levels int (B,)."""
    of_terms, label = terms.levels_and_labels(t, self.labels)

    def of_all_terms(x):
      keys = None if self.dropout_keys is None else jnp.tile(self.dropout_keys, len(x) // len(self.dropout_keys))
      return self.network.apply({'params': self.weights}, x, of_terms, keys, label)

    return terms.weighted_sum(of_all_terms, x_next, self.coefficients)


def teaching_loss(proposal: Proposal, x_next, y, t, noise):
  """How far the proposal's samples are from those into which chains have refined them.

  Args:
    proposal: the proposal; the gradient with respect to its weights is the one that counts.
    x_next: `x_{t+1}`, (B, ...).
    y: the ends of the chains that started at `proposal.sample` with the same arguments; held constant.
    t: levels, int (B,).
    noise: of the proposal's samples, like `x_next`.

  Returns:
    Squared distances, (B,).

  Source: Zhu et al. 2024, equation 11 and algorithm 1.
  """
  difference = proposal.sample(x_next, t, noise) - jax.lax.stop_gradient(y)
  return jnp.sum(difference**2, axis=tuple(range(1, difference.ndim)))
