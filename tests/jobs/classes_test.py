"""Models that are told classes: training, drawing a class, and what is refused."""

import os
import tempfile

from absl.testing import absltest
import jax
import numpy as np

import diffusion_ebm
from diffusion_ebm import config as config_lib
from diffusion_ebm import data
from diffusion_ebm import model as model_lib
from diffusion_ebm.data import kept
from diffusion_ebm.jobs import inpaint, sample, train
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
    np.testing.assert_allclose(both.energy(x, 2), expected, rtol=1e-4, atol=0.05)
    self.assertEqual(both.sample(jax.random.key(1), 2).shape, (2, 8, 8, 1))

  def test_other_jobs_take_the_class(self):
    for label in ('', '3'):
      config = classes_config(label)
      config.inpaint.update({'num_images': 2, 'completions': 1, 'repeats': 1})
      inpaint.run(config, self.workdir)
    folder = os.path.join(self.workdir, 'inpaint')
    npz = sorted(name for name in os.listdir(folder) if name.endswith('.npz'))
    self.assertLen(npz, 2)
    one, other = (files.read_npz(os.path.join(folder, name)) for name in npz)
    self.assertTrue(any(not np.array_equal(one[key], other[key]) for key in one))

  def test_classes_that_there_are_not(self):
    for label in ('11', '-1', 'seven', 'ALL'):
      with self.assertRaisesRegex(UserError, rf"sampling.label names '{label}', not one of 0, 1, .*, 0 .. 9, 'all' or ''"):
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
