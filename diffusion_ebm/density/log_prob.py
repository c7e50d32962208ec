"""Log density of data, and bits per dimension, once log Z is known.

The cleanest model is one of `x_0 = a_0 x + sigma_0 eps`, data with noise of sigma_0 = 0.01. The density of data x that
is reported is that of the model at `a_0 x`, with the factor that makes it a density of x: `q(x) = a_0^D p_0(a_0 x)`,
which is normalised. In terms of `y_0 = a_1 x_0`, whose density is `exp(F(y_0, 0)) / Z_0`:

  log q(x) = F(a_1 a_0 x, 0) - log Z_0 + D log(a_1 a_0).

An image of n grey levels v is dequantised: x = -1 + (v + u) w with u uniform on [-1/2, 1/2) and w = 2 / (n - 1). By
Jensen's inequality, `E_u log q(x) + D log w` is at most the log probability of the image under the discrete model that
integrates q over each pixel's bin; bits per dimension are minus that over D log 2.
"""

import jax.numpy as jnp
import numpy as np

from diffusion_ebm import marginal_density
from diffusion_ebm.ebm import Ebm


def log_prob(ebm: Ebm, x, log_z):
  """The normalised log density of data.

  Args:
    ebm: the model.
    x: data, images in [-1, 1] (dequantised, for bits per dimension) or vectors, (B, ...).
    log_z: log Z_0 of `exp(F(y, 0))`, in nats.

  Returns:
    (B,), in nats.
  """
  a = float(ebm.levels.a_cum[0])
  unnormalised = marginal_density.log_density(ebm, a * x, jnp.zeros(1, int))
  return unnormalised + x[0].size * np.log(a) - log_z


def bits_per_dim(log_density, dim: int, grey_width: float):
  """Bits per dimension of dequantised images.

  Args:
    log_density: of `log_prob`, in nats.
    dim: D, numbers in an image.
    grey_width: w, of a grey level's bin in [-1, 1].

  Returns:
    Like `log_density`.

  Source: Theis et al. 2016, section 3.1.
  """
  return -(log_density + dim * np.log(grey_width)) / (dim * np.log(2))
