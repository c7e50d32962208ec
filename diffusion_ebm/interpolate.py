"""The interpolation job: strips of images from one sample to another."""

import json
import logging
import os

import numpy as np

from diffusion_ebm import generate, interpolation, pictures, trained
from diffusion_ebm import workdir as workdir_lib
from diffusion_ebm.progress import Progress

_log = logging.getLogger(__name__)

_NUM_SHOWN = 32
# The path is refined so often before frames are chosen from it: its longest pieces are halved each time, down to what
# float32 can tell apart.
_ROUNDS = 30


def interpolate(
    config, workdir: str, num_strips: int, num_frames: int, seed: int, step: int | None = None) -> np.ndarray:
  """Draws strips; strip i goes from sample 2i to sample 2i + 1 of `--mode=sample` with the same seed.

  The frames are chosen on the way so that the steps between them are even, not at equal fractions of the noise.
  Writes to `interpolation/` in the workdir: `interpolation_STEP.npz` (`strips`: uint8 (S, F, H, W, C), `fractions`:
  (S, F)), `interpolation_STEP.png` and `interpolation_STEP.json`: for each strip the largest step between neighbours
  (root mean square, in [0, 255]) and the median one. `STEP_seedSEED` for seeds other than 0.

  Args:
    config: the configuration; the `train` section, the number of Langevin steps and eta need not be the workdir's.
    workdir: of a training job.
    num_strips: S.
    num_frames: F, images in a strip, with both ends.
    seed: of the samples.
    step: the checkpoint's, or None for the newest.

  Returns:
    The strips.

  Raises:
    UserError: something that the user can mend.
  """
  trained.check_images(config, 'interpolate')
  trained.check_at_least('num_samples', num_strips)
  trained.check_at_least('frames', num_frames, 2)
  trained.check_seed(seed)
  config, model, weights, step = trained.load(config, workdir, step)
  folder = workdir_lib.make(workdir, 'interpolation')

  def draw(weights, strip, fraction):
    keys_a, keys_b = (generate.sample_keys(seed, 2 * strip + end) for end in (0, 1))
    return interpolation.interpolate(
        model.levels, model.network, weights, keys_a, keys_b, fraction, model.shape, generate.generation_steps(config),
        config.sampling.noise_scale, config.sampling.denoise)

  total = num_strips * (num_frames + _ROUNDS * _added(num_frames))
  run = generate.Mapped(draw, min(num_strips * num_frames, config.sampling.batch_size))
  _log.info('compiling the sampler')
  progress = Progress(f'interpolating at step {step}', total, unit='image')

  def images(fractions):
    strip = np.repeat(np.arange(num_strips, dtype=np.int32), fractions.shape[1])
    x = run(weights, strip, fractions.astype(np.float32).ravel(), progress=progress)
    trained.check_finite(x, step)
    return np.clip(x, -1, 1).reshape(*fractions.shape, *model.shape)

  # A path that is known more closely where it is steep, then frames whose steps are even.
  fractions = np.tile(np.linspace(0, 1, num_frames), (num_strips, 1))
  path = images(fractions)
  for _ in range(_ROUNDS):
    new = interpolation.halfway(fractions, interpolation.path_lengths(path), _added(num_frames))
    fractions, path = np.concatenate([fractions, new], 1), np.concatenate([path, images(new)], 1)
    order = np.argsort(fractions, axis=1)
    fractions = np.take_along_axis(fractions, order, 1)
    path = np.take_along_axis(path, order.reshape(*order.shape, *(1,) * len(model.shape)), 1)
  progress.close()
  kept = np.stack([interpolation.even_steps(each, num_frames) for each in path])
  fractions, path = fractions[np.arange(num_strips)[:, None], kept], path[np.arange(num_strips)[:, None], kept]
  strips = generate.finished(path.reshape(-1, *model.shape)).reshape(path.shape)

  steps = interpolation.path_lengths(strips)
  base = os.path.join(folder, f'interpolation_{workdir_lib.label(step, seed)}')
  workdir_lib.save_npz(base + '.npz', strips=strips, fractions=fractions)
  pictures.save_png(base + '.png', pictures.image_grid(strips[:_NUM_SHOWN].reshape(-1, *model.shape), num_frames))
  largest, median = steps.max(1), np.median(steps, 1)
  with open(base + '.json', 'w', encoding='utf-8') as file:
    json.dump({'step': step, 'seed': seed, 'largest_step': largest.tolist(), 'median_step': median.tolist()}, file)
  ratio = largest / np.maximum(median, 1e-12)
  _log.info('%d strips in %s.png; largest step between neighbours over the median one: %.1f (median of the strips), '
            '%.1f at most', num_strips, base, np.median(ratio), ratio.max())
  return strips


def _added(num_frames):
  """Images by which a strip's path grows in each round."""
  return max(num_frames // 4, 1)
