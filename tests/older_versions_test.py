"""Configurations of older versions, as they lie in workdirs."""

import json
import os
import tempfile

from absl.testing import absltest, parameterized
import ml_collections

from configs import default, digits, toy2d_t1k
from diffusion_ebm import config as config_lib
from diffusion_ebm import older_versions
from diffusion_ebm.run.errors import UserError


class WorkdirTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.workdir = self.enterContext(tempfile.TemporaryDirectory())

  def write(self, saved):
    """As another version would have written it."""
    with open(os.path.join(self.workdir, 'config.json'), 'w', encoding='utf-8') as file:
      json.dump(saved, file)

  def test_it_says_what_it_meant_by_keys_that_came_later(self):
    config = toy2d_t1k.get_config()
    saved = config.to_dict()
    for section, key in (
      ('data', 'test_fraction'),
      ('model', 'level_embedding'),
      ('model', 'normal_factor'),
      ('train', 'level_weight'),
      ('train', 'time_score'),
      ('train', 'score_matching'),
    ):
      del saved[section][key]
    self.write(saved)
    loaded = config_lib.load(self.workdir)
    self.assertEqual(
      (
        loaded.model.level_embedding,
        loaded.model.normal_factor,
        loaded.train.level_weight,
        loaded.train.time_score,
        loaded.train.score_matching,
        loaded.data.test_fraction,
      ),
      ('index', 0, 'published', 0.0, 0.0, 0.0),
    )
    # It is not the run of the same configuration today, whose weights another network has.
    with self.assertRaisesRegex(UserError, r"model\.level_embedding \('index' there, 'log_snr' here\), train"):
      config_lib.check_same_run(config, self.workdir)

  def test_a_switch_is_the_number_that_it_is_now(self):
    config = toy2d_t1k.get_config()
    for switch, number in ((False, 0), (True, 1)):
      saved = config.to_dict()
      saved['model']['normal_factor'] = switch
      self.write(saved)
      loaded = config_lib.load(self.workdir).model.normal_factor
      self.assertEqual((type(loaded), loaded), (int, number))
      config.model.normal_factor = number
      config_lib.check_same_run(config, self.workdir)

  def test_keys_that_are_gone_do_not_make_it_another_run(self):
    config = digits.get_config()
    saved = config.to_dict()
    saved['train'] |= {'optimizer': 'adam', 'stop_on_save_error': True}
    saved['eval']['poll_seconds'] = 5.0
    self.write(saved)
    self.assertEqual(config_lib.load(self.workdir).to_dict(), config.to_dict())
    config_lib.check_same_run(config, self.workdir)

  def test_what_asks_for_something_that_is_gone_is_refused(self):
    saved = digits.get_config().to_dict()
    saved['train']['optimizer'] = 'adamax'
    self.write(saved)
    for read in (
      lambda: config_lib.load(self.workdir),
      lambda: config_lib.check_same_run(digits.get_config(), self.workdir),
    ):
      with self.assertRaisesRegex(UserError, r"\Atrain\.optimizer is 'adamax', but this version has only 'adam'"):
        read()


class ReadTest(parameterized.TestCase):
  def test_todays_configuration_is_read_as_it_is(self):
    config = digits.get_config()
    read = older_versions.read_config(json.loads(json.dumps(config.to_dict())))
    self.assertEqual(read.to_dict(), config.to_dict())
    self.assertIsInstance(read.model.ch_mult, tuple)

  @parameterized.parameters(
    ('train.optimizer', 'adam'),
    ('train.stop_on_save_error', True),
    ('train.stop_on_save_error', False),
    ('eval.poll_seconds', 0.5),
    ('density.min_acceptance', 0.3),
    ('long_run.min_acceptance', 0.3),
  )
  def test_a_key_that_is_gone_is_dropped(self, key, value):
    section, name = key.split('.')
    saved = digits.get_config().to_dict()
    saved[section][name] = value
    self.assertEqual(older_versions.read_config(saved).to_dict(), digits.get_config().to_dict())

  def test_every_key_of_the_tables_is_known_or_gone(self):
    known = dict(config_lib.flatten(default.get_config().to_dict()))
    self.assertLessEqual(older_versions._LATER.keys(), known.keys())
    self.assertFalse(older_versions._GONE.keys() & known.keys())

  def test_what_is_refused_is_said_in_one_line(self):
    saved = digits.get_config().to_dict()
    saved['train']['optimizer'] = 'adamax'
    with self.assertRaisesRegex(UserError, r"\Atrain\.optimizer is 'adamax', [^\n]* only 'adam'[^\n]*\Z"):
      older_versions.read_config(saved)

  @parameterized.parameters({}, {'train': {}}, {'train': 3, 'model': None}, {'seed': 0})
  def test_sections_that_lack_or_are_none_are_left_alone(self, **saved):
    read = older_versions.read_config(saved).to_dict()
    self.assertEqual(read.keys(), saved.keys())


class FillInTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.defaults = default.get_config()

  def test_keys_and_sections_that_lack_get_their_defaults_and_others_stay(self):
    saved = self.defaults.to_dict()
    del saved['eval'], saved['sampling']['denoise']
    saved['train']['num_steps'] = 7
    saved = older_versions.read_config(saved)
    older_versions.fill_in(saved, self.defaults, 'run')
    self.defaults.train.num_steps = 7
    self.assertEqual(saved.to_dict(), self.defaults.to_dict())

  def test_whole_numbers_may_stand_for_real_ones(self):
    saved = ml_collections.ConfigDict({'train': {'grad_clip': 1}})
    older_versions.fill_in(saved, self.defaults, 'run')
    self.assertEqual(saved.train.grad_clip, 1)

  def test_values_of_another_type_are_named_all_at_once_in_one_line(self):
    saved = ml_collections.ConfigDict(
      {
        'seed': 1.5,
        'model': 3,
        'train': {'num_steps': 'many', 'cosine_decay': 1, 'learning_rate': '1e-4'},
        'sampling': {'num_steps': True},
      }
    )
    with self.assertRaises(UserError) as caught:
      older_versions.fill_in(saved, self.defaults, 'run')
    message = str(caught.exception)
    self.assertNotIn('\n', message)
    self.assertIn('config.json in run makes no sense', message)
    for wrong in (
      'seed is 1.5, not of type int',
      'model is 3, not of type ConfigDict',
      "train.num_steps is 'many', not of type int",
      'train.cosine_decay is 1, not of type bool',
      "train.learning_rate is '1e-4', not of type float",
      'sampling.num_steps is True, not of type int',
    ):
      self.assertIn(wrong, message)


if __name__ == '__main__':
  absltest.main()
