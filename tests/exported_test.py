"""Exported models: the file, what is refused, and those that come with the package."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from unittest import mock

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np

from configs import digits_classes
import diffusion_ebm
from diffusion_ebm import config as config_lib
from diffusion_ebm import data, exported, preprocessing, trained
from diffusion_ebm.class_probabilities import Calibration
from diffusion_ebm.data import toy
from diffusion_ebm.jobs import export, import_weights, sample, train
from diffusion_ebm.run import files
from diffusion_ebm.run.errors import UserError
from tests import forks, testing


class FileTest(parameterized.TestCase):
  """An untrained model, with everything that a file can hold."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    config = config_lib.resolve(testing.convolutional(testing.proposal_config(4)))
    config.data.path = '/home/somebody/digits'
    config.ood.against = ('noise', '/home/somebody/svhn')
    state = jax.device_get(testing.first_state(config))
    calibration = Calibration(1, np.array([np.nan, 2.0]), np.array([[np.nan, np.nan], [0.5, -0.5]]))
    log_z = np.array([1.5, np.nan, 3.25])
    cls.model = exported.Exported(
      config, 4, state.params, state.proposal.params, ('a', 'é'), log_z, calibration, {'parameters': 7}
    )

  def setUp(self):
    super().setUp()
    self.folder = self.enter_context(tempfile.TemporaryDirectory())
    self.path = os.path.join(self.folder, 'model.npz')

  def write(self, **changes):
    exported.write(self.path, self.model._replace(**changes))
    return self.path

  def test_what_is_written_is_read(self):
    found = exported.read(self.write())
    for given, expected in ((found.weights, self.model.weights), (found.proposal, self.model.proposal)):
      jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, np.float32(np.float16(b))), given, dict(expected))
    self.assertEqual(found.step, 4)
    self.assertEqual(found.classes, ('a', 'é'))
    self.assertEqual(found.notes, {'parameters': 7})
    np.testing.assert_array_equal(found.log_z, self.model.log_z)
    self.assertEqual(found.calibration.level, 1)
    np.testing.assert_array_equal(found.calibration.scale, self.model.calibration.scale)
    np.testing.assert_array_equal(found.calibration.bias, self.model.calibration.bias)
    expected = self.model.config.to_dict()
    expected['data']['path'] = ''
    expected['ood']['against'] = ('noise',)
    self.assertEqual(found.config.to_dict(), expected)
    with open(self.path, 'rb') as file:
      self.assertNotIn(b'somebody', file.read())

  def test_equal_models_make_equal_files(self):
    with open(self.write(), 'rb') as file:
      first = file.read()
    with open(self.write(), 'rb') as file:
      self.assertEqual(file.read(), first)

  def test_numbers_of_a_normal_factor_stay_exact(self):
    tree = {'normal_factor': {'variances': np.float32([1e-6, 1 / 3])}, 'body': {'bias': np.float32([1 / 3])}}
    kept = exported.rounded(tree)
    np.testing.assert_array_equal(kept['normal_factor']['variances'], tree['normal_factor']['variances'])
    self.assertEqual(kept['body']['bias'].dtype, np.float16)

  def test_a_weight_beyond_float16_is_refused(self):
    weights = jax.tree.map(lambda a: a + 1e5, self.model.weights)
    with self.assertRaisesRegex(UserError, 'float16 cannot'):
      self.write(weights=weights)
    self.assertFalse(os.path.exists(self.path))

  @parameterized.product(where=(0.1, 0.5, 0.9), cut=(True, False))
  def test_damage_is_one_clear_line(self, where, cut):
    with open(self.write(), 'rb') as file:
      content = bytearray(file.read())
    position = int(where * len(content))
    if cut:
      del content[position:]
    else:
      content[position : position + 200] = bytes(200)  # more than what an archive does not look at
    with open(self.path, 'wb') as file:
      file.write(content)
    with self.assertRaisesRegex(UserError, r'^[^\n]*model\.npz (cannot be read \(.*again|is damaged: .*again)$'):
      exported.read(self.path)

  @parameterized.parameters('ebm/body/conv_in/bias', 'header')
  def test_a_changed_number_is_found(self, name):
    arrays = files.read_npz(self.write())
    if name == 'header':
      header = json.loads(arrays['header'].tobytes())
      header['step'] = 5
      arrays['header'] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    else:
      arrays[name] = arrays[name] + np.float16(1)
    files.write_npz(self.path, arrays)
    with self.assertRaisesRegex(UserError, 'is damaged: its content is not that of its SHA-256'):
      exported.read(self.path)

  def test_a_newer_format_says_so(self):
    with mock.patch.object(exported, 'FORMAT', 2):
      self.write()
    with self.assertRaisesRegex(UserError, 'is of format 2, but this version reads 1: take a newer diffusion_ebm'):
      exported.read(self.path)

  def test_other_files_are_named_as_such(self):
    np.savez(self.path, x=np.zeros(3))
    with self.assertRaisesRegex(UserError, 'is no exported model'):
      exported.read(self.path)
    self.assertFalse(exported.is_one(self.path))
    self.assertTrue(exported.is_one(self.write()))
    with self.assertRaisesRegex(UserError, 'is not there'):
      exported.read(os.path.join(self.folder, 'missing.npz'))
    with self.assertRaisesRegex(UserError, 'nonsense is no model: name .*digits'):
      diffusion_ebm.DiffusionEBM.pretrained('nonsense')

  def test_weights_of_another_network_are_refused(self):
    config = self.model.config.copy_and_resolve_references()
    config.model.ch = 16
    with self.assertRaisesRegex(UserError, 'does not fit: .* config.model describes'):
      diffusion_ebm.DiffusionEBM.pretrained(self.write(config=config))


class JobsTest(absltest.TestCase):
  """From a workdir to a file, and from the file to a workdir."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = cls.enterClassContext(tempfile.TemporaryDirectory())
    cls.workdir = os.path.join(cls.folder, 'run')
    cls.config = testing.proposal_config(4)
    train.run(cls.config, cls.workdir)
    config = config_lib.load(cls.workdir)
    config.export.path = os.path.join(cls.folder, 'small.npz')
    cls.path = export.run(config, cls.workdir)
    cls.model = diffusion_ebm.DiffusionEBM.pretrained(cls.path)

  def assert_same_energies(self, one, other, x, tolerance):
    for t in (0, 3, 5):
      f, g = (np.asarray(each.f(x, jnp.full(len(x), t))) for each in (one, other))
      np.testing.assert_allclose(f, g, rtol=0, atol=tolerance * np.std(g))

  def test_the_file_holds_the_averaged_model(self):
    full = diffusion_ebm.load(self.workdir)
    x = 2 * full.sample(jax.random.key(0), 16)
    self.assert_same_energies(self.model.ebm, full.ebm, x, 0.03)
    rounded = full.ebm.replace(
      weights=jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), exported.rounded(full.ebm.weights))
    )
    self.assert_same_energies(self.model.ebm, rounded, x, 1e-5)
    np.testing.assert_allclose(self.model.sample(jax.random.key(0), 4), full.sample(jax.random.key(0), 4), atol=0.02)

  def test_the_card_says_what_the_file_is(self):
    with open(os.path.join(self.folder, 'small.md'), encoding='utf-8') as file:
      card = file.read()
    with open(self.path, 'rb') as file:
      digest = hashlib.sha256(file.read()).hexdigest()
    for part in ('# small', 'digits, 8x8x1', '4 steps of 8', 'seed 0', digest, 'none; run `--mode=eval`'):
      self.assertIn(part, card)

  def test_without_a_path_it_goes_into_the_workdir(self):
    path = export.run(config_lib.load(self.workdir), self.workdir, step=2)
    self.assertEqual(path, os.path.join(self.workdir, 'export', '2.npz'))
    self.assertEqual(exported.read(path).step, 2)

  def test_a_path_that_is_none_is_refused(self):
    config = config_lib.load(self.workdir)
    missing = os.path.join(self.folder, 'missing')
    for path, message in (('x.pth', 'does not end with .npz'), (f'{missing}/x.npz', f'there is no folder {missing}')):
      config.export.path = path
      with self.assertRaisesRegex(UserError, message):
        export.run(config, self.workdir)
    with self.assertRaisesRegex(UserError, 'a sum'):
      config.sampling.compose = ('3', '8')
      export.run(config, self.workdir)

  def imported(self, name, path, **changes):
    workdir = os.path.join(self.folder, name)
    config = exported.config(path)
    config.import_weights.path = path
    config.sampling.update(changes)
    import_weights.run(config, workdir)
    return workdir

  def test_a_file_becomes_a_workdir_of_the_same_model(self):
    workdir = self.imported('imported', self.path, num_samples=3)
    again = diffusion_ebm.load(workdir)
    x = 2 * self.model.sample(jax.random.key(1), 16)
    self.assert_same_energies(again.ebm, self.model.ebm, x, 1e-3)
    self.assertEqual(sample.run(config_lib.load(workdir), workdir).shape, (3, 8, 8, 1))
    config = config_lib.load(workdir)
    self.assertEqual(config.train.num_steps, 4)
    config.train.num_steps = 6
    train.run(config, workdir)
    self.assertEqual(testing.steps_of(workdir), [4, 6])

  def test_weights_that_were_normalised_otherwise_are_not_normalised_again(self):
    workdir = os.path.join(self.folder, 'raw')
    config = testing.convolutional(testing.proposal_config(4))
    config.model.update({'raw_singular_vectors': True, 'zero_init': False})
    train.run(config, workdir)
    path = export.run(config_lib.load(workdir), workdir)
    again, once = diffusion_ebm.load(self.imported('raw again', path)), diffusion_ebm.DiffusionEBM.pretrained(path)
    self.assert_same_energies(again.ebm, once.ebm, 2 * once.sample(jax.random.key(1), 8), 1e-5)

  def test_names_of_classes_go_along(self):
    config = digits_classes.get_config()
    config.model.update({'name': 'mlp', 'ch': 8, 'num_layers': 1})
    workdir = os.path.join(self.folder, 'classes')
    os.makedirs(os.path.join(workdir, 'data'))
    testing.save_first_state(config, workdir)
    names = [f'digit {number}' for number in range(10)]
    files.write_json(os.path.join(workdir, 'data', 'summary.json'), {'classes': names})
    path = export.run(config_lib.load(workdir), workdir)
    self.assertEqual(diffusion_ebm.DiffusionEBM.pretrained(path).classes, tuple(names))
    self.assertEqual(trained.classes(self.imported('classes again', path)), tuple(names))

  def test_a_workdir_is_made_once(self):
    workdir = os.path.join(self.folder, 'prepared')
    for _ in range(2):
      import_weights.prepare(exported.config(self.path), workdir, self.path)
    with self.assertRaisesRegex(UserError, 'holds another run than --pretrained=digits: name another'):
      import_weights.prepare(exported.config('digits'), workdir, 'digits')

  @testing.long
  def test_the_command_line_takes_a_name(self):
    workdir = os.path.join(self.folder, 'by name')
    command = [sys.executable, 'main.py', '--mode=sample', '--pretrained=digits_classes', f'--workdir={workdir}']
    for more in (['--num_samples=2', '--config.sampling.label=7'], ['--num_samples=3', '--seed=1']):
      env = os.environ | {'XLA_FLAGS': forks.QUICK}
      result = subprocess.run([*command, *more], cwd=testing.ROOT, env=env, capture_output=True, text=True, check=False)
      self.assertEqual(result.returncode, 0, result.stderr)
    found = np.load(os.path.join(workdir, 'samples', 'samples_13500.npz'))['samples']
    sevens = diffusion_ebm.DiffusionEBM.pretrained('digits_classes').of_class(7)
    drawn = trained.load(config_lib.load(workdir), workdir)
    self.assertEqual(drawn.config.sampling.label, '7')
    self.assertEqual(found.shape, (2, 8, 8, 1))
    log_prob = sevens.class_log_prob(preprocessing.to_unit_range(found))
    np.testing.assert_array_equal(np.argmax(log_prob, axis=1), 7)

  def test_another_network_is_refused(self):
    config = exported.config(self.path)
    config.import_weights.path = self.path
    config.model.ch = 16
    with self.assertRaisesRegex(UserError, r'small\.npz has another network: model\.ch \(8 there, 16 here\)'):
      import_weights.run(config, os.path.join(self.folder, 'other'))

  def test_a_workdir_is_a_model_too(self):
    np.testing.assert_array_equal(
      diffusion_ebm.DiffusionEBM.pretrained(self.workdir).sample(jax.random.key(0), 2),
      diffusion_ebm.load(self.workdir).sample(jax.random.key(0), 2),
    )


class PackagedTest(absltest.TestCase):
  """The models that come with the package."""

  def test_files_are_those_of_the_sums_and_small(self):
    names = [name for name in os.listdir(exported.PACKAGED) if name.endswith('.npz')]
    self.assertCountEqual(names, [f'{name}.npz' for name in exported.packaged()])
    sizes = []
    for name, digest in exported.packaged().items():
      path = exported.find(name)
      sizes.append(os.path.getsize(path))
      with open(os.path.splitext(path)[0] + '.md', encoding='utf-8') as file:
        card = file.read()
      self.assertIn(digest, card)
      self.assertIn(f'{sizes[-1]:,} bytes', card)
      self.assertNotIn('(fill in)', card)
      self.assertEqual(exported.config(name).data.path, '')
    self.assertLess(max(sizes), 4e6)
    self.assertLess(sum(sizes), 8e6)

  def test_another_file_of_the_name_is_refused(self):
    folder = os.path.join(self.enter_context(tempfile.TemporaryDirectory()), 'pretrained')
    shutil.copytree(exported.PACKAGED, folder)
    with mock.patch.object(exported, 'PACKAGED', folder):
      path = exported.find('digits')
      shutil.copy(os.path.join(folder, 'toy2d.npz'), path)
      with self.assertRaisesRegex(UserError, r'not the file that this version comes with \(SHA-256 .*install'):
        diffusion_ebm.DiffusionEBM.pretrained('digits')
      os.remove(path)
      with self.assertRaisesRegex(UserError, r'cannot be read \(No such file or directory\): install'):
        diffusion_ebm.DiffusionEBM.pretrained('digits')

  def test_digits_of_a_class_are_of_that_class(self):
    model = diffusion_ebm.DiffusionEBM.pretrained('digits_classes')
    source = data.load_source(exported.config('digits_classes').data, 'test')
    x, label = source.read(np.arange(100)), source.labels[:100]
    log_prob = model.class_log_prob(preprocessing.to_unit_range(x))
    self.assertGreater(np.mean(np.argmax(log_prob, axis=1) == label), 0.9)
    drawn = model.of_class(3).sample(jax.random.key(0), 32)
    self.assertGreater(np.mean(np.argmax(model.class_log_prob(drawn), axis=1) == 3), 0.8)

  def test_digits_are_likelier_than_noise(self):
    model = diffusion_ebm.DiffusionEBM.pretrained('digits')
    source = data.load_source(exported.config('digits').data, 'test')
    x = preprocessing.to_unit_range(source.read(np.arange(64)))
    shuffled = jax.random.permutation(jax.random.key(0), x, axis=1)
    self.assertGreater(np.mean(np.asarray(model.energy(shuffled, 1)) > np.asarray(model.energy(x, 1))), 0.95)
    for each in model.sample(jax.random.key(0), 16):  # near a real one, as seen from the mean of all
      distance = np.min(np.linalg.norm(np.reshape(x - each, (64, -1)), axis=1))
      self.assertLess(distance, np.linalg.norm(each - x.mean(0)) + 1)

  def test_the_density_in_the_plane_is_near_the_exact_one(self):
    model = diffusion_ebm.DiffusionEBM.pretrained('toy2d')
    x = data.load_source(exported.config('toy2d').data, 'test').read(np.arange(4000))
    levels, exact = model.ebm.levels, toy.DISTRIBUTIONS['eight_gaussians'].log_density
    for t, bound in ((0, 0.3), (1, 0.06)):
      noisy = np.asarray(model.diffuse(jax.random.key(0), x, t))
      excess = exact(noisy, levels.a_cum[t], levels.sigma_cum[t]) - np.asarray(model.log_prob(noisy, t))
      # Its mean is KL(data || model), and cannot be negative but for the error of log Z and of the mean.
      self.assertBetween(np.mean(excess), -0.02, bound)


if __name__ == '__main__':
  absltest.main()
