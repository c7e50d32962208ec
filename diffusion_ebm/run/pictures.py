"""Pictures of examples and numbers, as uint8 arrays (H, W, 3)."""

import contextlib
import math
import os
import sys
from typing import NamedTuple
import warnings

import numpy as np

# Small images are enlarged by whole pixels up to about this size.
_TILE = 40
# Of the axes of two-dimensional examples, which lie in about [-1, 1].
_RADIUS = 1.6


def image_grid(images: np.ndarray, columns: int | None = None) -> np.ndarray:
  """A grid of images, uint8 (N, H, W, 1 or 3), row by row; square unless `columns` is given."""
  columns = columns or math.ceil(math.sqrt(len(images)))
  rows = math.ceil(len(images) / columns)
  factor = max(1, round(_TILE / images.shape[2]))
  images = np.repeat(images, 3 // images.shape[3], axis=3).repeat(factor, axis=1).repeat(factor, axis=2)
  _, height, width, _ = images.shape
  picture = np.full((rows, columns, height + 2, width + 2, 3), 255, np.uint8)
  picture.reshape(-1, *picture.shape[2:])[: len(images), 1:-1, 1:-1] = images
  return picture.swapaxes(1, 2).reshape(rows * (height + 2), columns * (width + 2), 3)


def image_levels(generated: np.ndarray, data: np.ndarray, levels: tuple[int, ...]) -> np.ndarray:
  """Generated images above diffused data, from white noise on the left to the result on the right.

  Args:
    generated: uint8 (L, N, H, W, C).
    data: likewise.
    levels: the level of each of the L.

  Returns:
    A picture.
  """
  from PIL import Image, ImageDraw, ImageFont

  gap, font = 18, ImageFont.load_default(13)
  rows = [[image_grid(images) for images in part[::-1]] for part in (generated, data)]
  height, width, _ = rows[0][0].shape
  canvas = Image.new('RGB', (len(levels) * (width + 4), 2 * (height + gap)), 'white')
  draw = ImageDraw.Draw(canvas)
  for row, (name, tiles) in enumerate(zip(('generated', 'data'), rows, strict=True)):
    for column, (tile, level) in enumerate(zip(tiles, levels[::-1], strict=True)):
      corner = (column * (width + 4), row * (height + gap))
      draw.text((corner[0] + 2, corner[1] + 1), f'{name}, level {level}', 'black', font)
      canvas.paste(Image.fromarray(tile), (corner[0], corner[1] + gap))
  return np.asarray(canvas)


def load_matplotlib():
  """Imports Matplotlib whatever backend the environment asks for, also one that is not there: pictures need none."""
  if 'matplotlib' in sys.modules:
    return sys.modules['matplotlib']
  asked = os.environ.pop('MPLBACKEND', None)
  import matplotlib

  if asked is not None:
    os.environ['MPLBACKEND'] = asked
    with contextlib.suppress(ValueError):
      matplotlib.rcParams['backend'] = asked
  return matplotlib


def _figure(rows: int, columns: int):
  load_matplotlib()
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  figure = Figure(figsize=(2 * columns, 2.1 * rows), dpi=80, layout='constrained')
  FigureCanvasAgg(figure)
  return figure, figure.subplots(rows, columns, squeeze=False)


def _to_array(figure) -> np.ndarray:
  with warnings.catch_warnings():
    warnings.filterwarnings('ignore', 'Glyph .* missing')  # of a name: boxes stand for it
    figure.canvas.draw()
  return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()


def log_z_ladder(log_z: list[dict]) -> np.ndarray:
  """Log Z level by level with its bracket, and the effective sample sizes, from records with `level`, `log_z`, ..."""
  figure, axes = _figure(1, 3)
  figure.set_size_inches(13, 4)
  level = [entry['level'] for entry in log_z]
  middle, lower, upper = (np.array([entry[key] for entry in log_z]) for key in ('log_z', 'lower', 'upper'))
  axes[0, 0].plot(level, middle, 'o-')
  axes[0, 0].set(title='log Z (nats)', xlabel='level')
  axes[0, 1].axhline(0, color='grey', lw=0.5)
  for end in ('forward', 'reverse'):
    values = np.array([entry[end]['log_z'] for entry in log_z])
    errors = np.array([2 * entry[end]['standard_error'] for entry in log_z])
    axes[0, 1].errorbar(level, values - middle, errors, fmt='o', capsize=3, label=end)
    axes[0, 2].plot(level, [entry[end]['ess'] for entry in log_z], 'o-', label=end)
  axes[0, 1].fill_between(level, lower - middle, upper - middle, alpha=0.2)
  axes[0, 1].set(title='its bracket: distance from the middle', xlabel='level')
  axes[0, 2].set(title='effective sample size', xlabel='level', yscale='log')
  for panel in axes[0]:
    panel.locator_params(axis='x', integer=True)
  for panel in axes[0, 1:]:
    panel.legend(fontsize=8)
  return _to_array(figure)


def curves(x, values: dict[str, np.ndarray], label: str) -> np.ndarray:
  """One panel for each curve, the last points of (K,) and `x` (K + 1,) or (K,) side by side."""
  figure, axes = _figure(1, len(values))
  figure.set_size_inches(4 * len(values), 3)
  for panel, (name, each) in zip(axes[0], values.items(), strict=True):
    panel.plot(x[len(x) - len(each) :], each)
    panel.set(title=name, xlabel=label)
  return _to_array(figure)


def distance_curves(curves: dict[str, tuple[np.ndarray, np.ndarray]], title: str) -> np.ndarray:
  """Frechet distances (K,) over energy gradients an image (K,), which may be 0: a line for each curve, NaN a gap.

  Returns:
    A picture, 400 pixels high and 560 wide.
  """
  figure, axes = _figure(1, 1)
  figure.set_size_inches(7, 5)
  panel, gradients = axes[0, 0], np.unique(np.concatenate([x for x, _ in curves.values()]))
  for name, (x, y) in curves.items():
    panel.plot(x, y, 'o-', label=name)
  panel.set_xscale('symlog', linthresh=next(iter(gradients[gradients > 0]), 1), linscale=0.5)
  panel.set(yscale='log', title=title, xlabel='energy gradients an image', ylabel='Frechet distance')
  panel.set_xticks(gradients, [f'{x:g}' for x in gradients])
  panel.set_xticks([], minor=True)
  panel.grid(alpha=0.3)
  panel.legend()
  return _to_array(figure)


def guidance_curves(weights: np.ndarray, shares: dict[str, np.ndarray], distances: np.ndarray, baseline: float | None):
  """What guidance does: shares (W,), in 0..1, and Frechet distances (W,), over the weights (W,).

  Args:
    weights: w.
    shares: name to values, NaN a gap.
    distances: likewise.
    baseline: the Frechet distance without a class, a broken line; None for none.

  Returns:
    A picture, 320 pixels high and 800 wide.
  """
  figure, axes = _figure(1, 2)
  figure.set_size_inches(10, 4)
  left, right = axes[0]
  for name, values in shares.items():
    left.plot(weights, values, 'o-', label=name)
  left.set(xlabel='guidance w', ylim=(None, 1.01))
  left.legend()
  right.plot(weights, distances, 'o-', label='a class asked for')
  if baseline is not None:
    right.axhline(baseline, color='0.5', linestyle='--', label='none asked for')
  right.set(xlabel='guidance w', ylabel='Frechet distance', ylim=(0, None))
  right.legend()
  for panel in (left, right):
    panel.set_xticks(weights, [f'{w:g}' for w in weights])
    panel.grid(alpha=0.3)
  return _to_array(figure)


def point_row(points: np.ndarray, titles: list[str]) -> np.ndarray:
  """Two-dimensional points (K, N, 2), a panel for each K."""
  figure, axes = _figure(1, len(points))
  for panel, part, title in zip(axes[0], points, titles, strict=True):
    panel.plot(part[:, 0], part[:, 1], '.', ms=2, color='black')
    panel.set(xlim=(-_RADIUS, _RADIUS), ylim=(-_RADIUS, _RADIUS), xticks=[], yticks=[], aspect='equal')
    panel.set_title(title, fontsize=9)
  return _to_array(figure)


def histograms(values: dict[str, np.ndarray], label: str) -> np.ndarray:
  """Histograms of some sets of numbers, without NaN; one named noise, far away, has a second panel with all of them."""
  values = {name: each[np.isfinite(each)] for name, each in values.items()}
  everything = np.concatenate(list(values.values()))
  panels = [everything]
  if 'noise' in values:
    panels.insert(0, np.concatenate([each for name, each in values.items() if name != 'noise']))
  figure, axes = _figure(1, len(panels))
  figure.set_size_inches(5.5 * len(panels), 4)
  for panel, numbers in zip(axes[0], panels, strict=True):
    bins = np.histogram_bin_edges(numbers, 60)
    for name, each in values.items():
      if np.all((each < bins[0]) | (each > bins[-1])):
        continue  # elsewhere: in the other panel
      panel.hist(each, bins, density=True, alpha=0.5, label=name)
    panel.set(xlabel=label, yticks=[])
    panel.legend(fontsize=8)
  return _to_array(figure)


def _points(axes, points, radius):
  axes.plot(points[:, 0], points[:, 1], ',', color='black')
  axes.set(xlim=(-radius, radius), ylim=(-radius, radius), xticks=[], yticks=[], aspect='equal')


def level_histograms(values: dict[str, np.ndarray], names) -> np.ndarray:
  """Histograms of several sets' numbers, a panel for each level.

  Args:
    values: set to numbers, (N, L); the first is drawn filled.
    names: titles of the L panels.

  Returns:
    A picture.
  """
  figure, axes = _figure(-(-len(names) // 3), min(len(names), 3))
  figure.set_size_inches(4 * axes.shape[1], 2.4 * axes.shape[0] + 0.4)
  for i, (axis, name) in enumerate(zip(axes.flat, names, strict=False)):
    everything = np.concatenate([part[:, i] for part in values.values()])
    edges = np.linspace(*np.percentile(everything, [0.5, 99.5]), 60)
    for number, (label, part) in enumerate(values.items()):
      with np.errstate(invalid='ignore', divide='ignore'):  # all may be outside
        axis.hist(
          part[:, i],
          edges,
          density=True,
          label=label.replace('$', r'\$'),
          color=f'C{number}',  # of ten
          linestyle='-' if number < 10 else '--',
          alpha=0.4 if number == 0 else 1,
          histtype='stepfilled' if number == 0 else 'step',
        )
    axis.set_title(name, fontsize=9)
    axis.set_yticks([])
    axis.tick_params(labelsize=8)
    axis.locator_params(axis='x', nbins=5)  # as many labels as do not run together
  for axis in axes.flat[len(names) :]:
    axis.axis('off')
  figure.legend(*axes[0, 0].get_legend_handles_labels(), loc='outside lower center', ncols=5, fontsize=8)
  return _to_array(figure)


def point_cloud(points: np.ndarray) -> np.ndarray:
  """A picture of two-dimensional points, (N, 2)."""
  figure, axes = _figure(1, 1)
  figure.set_size_inches(5, 5)
  _points(axes[0, 0], points, _RADIUS)
  return _to_array(figure)


class Densities(NamedTuple):
  """Log densities on a square grid of the plane, level by level.

  Attributes:
    learned: the models', normalised, (M, size * size), of the first M levels that are shown.
    exact: the exact ones, likewise.
    kl: KL(exact || learned) of each, (M,), in nats.
    half_width: of the square on which each is drawn, (M,).
  """

  learned: np.ndarray
  exact: np.ndarray
  kl: np.ndarray
  half_width: np.ndarray


def point_levels(generated, data, levels: tuple[int, ...], densities: Densities | None = None) -> np.ndarray:
  """Two-dimensional samples, diffused data and, where given, densities, from white noise to the result.

  Args:
    generated: (L, N, 2).
    data: likewise.
    levels: the level of each of the L.
    densities: of the first of these levels; white noise, the last, has none.

  Returns:
    A picture; the axes reach to 1.6 at level 0 and to 3.2 elsewhere, the colours of a level are those of the exact
    density.
  """
  figure, axes = _figure(4 if densities else 2, len(levels))
  for column, (index, level) in enumerate(reversed(list(enumerate(levels)))):
    radius = _RADIUS if level == 0 else 2 * _RADIUS
    for row, (name, part) in enumerate((('generated', generated), ('data', data))):
      _points(axes[row, column], part[index], radius)
      axes[row, column].set_title(f'{name}, level {level}', fontsize=9)
    if densities:
      _draw_densities(axes[2:, column], densities, index, radius)
  return _to_array(figure)


def _draw_densities(axes, densities, index, radius):
  """The learned and the exact density of a level; white noise has no model."""
  if index == len(densities.learned):
    for axis in axes:
      axis.axis('off')
    return
  edge = densities.half_width[index]
  for axis, title, log_density in (
    (axes[0], f'learned, KL {densities.kl[index]:.3f}', densities.learned[index]),
    (axes[1], 'exact', densities.exact[index]),
  ):
    size = math.isqrt(len(log_density))
    axis.imshow(
      np.exp(log_density).reshape(size, size).T,
      origin='lower',
      extent=(-edge, edge, -edge, edge),
      vmin=0,
      vmax=np.exp(densities.exact[index].max()),
      cmap='magma',
    )
    axis.set(xlim=(-radius, radius), ylim=(-radius, radius), xticks=[], yticks=[])
    axis.set_title(title, fontsize=9)
