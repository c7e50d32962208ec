"""The package's front door, on exact Gaussian energies and on a tiny run."""

import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from unittest import mock

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from scipy import stats

import diffusion_ebm
from diffusion_ebm import UserError, arguments, inpainting, noise_levels, preprocessing, random_keys, sampling
from diffusion_ebm import config as config_lib
from diffusion_ebm import model as model_lib
from diffusion_ebm.data import decode
from diffusion_ebm.jobs import sample
from diffusion_ebm.run import checkpoints
from tests import testing

_COVARIANCE = np.array([[0.25, 0.2], [0.2, 0.25]])


def gaussian_model(log_z=None):
  levels = noise_levels.make_levels(6, 0.06, 'conditional')
  ebm = testing.gaussian_ebm(levels, _COVARIANCE)
  return diffusion_ebm.DiffusionEBM(
    ebm, log_z=ebm.network.log_z() if log_z is None else log_z, shape=(2,), sampling=sampling.Settings(3)
  )


class DensityTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.model = gaussian_model()
    cls.x = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)

  def test_log_prob_is_the_log_density(self):
    levels = self.model.ebm.levels
    for t in (0, 5):
      law = stats.multivariate_normal(
        np.zeros(2), levels.a_cum[t] ** 2 * _COVARIANCE + levels.sigma_cum[t] ** 2 * np.eye(2)
      )
      # Up to 100 nats in float32.
      np.testing.assert_allclose(self.model.log_prob(self.x, t), law.logpdf(self.x), rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(self.model.log_prob(self.x), self.model.log_prob(self.x, 0))

  def test_log_prob_is_minus_energy_less_log_z_and_score_its_gradient(self):
    level = np.array([0, 3, 5])
    np.testing.assert_allclose(
      self.model.log_prob(self.x, level), -self.model.energy(self.x, level) - self.model.log_z[level], rtol=1e-5
    )
    gradient = jax.grad(lambda x: jnp.sum(self.model.log_prob(x, level)))(jnp.asarray(self.x))
    np.testing.assert_allclose(self.model.score(self.x, level), gradient, rtol=1e-5)

  def test_an_unknown_normaliser_is_refused_with_what_to_do(self):
    with self.assertRaisesRegex(UserError, 'log Z is not known: run python main.py --mode=density'):
      self.model.replace(log_z=None).log_prob(self.x)
    partly = gaussian_model(np.array([1.0, np.nan, np.nan, 2.0, np.nan, np.nan]))
    self.assertTrue(np.all(np.isfinite(partly.log_prob(self.x, 3))))
    with self.assertRaisesRegex(UserError, 'log Z of level 1 is not known: the levels with one are 0, 3'):
      partly.log_prob(self.x, 1)

  def test_diffused_data_have_the_moments_of_the_level(self):
    x = self.model.diffuse(jax.random.key(0), np.ones((20_000, 2)), 3)
    levels = self.model.ebm.levels
    np.testing.assert_allclose(np.mean(x), levels.a_cum[3], atol=0.02)  # 4 standard errors of 0.005
    np.testing.assert_allclose(np.std(x), levels.sigma_cum[3], rtol=0.02)

  def test_conditional_samples_have_the_law_of_the_conditional(self):
    model = self.model.replace(sampling=sampling.Settings(100))
    x_next = np.broadcast_to(np.float32([0.5, -0.5]), (10_000, 2))
    x = model.conditional_sample(jax.random.key(1), x_next, 2)
    levels = model.ebm.levels
    prior = np.linalg.inv(model.ebm.network.covariance[2])
    covariance = np.linalg.inv(prior + np.eye(2) / levels.sigma[3] ** 2)  # of y_2
    a = levels.a[3]
    np.testing.assert_allclose(np.mean(x, 0), covariance @ x_next[0] / levels.sigma[3] ** 2 / a, atol=0.02)
    # Monte-Carlo error 1.4 %, the chain's bias at most 2 %.
    np.testing.assert_allclose(np.cov(np.asarray(x).T), covariance / a**2, rtol=0.08, atol=0.005)

  def test_conditional_samples_at_a_lower_temperature_spread_less_but_at_the_noisiest_levels(self):
    x_next, level = np.zeros((8000, 2), np.float32), np.repeat([1, 4], 4000)
    settings = sampling.Settings(50)
    lower = settings._replace(noise_scale=0.5, full_noise_levels=2)
    full, less = (
      np.std(self.model.replace(sampling=s).conditional_sample(jax.random.key(1), x_next, level).reshape(2, -1), axis=1)
      for s in (settings, lower)
    )
    np.testing.assert_allclose(less, [0.5 * full[0], full[1]], rtol=0.05)


def image_model():
  """Standard normal images of 4 x 4 pixels in colour."""
  levels = noise_levels.make_levels(6, 0.06, 'conditional')
  ebm = testing.function_ebm(levels, lambda y, t: -0.5 * jnp.sum(y**2, (1, 2, 3)))
  return diffusion_ebm.DiffusionEBM(ebm, log_z=None, shape=(4, 4, 3), sampling=sampling.Settings(1))


class WrongInputTest(absltest.TestCase):
  def assert_refused(self, *cases):
    for call, message in cases:
      with self.subTest(message), self.assertRaisesRegex(UserError, rf'\A{message}[^\n]*\Z'):
        call()

  def test_shapes_and_levels(self):
    model, key, x = gaussian_model(), jax.random.key(0), np.zeros((3, 2))
    images, image = image_model(), np.zeros((4, 4, 3))
    self.assert_refused(
      (lambda: model.energy(np.zeros(2), 0), r'x has shape \(2,\), not \(B, 2\): x\[None\] is a batch of one'),
      (lambda: model.score(np.zeros((3, 4)), 0), r'x has shape \(3, 4\), not \(B, 2\)'),
      (lambda: model.energy(np.zeros((0, 2)), 0), r'x has shape \(0, 2\), not'),
      (lambda: model.conditional_sample(key, np.zeros(2), 0), r'x_noisy has shape \(2,\)'),
      (lambda: images.energy(np.zeros((1, 8, 4, 3)), 0), r'x has shape .*: model.load_image brings a picture into'),
      (lambda: model.energy(x, 6), 'level 6 is out of range: the levels are 0 to 5'),
      (lambda: model.energy(x, [0, 9, 1]), 'level 9 is out of range'),
      (lambda: model.energy(x, -1), 'level -1 is out of range'),
      (lambda: model.energy(x, 2**40), f'level {2**40} is out of range'),
      (lambda: model.diffuse(key, x, 7), 'level 7 is out of range: the levels are 0 to 6'),
      (lambda: model.log_prob(x, [0, 1]), r'level is \[0, 1\], neither an integer nor one for each of 3 examples'),
      (lambda: model.energy(x, 0.5), 'level is 0.5, neither'),
      (lambda: model.energy(x, True), 'level is True, neither'),
      (lambda: model.energy(x, None), 'level is None, neither'),
      (lambda: model.energy(x, 'low'), "level is 'low', neither"),
      (lambda: model.energy(x, np.zeros(3)), r'level is an array of type float64 and shape \(3,\), neither'),
      (lambda: model.inpaint(key, x, [True, False]), r'image has shape \(3, 2\), not \(2,\): give one of them'),
      (lambda: model.inpaint(key, x[0], [1, 0]), 'mask is int32, not bool'),
      (lambda: model.inpaint(key, x[0], [True] * 3), r'mask has shape \(3,\), not \(2,\)'),
      (lambda: model.inpaint(key, x[0], 'left'), "mask is 'left', not an array"),
      (lambda: images.inpaint(key, image, np.ones((4, 5), bool)), r'mask has shape \(4, 5\), not \(4, 4\)'),
    )

  def test_numbers_and_keys(self):
    model, key = gaussian_model(), jax.random.key(0)
    self.assert_refused(
      (lambda: model.sample(key, 0), 'n is 0, but must be at least 1'),
      (lambda: model.sample(key, 2.0), 'n is 2.0, not an integer'),
      (lambda: model.sample(key, True), 'n is True, not an integer'),
      (lambda: model.sample(key, np.arange(2)), r'n is an array of type int64 and shape \(2,\), not an integer'),
      (lambda: model.sample(key, 2**31), f'n is {2**31}, but must be at most {2**31 - 1}'),
      (lambda: jax.jit(model.sample)(key, 2), r'n is traced int32\[\], not an integer: inside jax.jit'),
      (lambda: model.interpolate(key, 0, 1, 1), 'n is 1, but must be at least 2'),
      (lambda: model.interpolate(key, -1, 1, 5), 'a is -1'),
      (lambda: model.interpolate(key, 0, 1.5, 5), 'b is 1.5, not an integer'),
      (lambda: model.inpaint(key, np.zeros(2), [True, False], num_repeats=0), 'num_repeats is 0'),
      (lambda: model.sample(7, 2), r'key is 7, not a random key: give jax.random.key\(7\)'),
      (lambda: model.sample(None, 2), 'key is None, not a random key'),
      (lambda: model.sample(np.zeros(2), 2), r'key is an array of type float64 and shape \(2,\), not a random key'),
      (lambda: model.sample(np.zeros(3, np.uint32), 2), 'key is an array of type uint32 .*, not a random key'),
      (lambda: model.sample(jax.random.split(key, 4), 2), r'key holds keys of shape \(4,\), not one'),
      (lambda: model.diffuse(0, np.zeros((1, 2)), 0), 'key is 0, not'),
    )

  def test_images_of_other_types_and_ranges(self):
    model, key = image_model(), jax.random.key(0)
    x, mask = np.full((2, 4, 4, 3), 0.5), np.ones((4, 4), bool)
    mask[0, 0] = False
    wrong = (
      (x.astype(int), 'is int(32|64): give images as uint8, or as floats'),
      (x > 0, 'is bool: give images as uint8, or as floats'),
      (255 * x, r'has values from .* to 127.5, .*: give uint8, or scale .* x / 127.5 - 1'),
      (np.where(np.arange(3) == 1, np.nan, x), r'holds NaN or infinity \(.* of .* numbers\)'),
      (np.where(np.arange(3) == 1, -np.inf, x), r'holds NaN or infinity \(.* of .* numbers\)'),
    )
    for call, name in (
      (lambda x: model.energy(x, 0), 'x'),
      (lambda x: model.score(x, 0), 'x'),
      (lambda x: model.diffuse(key, x, 0), 'x'),
      (lambda x: model.conditional_sample(key, x, 0), 'x_noisy'),
      (lambda x: model.inpaint(key, x[0], mask), 'image'),
    ):
      for value, message in wrong:
        for given in (value, jnp.asarray(value)):
          self.assert_refused((functools.partial(call, given), f'{name} {message}'))
      call(x)
      call((255 * x).astype(np.uint8))
    self.assert_refused((lambda: model.diffuse(key, 5 * x, 0), 'x has values from 2.5 to 2.5'))
    model.energy(5 * x, 5)  # what has noise may be larger

  def test_vectors_are_any_finite_numbers(self):
    model = gaussian_model()
    x = np.array([[1, -200]])
    np.testing.assert_array_equal(model.energy(x, 0), model.energy(x.astype(np.float32), 0))
    np.testing.assert_array_equal(model.energy(np.uint8([[1, 2]]), 0), model.energy(np.float32([[1, 2]]), 0))
    self.assert_refused(
      (lambda: model.energy([[np.inf, 0]], 0), r'x holds NaN or infinity \(1 of 2 numbers\)'),
      (lambda: model.energy([[True, False]], 0), 'x is bool: give vectors of floats'),
      (lambda: model.energy([[1j, 0]], 0), 'x is complex64: give vectors of floats'),
      (lambda: model.energy([[1], [1, 2]], 0), 'x is .*, not an array of numbers'),
    )

  def test_pictures_in_place_of_arrays_are_refused_with_what_loads_them(self):
    model, key, picture = image_model(), jax.random.key(0), Image.new('RGB', (4, 4))
    path, mask = pathlib.Path('cat.png'), np.ones((4, 4), bool)
    self.assert_refused(
      (lambda: model.energy('cat.png', 0), "x is 'cat.png', not an array: model.load_image"),
      (lambda: model.energy(['a.png', 'b.png'], 0), "x is 'a.png', not an array: model.load_image"),
      (lambda: model.energy([picture], 0), 'x is a PIL image, not an array: model.load_image'),
      (lambda: model.inpaint(key, picture, mask), 'image is a PIL image, not an array'),
      (lambda: model.inpaint(key, path, mask), 'image is .*cat.png.*, not an array'),
    )

  def test_what_is_hidden_does_not_count(self):
    model, key = image_model(), jax.random.key(0)
    mask = np.arange(16).reshape(4, 4) > 4
    image = np.full((4, 4, 3), 0.5, np.float32)
    hidden = np.where(mask[..., None], np.float32(np.nan), image)
    np.testing.assert_array_equal(model.inpaint(key, hidden, mask), model.inpaint(key, image, mask))

  def test_on_other_devices_one_bit_is_fetched(self):
    x = jnp.zeros((2, 4, 4, 3))
    with mock.patch.object(jax, 'default_backend', lambda: 'gpu'):
      for wrong in (np.nan, -np.inf, 3.0):
        self.assertFalse(arguments._within(x.at[1, 0, 0, 0].set(wrong), 2.0))
      self.assertTrue(arguments._within(x, 2.0))
      jax.jit(lambda y: y + image_model().energy(x, 0))(1.0)

  def test_inside_jit_types_are_checked_and_nan_comes_out(self):
    model = image_model()
    x = jnp.full((4, 4, 4, 3), jnp.nan)
    self.assertTrue(np.all(np.isnan(jax.jit(lambda x: model.energy(x, 0))(x))))
    self.assert_refused((lambda: jax.jit(lambda x: model.energy(x, 0))(x > 0), 'x is bool'))
    np.testing.assert_array_equal(
      jax.jit(lambda x, t: model.energy(x, [t, 1, t, 2]))(x.at[:].set(1), 0), model.energy(x.at[:].set(1), [0, 1, 0, 2])
    )

  def test_keys_of_the_old_style_are_as_good(self):
    model = gaussian_model()
    expected = model.sample(jax.random.key(3), 2)
    np.testing.assert_array_equal(model.sample(jax.random.PRNGKey(3), np.int64(2)), expected)
    np.testing.assert_array_equal(model.sample(np.asarray(jax.random.PRNGKey(3)), 2), expected)
    np.testing.assert_array_equal(jax.jit(lambda key: model.sample(key, 2))(jax.random.PRNGKey(3)), expected)


class OwnImageTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.model = image_model()
    self.folder = self.enterContext(tempfile.TemporaryDirectory())
    self.pixels = np.random.default_rng(0).integers(0, 256, (9, 6, 3), np.uint8)

  def path(self, name='picture.png', image=None):
    path = os.path.join(self.folder, name)
    (image or Image.fromarray(self.pixels)).save(path)
    return path

  def test_a_file_is_decoded_as_training_images_are(self):
    path = self.path()
    image = self.model.load_image(path)
    with open(path, 'rb') as file:
      np.testing.assert_array_equal(image, decode.decode(file.read(), 4, 3)[0])
    self.assertEqual((image.shape, image.dtype), ((4, 4, 3), np.uint8))
    np.testing.assert_array_equal(self.model.load_image(pathlib.Path(path)), image)
    np.testing.assert_array_equal(self.model.load_image(f'file://{path}'), image)
    self.assertEqual(self.model.inpaint(jax.random.key(0), image, np.ones((4, 4), bool)).shape, (1, 4, 4, 3))

  def test_open_images_and_arrays_are_decoded_as_their_file(self):
    path = self.path()
    image = self.model.load_image(path)
    with Image.open(path) as opened:
      np.testing.assert_array_equal(self.model.load_image(opened), image)
    np.testing.assert_array_equal(self.model.load_image(self.pixels), image)
    np.testing.assert_array_equal(self.model.load_image(jnp.asarray(self.pixels)), image)

  def test_arrays_may_be_grey_or_have_alpha(self):
    grey = self.pixels[..., 0]
    expected = self.model.load_image(np.stack([grey] * 3, 2))
    opaque = np.full_like(grey, 255)
    for image in (grey, grey[..., None], np.stack([grey, opaque], 2), np.stack([grey, grey, grey, opaque], 2)):
      np.testing.assert_array_equal(self.model.load_image(image), expected)
    clear = self.model.load_image(np.stack([grey, np.zeros_like(grey)], 2))
    np.testing.assert_array_equal(clear, np.full((4, 4, 3), 255))
    self.assertEqual(self.model.replace(shape=(4, 4, 1)).load_image(self.pixels).shape, (4, 4, 1))

  def test_open_images_of_any_mode_keep_colours_and_orientation(self):
    flat = Image.new('RGB', (6, 6), (200, 60, 60))
    for image in (flat.quantize(4), *(flat.convert(mode) for mode in ('CMYK', 'YCbCr', 'HSV', 'RGBX', 'RGBa'))):
      near = self.model.load_image(image).astype(int)
      np.testing.assert_allclose(near, np.broadcast_to((200, 60, 60), (4, 4, 3)), atol=3)
    exif = Image.Exif()
    exif[0x0112] = 6
    path = os.path.join(self.folder, 'turned.png')
    Image.fromarray(self.pixels).save(path, exif=exif)
    with Image.open(path) as opened:
      np.testing.assert_array_equal(self.model.load_image(opened), self.model.load_image(path))
    np.testing.assert_array_equal(self.model.load_image(path), self.model.load_image(np.rot90(self.pixels, -1)))

  def test_a_list_gives_a_batch(self):
    path = self.path()
    batch = self.model.load_image([path, self.pixels[:, ::-1]])
    self.assertEqual(batch.shape, (2, 4, 4, 3))
    np.testing.assert_array_equal(batch[0], self.model.load_image(path))
    self.assertEqual(self.model.energy(batch, 0).shape, (2,))

  def test_what_is_no_picture_is_refused_in_one_line(self):
    text = os.path.join(self.folder, 'text.png')
    with open(text, 'w', encoding='utf-8') as file:
      file.write('hello')
    with open(self.path(), 'rb') as file:
      whole = file.read()
    damaged = os.path.join(self.folder, 'damaged.png')
    with open(damaged, 'wb') as file:
      file.write(whole[: len(whole) // 2])
    for image, message in (
      (os.path.join(self.folder, 'none.png'), r'.*none.png does not exist \(looked in .*\): name an image file'),
      (self.folder, '.* is a folder: name an image file in it, or give a list of them'),
      ('/dev/null', '/dev/null is not a file'),
      ('https://example.org/cat.png', 'https://example.org/cat.png is a web address: download the picture'),
      ('a\x1b\nb.png', r'a\\x1b\\nb.png does not exist'),
      (text, r'.*text.png cannot be read as an image \(.*\)'),
      (damaged, r'.*damaged.png cannot be read as an image \(.*\)'),
      (self.pixels / 255, 'the image is float64, not uint8: .*preprocessing.to_uint8'),
      (self.pixels[None], r'the image has shape \(1, 9, 6, 3\), not \(H, W\)'),
      (Image.new('F', (4, 4)), 'the image has mode F, whose white is unknown'),
      ([], 'the list of images is empty'),
      (7, 'the image is int64, not uint8'),
      (None, 'the image is object, not uint8'),
    ):
      with self.subTest(message), self.assertRaisesRegex(UserError, rf'\A{message}[^\n]*\Z'):
        self.model.load_image(image)
    with self.assertRaisesRegex(UserError, 'the model is of vectors'):
      gaussian_model().load_image(text)


class WorkdirTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.workdir = cls.enterClassContext(tempfile.TemporaryDirectory())
    cls.config = testing.convolutional(testing.digits_config())
    testing.save_first_state(cls.config, cls.workdir, step=7)
    cls.model = diffusion_ebm.load(cls.workdir)
    cls.key = random_keys.stream_key(3)
    cls.samples = cls.model.sample(cls.key, 5)

  def test_samples_are_those_of_the_command_line(self):
    config = self.config.copy_and_resolve_references()
    config.sampling.num_samples = 5
    sample.run(config, self.workdir, 3)
    with np.load(os.path.join(self.workdir, 'samples', 'samples_7_seed3.npz'), allow_pickle=False) as file:
      expected = file['samples'].astype(int)
    ours = np.asarray(preprocessing.to_uint8(self.samples)).astype(int)
    self.assertLessEqual(np.max(np.abs(ours - expected)), 1)  # a value on the edge may round to either side
    self.assertLess(np.mean(ours != expected), 0.02)
    self.assertEqual(self.samples.shape, (5, 8, 8, 1))
    self.assertLessEqual(np.max(np.abs(self.samples)), 1)

  def test_a_checkpoint_is_loaded_without_a_first_state(self):
    nothing = property(lambda model: self.fail('initialised'))
    with mock.patch.object(model_lib.Model, 'state', nothing), self.assertLogs('diffusion_ebm', 'INFO') as logs:
      model = diffusion_ebm.load(pathlib.Path(self.workdir), step=7)
      diffusion_ebm.from_parameters(self.config, model.ebm.weights)
    jax.tree.map(np.testing.assert_array_equal, model.ebm.weights, self.model.ebm.weights)
    self.assertRegex(
      '\n'.join(logs.output), r'reading the checkpoint of step 7\n.*loaded in .* s; each method is compiled'
    )

  def test_what_a_checkpoint_is_read_into_is_like_the_first_state(self):
    model = model_lib.build(config_lib.resolve(self.config))
    like, state = (
      jax.tree.map(lambda a: (a.shape, a.dtype, a.sharding), each) for each in (model.abstract_state, model.state)
    )
    self.assertEqual(like, state)

  def test_loading_turns_on_the_cache_of_compiled_programs(self):
    self.addCleanup(jax.config.update, 'jax_compilation_cache_dir', jax.config.jax_compilation_cache_dir)
    cache = self.enterContext(tempfile.TemporaryDirectory())
    jax.config.update('jax_compilation_cache_dir', None)
    with mock.patch.dict(os.environ, {'XDG_CACHE_HOME': cache}):
      diffusion_ebm.load(self.workdir)
    self.assertStartsWith(jax.config.jax_compilation_cache_dir, os.path.join(cache, 'diffusion_ebm'))

  def test_a_strip_runs_between_samples_of_the_same_key(self):
    strip = self.model.interpolate(self.key, 1, 4, 3)
    np.testing.assert_allclose(strip[::2], self.samples[np.array([1, 4])], atol=1e-3)
    self.assertEqual(strip.shape, (3, 8, 8, 1))

  def test_completions_keep_what_is_known_and_differ_elsewhere(self):
    mask = inpainting.make_mask('right', (8, 8))
    image = np.asarray(preprocessing.to_uint8(self.samples[0]))
    completions = self.model.inpaint(self.key, image, mask, 2, num_repeats=1)
    self.assertEqual(completions.shape, (2, 8, 8, 1))
    known = image[~mask] / np.float32(127.5) - 1
    np.testing.assert_allclose(completions[:, ~mask], np.broadcast_to(known, (2, 32, 1)), rtol=0, atol=1e-7)
    np.testing.assert_array_equal(np.asarray(preprocessing.to_uint8(completions))[:, ~mask], [image[~mask]] * 2)
    self.assertGreater(np.std(completions[0][mask] - completions[1][mask]), 0.1)

  def test_all_may_be_called_inside_jit_with_the_model_as_an_argument(self):
    inside = jax.jit(lambda model, key, x, level: (model.energy(x, level), model.sample(key, 5)))
    energy, samples = inside(self.model, self.key, self.samples, 2)
    np.testing.assert_allclose(energy, self.model.energy(self.samples, 2), rtol=1e-4)
    np.testing.assert_allclose(samples, self.samples, atol=1e-3)

  def test_a_configuration_and_parameters_make_the_same_model(self):
    state, _ = testing.restore(self.config, self.workdir)
    model = diffusion_ebm.from_parameters(self.config, state.ema_params)
    x = np.zeros((1, 8, 8, 1), np.uint8)
    # The power iteration starts elsewhere, and ends at the same vectors.
    np.testing.assert_allclose(model.energy(x, 3), self.model.energy(x, 3), rtol=1e-3)
    with self.assertRaisesRegex(UserError, 'not those of the network'):
      diffusion_ebm.from_parameters(self.config, {'conv_in': np.zeros(3)})

  def test_log_z_comes_from_the_density_job_of_the_same_step(self):
    folder = os.path.join(self.workdir, 'density')
    os.makedirs(folder, exist_ok=True)
    self.addCleanup(lambda: os.remove(os.path.join(folder, 'results.json')))
    for step, known in ((7, True), (6, False)):
      with open(os.path.join(folder, 'results.json'), 'w', encoding='utf-8') as file:
        json.dump({'step': step, 'log_z': [{'level': 0, 'log_z': 5.0}, {'level': 4, 'log_z': 6.0}]}, file)
      log_z = diffusion_ebm.load(self.workdir).log_z
      if known:
        np.testing.assert_array_equal(log_z, [5.0, np.nan, np.nan, np.nan, 6.0, np.nan])
      else:
        self.assertIsNone(log_z)

  def test_what_is_not_there_is_refused(self):
    with self.assertRaisesRegex(UserError, 'holds no run: train first'):
      diffusion_ebm.load(os.path.join(self.workdir, 'none'))
    with mock.patch.object(model_lib, 'build') as build:
      with self.assertRaisesRegex(UserError, 'no checkpoint of step 8 in .*; steps that are there: 7$'):
        diffusion_ebm.load(self.workdir, step=8)
      build.assert_not_called()
    with self.assertRaisesRegex(UserError, "step is '7', not an integer"):
      diffusion_ebm.load(self.workdir, step='7')
    empty = self.enterContext(tempfile.TemporaryDirectory())
    config_lib.save(config_lib.resolve(self.config), empty)
    with self.assertRaisesRegex(UserError, 'no checkpoint: train first'):
      diffusion_ebm.load(empty)
    self.assertFalse(os.path.exists(checkpoints.directory(empty)))


class ImportTest(absltest.TestCase):
  def test_the_package_alone_imports_nothing_and_knows_its_names(self):
    code = (
      'import sys, jax, flax, optax; before = set(sys.modules); import diffusion_ebm; '
      'print(sorted(set(sys.modules) - before)); print({"load", "DiffusionEBM"} <= set(dir(diffusion_ebm)))'
    )
    result = subprocess.run([sys.executable, '-c', code], cwd=testing.ROOT, capture_output=True, text=True, check=True)
    self.assertEqual(result.stdout.splitlines(), ["['diffusion_ebm']", 'True'])

  def test_an_unknown_name_is_an_attribute_error(self):
    with self.assertRaisesRegex(AttributeError, "no attribute 'lode'"):
      _ = diffusion_ebm.lode


if __name__ == '__main__':
  absltest.main()
