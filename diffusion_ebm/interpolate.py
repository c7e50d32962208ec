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


def interpolate(
    config, workdir: str, num_strips: int, num_frames: int, seed: int, step: int | None = None) -> np.ndarray:
  """Draws strips; strip i goes from sample 2i to sample 2i + 1 of `--mode=sample` with the same seed.

  Writes to `interpolation/` in the workdir: `interpolation_STEP.npz` (`strips`: uint8 (S, F, H, W, C)),
  `interpolation_STEP.png` and `interpolation_STEP.json`: for each strip the largest step between neighbours (root mean
  square, in [0, 255]) and the median one.

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

  strip = np.repeat(np.arange(num_strips, dtype=np.int32), num_frames)
  fraction = np.tile(np.linspace(0, 1, num_frames, dtype=np.float32), num_strips)
  _log.info('compiling the sampler')
  progress = Progress(f'interpolating at step {step}', len(strip), unit='image')
  x = generate.Mapped(draw, min(len(strip), config.sampling.batch_size))(weights, strip, fraction, progress=progress)
  progress.close()
  trained.check_finite(x, step)
  strips = generate.finished(x).reshape(num_strips, num_frames, *model.shape)

  steps = step_sizes(strips)
  base = os.path.join(folder, f'interpolation_{step}')
  workdir_lib.save_npz(base + '.npz', strips=strips)
  pictures.save_png(base + '.png', pictures.image_grid(strips[:_NUM_SHOWN].reshape(-1, *model.shape), num_frames))
  largest, median = steps.max(1), np.median(steps, 1)
  with open(base + '.json', 'w', encoding='utf-8') as file:
    json.dump({'step': step, 'seed': seed, 'largest_step': largest.tolist(), 'median_step': median.tolist()}, file)
  ratio = largest / np.maximum(median, 1e-12)
  _log.info('%d strips in %s.png; largest step between neighbours over the median one: %.1f (median of the strips), '
            '%.1f at most', num_strips, base, np.median(ratio), ratio.max())
  return strips


def step_sizes(strips: np.ndarray) -> np.ndarray:
  """Root mean square differences of neighbours: uint8 (S, F, ...) to (S, F - 1), in [0, 255]."""
  difference = np.diff(strips.astype(np.float64), axis=1)
  return np.sqrt(np.mean(difference**2, axis=tuple(range(2, strips.ndim))))
