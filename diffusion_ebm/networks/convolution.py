"""A convolution whose value and gradients stay fast inside `lax.scan` on a CPU.

XLA on CPU writes the gradients of a convolution with kernel layouts that, inside a loop, miss the fast matrix-product
path: 3 times slower for the input, tens of times for the kernel. Here each gradient is an ordinary NHWC/HWIO
convolution of rearranged arrays, which keeps the fast path everywhere. Wide 3x3 convolutions of stride 1 on a CPU are
computed by Winograd's algorithm, with 2.25 times fewer multiplications. docs/performance.md has the measurements.
"""

import functools

from flax import traverse_util
import jax
from jax import lax
import jax.numpy as jnp

# Flax' collection of what `prepare` makes.
PREPARED = 'prepared'

_LAYOUT = ('NHWC', 'HWIO', 'NHWC')
# Below this width the transforms of Winograd's algorithm cost more than the multiplications that it saves.
_WINOGRAD_WIDTH = 64
# On a TPU, from this size of images on and up to so many outputs, products come before shifts.
_FEW_OUTPUTS, _LARGE = 4, 128


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv2d(x, kernel, stride: int = 1, tiles=None):
  """Two-dimensional cross-correlation with 'SAME' padding.

  Args:
    x: images, (B, H, W, C).
    kernel: (h, w, C, D), the same dtype as `x`.
    stride: of both axes.
    tiles: `winograd_kernels(kernel)`, computed before, or None.

  Returns:
    (B, ceil(H / stride), ceil(W / stride), D).
  """
  return _forward(x, kernel, tiles and tiles[0], stride)


def _forward(x, kernel, tiles, stride):
  return _correlate(x, kernel, tiles, _same_padding(x, kernel, stride), stride)


def _conv2d_fwd(x, kernel, stride, tiles):
  # Not `_forward`: where this is differentiated again, the gradient must not go through the tiles, which have none.
  return conv2d(x, kernel, stride, tiles), (x, kernel, tiles)


def _conv2d_bwd(stride, residuals, g):
  x, kernel, tiles = residuals
  same = _same_padding(x, kernel, stride)
  # Input: the flipped, transposed kernel over the gradient, spread out by the stride.
  padding = ()
  for (low, _), size, width, out in zip(same, x.shape[1:3], kernel.shape[:2], g.shape[1:3], strict=True):
    before = width - 1 - low
    padding += ((before, size + width - 1 - before - ((out - 1) * stride + 1)),)
  if stride == 1 and padding == same:
    dx = conv2d(g, _flipped(kernel), 1, tiles and tiles[::-1])  # a gradient of this gradient is fast too
  else:
    dx = _correlate(g, _flipped(kernel), None, padding, 1, stride)
  # Kernel: the gradient as a kernel over the input, the batch in the place of the channels.
  dk = lax.conv_general_dilated(
    x.transpose(3, 1, 2, 0),
    g.transpose(1, 2, 0, 3),
    (1, 1),
    same,
    rhs_dilation=(stride, stride),
    dimension_numbers=_LAYOUT,
  )
  return dx, dk[:, : kernel.shape[0], : kernel.shape[1]].transpose(1, 2, 0, 3), None


conv2d.defvjp(_conv2d_fwd, _conv2d_bwd)


def prepare(params):
  """What convolutions need of their kernels again and again, computed once; no gradient flows through it.

  Args:
    params: of a network, at any depth.

  Returns:
    For each kernel that profits its `tiles` for `conv2d`, in the place of the kernel: the collection `PREPARED`.
  """
  flat = traverse_util.flatten_dict(lax.stop_gradient(params))
  return traverse_util.unflatten_dict(
    {
      (*path[:-1], 'tiles'): winograd_kernels(kernel)
      for path, kernel in flat.items()
      if path[-1] == 'kernel' and _is_wide(kernel)
    }
  )


@jax.jit
def winograd_kernels(kernel):
  """A 3x3 kernel, (3, 3, C, D), and its flipped transpose, as 4 x 4 matrices each: 4 of (4, C, D), and of (4, D, C)."""

  def along(k):
    return k[0], (k[0] + k[1] + k[2]) / 2, (k[0] - k[1] + k[2]) / 2, k[2]

  def transform(kernel):
    return tuple(jnp.stack(along(rows)) for rows in along(kernel))

  return transform(kernel), transform(_flipped(kernel))


def _flipped(kernel):
  return lax.rev(kernel, (0, 1)).swapaxes(2, 3)


def _same_padding(x, kernel, stride):
  return tuple(lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], (stride, stride), 'SAME'))


def _is_wide(kernel):
  return kernel.ndim == 4 and kernel.shape[:2] == (3, 3) and min(kernel.shape[2:]) >= _WINOGRAD_WIDTH


@functools.partial(jax.jit, static_argnums=(3, 4, 5))  # traced once for all layers of a shape
def _correlate(x, kernel, tiles, padding, stride, spread=1):
  """Cross-correlation of `x` with zeros in between (`spread`) and around (`padding`)."""

  def direct(x, kernel, tiles):
    del tiles
    return lax.conv_general_dilated(
      x, kernel, (stride, stride), padding, lhs_dilation=(spread, spread), dimension_numbers=_LAYOUT
    )

  def winograd(x, kernel, tiles):
    return _winograd(x, winograd_kernels(kernel)[0] if tiles is None else tiles)

  even = not (x.shape[1] % 2 or x.shape[2] % 2)
  if _is_wide(kernel) and even and stride == spread == 1 and x.dtype == jnp.float32:
    return lax.platform_dependent(x, kernel, tiles, cpu=winograd, default=direct)
  few = kernel.shape[:2] == (3, 3) and kernel.shape[3] <= _FEW_OUTPUTS < kernel.shape[2] and x.shape[1] >= _LARGE
  if few and stride == spread == 1:
    return lax.platform_dependent(x, kernel, tiles, tpu=lambda x, kernel, _: _few_outputs(x, kernel), default=direct)
  return direct(x, kernel, tiles)


def _few_outputs(x, kernel):
  """3x3 cross-correlation with padding 1 and stride 1 to few channels: the products of each pixel, then their sums.

  A matrix unit of 128 columns multiplies by all nine taps of three outputs at once, in the place of each by itself.
  """
  products = jnp.einsum('bhwc,klcd->klbhwd', x, kernel, preferred_element_type=jnp.float32)
  products = jnp.pad(products, ((0, 0), (0, 0), (0, 0), (1, 1), (1, 1), (0, 0)))
  height, width = x.shape[1:3]
  taps = (products[i, j, :, i : i + height, j : j + width] for i in range(3) for j in range(3))
  return sum(taps).astype(x.dtype)


def _winograd(x, tiles):
  """3x3 cross-correlation with padding 1 and stride 1 by tiles of 2x2: 16 products in place of 36.

  The products of a row of the 4x4 matrices are one batched product: all 16 at once leave the cache, and one by one they
  make programs that take long to compile and to load.

  Source: Lavin and Gray 2016, section 4.1, F(2x2, 3x3).
  """
  batch, height, width, channels = x.shape

  def differences(x, axis):  # rows (or columns) 2i - 1 .. 2i + 2 of each tile i, combined
    row = [lax.slice_in_dim(x, i, i + x.shape[axis] - 3, 2, axis) for i in range(4)]
    return row[0] - row[2], row[1] + row[2], row[2] - row[1], row[1] - row[3]

  def sums(m):
    return m[0] + m[1] + m[2], m[1] - m[2] - m[3]

  x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  products = [
    (jnp.stack(differences(rows, 2)).reshape(4, -1, channels) @ tiles[i]).reshape(4, batch, height // 2, width // 2, -1)
    for i, rows in enumerate(differences(x, 1))
  ]
  rows = sums([jnp.stack(sums(row), 3) for row in products])
  return jnp.stack(rows, 2).reshape(batch, height, width, -1)
