"""Models that are told classes: training, drawing a class, and what is refused."""

import os
import tempfile

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np

import diffusion_ebm
from diffusion_ebm import composition, data, trained
from diffusion_ebm import config as config_lib
from diffusion_ebm import model as model_lib
from diffusion_ebm.data import kept
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
    np.testing.assert_allclose(  # the initialiser's means likewise, as the coefficients add up to 1
      found.proposal.coefficients, [1, 2, -1, -1]
    )
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
    before = model_lib.build(config_lib.resolve(config)).state
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
