"""The out-of-distribution job: which images the energies tell from data."""

import logging

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_ebm import data, generate, marginal_density, preprocessing, random_keys, sampling, trained
from diffusion_ebm.data import corruptions, external_images
from diffusion_ebm.evaluate import ood_detection
from diffusion_ebm.run import files, parallel, pictures
from diffusion_ebm.run import workdir as workdir_lib
from diffusion_ebm.run.errors import UserError
from diffusion_ebm.run.progress import Progress, doing

_log = logging.getLogger(__name__)

_STREAM = 0x00D
_NUM_NOISES, _NUM_SHOWN = 8, 16
_OWN = ('test', 'train')  # names of the run's own sets
# The combination of levels needs more examples than there are levels.
_MIN_TRAIN = 50


def run(config, workdir: str, seed: int = 0, step: int | None = None) -> dict:
  """Measures how well energies tell other images from the test split.

  An image's statistics at level t are the log density of the image diffused to that level and the norm of its gradient,
  averaged over eight noises that all images share, and the norm without noise. Writes to `ood/` in the workdir:
  `ood_STEP.json`, `ood_STEP.md` (tables), `ood_STEP.png` (histograms) and `ood_STEP_sets.png` (some images of each
  set, a row for each). Behind STEP come the seed, if not 0, the names of sets other than `corruptions.NAMES`, and a
  number where results of other inputs have that name.

  Args:
    config: the configuration; its `ood` section names the sets and how many of each; as many training images are what
      the scores are fitted on. The `train` section and how samples are drawn need not be the workdir's.
    workdir: of a training job.
    seed: of the noise, the choice of images, the corruptions and the bootstrap samples.
    step: the checkpoint's, or None for the newest.

  Returns:
    What is in the `.json`: `results`, score ('level 0, low density', ...) to set to what
    `ood_detection.detection` gives; `mean_log_density`, set to level to nats (normalised where `--mode=density` has
    been run); `inputs`, with each set's `source` (a path, a data set or one of `corruptions.NAMES`), `num_images` and
    `fingerprint` (of what the model sees).

  Raises:
    UserError: something that the user can mend.
  """
  trained.check_images(config, 'ood')
  trained.check_seed(seed)
  if not config.ood.against or not all(config.ood.against):
    raise UserError(f'--against names nothing: name {", ".join(corruptions.NAMES)}, a data set, a folder or a .zip')
  config, ebm, _, _, step = trained.load(config, workdir, step)
  # Everything that can be refused, before anything takes long.
  sets, fitted_on, sources = _load_sets(config, seed)
  folder = workdir_lib.make(workdir, 'ood')
  shown = [t for t in sampling.shown_levels(ebm.levels.num_models) if t < ebm.levels.num_models]
  of_train, values = _statistics(config, ebm, sets, fitted_on, shown, seed, step)

  names = [f'level {t}' for t in shown]
  doing('fitting the scores')
  detector = ood_detection.Detector(of_train, names)
  scores = {name: detector.scores(part) for name, part in values.items()}
  results = {key: {} for key in scores['test']}
  for name in list(sets)[1:]:
    counts = ood_detection.resamples(len(sets['test']), len(sets[name]), seed)
    for key, row in results.items():
      row[name] = ood_detection.detection(scores['test'][key], scores[name][key], counts)
  log_z = trained.log_z(workdir, step, ebm.levels.num_models, generate.asked(config))
  record = {'step': step, 'seed': seed, 'num_examples': {name: len(images) for name, images in sets.items()}}
  record |= _means(values, shown, log_z) | {'inputs': _inputs(config, sets, sources, fitted_on, log_z, seed, step)}
  record['results'] = {f'{level}, {kind}': row for (level, kind), row in results.items()}
  elsewhere = [name for name in sets if name not in (*_OWN, *corruptions.NAMES)]
  name = workdir_lib.file_name('ood', workdir_lib.label(step, seed), *elsewhere)
  base = workdir_lib.claim(folder, name, record['inputs'], ('.md', '.png', '_sets.png'))
  _write(base, record, results, sets, values, names)
  return record


def _load_sets(config, seed):
  """`(sets, fitted_on, sources)`: name to images, the training images for the fit, name to where images are from."""
  settings, own = config.ood, config.data.path if config.data.name == 'images' else config.data.name
  sources = external_images.name_sets(settings.against, 'against', corruptions.NAMES, _OWN)

  def choose(count):
    if count < _MIN_TRAIN:
      raise UserError(f'{count} training images are too few to fit the scores on: there must be {_MIN_TRAIN}')
    return data.random_choice(max(settings.num_examples, _MIN_TRAIN), seed)(count)

  some = data.random_choice(settings.num_examples, seed)
  sets = {'test': data.load_some(config.data, 'test', some).examples}
  fitted_on = data.load_some(config.data, 'train', choose).examples
  for name, where in sources.items():
    if name in corruptions.NAMES:
      sets[name] = corruptions.corrupt(name, sets['test'], seed, config.data.grey_levels)
    else:
      found = external_images.load_elsewhere(config.data, where, 'against', some, corruptions.NAMES)
      sets[name] = found.examples
  return sets, fitted_on, {'test': own, **sources}


def _inputs(config, sets, sources, fitted_on, log_z, seed, step):
  """What the results depend on."""
  described = {
    name: {'source': sources[name], 'num_images': len(images), 'fingerprint': files.digest(images)}
    for name, images in sets.items()
  }
  log_z = None if log_z is None else files.digest(log_z)
  found = {'step': step, 'seed': seed, 'sets': described, 'fitted_on': files.digest(fitted_on), 'log_z': log_z}
  return found | generate.asked(config)


def _statistics(config, ebm, sets, fitted_on, shown, seed, step):
  """The `ood_detection.Statistics` at the levels `shown` of the training images, and of each set."""
  noise = jax.random.normal(random_keys.stream_key(seed, _STREAM), (_NUM_NOISES, *fitted_on.shape[1:]))
  eps = jnp.concatenate([noise, jnp.zeros_like(noise[:1])])

  def statistics(ebm, images):
    x = preprocessing.to_unit_range(images)
    log_density, norm = marginal_density.diffused_statistics(ebm, x, shown, eps)
    return ood_detection.Statistics(log_density[..., :-1].mean(-1), norm[..., :-1].mean(-1), norm[..., -1])

  statistics_of_all = parallel.map_examples(statistics, config.sampling.batch_size)
  _log.info('compiling the energies')
  progress = Progress(f'energies at step {step}', len(fitted_on) + sum(map(len, sets.values())), unit='image')
  of_train = statistics_of_all(ebm, fitted_on, progress=progress)
  values = {name: statistics_of_all(ebm, images, progress=progress) for name, images in sets.items()}
  progress.close()
  if not all(np.all(np.isfinite(part)) for each in (of_train, *values.values()) for part in each):
    raise UserError(f'the energies at step {step} are not finite: try another --step')
  return of_train, values


def _means(values, shown, log_z):
  """The mean log density of each set at each level, normalised where log Z is known (None: of no level)."""
  shift = 0 if log_z is None else log_z[shown]
  means = {name: zip(shown, part.log_density.mean(0) - shift, strict=True) for name, part in values.items()}
  return {
    'normalised': log_z is not None,
    'mean_log_density': {
      name: {str(t): None if np.isnan(mean) else float(mean) for t, mean in levels} for name, levels in means.items()
    },
  }


def _write(base, record, results, sets, values, names):
  """The numbers, the tables and the pictures, and a line for each set."""
  files.write_json(base + '.json', record)
  text = [
    f'# Out of distribution, step {record["step"]}',
    'Images of ' + ', '.join(f'{name} ({count})' for name, count in record['num_examples'].items()) + '. In brackets: '
    '95 % bootstrap intervals.',
  ]
  for measure, title in (('auroc', 'AUROC'), ('aupr', 'AUPR'), ('fpr95', 'FPR at 95 % of the others found')):
    text.append(f'## {title}\n\n{ood_detection.table(results, measure)}')
  files.write_text(base + '.md', '\n\n'.join(text) + '\n')
  titles = [f'{name}, {what}' for what in ('log density (nats)', 'gradient norm') for name in names]
  drawn = {name: np.hstack([part.log_density, part.gradient_norm]) for name, part in values.items()}
  files.write_png(base + '.png', pictures.level_histograms(drawn, titles))
  columns = min(_NUM_SHOWN, *map(len, sets.values()))
  # Not the first ones, which may all be of one class.
  rows = np.concatenate([images[np.arange(columns) * len(images) // columns] for images in sets.values()])
  files.write_png(base + '_sets.png', pictures.image_grid(rows, columns))
  for name in list(sets)[1:]:
    best = max(results, key=lambda key, name=name: results[key][name]['auroc'])
    _log.info(
      '%s: AUROC %.3f at best (%s), %.3f for Mahalanobis, %.3f for MSMA',
      name,
      results[best][name]['auroc'],
      ', '.join(best),
      *(results['all levels', kind][name]['auroc'] for kind in ('Mahalanobis', 'MSMA, mixture')),
    )
  _log.info('tables in %s.md, histograms beside it', base)
