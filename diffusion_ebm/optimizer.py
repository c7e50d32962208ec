"""The published optimisers: Adam with Keras' arithmetic, warm-up, cosine decay, clipping, moving averages.

Optax's own Adam adds epsilon after the bias correction, Keras' before it; with the published epsilon of 1e-7 the two
differ where gradients are tiny, and the aim here is the published numbers.
"""

import jax
import jax.numpy as jnp
import optax


def learning_rate_schedule(peak: float, warmup_steps: int, decay_steps: int | None = None, head_start: int = 0):
  """Linear warm-up and, with `decay_steps`, cosine decay to zero at that step.

  Args:
    peak: learning rate after the warm-up.
    warmup_steps: update number `warmup_steps - head_start` (from 0) has the peak, the first `head_start /
      warmup_steps` of it: 0 without a head start.
    decay_steps: total number of steps, or None for a constant rate.
    head_start: steps of the warm-up that count as done at the first update.

  Returns:
    A function from the step (from 0) to the learning rate.
  """

  def schedule(step):
    rate = peak * jnp.minimum(1.0, (step + head_start + (warmup_steps == 0)) / max(warmup_steps, 1))
    if decay_steps is not None:
      progress = jnp.clip((step - warmup_steps) / max(decay_steps - warmup_steps, 1), 0, 1)
      rate = rate * 0.5 * (1 + jnp.cos(jnp.pi * progress))
    return rate

  return schedule


def scale_by_adam(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-7) -> optax.GradientTransformation:
  """Adam with epsilon inside the bias correction: `sqrt(1 - b2^n) / (1 - b1^n) m / (sqrt(v) + eps)`.

  Source: Kingma and Ba 2015, the remark at the end of section 2, as in Keras.
  """

  def init(params):
    mu, nu = optax.tree.zeros_like(params), optax.tree.zeros_like(params)  # apart, so that both can be donated
    return optax.ScaleByAdamState(jnp.zeros([], jnp.int32), mu, nu)

  def update(grads, state, params=None):
    del params
    count = optax.safe_increment(state.count)
    n = count.astype(jnp.float32)
    mu = jax.tree.map(lambda g, m: b1 * m + (1 - b1) * g, grads, state.mu)
    nu = jax.tree.map(lambda g, v: b2 * v + (1 - b2) * g**2, grads, state.nu)
    updates = jax.tree.map(lambda m, v: jnp.sqrt(1 - b2**n) / (1 - b1**n) * m / (jnp.sqrt(v) + eps), mu, nu)
    return updates, optax.ScaleByAdamState(count, mu, nu)

  return optax.GradientTransformation(init, update)


def make_optimizer(train) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """The optimiser of the configuration's `train` section, and its learning rate as a function of the step."""
  schedule = learning_rate_schedule(train.learning_rate, train.warmup_steps, _decay_steps(train))
  return _adam(schedule, train.beta_1, train.grad_clip), schedule


def make_proposal_optimizer(proposal, train) -> optax.GradientTransformation:
  """The optimiser of the configuration's `proposal` section; `train` says how long and whether the rate decays."""
  schedule = learning_rate_schedule(
    proposal.learning_rate, proposal.warmup_steps, _decay_steps(train), proposal.warmup_head_start
  )
  return _adam(schedule, train.beta_1, proposal.grad_clip)


def _decay_steps(train):
  return train.num_steps if train.cosine_decay else None


def _adam(schedule, b1, grad_clip):
  return optax.chain(
    optax.clip_by_global_norm(grad_clip) if grad_clip else optax.identity(),
    scale_by_adam(b1=b1),
    optax.scale_by_learning_rate(schedule),
  )


def warm_decay(decay: float, count):
  """The decay of a moving average at update number `count` (from 1), which begins as a plain mean.

  Source: `min(decay, (1 + n) / (10 + n))`, as TensorFlow's `ExponentialMovingAverage` and torch-ema have it.
  """
  return jnp.minimum(decay, (1 + count) / (10 + count))


def ema_update(ema, params, decay: float):
  """`decay ema + (1 - decay) params`."""
  return optax.incremental_update(params, ema, 1 - decay)
