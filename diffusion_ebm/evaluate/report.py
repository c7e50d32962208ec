"""The report: one page that needs nothing but itself."""

import base64
import html
import io
import json
import os

import numpy as np

from diffusion_ebm.evaluate import MIN_SAMPLES
from diffusion_ebm.run.pictures import load_matplotlib

# (key of a record, title, whether lower is better)
_CURVES = (
  ('fid', 'Frechet distance (lower is better)'),
  ('kid', 'KID (lower is better)'),
  ('inception_score', 'inception score (higher)'),
  ('precision', 'precision (higher)'),
  ('recall', 'recall (higher)'),
  ('coverage', 'coverage (higher)'),
)
_COLUMNS = (
  ('fid', 'Frechet distance'),
  ('inception_score', 'inception score'),
  ('kid', 'KID'),
  ('precision', 'precision'),
  ('recall', 'recall'),
  ('density', 'density'),
  ('coverage', 'coverage'),
)
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 62em; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; margin: 1em 0; } th, td { padding: .25em .8em; text-align: right; }
th:first-child, td:first-child { text-align: left; } thead { border-bottom: 2px solid #888; }
tr.baseline { color: #666; } tr.best { font-weight: bold; } tbody tr:nth-child(even) { background: #f5f5f5; }
figure { display: inline-block; vertical-align: top; margin: 0 1.5em 1.5em 0; } figcaption { color: #555; }
img { max-width: 100%; image-rendering: pixelated; } svg { max-width: 100%; height: auto; }
pre { background: #f5f5f5; padding: 1em; overflow: auto; } .note { color: #a33; }
"""


def page(title: str, records: list[dict], pictures: dict[str, list[tuple[str, str]]], config: dict) -> str:
  """The report as HTML.

  Args:
    title: its title.
    records: of `results`, by step, at least one; the last one's baselines are shown.
    pictures: heading to `(caption, path of a PNG)`.
    config: the configuration as a dictionary.
  """
  good = [record for record in records if 'error' not in record]
  parts = [f'<h1>{html.escape(title)}</h1>']
  if good:
    parts += [_summary(good), _table(good), _classes(good[-1]), _curves(good)]
  parts += [
    f'<p class="note">Step {record["step"]}: {html.escape(record["error"])}</p>'
    for record in records
    if 'error' in record
  ]
  for heading, shown in pictures.items():
    figures = [_figure(caption, path) for caption, path in shown if os.path.exists(path)]
    if figures:
      parts.append(f'<h2>{html.escape(heading)}</h2>\n' + '\n'.join(figures))
  parts.append(f'<h2>Configuration</h2>\n<pre>{html.escape(json.dumps(config, indent=2))}</pre>')
  return (
    f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
    f'<style>{_STYLE}</style></head>\n<body>\n' + '\n'.join(parts) + '\n</body></html>\n'
  )


def _summary(records):
  last, best = records[-1], min(records, key=lambda record: record['fid'])
  data = f'{last["num_data"]:,} examples' if last['num_data'] else 'a given file of statistics'
  text = (
    f'{last["num_samples"]:,} samples of each checkpoint against the {last["split"]} split ({data}), in '
    f'{last["num_features"]:,} {last["extractor"]} features. Best Frechet distance: {best["fid"]:.4g} at step '
    f'{best["step"]}.'
  )
  accuracy = last.get('classifier_accuracy')
  if accuracy is not None:
    text += f' The classifier is right on {accuracy:.2%} of the test split.'
  notes = [text]
  if last['num_neighbour_samples'] < last['num_samples']:
    notes.append(f'Precision, recall, density and coverage: of {last["num_neighbour_samples"]:,} samples.')
  if last['num_neighbour_data'] < MIN_SAMPLES:
    notes.append(
      f'The {last["split"]} split has too few images ({last["num_neighbour_data"]}, not {MIN_SAMPLES}) for KID, '
      'precision, recall, density and coverage.'
    )
  if last['num_samples'] <= last['num_features']:
    notes.append(
      'There are no more samples than features: the covariance is singular, and the Frechet distance is '
      'comparable only with others of as many samples.'
    )
  return ''.join(f'<p>{html.escape(note)}</p>' for note in notes)


def _number(value, spread=None):
  if value is None:
    return '–'
  return f'{value:.4g}' + (f' ± {spread:.1g}' if spread is not None else '')


def _row(name, scores, kind=''):
  spreads = {'inception_score': scores['inception_score_std'], 'kid': scores['kid_standard_error']}
  cells = ''.join(f'<td>{_number(scores[key], spreads.get(key))}</td>' for key, _ in _COLUMNS)
  return f'<tr class="{kind}"><td>{html.escape(name)}</td>{cells}</tr>'


def _title(name, scores):
  components = scores.get('num_components')
  return name.replace('_', ' ') + (f' ({components})' if components else '')


def _table(records):
  head = ''.join(f'<th>{name}</th>' for name in ('', *(name for _, name in _COLUMNS)))
  best = min(records, key=lambda record: record['fid'])
  rows = [_row(f'step {record["step"]}', record, 'best' if record is best else '') for record in records]
  rows += [
    _row(f'baseline: {_title(name, scores)}', scores, 'baseline') for name, scores in records[-1]['baselines'].items()
  ]
  return (
    f'<h2>Scores</h2>\n<table><thead><tr>{head}</tr></thead><tbody>\n'
    + '\n'.join(rows)
    + '\n</tbody></table>\n<p>± is the standard deviation over ten splits for the inception score, the standard '
    'error for KID. Baselines: other real data (the other split); fitted to training data, a Gaussian with the '
    'full covariance of the pixels, and two mixtures of Gaussians in the space of the principal components, one '
    'of ten, one of as many as give held-out examples the highest likelihood.</p>'
  )


def _classes(record):
  """How well classes are told apart, by level; '' for a model that knows none."""
  if 'classes' not in record:
    return ''
  found = record['classes']
  rows = [(f'energies of level {each["level"]}', each['accuracy'], each['log_loss']) for each in found['levels']]
  rows.append(('logistic regression on the pixels', found['logistic_regression'], None))
  if record.get('classifier_accuracy') is not None:
    rows.append(('the classifier whose features are used here', record['classifier_accuracy'], None))
  lines = (f'<tr><td>{name}</td><td>{a:.2%}</td><td>{_number(loss)}</td></tr>' for name, a, loss in rows)
  return (
    '<h2>Classes</h2>\n<table><thead><tr><th></th><th>accuracy</th><th>log loss (nats)</th></tr></thead><tbody>\n'
    + '\n'.join(lines)
    + f'\n</tbody></table>\n<p>Of {found["num_test"]:,} images of the test split, step {record["step"]}. Class '
    f'probabilities come from the energies of the classes, with a scale and biases that are fitted to '
    f'{found["num_train"]:,} training images.</p>'
  )


def _curves(records):
  """All curves in one drawing: the parts of several would share their names."""
  matplotlib = load_matplotlib()
  from matplotlib.backends.backend_svg import FigureCanvasSVG
  from matplotlib.figure import Figure

  shown = [curve for curve in _CURVES if records[-1][curve[0]] is not None]
  steps = [record['step'] for record in records]
  figure = Figure(figsize=(10, 2.9 * -(-len(shown) // 3)), layout='constrained')
  FigureCanvasSVG(figure)
  axes = np.ravel(figure.subplots(-(-len(shown) // 3), 3, squeeze=False))
  for (key, title), axis in zip(shown, axes, strict=False):
    axis.plot(steps, [record[key] for record in records], 'o-', color='C0', label='samples')
    for number, (name, scores) in enumerate(records[-1]['baselines'].items(), 1):
      if scores[key] is not None:
        axis.axhline(scores[key], color=f'C{number}', linestyle='--', label=_title(name, scores))
    axis.set_title(title, fontsize=10)
    axis.set_xlabel('step')
    if key == 'fid':
      axis.set_yscale('log')
  for axis in axes[len(shown) :]:
    axis.axis('off')
  figure.legend(*axes[0].get_legend_handles_labels(), loc='outside lower center', ncols=4, fontsize=9)
  text = io.StringIO()
  with matplotlib.rc_context({'svg.fonttype': 'none', 'svg.hashsalt': 'report'}):
    figure.savefig(text, format='svg', metadata={'Date': None})
  return '<h2>Curves</h2>\n' + text.getvalue()[text.getvalue().index('<svg') :]


def _figure(caption, path):
  with open(path, 'rb') as file:
    data = base64.b64encode(file.read()).decode()
  caption = html.escape(caption)
  image = f'<img src="data:image/png;base64,{data}" alt="{caption}">'
  return f'<figure>{image}<figcaption>{caption}</figcaption></figure>'
