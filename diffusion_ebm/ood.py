"""The out-of-distribution job: which images the energies tell from data."""

import json
import logging
import os

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_ebm import data, generate, marginal, pictures, sampling, train_step, trained
from diffusion_ebm import workdir as workdir_lib
from diffusion_ebm.data import corruptions, elsewhere
from diffusion_ebm.errors import UserError
from diffusion_ebm.evaluate import detection
from diffusion_ebm.progress import Progress

_log = logging.getLogger(__name__)

_STREAM = 0x00D
_NUM_NOISES, _NUM_SHOWN = 8, 16
# The combination of levels needs more examples than there are levels.
_MIN_TRAIN = 50


def ood(config, workdir: str, against: list[str], num_examples: int, seed: int, step: int | None = None) -> dict:
  """Measures how well energies tell other images from the test split.

  An image's statistic at level t is the log density of the image diffused to that level, averaged over eight noises
  that all images share. Writes to `ood/` in the workdir: `ood_STEP.json`, `ood_STEP.md` (tables), `ood_STEP.png`
  (histograms) and `ood_STEP_sets.png` (the first images of each set, a row for each); the names of sets other than
  corruptions follow the step (`STEP_seedSEED` for seeds other than 0).

  Args:
    config: the configuration; the `train` section and how samples are drawn need not be the workdir's.
    workdir: of a training job.
    against: names of `data.corruptions.NAMES` (made of test images), data sets, or paths of folders, archives, images.
    num_examples: of each set, at most; the training images that the scores are fitted on are as many.
    seed: of the noise, the choice of training images and the corruptions.
    step: the checkpoint's, or None for the newest.

  Returns:
    What is in the `.json`: `results`, score ('level 0, low density', ...) to set to `auroc`, `aupr`, `fpr95`;
    `mean_log_density`, set to level to nats (normalised where `--mode=density` has been run).

  Raises:
    UserError: something that the user can mend.
  """
  trained.check_images(config, 'ood')
  trained.check_at_least('num_samples', num_examples, 2)
  trained.check_seed(seed)
  if not against or not all(against):
    raise UserError(f'--against names nothing: name {", ".join(corruptions.NAMES)}, a data set, a folder or a .zip')
  config, model, weights, step = trained.load(config, workdir, step)
  # Everything that can be refused, before anything takes long.
  test = data.load_source(config.data, 'test')
  train = data.load_source(config.data, 'train')
  if len(train) < _MIN_TRAIN:
    raise UserError(f'{len(train)} training images are too few to fit the scores on: there must be {_MIN_TRAIN}')
  sets = {'test': test.read(np.arange(min(num_examples, len(test))))}
  label = f'ood_{workdir_lib.label(step, seed)}'
  for name in against:
    if name in corruptions.NAMES:
      sets[name] = corruptions.corrupt(name, sets['test'], seed)
    else:
      source = elsewhere.load_elsewhere(config.data, name, 'against', corruptions.NAMES)
      short = os.path.basename(name.rstrip(os.sep)) or name
      sets[short] = source.read(np.arange(min(num_examples, len(source))))
      label += f'_{short}'
  chosen = np.random.default_rng(seed).permutation(len(train))[:max(num_examples, _MIN_TRAIN)]
  fitted_on = train.read(np.sort(chosen))
  folder = workdir_lib.make(workdir, 'ood')

  shown = [t for t in sampling.shown_levels(model.levels.num_models) if t < model.levels.num_models]
  eps = jax.random.normal(generate.stream_key(seed, _STREAM), (_NUM_NOISES, *model.shape))

  def log_density(weights, images):
    x = train_step.to_unit_range(images)
    return marginal.diffused_log_density(model.levels, model.network, weights, x, jnp.asarray(shown), eps)

  run = generate.Mapped(log_density, config.sampling.batch_size)
  _log.info('compiling the energies')
  total = len(fitted_on) + sum(map(len, sets.values()))
  progress = Progress(f'energies at step {step}', total, unit='image')
  of_train = run(weights, fitted_on, progress=progress)
  values = {name: run(weights, images, progress=progress) for name, images in sets.items()}
  progress.close()
  for part in (of_train, *values.values()):
    if not np.all(np.isfinite(part)):
      raise UserError(f'the energies at step {step} are not finite: try another --step')

  log_z = trained.log_z(workdir, step, model.levels.num_models)
  names = [f'level {t}' for t in shown]
  detector = detection.Detector(of_train.astype(np.float64), names)
  scores = {name: detector.scores(part) for name, part in values.items()}
  results = {key: {name: detection.detection(scores['test'][key], scores[name][key]) for name in sets if name != 'test'}
             for key in scores['test']}
  shift = 0 if log_z is None else log_z[shown]
  record = {
      'step': step, 'seed': seed, 'num_examples': {name: len(images) for name, images in sets.items()},
      'normalised': log_z is not None,
      'mean_log_density': {
          name: {str(t): None if np.isnan(v) else float(v) for t, v in zip(shown, part.mean(0) - shift, strict=True)}
          for name, part in values.items()},
      'results': {f'{level}, {kind}': row for (level, kind), row in results.items()}}
  base = os.path.join(folder, label[:100])
  _write(base, record, results, values, names)
  columns = min(_NUM_SHOWN, *map(len, sets.values()))
  rows = np.concatenate([images[:columns] for images in sets.values()])
  pictures.save_png(base + '_sets.png', pictures.image_grid(rows, columns))
  for name in list(sets)[1:]:
    best = max(results, key=lambda key, name=name: results[key][name]['auroc'])
    _log.info('%s: AUROC %.3f at best (%s), %.3f for the sum, %.3f for Mahalanobis', name, results[best][name]['auroc'],
              ', '.join(best), *(results['all levels', kind][name]['auroc'] for kind in ('sum', 'Mahalanobis')))
  _log.info('tables in %s.md, histograms beside it', base)
  return record


def _write(base, record, results, values, names):
  with open(base + '.json', 'w', encoding='utf-8') as file:
    json.dump(record, file, indent=2)
  text = [f'# Out of distribution, step {record["step"]}', 'Images of ' + ', '.join(
      f'{name} ({count})' for name, count in record['num_examples'].items()) + '.']
  for measure, title in (('auroc', 'AUROC'), ('aupr', 'AUPR'), ('fpr95', 'FPR at 95 % of the others found')):
    text.append(f'## {title}\n\n{detection.table(results, measure)}')
  with open(base + '.md', 'w', encoding='utf-8') as file:
    file.write('\n\n'.join(text) + '\n')
  pictures.save_png(base + '.png', pictures.level_histograms(values, [f'{name}, log density (nats)' for name in names]))
