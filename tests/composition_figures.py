"""The figures of docs/composition.md: what plain and corrected chains make of sums of energies.

python -m tests.composition_figures plane [--eight_gaussians=DIR --rings=DIR] [--n=200000] [--picture=FILE]
python -m tests.composition_figures digits --classes=DIR --other=DIR --digits=DIR --thick=DIR [--n=1000] [--picture=F]

`--classes` and `--other` are workdirs of configs/digits_classes.py with two seeds, evaluated; `--digits` of
configs/digits.py; `--thick` of configs/digits.py on the third of the training scans with the most ink:
python -m tests.composition_figures thick --folder=DIR writes these.
"""

import functools
import os

from absl import app, flags
import jax
import jax.numpy as jnp
import numpy as np

import diffusion_ebm
from diffusion_ebm import composition, corrected_sampling, marginal_density, noise_levels, preprocessing, sampling
from tests import forks, testing

# Exact energies in the plane.


def mixture(means, sigma, levels, weights=None):
  """Exact energies, in nats, of a mixture of Gaussians of one width in the plane."""
  means = jnp.asarray(means, jnp.float32)
  weights = jnp.log(jnp.ones(len(means)) / len(means) if weights is None else jnp.asarray(weights))
  a_y, a_cum, sigma_cum = (jnp.asarray(v, jnp.float32) for v in (levels.a_y, levels.a_cum, levels.sigma_cum))

  def f(y, t):
    t = jnp.broadcast_to(t, (len(y),))
    variance = a_y[t] ** 2 * (a_cum[t] ** 2 * sigma**2 + sigma_cum[t] ** 2)
    squares = jnp.sum((y[:, None] - (a_y[t] * a_cum[t])[:, None, None] * means) ** 2, axis=2)
    return jax.nn.logsumexp(weights - 0.5 * squares / variance[:, None], axis=1) - jnp.log(2 * jnp.pi * variance)

  return testing.function_ebm(levels, f)


RING = [(0.7 * np.cos(u), 0.7 * np.sin(u)) for u in np.arange(8) * np.pi / 4]
ROW = [(-0.75, 0.0), (-0.25, 0.0), (0.25, 0.0), (0.75, 0.0)]


def exact_sums(levels):
  """Name to `(model, coefficient)` of each term: and, not, and guidance towards one of two classes."""
  ring, row = mixture(RING, 0.15, levels), mixture(ROW, 0.2, levels)
  one = mixture(RING[:3], 0.15, levels)  # a class of three of the eight
  return {
    'ring and row': ((ring, 1.0), (row, 1.0)),
    'ring, not row': ((ring, 1.0), (row, -0.5)),
    'guidance 0.5': ((one, 1.5), (ring, -0.5)),
    'guidance 2': ((one, 3.0), (ring, -2.0)),
  }


def grid_density(log_density, cells=50, extent=1.6):
  """The share of each cell of a grid, (cells, cells), of a density whose logarithm is that of points (N, 2)."""
  fine = 8 * cells
  axis = (np.arange(fine) + 0.5) / fine * 2 * extent - extent
  points = np.stack(np.meshgrid(axis, axis, indexing='ij'), axis=-1).reshape(-1, 2)
  values = np.asarray(log_density(points), np.float64)
  density = np.exp(values - values.max()).reshape(cells, 8, cells, 8).sum(axis=(1, 3))
  return density / density.sum()


def of_model(ebm):
  """The log density of points at the cleanest level."""
  evaluate = jax.jit(lambda p: marginal_density.log_density(ebm, p, jnp.zeros(1, int)))
  return lambda points: evaluate(jnp.asarray(points, jnp.float32))


def kl(x, density, extent=1.6):
  """KL(samples || density) in nats, by counts in the cells of a grid; where there are samples, there is density.

  Its bias is about (cells with samples) / (2 samples).
  """
  counts = np.histogram2d(*np.asarray(x).T, bins=len(density), range=[[-extent, extent]] * 2)[0]
  share = counts / len(x)
  held = share > 0
  return float(np.sum(share[held] * np.log(share[held] / np.maximum(density[held], 1e-12))))


def draw_both(ebm, shape, n, settings, plain_settings):
  """`(corrected, plain)`: samples of both samplers."""
  keys, tuning_keys = jax.random.split(jax.random.key(0), n), jax.random.split(jax.random.key(1), 64)

  optimized = functools.partial(jax.jit, compiler_options=forks.OPTIMIZED)

  @optimized
  def corrected(ebm, keys):
    step_sizes = corrected_sampling.tune(ebm, tuning_keys, shape, settings)
    return corrected_sampling.sample(ebm, keys, shape, settings, step_sizes)[0]

  plain = optimized(lambda ebm, keys: sampling.sample(ebm, keys, shape, plain_settings)[0])
  return np.asarray(corrected(ebm, keys)), np.asarray(plain(ebm, keys))


def of_exact(name, n=20_000, num_steps=200, plain_steps=100):
  """`(density, corrected, plain)` of a sum of exact energies."""
  ebm = composition.add(*exact_sums(noise_levels.make_levels(6, 0.02, 'conditional', 'one'))[name])
  settings = corrected_sampling.Settings(num_steps=num_steps)
  return grid_density(of_model(ebm)), *draw_both(ebm, (2,), n, settings, sampling.Settings(plain_steps))


def kl_of_both(name, **settings):
  """`(corrected, plain)`: KL to the exact composed density of what both samplers draw, with exact energies."""
  density, *drawn = of_exact(name, **settings)
  return tuple(kl(x, density) for x in drawn)


def of_trained(eight_gaussians, rings, n):
  """Yields `(name, exact density, density of the model, corrected, plain)` of sums of trained energies."""
  from diffusion_ebm.data import toy

  names = ('eight_gaussians', 'rings')
  models = [diffusion_ebm.load(workdir) for workdir in (eight_gaussians, rings)]
  level = models[0].ebm.levels
  for title, coefficients in (('eight Gaussians and rings', (1.0, 1.0)), ('rings, not eight Gaussians', (-0.25, 1.0))):
    ebm = composition.add(*zip((model.ebm for model in models), coefficients, strict=True))

    def exact(points, coefficients=coefficients):
      return sum(
        c * toy.distribution(name).log_density(points, level.a_cum[0], level.sigma_cum[0])
        for name, c in zip(names, coefficients, strict=True)
      )

    settings = corrected_sampling.Settings(num_steps=200)
    corrected, plain = draw_both(ebm, (2,), n, settings, models[0].sampling._replace(num_steps=100))
    yield title, grid_density(exact), grid_density(of_model(ebm)), corrected, plain


def plane(flag):
  """Prints the table of sums in the plane, and draws them."""
  rows = []
  for name in exact_sums(noise_levels.make_levels(6, 0.02, 'conditional', 'one')):
    density, corrected, plain = of_exact(name, flag.n)
    print(f'| {name} | {kl(corrected, density):.4f} | {kl(plain, density):.4f} |', flush=True)
    rows.append((name, density, corrected, plain))
  if flag.eight_gaussians:
    for name, exact, learned, corrected, plain in of_trained(flag.eight_gaussians, flag.rings, min(flag.n, 20_000)):
      values = [kl(x, density) for density in (exact, learned) for x in (corrected, plain)]
      print(f'| {name} | to exact, to the model: {" | ".join(f"{value:.4f}" for value in values)} |', flush=True)
      rows.append((f'{name}, trained', exact, corrected, plain))
  if flag.picture:
    draw_rows(rows, flag.picture)


def draw_rows(rows, path):
  """A row for each sum: the exact density, and counts of corrected and of plain samples."""
  from diffusion_ebm.run import pictures

  pictures.load_matplotlib()
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  figure = Figure(figsize=(6, 2 * len(rows)), dpi=90, layout='constrained')
  FigureCanvasAgg(figure)
  axes = figure.subplots(len(rows), 3, squeeze=False)
  for number, (line, (name, density, *drawn)) in enumerate(zip(axes, rows, strict=True)):
    shares = [density] + [np.histogram2d(*x.T, bins=50, range=[[-1.6, 1.6]] * 2)[0] / len(x) for x in drawn]
    for axis, share, title in zip(line, shares, ('exact', 'corrected', 'plain'), strict=True):
      axis.imshow(share.T, origin='lower', vmin=0, vmax=density.max())
      axis.set(xticks=[], yticks=[], title='' if number else title)
    line[0].set_ylabel(name, fontsize=8)
  figure.savefig(path)


# Digits.


def ink(images):
  """The mean grey of images, uint8 (N, H, W, C)."""
  return images.reshape(len(images), -1).mean(axis=1)


def _scans(split):
  from configs import digits
  from diffusion_ebm import data

  source = data.load_source(digits.get_config().data, split)
  return source.read(np.arange(len(source)))


def thick_threshold():
  """The ink that a third of the training scans exceed."""
  return np.quantile(ink(_scans('train')), 2 / 3)


def thick(flag):
  """Writes the scans with more ink than the threshold, as a folder of images."""
  from PIL import Image

  for split in ('train', 'test'):
    folder = os.path.join(flag.folder, split)
    os.makedirs(folder, exist_ok=True)
    scans = _scans(split)
    for i in np.flatnonzero(ink(scans) > thick_threshold()):
      Image.fromarray(scans[i, ..., 0]).save(os.path.join(folder, f'{i:04d}.png'))


def classifier(workdir):
  """What gives the classes, int (N,), of images by the independent classifier of a workdir's evaluation."""
  from diffusion_ebm import config as config_lib
  from diffusion_ebm import scoring

  config = config_lib.resolve(config_lib.load(workdir))
  config.eval.baselines = False
  extract = scoring.load_reference(config, workdir, lambda: None).extract

  def classes(images):
    parts = [extract(images[i : i + 1000])[1] for i in range(0, len(images), 1000)]
    return np.argmax(np.concatenate(parts), axis=1)

  return classes


def digit_tasks(flag):
  """Name to `(model, judge)`; a judge says of images, uint8 (N, H, W, 1), which are right."""
  model, other = diffusion_ebm.load(flag.classes), diffusion_ebm.load(flag.other)
  whole, heavy = diffusion_ebm.load(flag.digits), diffusion_ebm.load(flag.thick)
  classes, threshold = classifier(flag.classes), thick_threshold()
  three_or_eight = model.any_of(3, 8)

  def is_heavy_seven(images):
    return (classes(images) == 7) & (ink(images) > threshold)

  def reads_42(images):
    return (classes(images[:, :, :8]) == 4) & (classes(images[:, :, 8:]) == 2)

  return {
    '3 or 8: a 3': (three_or_eight, lambda images: classes(images) == 3),
    '3 or 8: a 3 or an 8': (three_or_eight, lambda images: np.isin(classes(images), (3, 8))),
    '3 or 8, but not 8: a 3': (2 * three_or_eight - model.of_class(8), lambda images: classes(images) == 3),
    '4 beside 2: both': (diffusion_ebm.side_by_side(model.of_class(4), other.of_class(2)), reads_42),
    '7: a thick 7': (model.of_class(7), is_heavy_seven),
    'thick: a thick 7': (heavy, is_heavy_seven),
    '7 and thick: a thick 7': (model.of_class(7) + heavy - whole, is_heavy_seven),
  }


def digits(flag):
  """Prints success rates of plain and corrected chains, and draws samples."""
  from diffusion_ebm.run import files

  settings, shown = corrected_sampling.Settings(num_steps=flag.steps), {}
  for name, (model, judge) in digit_tasks(flag).items():
    # Chains without a proposal need more steps.
    plain_model = model.replace(sampling=model.sampling._replace(num_steps=30)) if model.proposal is None else model
    drawn = (plain_model.sample(jax.random.key(0), flag.n), model.corrected_sample(jax.random.key(0), flag.n, settings))
    images = [np.asarray(preprocessing.to_uint8(x)) for x in drawn]
    print(f'| {name} | {" | ".join(f"{np.mean(judge(each)):.3f}" for each in images)} |', flush=True)
    shown[name.partition(':')[0]] = np.concatenate([_strip(each) for each in images], axis=1)
  if flag.picture:
    files.write_png(flag.picture, np.concatenate(list(shown.values())))


def _strip(images, pixels=512, factor=5):
  """Two rows of images, enlarged, on white: (H, pixels, 3)."""
  from diffusion_ebm.run import pictures

  columns = pixels // (images.shape[2] * factor + 2)
  tiles = images[: 2 * columns].repeat(factor, axis=1).repeat(factor, axis=2)
  grid = pictures.image_grid(tiles, columns)
  return np.pad(grid, ((0, 8), (0, pixels - grid.shape[1]), (0, 0)), constant_values=255)


def main(argv):
  {'plane': plane, 'digits': digits, 'thick': thick}[argv[1]](flags.FLAGS)


if __name__ == '__main__':
  for key in ('eight_gaussians', 'rings', 'classes', 'other', 'digits', 'thick', 'folder', 'picture'):
    flags.DEFINE_string(key, '', '')
  flags.DEFINE_integer('n', 1000, 'Samples of each.')
  flags.DEFINE_integer('steps', 100, 'Of corrected chains, at each level.')
  app.run(main)
