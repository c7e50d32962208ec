"""The inpainting job: completions of images of which a part is hidden."""

import json
import logging
import os

import numpy as np

from diffusion_ebm import data, generate, inpainting, pictures, train_step, trained
from diffusion_ebm import workdir as workdir_lib
from diffusion_ebm.data import elsewhere
from diffusion_ebm.data.source import ArraySource
from diffusion_ebm.errors import UserError
from diffusion_ebm.evaluate import features, statistics
from diffusion_ebm.progress import Progress

_log = logging.getLogger(__name__)

# Keeps the random numbers apart from those of samples.
_STREAM = 0x1A7
_MAX_COMPLETIONS = 1024
_NUM_SHOWN = 12
# Data on which a small classifier says something.
_CLASSIFIED = ('digits', 'mnist')
_GREY = 128


def inpaint(
    config, workdir: str, mask: str, images: str, num_images: int, num_completions: int, num_repeats: int, seed: int,
    step: int | None = None) -> np.ndarray:
  """Hides a part of images, and draws it several times.

  Writes to `inpainting/` in the workdir: `inpaint_STEP_MASK.npz` (`images`: uint8 (N, H, W, C), `mask`: bool (H, W),
  `completions`: uint8 (N, n, H, W, C)), `inpaint_STEP_MASK.png` with a row for each of the first images (the image,
  what is known of it, completions) and, for digits and MNIST, `inpaint_STEP_MASK.json` with a classifier's opinion.
  `STEP_seedSEED` for seeds other than 0.

  Args:
    config: the configuration; the `train` section, the number of Langevin steps and eta need not be the workdir's.
    workdir: of a training job.
    mask: one of `inpainting.MASKS`, or an image of the data's size, white where hidden.
    images: a folder, a .zip, an image or a data set; '' for the run's own test split.
    num_images: N, at most; the first ones.
    num_completions: n, of each.
    num_repeats: chains at each level.
    seed: completion j of image i depends on this seed, on i, j, the image and the mask alone.
    step: the checkpoint's, or None for the newest.

  Returns:
    The completions.

  Raises:
    UserError: something that the user can mend.
  """
  trained.check_images(config, 'inpaint')
  for name, value in (('num_samples', num_images), ('completions', num_completions), ('repeats', num_repeats)):
    trained.check_at_least(name, value)
  if num_completions > _MAX_COMPLETIONS:
    raise UserError(f'--completions is {num_completions}, but must be at most {_MAX_COMPLETIONS}')
  trained.check_seed(seed)
  size = config.data.image_size
  name, hidden = _load_mask(mask, (size, size), seed)
  config, model, weights, step = trained.load(config, workdir, step)
  source = elsewhere.load_elsewhere(config.data, images, 'images') if images else _own_images(config)
  index = np.arange(min(num_images, len(source)))
  originals = source.read(index)
  folder = workdir_lib.make(workdir, 'inpainting')

  x = np.repeat(np.asarray(train_step.to_unit_range(originals)), num_completions, axis=0)
  masks = np.broadcast_to(hidden[..., None], x.shape)

  def draw(weights, number, x, mask):
    keys = generate.fold_in_each(generate.stream_key(seed, _STREAM), number)
    return inpainting.inpaint(
        model.levels, model.network, weights, keys, x, mask, generate.generation_steps(config),
        config.sampling.noise_scale, num_repeats, config.sampling.denoise)

  numbers = (index[:, None] * _MAX_COMPLETIONS + np.arange(num_completions)).ravel().astype(np.int32)
  _log.info('compiling the sampler')
  progress = Progress(f'inpainting at step {step}', len(x), unit='completion')
  drawn = generate.Mapped(draw, min(len(x), config.sampling.batch_size))(weights, numbers, x, masks, progress=progress)
  progress.close()
  trained.check_finite(drawn, step)
  completions = np.where(masks, generate.finished(drawn), np.repeat(originals, num_completions, axis=0))
  completions = completions.reshape(len(originals), num_completions, *model.shape)

  base = os.path.join(folder, f'inpaint_{workdir_lib.label(step, seed)}_{name}')
  workdir_lib.save_npz(base + '.npz', images=originals, mask=hidden, completions=completions)
  shown = slice(min(len(originals), _NUM_SHOWN))
  known = np.where(hidden[..., None], np.uint8(_GREY), originals)
  rows = np.concatenate([originals[shown, None], known[shown, None], completions[shown]], axis=1)
  pictures.save_png(base + '.png', pictures.image_grid(rows.reshape(-1, *model.shape), rows.shape[1]))
  _log.info('%d completions of each of %d images in %s.npz, a picture beside it', num_completions, len(originals), base)
  if config.data.name in _CLASSIFIED and not images:
    opinion = _classify(config, folder, originals, source.labels[index], known, hidden, completions)
    with open(base + '.json', 'w', encoding='utf-8') as file:
      json.dump({'step': step, 'seed': seed, 'mask': name, 'repeats': num_repeats, **opinion}, file, indent=2)
    _log.info('the classifier sees the class that it sees in the original in %.1f %% of the completions (right on '
              '%.1f %% of the originals, on %.1f %% of what is known; one trained on that: %.1f %%)',
              *(100 * opinion[key] for key in (
                  'agreement', 'accuracy_original', 'accuracy_known', 'accuracy_trained_on_known')))
  return completions


def _load_mask(mask, size, seed):
  """`(name, bool (H, W))` of --mask, True where hidden."""
  mask = 'centre' if mask == 'center' else mask
  if mask in inpainting.MASKS:
    return mask, inpainting.make_mask(mask, size, seed)
  if not os.path.exists(os.path.expanduser(mask)):
    raise UserError(f'--mask={mask} is neither a file nor one of {", ".join(inpainting.MASKS)}')
  from PIL import Image

  try:
    with Image.open(os.path.expanduser(mask)) as image:
      pixels = np.asarray(image.convert('L'))
  except Exception as error:
    raise UserError(f'--mask={mask} is no image ({error}): name a picture, white where hidden') from error
  if pixels.shape != size:
    height, width = pixels.shape
    raise UserError(f'--mask={mask} is {width}x{height}, but the images are {size[1]}x{size[0]}: make it as large')
  hidden = pixels >= _GREY
  if hidden.all() or not hidden.any():
    what = 'everything' if hidden.all() else 'nothing'
    raise UserError(f'--mask={mask} hides {what}: paint white what is to be drawn, black what is known')
  return os.path.splitext(os.path.basename(mask))[0], hidden


def _own_images(config):
  """The run's test split, or the training split where there is none."""
  try:
    return data.load_source(config.data, 'test')
  except UserError as error:
    _log.info('taking training images: %s', error)
    return data.load_source(config.data, 'train')


def _classify(config, folder, originals, labels, known, hidden, completions):
  """What a small classifier says, each a share in [0, 1].

  Returns:
    `agreement`: completions that it takes for what it takes the original for; `accuracy_original`, `accuracy_known`:
    right on the originals, and on these with the hidden part grey; `accuracy_trained_on_known`: the same of one that
    was trained on such images, which says how much the known part tells.
  """
  train, test = (data.load_source(config.data, split) for split in ('train', 'test'))

  def predict(extractor, images):
    compiled = features.compile_extractor(extractor, train.shape, False, min(len(images), 256))
    return np.argmax(compiled(images)[1], 1)

  def hide(source):
    images = source.read(np.arange(len(source)))
    return ArraySource(np.where(hidden[..., None], np.uint8(_GREY), images), source.labels)

  whole = features.small_classifier(train, test, os.path.join(folder, 'classifier.npz'))
  key = statistics.key(hidden.tolist())
  part = features.small_classifier(hide(train), hide(test), os.path.join(folder, f'classifier_{key}.npz'))
  said = predict(whole, originals)
  of_completions = predict(whole, completions.reshape(-1, *originals.shape[1:])).reshape(completions.shape[:2])
  return {
      'agreement': float(np.mean(of_completions == said[:, None])),
      'accuracy_original': float(np.mean(said == labels)),
      'accuracy_known': float(np.mean(predict(whole, known) == labels)),
      'accuracy_trained_on_known': float(np.mean(predict(part, known) == labels))}
