"""Log densities of a data set, dequantised, on all devices."""

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_ebm import langevin, preprocessing, random_keys
from diffusion_ebm.density import bound, flow, log_prob
from diffusion_ebm.ebm import Ebm
from diffusion_ebm.run import parallel
from diffusion_ebm.run.progress import Progress
from diffusion_ebm.run.unfinished import Unfinished

_PARTS = 8  # of the flow, which takes minutes
# Streams of random numbers.
DATA, _BOUND, _PROBES = 0xA153, 0xA155, 0xA159


def make_log_densities(grey_width: float, num_draws: int, batch_size: int, seed: int):
  """A function to the log densities of data, averaged over draws of noise.

  Args:
    grey_width: over which images are dequantised, 0 for vectors.
    num_draws: of the noise.
    batch_size: examples at once.
    seed: of the noise.

  Returns:
    A function `(ebm, source, log_z, limit)` to `clean`, the density of the dequantised data, `noisy`, that at data
    with the noise of level 0, and `white`, that at standard normal noise: each (N,), in nats.
  """

  def log_densities(shared, examples, index):
    ebm, log_z = shared
    keys = random_keys.sample_keys(seed, index, DATA)
    noise = float(ebm.levels.sigma[0] / ebm.levels.a[0])

    def draw(number):
      dequantize_keys, noise_keys = random_keys.split(random_keys.fold_in(keys, number))
      x = preprocessing.to_continuous(dequantize_keys, examples, grey_width)
      eps = langevin.normal_noise(noise_keys, x.shape[1:])(0)
      return tuple(log_prob.log_prob(ebm, point, log_z) for point in (x, x + noise * eps, eps))

    return tuple(jnp.mean(values, 0) for values in jax.lax.map(draw, jnp.arange(num_draws)))

  over_all = _over_source(log_densities, 'log density', batch_size)

  def measure(ebm, source, log_z: float, limit: int | None = None):
    values = over_all((ebm, np.float32(log_z)), source, limit or len(source))
    return dict(zip(('clean', 'noisy', 'white'), values, strict=True))

  return measure


def bounds(ebm: Ebm, source, grey_width: float, limit: int, batch_size: int, seed: int):
  """Lower bounds of the log density, in nats, of what one gradient a level samples.

  Args:
    ebm: the model.
    source: of the data.
    grey_width: over which images are dequantised, 0 for vectors.
    limit: examples, the first ones.
    batch_size: at once.
    seed: of the noise.

  Returns:
    Those at the dequantised data and at the same with the noise of level 0, each (N,).
  """

  def on_batch(ebm, examples, index):
    levels = ebm.levels
    a, volume = float(levels.a[0]), examples[0].size * float(np.log(levels.a[0]))
    dequantize_keys, noise_keys = random_keys.split(random_keys.sample_keys(seed, index, _BOUND))
    x = a * preprocessing.to_continuous(dequantize_keys, examples, grey_width)
    noise = float(levels.sigma[0]) * langevin.normal_noise(noise_keys, x.shape[1:])(levels.num_models)
    return tuple(bound.variational_bound(ebm, point, noise_keys) + volume for point in (x, x + noise))

  return _over_source(on_batch, 'bound of the sampler', batch_size)(ebm, source, limit)


def of_flow(
  ebm: Ebm, source, grey_width: float, log_z_top, log_z, rtol: float, num_probes: int, batch_size: int, seed: int, kept
):
  """Log densities by the probability-flow ODE, and by the energies at the same points: the first draw of `clean`.

  Args:
    ebm: the model.
    source: of the data.
    grey_width: over which images are dequantised, 0 for vectors.
    log_z_top: the normaliser of the noisiest level's density of `x_{T-1}`, in nats.
    log_z: log Z_0, as of `log_prob.log_prob`.
    rtol: of the solver, as of `flow.log_density`.
    num_probes: likewise.
    batch_size: examples at once, at most; fewer where there are not many, so that progress is seen and kept.
    seed: of the noise.
    kept: the `Unfinished` work.

  Returns:
    `(flow, energy, num_evaluations)`, each (N,): in nats; and evaluations of the score.
  """

  def on_batch(shared, examples, index):
    ebm, log_z_top, log_z = shared
    a = float(ebm.levels.a_cum[0])
    dequantize_keys, _ = random_keys.split(random_keys.fold_in(random_keys.sample_keys(seed, index, DATA), 0))
    x = preprocessing.to_continuous(dequantize_keys, examples, grey_width)
    probes = random_keys.sample_keys(seed, index, _PROBES)
    found, count = flow.log_density(ebm, a * x, probes, log_z_top, rtol, num_probes)
    return found + x[0].size * np.log(a), log_prob.log_prob(ebm, x, log_z), count

  batch_size = min(batch_size, -(-len(source) // _PARTS))
  over_all = _over_source(on_batch, 'probability-flow ODE', batch_size, kept)
  return over_all((ebm, np.float32(log_z_top), np.float32(log_z)), source, len(source))


def _over_source(function, name, batch_size, unfinished: Unfinished | None = None):
  """`function` over the first examples of a source: a tuple of (N,) float64."""
  batch_size, unfinished = parallel.up_to_devices(batch_size), unfinished or Unfinished()
  on_batch, part = parallel.map_examples(function, batch_size), name.replace(' ', '_')

  def run(shared, source, limit):
    count, done = min(len(source), limit), unfinished.read(part)
    parts = [tuple(done[f'{i}'] for i in range(len(done)))] if done else []
    progress = Progress(name, count, unit='example')
    progress.update(first_left := len(parts[0][0]) if parts else 0)
    for first in range(first_left, count, batch_size):
      index = np.arange(first, min(first + batch_size, count), dtype=np.int32)
      parts.append(on_batch(shared, source.read(index), index, progress=progress))
      so_far = [np.concatenate(each) for each in zip(*parts, strict=True)]
      unfinished.write(part, {f'{i}': each for i, each in enumerate(so_far)}, index[-1] == count - 1)
    progress.close()
    return tuple(np.concatenate(each).astype(np.float64) for each in zip(*parts, strict=True))

  return run
