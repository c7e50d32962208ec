"""Inpainting: hidden pixels drawn by Langevin chains, known ones clamped to their own diffusion.

Pixels diffuse independently of each other, so the known part of an image has a diffusion of its own that can be drawn
without the hidden part: one trajectory `x_0 .. x_T`, from the noise down by `noise_levels.posterior`. At each level the
hidden part of `y_t` is drawn from `p(y_t | x_{t+1})` with the known part held at that trajectory's `a_{t+1} x_t`.
(Noise drawn anew at each level would not do: `x_t` and `x_{t+1}` of the known part would not be neighbours.)

One way down draws `x_t` of the hidden part given the known part at levels t and beyond, not given the image that is
known; what was decided under much noise stays. `num_repeats` mends that: after each chain the whole of `x_t` is
diffused to `x_{t+1}` again and the chain repeated. The two are a Gibbs sampler of `(hidden x_t, x_{t+1})` given the
known `x_t`: many repeats, with chains that converge, draw from the model's exact conditional
`p(hidden x_0 | known x_0)`.

Source: Gao et al. 2021, section 4 (inpainting); repeats as in Lugmayr et al. 2022, RePaint, algorithm 1.
"""

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from diffusion_ebm import energy, langevin, noise_levels, recovery, sampling
from diffusion_ebm.noise_levels import at

MASKS = ('left', 'right', 'top', 'bottom', 'centre', 'random')


def make_mask(name: str, shape, seed: int = 0) -> np.ndarray:
  """A mask by name: the hidden half, the middle (half of the width and of the height), or half of the pixels at random.

  Args:
    name: one of `MASKS`.
    shape: of an image, (H, W, ...).
    seed: of 'random'.

  Returns:
    bool (H, W), True where pixels are hidden.

  Raises:
    ValueError: there is no such mask.
  """
  height, width = shape[:2]
  row, column = np.indices((height, width))
  masks = {
      'left': column < width // 2, 'right': column >= width - width // 2,
      'top': row < height // 2, 'bottom': row >= height - height // 2,
      'centre': (abs(2 * row + 1 - height) <= height / 2) & (abs(2 * column + 1 - width) <= width / 2),
      'random': np.random.default_rng(seed).random((height, width)) < 0.5}
  if name not in masks:
    raise ValueError(f'mask is {name!r}, not one of {", ".join(MASKS)}')
  return masks[name]


def sample_hidden(levels: recovery.Levels, f, x_next, known, mask, t, noise_fn, num_steps: int):
  """Langevin chains on the hidden part of `p(y_t | x_{t+1})` given the known part.

  Args:
    levels: the levels.
    f: the network at these levels, from (B, ...) to (B,).
    x_next: the noisier variable, (B, ...).
    known: the known part of `x_t`; the hidden part does not count; like `x_next`.
    mask: True where hidden, like `x_next`.
    t: levels, int (B,) in 0..T-1.
    noise_fn: the noise of each step, as in `recovery.sample_conditional`.
    num_steps: K, likewise.

  Returns:
    `x_t`, like `x_next`; where known, `known`.
  """
  a = at(levels.noise.a_y[1:], t, x_next)
  # The chain of all pixels, on an energy that sees the known part alone where it is known: what the chain does there
  # has no effect, and the quadratic term falls apart into pixels.
  x = recovery.sample_conditional(
      levels, lambda y: f(jnp.where(mask, y, a * known)), x_next, t, noise_fn, num_steps)
  return jnp.where(mask, x, known)


def inpaint(
    levels: recovery.Levels, network, weights, keys, image, mask, num_steps: int, noise_scale: float,
    num_repeats: int = 1, denoised: bool = False):
  """Draws the hidden pixels of images given the others.

  Args:
    levels: the levels.
    network: the energy network.
    weights: its normalised parameters.
    keys: one key for each image, (B,); completion i depends on `keys[i]`, its image and its mask alone.
    image: float32 (B, ...), in [-1, 1] for images; what is hidden does not count.
    mask: True where hidden, like `image`.
    num_steps: K, Langevin steps of each chain.
    noise_scale: eta, factor of the Langevin noise.
    num_repeats: R, chains at each level; the time grows with it.
    denoised: remove the little noise that is left at level 0, by `sampling.denoise`.

  Returns:
    Like `image`, unclipped; where known, exactly `image`.
  """
  top, shape = levels.num_models, image.shape[1:]

  def fold(keys, number):
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)

  known_eps, again_eps = (langevin.normal_noise(fold(keys, stream), shape) for stream in (0, 1))
  chain_keys = fold(keys, 2)

  def step_down(x_next, t):
    level = jnp.full(len(image), t)
    f = energy.at_level(network, weights, level)
    known = noise_levels.posterior(levels.noise, image, x_next, level, known_eps(t))
    level_keys = fold(chain_keys, t)

    def chain_and_back(carry, repeat):
      noise = langevin.normal_noise(fold(level_keys, repeat), shape, noise_scale)
      x = sample_hidden(levels, f, carry[0], known, mask, level, noise, num_steps)
      eps = again_eps(t * num_repeats + repeat + 1)
      x_next = at(levels.noise.a, level + 1, x) * x + at(levels.noise.sigma, level + 1, x) * eps
      return (x_next, x), None

    (_, x), _ = lax.scan(chain_and_back, (x_next, x_next), jnp.arange(num_repeats))
    return x, None

  start = noise_levels.diffuse(levels.noise, image, jnp.full(len(image), top), known_eps(top))
  white = langevin.normal_noise(keys, shape)(top)
  x, _ = lax.scan(step_down, jnp.where(mask, white, start), jnp.arange(top), reverse=True)
  if denoised:
    x = sampling.denoise(levels, network, weights, x)
  return jnp.where(mask, x, image)
