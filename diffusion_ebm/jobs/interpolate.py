"""The interpolation job: strips of images from one sample to another."""

import logging

import numpy as np

from diffusion_ebm import generate, interpolation, preprocessing, random_keys, trained
from diffusion_ebm.run import files, parallel, pictures
from diffusion_ebm.run import workdir as workdir_lib
from diffusion_ebm.run.progress import Progress

_log = logging.getLogger(__name__)

_NUM_SHOWN = 32
# The path is refined so often before frames are chosen from it: its longest pieces are halved each time, down to what
# float32 can tell apart.
_ROUNDS = 30


def run(config, workdir: str, seed: int = 0, step: int | None = None) -> np.ndarray:
  """Draws strips; strip i goes from sample 2i to sample 2i + 1 of `--mode=sample` with the same seed.

  The frames are chosen on the way so that the steps between them are even, not at equal fractions of the noise.
  Writes to `interpolation/` in the workdir: `interpolation_STEP.npz` (`strips`: uint8 (S, F, H, W, C), `fractions`:
  (S, F)), `interpolation_STEP.png` and `interpolation_STEP.json`: for each strip the largest step between neighbours
  (root mean square, in [0, 255]) and the median one, and `inputs`. `STEP_seedSEED` for seeds other than 0, and a number
  where results of other inputs have that name.

  Args:
    config: the configuration; its `interpolate` section has S and F. The `train` section, the number of Langevin steps
      and eta need not be the workdir's.
    workdir: of a training job.
    seed: of the samples.
    step: the checkpoint's, or None for the newest.

  Returns:
    The strips.

  Raises:
    UserError: something that the user can mend.
  """
  trained.check_images(config, 'interpolate')
  trained.check_seed(seed)
  config, ebm, proposal, shape, step = trained.load(config, workdir, step)
  folder = workdir_lib.make(workdir, 'interpolation')
  fractions, path = _strips(config, ebm, proposal, shape, seed, step)
  strips = preprocessing.to_stored(path.reshape(-1, *shape)).reshape(path.shape)

  inputs = {'step': step, 'seed': seed, 'num_strips': len(strips), 'frames': strips.shape[1]}
  inputs['sampling'] = generate.inputs(config)
  base = workdir_lib.claim(folder, f'interpolation_{workdir_lib.label(step, seed)}', inputs, ('.npz', '.png'))
  files.write_npz(base + '.npz', {'strips': strips, 'fractions': fractions})
  files.write_png(base + '.png', pictures.image_grid(strips[:_NUM_SHOWN].reshape(-1, *shape), strips.shape[1]))
  lengths = interpolation.path_lengths(strips)
  largest, median = lengths.max(1), np.median(lengths, 1)
  files.write_json(base + '.json', {'inputs': inputs, 'largest_step': largest.tolist(), 'median_step': median.tolist()})
  ratio = largest / np.maximum(median, 1e-12)
  _log.info(
    '%d strips in %s.png; largest step between neighbours over the median one: %.1f (median of the strips), '
    '%.1f at most',
    len(strips),
    base,
    np.median(ratio),
    ratio.max(),
  )
  return strips


def _strips(config, ebm, proposal, shape, seed, step):
  """`(fractions, images)` of each strip, (S, F) and (S, F, ...), in [-1, 1]."""
  num_strips, num_frames = config.interpolate.num_strips, config.interpolate.frames
  added = max(num_frames // 4, 1)  # images by which a strip's path grows in each round

  def draw(models, strip, fraction):
    ebm, proposal = models
    keys_a, keys_b = (random_keys.sample_keys(seed, 2 * strip + end) for end in (0, 1))
    return interpolation.interpolate(ebm, keys_a, keys_b, fraction, shape, generate.settings(config), proposal)

  size = min(num_strips * num_frames, config.sampling.batch_size)
  draw_all = parallel.map_examples(draw, size, config.model.precision)
  _log.info('compiling the sampler')
  progress = Progress(f'interpolating at step {step}', num_strips * (num_frames + _ROUNDS * added), unit='image')

  def images(fractions):
    strip = np.repeat(np.arange(num_strips, dtype=np.int32), fractions.shape[1])
    x = draw_all((ebm, proposal), strip, fractions.astype(np.float32).ravel(), progress=progress)
    trained.check_finite(x, step)
    return np.clip(x, -1, 1).reshape(*fractions.shape, *shape)

  # A path that is known more closely where it is steep, then frames whose steps are even.
  fractions = np.tile(np.linspace(0, 1, num_frames), (num_strips, 1))
  path = images(fractions)
  for _ in range(_ROUNDS):
    new = interpolation.halfway(fractions, interpolation.path_lengths(path), added)
    fractions, path = np.concatenate([fractions, new], 1), np.concatenate([path, images(new)], 1)
    order = np.argsort(fractions, axis=1)
    fractions = np.take_along_axis(fractions, order, 1)
    path = np.take_along_axis(path, order.reshape(*order.shape, *(1,) * len(shape)), 1)
  progress.close()
  rows, kept = np.arange(num_strips)[:, None], np.stack([interpolation.even_steps(each, num_frames) for each in path])
  return fractions[rows, kept], path[rows, kept]
