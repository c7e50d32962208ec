"""Models that are told classes: training, drawing a class, and what is refused."""

import os
import shutil
import tempfile

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

import diffusion_ebm
from diffusion_ebm import class_probabilities, composition, data, trained
from diffusion_ebm import config as config_lib
from diffusion_ebm.data import kept
from diffusion_ebm.evaluate import results
from diffusion_ebm.jobs import sample, train
from diffusion_ebm.run import files
from diffusion_ebm.run.errors import UserError
from tests import testing


def classes_config(label='', guidance=0.0, **changes):
  """Digits of a tiny network that is told the ten classes, and a proposal."""
  config = testing.digits_config(**changes)
  config.model.num_classes = 10
  config.proposal.update({'name': 'mlp', 'ch': 8})
  config.sampling.update({'label': label, 'guidance': guidance, 'num_samples': 12})
  return config


class DrawTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.workdir = cls.enterClassContext(tempfile.TemporaryDirectory())
    testing.save_first_state(classes_config(), cls.workdir, 4)
    os.mkdir(os.path.join(cls.workdir, 'data'))
    digits = data.load_source(classes_config().data, 'train')
    kept.keep(os.path.join(cls.workdir, 'data'), digits, 'digits', np.zeros((8, 8, 3), np.uint8))
    cls.all = sample.run(classes_config('all'), cls.workdir)

  def draw(self, *args):
    return sample.run(classes_config(*args), self.workdir)

  def test_all_are_drawn_in_turn(self):
    self.assertGreater(np.mean(np.abs(self.all.astype(int) - self.draw(''))), 0)
    for label in ('0', '3'):
      drawn = self.draw(label)
      same = [i for i in range(12) if np.max(np.abs(drawn[i].astype(int) - self.all[i])) < 2]
      self.assertContainsSubset([i for i in range(12) if i % 10 == int(label)], same)
      self.assertLess(len(same), 12)

  def test_guidance_changes_samples_and_is_noted(self):
    drawn = self.draw('3', 2.0)
    self.assertGreater(np.max(np.abs(drawn.astype(int) - self.draw('3'))), 2)
    notes = [
      files.read_json(os.path.join(self.workdir, 'samples', name))['inputs']['sampling']
      for name in os.listdir(os.path.join(self.workdir, 'samples'))
      if name.endswith('.json')
    ]
    self.assertIn(('3', 2.0), [(note.get('label'), note.get('guidance')) for note in notes])

  def test_the_api_draws_the_same(self):
    model = diffusion_ebm.load(self.workdir)
    self.assertEqual(model.classes, tuple('0123456789'))
    key = jax.random.fold_in(jax.random.key(0, impl='threefry2x32'), 0x5A3D)  # that of `--mode=sample`
    drawn = np.asarray(model.of_class('3').sample(key, 12))
    testing.assert_same_images(np.round((drawn + 1) * 127.5).astype(np.uint8), self.draw('3'))
    np.testing.assert_array_equal(model.of_class(3, 0.5).energy(drawn, 0), model.of_class('3', 0.5).energy(drawn, 0))
    conditional, plain = (np.asarray(m.energy(drawn, 0)) for m in (model.of_class(3), model))
    np.testing.assert_allclose(
      model.of_class(3, 2.0).energy(drawn, 0), 3 * conditional - 2 * plain, rtol=1e-4, atol=1e-2 * np.std(plain)
    )

  def test_a_sum_of_classes_is_a_model(self):
    model = diffusion_ebm.load(self.workdir)
    x = np.asarray(model.sample(jax.random.key(1), 4))
    both = model.of_class(1) + 0.5 * model.of_class(2) - model
    expected = model.of_class(1).energy(x, 2) + 0.5 * model.of_class(2).energy(x, 2) - model.energy(x, 2)
    volume = (1 - (1 + 0.5 - 1)) * 64 * np.log(model.ebm.levels.a_y[2])  # which a sum counts once
    np.testing.assert_allclose(both.energy(x, 2), expected - volume, rtol=1e-4, atol=0.05)
    np.testing.assert_allclose((model + 3 * model).proposal.coefficients, [1, 3])
    self.assertIsNone((model - model).proposal)
    inside = jax.jit(lambda a, b, c: (a + 0.5 * b - c).energy(x, 2))  # sums are made where their parts are traced, too
    np.testing.assert_allclose(
      inside(model.of_class(1), model.of_class(2), model), both.energy(x, 2), rtol=1e-4, atol=0.05
    )
    self.assertEqual(both.sample(jax.random.key(1), 2).shape, (2, 8, 8, 1))

  def test_all_jobs_load_the_class(self):
    found = trained.load(classes_config('3', 0.5), self.workdir)
    for model in (found.ebm, found.proposal):
      np.testing.assert_array_equal(model.labels, [[4], [0]])
      np.testing.assert_array_equal(model.coefficients, [1.5, -0.5])
    for label in ('', 'all'):
      found = trained.load(classes_config(label), self.workdir)
      self.assertIsNone(found.ebm.labels)

  def test_sums_on_the_command_line(self):
    def load(*terms, label=''):
      config = classes_config(label)
      config.sampling.compose = terms
      return trained.load(config, self.workdir)

    x, t = jnp.asarray(np.random.default_rng(0).normal(size=(3, 8, 8, 1)), jnp.float32), jnp.array([0, 3, 5])
    model = trained.load(classes_config(), self.workdir)

    def f(label):
      return np.asarray(composition.of_class(model.ebm, label).f(x, t))

    found = load('3', ' 2*8', '-none', '-1*none', label='all')
    np.testing.assert_allclose(found.ebm.f(x, t), f(4) + 2 * f(9) - 2 * f(0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.proposal.coefficients, [1, 2, -1, -1])  # of the initialiser's means

    def mean(label):
      return np.asarray(composition.of_class(model.proposal, label).mean(x, t))

    np.testing.assert_allclose(found.proposal.mean(x, t), mean(4) + 2 * mean(9) - 2 * mean(0), rtol=1e-4, atol=1e-4)
    self.assertEqual(found.config.sampling.compose, ('1*3', '2*8', '-1*none', '-1*none'))
    other = self.enterContext(tempfile.TemporaryDirectory())
    config = testing.digits_config()
    testing.save_first_state(config, other, 7)
    whole = trained.load(config, other)
    found = load('3', f'-.5*{other}', f'{self.workdir}@8')
    expected = f(4) - 0.5 * np.asarray(whole.ebm.f(x, t)) + f(9)
    np.testing.assert_allclose(found.ebm.f(x, t), expected, rtol=1e-4, atol=1e-4)
    self.assertIsNone(found.proposal)
    self.assertEqual(found.config.sampling.compose[1], f'-0.5*{other} at step 7')
    config = classes_config()
    config.sampling.compose = ('3', other)
    drawn = sample.run(config, self.workdir)
    self.assertEqual(drawn.shape, (12, 8, 8, 1))
    for terms, message in (
      (('11',), "sampling.compose names '11', not one of 0, 1, .*, 0 .. 9, 'none' or a workdir"),
      (('runs/none',), 'sampling.compose names runs/none, which holds no run'),
      (('',), "sampling.compose names '', not a class"),
      ((f'{other}@3',), "sampling.compose names '3', not 'none' or a workdir"),
    ):
      with self.assertRaisesRegex(UserError, message):
        load(*terms)
    with self.assertRaisesRegex(UserError, 'sampling.compose does not go with sampling.label'):
      load('3', label='4')

  def test_class_probabilities_need_a_calibration(self):
    model, x = diffusion_ebm.load(self.workdir), np.zeros((2, 8, 8, 1), np.uint8)
    with self.assertRaisesRegex(UserError, 'not calibrated: run python main.py --mode=eval'):
      model.class_log_prob(x)
    workdir = os.path.join(self.enterContext(tempfile.TemporaryDirectory()), 'run')
    shutil.copytree(self.workdir, workdir)
    os.mkdir(os.path.join(workdir, 'eval'))
    bias = np.linspace(-1, 1, 10).tolist()
    for step, scale in ((4, 0.9), (4, 0.5), (8, 0.7)):
      levels = [{'level': t, 'scale': scale, 'bias': bias} for t in (0, 3)]
      record = {'step': step, 'classes': {'level': 3, 'levels': levels}}
      results.append(os.path.join(workdir, 'eval', 'results.jsonl'), record)
    model = diffusion_ebm.load(workdir)
    self.assertEqual((model.calibration.level, model.calibration.scale[0]), (3, 0.5))
    found = model.class_log_prob(x)
    self.assertEqual(found.shape, (2, 10))
    np.testing.assert_array_equal(found, model.class_log_prob(x, 3))
    unit = jnp.asarray(x, jnp.float32) / 127.5 - 1
    values = np.asarray(class_probabilities.log_densities(model.ebm, unit, jnp.array([0]), 10))[:, 0]
    expected = special.log_softmax(0.5 * values + bias, axis=1)
    np.testing.assert_allclose(model.class_log_prob(x, 0), expected, rtol=1e-3, atol=1e-2)
    with self.assertRaisesRegex(UserError, r'not calibrated at level 1: those that are, are \[0, 3\]'):
      model.class_log_prob(x, 1)
    weights = model.any_of(2, '7').ebm.log_weights
    np.testing.assert_allclose(
      weights, [[bias[i] / 0.5 if t in (0, 3) else 0 for t in range(6)] for i in (2, 7)], rtol=1e-5
    )

  def test_any_of_several_classes(self):
    model = diffusion_ebm.load(self.workdir)
    x = np.asarray(model.sample(jax.random.key(1), 3))
    each = [-np.asarray(model.of_class(label).energy(x, 1)) for label in (2, 7)]
    np.testing.assert_allclose(-model.any_of(2, '7').energy(x, 1), np.logaddexp(*each), rtol=1e-4, atol=1e-2)
    with self.assertRaisesRegex(UserError, 'any_of is given no class'):
      model.any_of()

  def test_images_side_by_side(self):
    model = diffusion_ebm.load(self.workdir)
    wide = diffusion_ebm.side_by_side(model.of_class(4), model.of_class(2), model)
    self.assertEqual(wide.shape, (8, 24, 1))
    x = np.random.default_rng(0).uniform(-1, 1, (3, 8, 24, 1)).astype(np.float32)
    parts = (model.of_class(4), model.of_class(2), model)
    pieces = [x[:, :, 8 * i : 8 * i + 8] for i in range(3)]
    expected = sum(m.energy(piece, 3) for m, piece in zip(parts, pieces, strict=True))
    np.testing.assert_allclose(wide.energy(x, 3), expected, rtol=1e-4, atol=1e-2)
    t = jnp.full(3, 3)
    means = [m.proposal.mean(jnp.asarray(piece), t) for m, piece in zip(parts, pieces, strict=True)]
    np.testing.assert_allclose(wide.proposal.mean(x, t), np.concatenate(means, axis=2), rtol=1e-4, atol=1e-4)
    self.assertEqual(wide.sample(jax.random.key(0), 2).shape, (2, 8, 24, 1))
    with self.assertRaisesRegex(UserError, r'shapes \(8, 8, 1\) and \(4, 8, 1\) do not fit side by side'):
      diffusion_ebm.side_by_side(model, model.replace(shape=(4, 8, 1)))

  def test_corrected_samples_do_not_depend_on_the_batch(self):
    workdir, drawn = self.enterContext(tempfile.TemporaryDirectory()), []
    for batch_size, kernel in ((12, 'mala'), (5, 'mala'), (12, '')):
      config = classes_config('all', 0.5)
      config.diffusion.temperature = 'one'  # energies so small that their rounding decides no step
      config.sampling.update({'corrected': kernel, 'corrected_steps': 3, 'batch_size': batch_size})
      if not drawn:
        testing.save_first_state(config, workdir, 4)
      drawn.append(sample.run(config, workdir).astype(int))
    testing.assert_same_images(*drawn[:2])
    self.assertGreater(np.max(np.abs(drawn[0] - drawn[2])), 2)

  def test_log_z_is_of_what_was_asked_for(self):
    workdir = os.path.join(self.enterContext(tempfile.TemporaryDirectory()), 'run')
    shutil.copytree(self.workdir, workdir)
    os.mkdir(os.path.join(workdir, 'density'))
    for number, of in enumerate(({}, {'label': '3'}, {'compose': ['1*3', '1*8']})):
      record = {'step': 4, 'log_z': [{'level': 0, 'log_z': float(number)}]} | ({'of': of} if of else {})
      files.write_json(os.path.join(workdir, 'density', f'results_{number}.json'), record)
    for expected, changes in enumerate(({}, {'label': '3'}, {'compose': ('3', '8')})):
      config = classes_config()
      config.sampling.update(changes)
      self.assertEqual(diffusion_ebm.load(workdir, config=config).log_z[0], expected)
    config.sampling.update({'compose': (), 'label': '4'})
    self.assertIsNone(diffusion_ebm.load(workdir, config=config).log_z)

  def test_classes_that_there_are_not(self):
    for label in ('11', '-1', 'seven', 'ALL'):
      with self.assertRaisesRegex(
        UserError, rf"sampling.label names '{label}', not one of 0, 1, .*, 0 .. 9, 'all' or ''"
      ):
        self.draw(label)
    model = diffusion_ebm.load(self.workdir)
    for label, message in ((10, 'label is 10, but there are 10 classes'), ('x', "label is 'x'"), (-1, 'label is -1')):
      with self.assertRaisesRegex(UserError, message):
        model.of_class(label)

  def test_a_run_without_classes_is_asked_for_one(self):
    workdir = self.enterContext(tempfile.TemporaryDirectory())
    config = testing.digits_config()
    testing.save_first_state(config, workdir)
    for key, value in (('label', '3'), ('guidance', 0.5)):
      with self.assertRaisesRegex(UserError, rf'sampling.{key} is .*, but model.num_classes is 0'):
        changed = testing.digits_config()
        changed.sampling[key] = value
        sample.run(changed, workdir)
    with self.assertRaisesRegex(UserError, 'the model knows no classes: train one with'):
      diffusion_ebm.load(workdir).of_class(3)

  def test_sums_of_models_that_do_not_fit(self):
    model = diffusion_ebm.load(self.workdir)
    with self.assertRaisesRegex(UserError, r'models of shapes \(8, 8, 1\) and \(4, 4, 1\) cannot be added'):
      _ = model + model.replace(shape=(4, 4, 1))


class TrainTest(absltest.TestCase):
  def test_it_trains_and_all_weights_of_the_classes_move(self):
    workdir = self.enterContext(tempfile.TemporaryDirectory())
    config = classes_config('all', num_steps=8, sample_every=8, checkpoint_every=8)
    config.proposal.update({'warmup_steps': 1, 'learning_rate': 1e-3})
    train.run(config, workdir)
    after, _ = testing.restore(config, workdir)
    before = testing.first_state(config_lib.resolve(config))
    for path in (('params', 'embedding', 'label', 'kernel'), ('proposal', 'params', 'label', 'kernel')):
      a, b = (_leaf(state, path) for state in (before, after))
      self.assertEqual(a.shape[0], 11)
      self.assertGreater(np.count_nonzero(np.max(np.abs(a - b), axis=1)), 8, path)
    self.assertEqual(kept.classes(os.path.join(workdir, 'data')), tuple('0123456789'))
    self.assertIn('training_00000008.png', os.listdir(os.path.join(workdir, 'samples')))

  def test_other_numbers_of_classes_than_the_datas_are_refused(self):
    workdir = self.enterContext(tempfile.TemporaryDirectory())
    config = classes_config()
    config.model.num_classes = 7
    with self.assertRaisesRegex(UserError, 'model.num_classes is 7, but the data have 10: set --config.model.num_cl'):
      train.run(config, workdir)
    config = testing.toy2d_config()
    config.model.num_classes = 2
    with self.assertRaisesRegex(UserError, 'model.num_classes is 2, but the data have no classes'):
      train.run(config, workdir)


def _leaf(state, path):
  for name in path:
    state = getattr(state, name) if hasattr(state, name) else state[name]
  return np.asarray(state)


if __name__ == '__main__':
  absltest.main()
