"""Log densities by the probability-flow ODE of the energies' scores.

The noisiest level's density `p_{T-1}` is carried to the data by the flow that moves the densities of `x_t` into each
other, if the scores are those of one diffused density. In `lam = log(abar_t / sbar_t)`, the forward process is

  dx / dlam = sbar^2 (x + score(x, lam)),   d log p / dlam = -sbar^2 (D + div score(x, lam))

along a path. What comes out is normalised whatever the energies are: it is the density of the flow that they define,
and equals theirs only where the levels are consistent with each other.

Source: Song et al. 2021, Score-based generative modeling through stochastic differential equations, section 4.3 and
appendix D.2.
"""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_ebm import marginal_density
from diffusion_ebm.ebm import Ebm
from diffusion_ebm.noise_levels import powers_between

_MAX_STEPS = 4096


def log_density(ebm: Ebm, x, keys, log_z, rtol: float, num_probes: int):
  """The flow's log density of `x_0`.

  Args:
    ebm: the model, with energies at real levels.
    x: data with the noise of level 0, (B, ...).
    keys: of the probes, one for each example, (B,).
    log_z: the normaliser of the noisiest level's density of `x_{T-1}`, in nats.
    rtol: relative tolerance of the solver; the absolute one is as large.
    num_probes: random signs with which the divergence is estimated; 0 for the exact one, by as many products as there
      are numbers in an example.

  Returns:
    `(log_density, num_evaluations)`, each (B,): in nats; and evaluations of the score. NaN where the solver needs more
    than 4,096 steps.

  Source: Hutchinson 1990 (the estimate of the trace).
  """
  slopes = jnp.asarray(np.diff(ebm.levels.log_snr[:-1]), jnp.float32)
  shape, size, top = x.shape[1:], x[0].size, ebm.levels.num_models - 1

  def of_one(x, key):
    if num_probes:
      probes = jax.random.rademacher(key, (num_probes, *shape), x.dtype)
    else:
      probes = jnp.eye(size, dtype=x.dtype).reshape(size, *shape)
    scale = 1 / max(num_probes, 1)

    def field(t, state, _):
      x, _ = state
      # In reverse: through the convolution of images there is no other derivative.
      score, pull = jax.vjp(lambda x: marginal_density.score(ebm, x[None], t[None])[0], x)
      divergence = scale * jnp.sum(probes * jax.vmap(lambda probe: pull(probe)[0])(probes))
      slope = slopes[jnp.clip(t.astype(int), 0, top - 1)]
      speed = slope * powers_between(ebm.levels.log_snr[:-1], t[None], x[None])[1].reshape(())
      return speed * (x + score), speed * (size + divergence)

    solution = diffrax.diffeqsolve(
      diffrax.ODETerm(field),
      diffrax.Tsit5(),
      t0=0.0,
      t1=float(top),
      dt0=None,
      y0=(x, jnp.zeros(())),
      saveat=diffrax.SaveAt(t1=True),
      stepsize_controller=diffrax.PIDController(rtol=rtol, atol=rtol),
      max_steps=_MAX_STEPS,
      throw=False,
    )
    (end, gain), steps = (jax.tree.map(lambda a: a[0], solution.ys), solution.stats['num_steps'])
    found = marginal_density.log_density(ebm, end[None], jnp.full(1, top))[0] - log_z + gain
    return jnp.where(diffrax.is_successful(solution.result), found, jnp.nan), 6 * steps

  return jax.vmap(of_one)(x, keys)
