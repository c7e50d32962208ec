"""The inpainting job: completions of images of which a part is hidden."""

import logging
import os

import numpy as np

from diffusion_ebm import config as config_lib
from diffusion_ebm import data, generate, inpainting, preprocessing, random_keys, trained
from diffusion_ebm.data import external_images
from diffusion_ebm.data.source import ArraySource
from diffusion_ebm.evaluate import features
from diffusion_ebm.run import files, parallel, paths, pictures
from diffusion_ebm.run import workdir as workdir_lib
from diffusion_ebm.run.errors import UserError
from diffusion_ebm.run.progress import Progress

_log = logging.getLogger(__name__)

# Keeps the random numbers apart from those of samples.
_STREAM = 0x1A7
_NUM_SHOWN = 12
_GREY = 128
_OPINION = (
  'the classifier sees the class that it sees in the original in %.1f %% of the completions (right on %.1f %% of the '
  'originals, on %.1f %% of what is known; one trained on that: %.1f %%)'
)


def run(config, workdir: str, seed: int = 0, step: int | None = None) -> np.ndarray:
  """Hides a part of images, and draws it several times.

  Writes to `inpainting/` in the workdir: `inpaint_STEP_MASK.npz` (`images`: uint8 (N, H, W, C), `mask`: bool (H, W),
  `completions`: uint8 (N, n, H, W, C)), `inpaint_STEP_MASK.png` with a row for each of the first images (the image,
  what is known of it, completions) and `inpaint_STEP_MASK.json` with `inputs` and, for digits and MNIST, a classifier's
  opinion. `STEP_seedSEED` for seeds other than 0, `MASK_IMAGES` for images that are not the run's own, and a number
  where results of other inputs have that name.

  Args:
    config: the configuration; its `inpaint` section says what is hidden, and of which images. The `train` section, the
      number of Langevin steps and eta need not be the workdir's.
    workdir: of a training job.
    seed: completion j of image i depends on this seed, on i, j, the image and the mask alone.
    step: the checkpoint's, or None for the newest.

  Returns:
    The completions.

  Raises:
    UserError: something that the user can mend.
  """
  trained.check_images(config, 'inpaint')
  trained.check_seed(seed)
  settings, size = config.inpaint, config.data.image_size
  name, hidden = _load_mask(settings.mask, (size, size), seed)
  config, ebm, proposal, shape, step = trained.load(config, workdir, step)
  elsewhere, source = _images(config)
  originals = source.examples
  folder = workdir_lib.make(workdir, 'inpainting')
  completions = _draw(config, ebm, proposal, originals, hidden, seed, step)

  inputs = _inputs(config, name, hidden, elsewhere, originals, seed, step)
  name = workdir_lib.file_name('inpaint', workdir_lib.label(step, seed), name, *elsewhere)
  base = workdir_lib.claim(folder, name, inputs, ('.npz', '.png'))
  files.write_npz(base + '.npz', {'images': originals, 'mask': hidden, 'completions': completions})
  shown = slice(min(len(originals), _NUM_SHOWN))
  known = np.where(hidden[..., None], np.uint8(_GREY), originals)
  rows = np.concatenate([originals[shown, None], known[shown, None], completions[shown]], axis=1)
  files.write_png(base + '.png', pictures.image_grid(rows.reshape(-1, *shape), rows.shape[1]))
  _log.info(
    '%d completions of each of %d images in %s.npz, a picture beside it', settings.completions, len(originals), base
  )
  if features.is_classified(config.data) and not settings.images:
    opinion = _classify(config, workdir_lib.make_cache(workdir), originals, source.labels, hidden, completions)
    files.write_json(base + '.json', {'inputs': inputs, **opinion})
    _log.info(_OPINION, *(100 * share for share in opinion.values()))
  return completions


def _inputs(config, mask, hidden, elsewhere, originals, seed, step):
  """What the results depend on."""
  return {
    'step': step,
    'seed': seed,
    'mask': mask,
    'hidden': files.digest(hidden),
    'images': elsewhere,
    'num_images': len(originals),
    'fingerprint': files.digest(originals),
    'completions': config.inpaint.completions,
    'repeats': config.inpaint.repeats,
    'sampling': generate.inputs(config),
  }


def _draw(config, ebm, proposal, originals, hidden, seed, step):
  """The completions, uint8 (N, n, H, W, C)."""
  num, repeats = config.inpaint.completions, config.inpaint.repeats
  x = np.repeat(np.asarray(preprocessing.to_unit_range(originals)), num, axis=0)
  masks = np.broadcast_to(hidden[..., None], x.shape)
  numbers = np.arange(len(originals))[:, None] * config_lib.MAX_COMPLETIONS + np.arange(num)

  def draw(models, number, x, mask):
    ebm, proposal = models
    keys = random_keys.sample_keys(seed, number, _STREAM)
    return inpainting.inpaint(ebm, keys, x, mask, generate.settings(config), repeats, proposal)

  _log.info('compiling the sampler')
  progress = Progress(f'inpainting at step {step}', len(x), unit='completion')
  draw_all = parallel.map_examples(draw, min(len(x), config.sampling.batch_size), config.model.precision)
  drawn = draw_all((ebm, proposal), numbers.ravel().astype(np.int32), x, masks, progress=progress)
  progress.close()
  trained.check_finite(drawn, step)
  completions = np.where(masks, preprocessing.to_stored(drawn), np.repeat(originals, num, axis=0))
  return completions.reshape(len(originals), num, *originals.shape[1:])


def _load_mask(mask, size, seed):
  """`(name, bool (H, W))` of --mask, True where hidden."""
  mask = 'centre' if mask == 'center' else mask
  if mask in inpainting.MASKS:
    return mask, inpainting.make_mask(mask, size, seed)
  path = paths.local(mask, '--mask')
  if not os.path.exists(path):
    raise UserError(f'--mask={mask} is neither a file in {os.getcwd()} nor one of {", ".join(inpainting.MASKS)}')
  from PIL import Image

  try:
    with Image.open(path) as image:
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


def _images(config):
  """`(elsewhere, source)` of what is completed: its name and where it is, if it is not the run's own, else empty."""
  if not config.inpaint.images:
    return {}, _own_images(config)
  elsewhere = external_images.name_sets([config.inpaint.images], 'images')
  first = data.first(config.inpaint.num_images)
  return elsewhere, external_images.load_elsewhere(config.data, *elsewhere.values(), 'images', first)


def _own_images(config):
  """Of the run's test split, or of the training split where there is none."""
  first = data.first(config.inpaint.num_images)
  try:
    return data.load_some(config.data, 'test', first)
  except UserError as error:
    _log.info('taking training images: %s', error)
    return data.load_some(config.data, 'train', first)


def _classify(config, cache, originals, labels, hidden, completions):
  """What a small classifier says, each a share in [0, 1].

  Returns:
    `agreement`: completions that it takes for what it takes the original for; `accuracy_original`, `accuracy_known`:
    right on the originals, and on these with the hidden part grey; `accuracy_trained_on_known`: the same of one that
    was trained on such images, which says how much the known part tells.
  """

  def hide(images):
    return np.where(hidden[..., None], np.uint8(_GREY), images)

  def predict(extractor, images):
    extract = features.compile_extractor(extractor, images.shape[1:], min(len(images), 256))
    return np.argmax(extract(images)[1], 1)

  whole = {split: data.load_source(config.data, split) for split in ('train', 'test')}
  part = {
    split: ArraySource(hide(source.read(np.arange(len(source)))), source.labels) for split, source in whole.items()
  }
  key = features.data_key(config.data, whole)
  classifier = features.small_classifier(whole, cache, key)
  part_classifier = features.small_classifier(part, cache, key, hidden.tolist())
  predicted = predict(classifier, originals)
  of_completions = predict(classifier, completions.reshape(-1, *originals.shape[1:])).reshape(completions.shape[:2])
  return {
    'agreement': float(np.mean(of_completions == predicted[:, None])),
    'accuracy_original': float(np.mean(predicted == labels)),
    'accuracy_known': float(np.mean(predict(classifier, hide(originals)) == labels)),
    'accuracy_trained_on_known': float(np.mean(predict(part_classifier, hide(originals)) == labels)),
  }
