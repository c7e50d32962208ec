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

import dataclasses

from jax import lax
import jax.numpy as jnp
import numpy as np

from diffusion_ebm import langevin, noise_levels, random_keys, recovery, sampling
from diffusion_ebm.ebm import Ebm, LevelEbm
from diffusion_ebm.proposal import NormalProposal
from diffusion_ebm.sampling import Settings

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
    'left': column < width // 2,
    'right': column >= width - width // 2,
    'top': row < height // 2,
    'bottom': row >= height - height // 2,
    'centre': (abs(2 * row + 1 - height) <= height / 2) & (abs(2 * column + 1 - width) <= width / 2),
    'random': np.random.default_rng(seed).random((height, width)) < 0.5,
  }
  if name not in masks:
    raise ValueError(f'mask is {name!r}, not one of {", ".join(MASKS)}')
  return masks[name]


def restrict(model: LevelEbm, known, mask) -> LevelEbm:
  """The model of the hidden part of `y_t`, given the known part.

  A chain of all pixels on it moves the hidden ones as a chain of these alone would: the energy sees the known part
  alone where it is known, and the quadratic term falls apart into pixels.

  Args:
    model: `ebm.at(t)`.
    known: the known part of `x_t`; the hidden part does not count; (B, ...).
    mask: True where hidden, like `known`.
  """
  y_known = model.levels.to_y(known, model.t)
  return dataclasses.replace(model, f=lambda y: model.f(jnp.where(mask, y, y_known)))


def inpaint(
  ebm: Ebm, keys, image, mask, settings: Settings, num_repeats: int = 1, proposal: NormalProposal | None = None
):
  """Draws the hidden pixels of images given the others.

  Args:
    ebm: the model.
    keys: one key for each image, (B,); completion i depends on `keys[i]`, its image and its mask alone.
    image: float32 (B, ...), in [-1, 1] for images; what is hidden does not count.
    mask: True where hidden, like `image`.
    settings: how samples are drawn.
    num_repeats: R, chains at each level; the time grows with it.
    proposal: where chains start, if not at what they undo the noise of.

  Returns:
    Like `image`, unclipped; where known, exactly `image`.
  """
  levels, shape = ebm.levels, image.shape[1:]
  top = levels.num_models
  known_eps, again_eps = (langevin.normal_noise(random_keys.fold_in(keys, stream), shape) for stream in (0, 1))
  chain_keys = random_keys.fold_in(keys, 2)

  def step_down(x_next, t):
    level = jnp.full(len(image), t)
    known = noise_levels.posterior(levels, image, x_next, level, known_eps(t))
    model = restrict(ebm.at(level), known, mask)
    level_keys, eta = random_keys.fold_in(chain_keys, t), sampling.noise_scale(settings, levels, t)

    def chain_and_back(carry, repeat):
      noise = langevin.normal_noise(random_keys.fold_in(level_keys, repeat), shape, eta)
      x = recovery.sample_conditional(model, carry[0], noise, settings.num_steps, proposal)
      x = jnp.where(mask, x, known)
      eps = again_eps(t * num_repeats + repeat + 1)
      return (noise_levels.diffuse_next(levels, x, level, eps), x), None

    (_, x), _ = lax.scan(chain_and_back, (x_next, x_next), jnp.arange(num_repeats))
    return x, None

  start = noise_levels.diffuse(levels, image, jnp.full(len(image), top), known_eps(top))
  white = langevin.normal_noise(keys, shape)(top)
  x, _ = lax.scan(step_down, jnp.where(mask, white, start), jnp.arange(top), reverse=True)
  if settings.denoised:
    x = sampling.denoise(ebm, x, settings.denoise_factor)
  return jnp.where(mask, x, image)
