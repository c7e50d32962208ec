"""A convolution whose backward pass stays fast inside `lax.scan` on a CPU.

XLA on CPU writes the gradient with respect to the input as a convolution with the kernel layout `01oi`. Inside a loop
that layout misses the fast matrix-product path and costs about three times as much. Here the backward pass is written
as an ordinary NHWC/HWIO convolution with the flipped, transposed kernel, which keeps the fast path everywhere.
"""

import functools

import jax
from jax import lax

_LAYOUT = ('NHWC', 'HWIO', 'NHWC')


def _forward(x, kernel, stride):
  return lax.conv_general_dilated(x, kernel, (stride, stride), 'SAME', dimension_numbers=_LAYOUT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv2d(x, kernel, stride: int = 1):
  """Two-dimensional cross-correlation with 'SAME' padding.

  Args:
    x: images, (B, H, W, C).
    kernel: (h, w, C, D), the same dtype as `x`.
    stride: of both axes.

  Returns:
    (B, ceil(H / stride), ceil(W / stride), D).
  """
  return _forward(x, kernel, stride)


def _conv2d_fwd(x, kernel, stride):
  return _forward(x, kernel, stride), (x, kernel)


def _conv2d_bwd(stride, residuals, g):
  x, kernel = residuals
  same = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], (stride, stride), 'SAME')
  padding = []
  for (low, _), size, width, out in zip(same, x.shape[1:3], kernel.shape[:2], g.shape[1:3], strict=True):
    before = width - 1 - low
    padding.append((before, size + width - 1 - before - ((out - 1) * stride + 1)))
  flipped = lax.rev(kernel, (0, 1)).swapaxes(2, 3)
  dx = lax.conv_general_dilated(
      g, flipped, (1, 1), padding, lhs_dilation=(stride, stride), dimension_numbers=_LAYOUT)
  _, kernel_vjp = jax.vjp(lambda k: _forward(x, k, stride), kernel)
  return dx, *kernel_vjp(g)


conv2d.defvjp(_conv2d_fwd, _conv2d_bwd)
