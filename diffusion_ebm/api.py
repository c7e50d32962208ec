"""A trained model as an object: what scripts and notebooks use. The functions underneath take everything explicitly."""

import functools
import logging
import os
import time
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_ebm import (
  arguments,
  class_probabilities,
  composition,
  corrected_sampling,
  exported,
  generate,
  inpainting,
  interpolation,
  langevin,
  marginal_density,
  noise_levels,
  random_keys,
  recovery,
  sampling,
  trained,
)
from diffusion_ebm import config as config_lib
from diffusion_ebm import model as model_lib
from diffusion_ebm.ebm import Ebm
from diffusion_ebm.networks import spectral_norm
from diffusion_ebm.proposal import NormalProposal
from diffusion_ebm.run import compilation, paths
from diffusion_ebm.run.errors import UserError
from diffusion_ebm.sampling import Settings

_log = logging.getLogger(__name__)


class DiffusionEBM(struct.PyTreeNode):
  """A sequence of trained energy-based models, t = 0 (nearly clean) .. T-1 (nearly white noise).

  Made by `pretrained`, `load` or `from_parameters`. Images are uint8, or float in [-1, 1]; results are float32 in
  [-1, 1]. Vectors are unbounded. Where a method draws, result number i depends on the key and on i alone.

  Every method but `load_image` may be called inside `jax.jit`, and the object passed to a jitted function: it is a tree
  whose leaves are `log_z` and the weights of `ebm` and `proposal`. There types and shapes of arguments are checked, but
  not values, which are not known.

  `x` at level t means `x_t = abar_t x + sbar_t eps`, data with the noise of that level (`diffuse` makes it). At level 0
  there is a little, sigma 0.01.

  Attributes:
    ebm: network, noise levels and averaged weights.
    log_z: log of each level's normaliser, (T,) in nats, NaN where it is not known; or None.
    shape: of one example: (H, W, C) or (D,).
    sampling: how samples are drawn.
    proposal: where chains start, if the model was trained with one; or None.
    classes: names of the classes that the networks are told, by number; () for none.
    calibration: what makes class probabilities of energies; None where it is not known.
    precision: of products of float32 in plain samples; energies, scores and corrected samples take the highest.
  """

  ebm: Ebm | composition.Sum | composition.Window
  log_z: Any
  shape: tuple[int, ...] = struct.field(pytree_node=False)
  sampling: Settings = struct.field(pytree_node=False)
  proposal: NormalProposal | None = None
  classes: tuple[str, ...] = struct.field(pytree_node=False, default=())
  calibration: class_probabilities.Calibration | None = None
  precision: str = struct.field(pytree_node=False, default='default')

  @property
  def num_levels(self) -> int:
    """T."""
    return self.ebm.levels.num_models

  def load_image(self, image) -> np.ndarray:
    """Brings a picture of your own into the model's shape, by the same decoding as that of training images.

    It is turned upright, laid over white where it is transparent, cut to its middle square, resized, and turned grey
    where the model is.

    Args:
      image: the path of an image file, a PIL image, or a uint8 array (H, W) or (H, W, C) of any size; or a list of
        these.

    Returns:
      uint8 (H, W, C); of a list (B, H, W, C).

    Raises:
      UserError: there is no such file, it cannot be read as an image, or the model is of vectors.
    """
    if len(self.shape) == 1:
      raise UserError(f'the model is of vectors ({self.shape[0]} numbers), not of images: load one that is')
    from diffusion_ebm.data import own_image  # only here, so that the package is imported quickly

    if isinstance(image, list | tuple):
      if not image:
        raise UserError('the list of images is empty')
      return np.stack([self.load_image(each) for each in image])
    return own_image.load(image, self.shape[0], self.shape[2])

  # Drawing.

  def sample(self, key, n: int) -> jax.Array:
    """Draws n samples from white noise, all at once.

    Args:
      key: a random key.
      n: at least 1; sample number i does not depend on it.

    Returns:
      float32 (n, *shape).

    Raises:
      UserError: an argument is wrong.

    Source: Gao et al. 2021, algorithm 2.
    """
    return self._sample(arguments.random_key(key), arguments.integer('n', n, 1))

  def conditional_sample(self, key, x_noisy, level) -> jax.Array:
    """Draws `x_t` given the noisier `x_{t+1}`: one step down the levels, undoing a little noise.

    Args:
      key: a random key.
      x_noisy: `x_{t+1}`, (B, *shape).
      level: t, in 0..T-1, an integer or int (B,).

    Returns:
      float32 (B, *shape), unclipped, as above level 0 it must be.

    Raises:
      UserError: an argument is wrong.

    Source: Gao et al. 2021, algorithm 1, lines 4-6.
    """
    key, x_noisy = arguments.random_key(key), self._noisy(x_noisy, 'x_noisy')
    return self._conditional_sample(key, x_noisy, self._level(level, x_noisy))

  def inpaint(self, key, image, mask, n: int = 1, num_repeats: int = 4) -> jax.Array:
    """Draws the hidden pixels of an image given the others.

    Args:
      key: a random key.
      image: one image, (H, W, C); what is hidden does not count. Or one vector.
      mask: bool, True where hidden: (H, W), or the shape of the image. `inpainting.make_mask` makes common ones.
      n: how many completions.
      num_repeats: chains at each level; more agree better with what is known, and take longer.

    Returns:
      float32 (n, *shape); where known, exactly the image.

    Raises:
      UserError: an argument is wrong.

    Source: Gao et al. 2021, section 4; `diffusion_ebm.inpainting`.
    """
    key, n = arguments.random_key(key), arguments.integer('n', n, 1)
    num_repeats = arguments.integer('num_repeats', num_repeats, 1)
    image, mask = arguments.image_and_mask(image, mask, self.shape)
    return self._inpaint(key, image, mask, n, num_repeats)

  def interpolate(self, key, a: int, b: int, n: int) -> jax.Array:
    """Goes from sample number a to sample number b of `sample(key, ...)` along the sphere of their noise.

    Args:
      key: a random key, as for `sample`.
      a: number of the first sample, from 0.
      b: number of the last one.
      n: how many images, with both ends; at least 2.

    Returns:
      float32 (n, *shape).

    Raises:
      UserError: an argument is wrong.

    Source: Gao et al. 2021, section 4; `diffusion_ebm.interpolation`.
    """
    a, b = arguments.integer('a', a, 0), arguments.integer('b', b, 0)
    return self._interpolate(arguments.random_key(key), a, b, arguments.integer('n', n, 2))

  def diffuse(self, key, x, level) -> jax.Array:
    """Data with the noise of a level: `x_t = abar_t x + sbar_t eps`.

    Args:
      key: a random key.
      x: data, (B, *shape).
      level: t, in 0..T (T is nearly white noise), an integer or int (B,).

    Returns:
      float32 (B, *shape).

    Raises:
      UserError: an argument is wrong.
    """
    x = arguments.examples('x', x, self.shape, arguments.DATA_BOUND)
    level = arguments.level(level, len(x), self.num_levels + 1)
    return self._diffuse(arguments.random_key(key), x, level)

  def corrected_sample(self, key, n: int, settings: corrected_sampling.Settings | None = None) -> jax.Array:
    """Draws n samples by Metropolis-corrected chains on each level's own density, down to the cleanest.

    Longer than `sample`, and right for sums of models too, as far as the chains are long enough; step sizes are tuned
    first, by 64 chains.

    Args:
      key: a random key.
      n: at least 1.
      settings: how the chains go; None for the defaults.

    Returns:
      float32 (n, *shape).

    Raises:
      UserError: an argument is wrong.

    Source: Du et al. 2023, section 4.
    """
    key, n = arguments.random_key(key), arguments.integer('n', n, 1)
    return self._corrected_sample(key, n, settings or corrected_sampling.Settings())

  # Where models come from.

  @staticmethod
  def pretrained(name: str) -> 'DiffusionEBM':
    """A trained model that comes with the package, or another that somebody has exported.

    Args:
      name: of a packaged one, such as 'digits' (docs/pretrained.md has them all); or the path of an exported file, or a
        workdir.

    Returns:
      The model, whose weights were rounded to float16 where it comes from a file.

    Raises:
      UserError: there is no such model, or its file is damaged, of a newer version, or not the one that was shipped.
    """
    name = os.fspath(name)
    if os.path.isdir(name) and name not in exported.packaged():
      return load(name)
    compilation.use_cache()
    path = exported.find(name)
    found = exported.read(path)
    built, ebm, proposal = exported.parts(found, path)
    return _made(found.config, ebm, built.shape, proposal, found.log_z, found.classes, found.calibration)

  # Classes and sums.

  def of_class(self, label, guidance: float = 0.0) -> 'DiffusionEBM':
    """The model of a class.

    Args:
      label: its name or number, of `classes`.
      guidance: w, more of what tells the class from the others: `f(y | label) + w (f(y | label) - f(y))`.

    Returns:
      A model; all classes share what is compiled.

    Raises:
      UserError: there is no such class.
    """
    number = 1 + arguments.class_number(label, self.classes)
    ebm, proposal = (
      model and composition.guided(model, number, float(guidance)) for model in (self.ebm, self.proposal)
    )
    return self.replace(ebm=ebm, proposal=proposal, log_z=None)

  def any_of(self, *labels) -> 'DiffusionEBM':
    """The model of any of several classes, each as probable as the others as far as that is calibrated.

    Args:
      *labels: names or numbers, of `classes`.

    Returns:
      A model, whose chains have no proposal.

    Raises:
      UserError: there is no such class, or none is named.
    """
    if not labels:
      raise UserError('any_of is given no class: name some, as any_of(3, 8)')
    numbers = [arguments.class_number(label, self.classes) for label in labels]
    weights = [jnp.zeros(self.num_levels)] * len(numbers)
    if self.calibration is not None:  # logits are scale * energies + bias: the bias stands for -log Z
      known = np.nan_to_num(self.calibration.bias / self.calibration.scale[:, None])
      weights = [known[:, number] for number in numbers]
    parts = [composition.of_class(self.ebm, 1 + number) for number in numbers]
    ebm = composition.either(*zip(parts, weights, strict=True))
    return DiffusionEBM(ebm, None, self.shape, self.sampling, precision=self.precision)

  def __add__(self, other: 'DiffusionEBM') -> 'DiffusionEBM':
    """The product of both densities: their energies add."""
    return combine((self, 1.0), (other, 1.0))

  def __sub__(self, other: 'DiffusionEBM') -> 'DiffusionEBM':
    """The density over the other's: what the first says beyond the second."""
    return combine((self, 1.0), (other, -1.0))

  def __mul__(self, coefficient: float) -> 'DiffusionEBM':
    """The density to a power: its energy times a number."""
    return combine((self, coefficient))

  __rmul__ = __mul__

  # Densities.

  def energy(self, x, level) -> jax.Array:
    """The energy of `x_t`: minus its unnormalised log density.

    Args:
      x: `x_t`, (B, *shape).
      level: t, in 0..T-1, an integer or int (B,).

    Returns:
      float32 (B,), in nats: `-f(y_t, t) / s_t^2 - D log a_{t+1}`, of `y_t = a_{t+1} x_t`.

    Raises:
      UserError: an argument is wrong.
    """
    x = self._noisy(x)
    return self._energy(x, self._level(level, x))

  def score(self, x, level) -> jax.Array:
    """The score of `x_t`, the gradient of its log density: minus that of the energy; as of `energy`, like `x`."""
    x = self._noisy(x)
    return self._score(x, self._level(level, x))

  def log_prob(self, x, level=0) -> jax.Array:
    """The log density of `x_t`, once the model is normalised.

    Args:
      x: `x_t`, (B, *shape); data at level 0, whose little noise (sigma 0.01) belongs to the model.
      level: t, in 0..T-1, an integer or int (B,).

    Returns:
      float32 (B,), in nats.

    Raises:
      UserError: an argument is wrong, or `log Z` of a level is not known.
    """
    if self.log_z is None:
      raise UserError('log Z is not known: run python main.py --mode=density --workdir=DIR first, then load again')
    x = self._noisy(x)
    level = self._level(level, x)
    if not isinstance(level, jax.core.Tracer) and not isinstance(self.log_z, jax.core.Tracer):
      for t in np.unique(level):
        if not np.isfinite(self.log_z[t]):
          raise UserError(
            f'log Z of level {t} is not known: the levels with one are '
            f'{", ".join(map(str, np.flatnonzero(np.isfinite(self.log_z))))}'
          )
    return -self._energy(x, level) - jnp.asarray(self.log_z, jnp.float32)[level]

  def class_log_prob(self, x, level: int | None = None) -> jax.Array:
    """How probable each class is, once an evaluation has calibrated that.

    Args:
      x: data, (B, *shape).
      level: t, at which the energies of the classes are compared; None for the most reliable one.

    Returns:
      float32 (B, C): log p(c | x) of classes that are equally probable before, by their numbers.

    Raises:
      UserError: an argument is wrong, the model knows no classes, or it is not calibrated.

    Source: `diffusion_ebm.class_probabilities`.
    """
    if not self.classes:
      raise UserError('the model knows no classes: train one with --config.model.num_classes')
    if self.calibration is None:
      raise UserError(
        'class probabilities are not calibrated: run python main.py --mode=eval --workdir=DIR first, then load again'
      )
    x = arguments.examples('x', x, self.shape, arguments.DATA_BOUND)
    if level is None:
      return self._class_log_prob(x, self.calibration.level)
    level = arguments.integer('level', level, 0)
    known = [t for t in range(self.num_levels) if np.isfinite(self.calibration.scale[t])]
    if level not in known:
      raise UserError(f'class probabilities are not calibrated at level {level}: those that are, are {known}')
    return self._class_log_prob(x, level)

  # What is compiled.

  @jax.jit
  @jax.default_matmul_precision('highest')
  def _class_log_prob(self, x, level):
    return class_probabilities.log_prob(self.ebm, x, jnp.asarray(level), self.calibration)

  @jax.jit
  @jax.default_matmul_precision('highest')
  def _energy(self, x, level):
    return -marginal_density.log_density(self.ebm, x, level)

  @jax.jit
  @jax.default_matmul_precision('highest')
  def _score(self, x, level):
    return marginal_density.score(self.ebm, x, level)

  @jax.jit
  def _diffuse(self, key, x, level):
    eps = langevin.normal_noise(_keys(key, len(x)), self.shape)(0)
    return noise_levels.diffuse(self.ebm.levels, x, level, eps)

  @jax.jit
  def _conditional_sample(self, key, x_noisy, level):
    eta = sampling.noise_scale(self.sampling, self.ebm.levels, level)
    noise = langevin.normal_noise(_keys(key, len(x_noisy)), self.shape, eta)
    with jax.default_matmul_precision(self.precision):
      return recovery.sample_conditional(self.ebm.at(level), x_noisy, noise, self.sampling.num_steps, self.proposal)

  @functools.partial(jax.jit, static_argnums=2)
  def _sample(self, key, n):
    with jax.default_matmul_precision(self.precision):
      x, _ = sampling.sample(self.ebm, _keys(key, n), self.shape, self.sampling, proposal=self.proposal)
    return self._clipped(x)

  @functools.partial(jax.jit, static_argnums=(2, 3))
  @jax.default_matmul_precision('highest')
  def _corrected_sample(self, key, n, settings):
    tuning_keys = _keys(jax.random.fold_in(key, random_keys.TUNING), corrected_sampling.NUM_TUNING_CHAINS)
    step_sizes = corrected_sampling.tune(self.ebm, tuning_keys, self.shape, settings)
    return self._clipped(corrected_sampling.sample(self.ebm, _keys(key, n), self.shape, settings, step_sizes)[0])

  @functools.partial(jax.jit, static_argnums=(4, 5))
  def _inpaint(self, key, image, mask, n, num_repeats):
    image, mask = (jnp.broadcast_to(a, (n, *self.shape)) for a in (image, mask))
    with jax.default_matmul_precision(self.precision):
      x = inpainting.inpaint(self.ebm, _keys(key, n), image, mask, self.sampling, num_repeats, self.proposal)
    return jnp.where(mask, self._clipped(x), image)

  @functools.partial(jax.jit, static_argnums=4)
  def _interpolate(self, key, a, b, n):
    keys_a, keys_b = (random_keys.example_keys(key, jnp.full(n, number)) for number in (a, b))
    fractions = jnp.linspace(0, 1, n)
    with jax.default_matmul_precision(self.precision):
      x = interpolation.interpolate(self.ebm, keys_a, keys_b, fractions, self.shape, self.sampling, self.proposal)
    return self._clipped(x)

  # What goes in and out.

  def _clipped(self, x):
    return jnp.clip(x, -1, 1) if len(self.shape) > 1 else x

  def _noisy(self, x, name='x'):
    return arguments.examples(name, x, self.shape, arguments.NOISY_BOUND)

  def _level(self, level, x):
    return arguments.level(level, len(x), self.num_levels)


def _keys(key, n):
  return random_keys.example_keys(key, jnp.arange(n))


def combine(*terms: tuple[DiffusionEBM, float]) -> DiffusionEBM:
  """The product of powers of densities: a weighted sum of models, as `a + b`, `a - b` and `2 * a` make them too.

  Args:
    *terms: `(model, coefficient)` of each; how samples are drawn is as of the first.

  Raises:
    UserError: the models have different shapes, noise levels, step sizes or temperatures.
  """
  first = terms[0][0]
  for model, _ in terms:
    if model.shape != first.shape:
      raise UserError(f'models of shapes {first.shape} and {model.shape} cannot be added')
  try:
    ebm = composition.add(*((model.ebm, coefficient) for model, coefficient in terms))
  except ValueError as error:
    raise UserError(str(error)) from error
  proposal = composition.add_proposals(*((model.proposal, coefficient) for model, coefficient in terms))
  return DiffusionEBM(ebm, None, first.shape, first.sampling, proposal, precision=first.precision)


def side_by_side(*models: DiffusionEBM) -> DiffusionEBM:
  """The model of a wide image whose parts, from left to right, are images of independent models.

  Their energies add, and the sum is exact at every level.

  Args:
    *models: of images as high as each other, with the same noise levels; how samples are drawn is as of the first.

  Raises:
    UserError: they do not fit.
  """
  first, left, terms, columns = models[0], 0, [], []
  for model in models:
    if len(model.shape) == 1 or model.shape[::2] != first.shape[::2]:
      raise UserError(f'models of shapes {first.shape} and {model.shape} do not fit side by side')
    right = left + model.shape[1]
    terms.append((composition.Window(model.ebm, (0, model.shape[0]), (left, right)), 1.0))
    left = right
    columns.append(right)
  try:
    ebm = composition.add(*terms)
  except ValueError as error:
    raise UserError(str(error)) from error
  proposals = tuple(model.proposal for model in models)
  proposal = None if None in proposals else composition.SideBySide(proposals, tuple(columns[:-1]))
  shape = (first.shape[0], left, first.shape[2])
  return DiffusionEBM(ebm, None, shape, first.sampling, proposal, precision=first.precision)


def load(workdir: str, step: int | None = None, config=None) -> DiffusionEBM:
  """Loads a trained model.

  Programs that are compiled from then on are kept for the next process, in the cache of the command line, unless
  `jax_compilation_cache_dir` names another.

  Args:
    workdir: of a training job.
    step: the checkpoint's, or None for the newest.
    config: the workdir's configuration with another way of drawing samples (its `sampling` section); None for its own.

  Returns:
    The model, with `log_z` where `--mode=density` has been run on this checkpoint.

  Raises:
    UserError: there is no such checkpoint (said at once), or the configuration is wrong or that of another run.
  """
  workdir, began = paths.workdir(os.fspath(workdir)), time.monotonic()
  step = None if step is None else arguments.integer('step', step, 0)
  compilation.use_cache()
  if config is None:
    config = config_lib.load(workdir)
    if config is None:
      raise UserError(f'{workdir} holds no run: train first, with --mode=train and the same --workdir')
  found = trained.load(config, workdir, step)
  config, ebm, proposal, shape, step = found
  log_z = trained.log_z(workdir, step, ebm.levels.num_models, generate.asked(config))
  _log.info('loaded in %.1f s; each method is compiled when it is first called', time.monotonic() - began)
  return _made(config, ebm, shape, proposal, log_z, trained.classes(workdir), trained.calibration(found, workdir))


def from_parameters(config, params, spectral=None, log_z=None, proposal=None) -> DiffusionEBM:
  """Makes a model of a configuration and parameters.

  Args:
    config: a configuration, as of `configs/`.
    params: the network's raw parameters, such as `TrainState.ema_params` or those of
      `diffusion_ebm.networks.published_weights.from_published`.
    spectral: vectors of the power iteration, or None to find them; of no use without spectral normalisation.
    log_z: log of each level's normaliser, (T,) in nats, or None.
    proposal: parameters of the proposal's network, where the configuration has one.

  Returns:
    The model.

  Raises:
    UserError: the configuration is wrong, or the parameters are not those of its network.
  """
  config = config_lib.resolve(config)
  config_lib.check(config, 1)
  model = model_lib.build(config)
  if section := model.misfit(params, proposal):
    raise UserError(
      f'the parameters are not those of the network that config.{section} describes: names or shapes differ'
    )
  weights = params
  if config.model.spectral_norm:
    u = spectral_norm.init(jax.random.key(0), params) if spectral is None else spectral
    weights = trained.normalised(params, u, config.model.zero_init)
  log_z = None if log_z is None else np.asarray(log_z)
  return _made(config, model.ebm(weights), model.shape, proposal and model.proposal(proposal), log_z)


def _made(config, ebm, shape, proposal=None, log_z=None, classes=(), calibration=None) -> DiffusionEBM:
  """The object of what has been read; its weights on one device."""
  ebm, proposal = jax.device_put((ebm, proposal), jax.local_devices()[0])
  names, settings = generate.class_names(config, classes), generate.settings(config)
  return DiffusionEBM(ebm, log_z, shape, settings, proposal, names, calibration, config.model.precision)
