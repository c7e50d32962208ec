import contextlib
import glob
import importlib
import os
import pathlib
import re
import tempfile
from unittest import mock

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
import tensorflow_datasets as tfds

from configs import cifar10, default, digits_drl
from diffusion_ebm import config as config_lib
from diffusion_ebm import data, train_step
from diffusion_ebm import model as model_lib
from diffusion_ebm.run import compilation
from diffusion_ebm.run.errors import UserError
from tests import testing

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
NAMES = sorted(
  name
  for name in (os.path.basename(path)[:-3] for path in glob.glob(os.path.join(ROOT, 'configs', '*.py')))
  if name not in ('__init__', 'default')
)
OWN = (
  'digits',
  'toy2d',
  'images',
  'images_small',
  'digits_t1k',
  'digits_density',
  'digits_cdrl',
  'digits_drl',
  'toy2d_density',
  'toy2d_t1k',
  'toy2d_cdrl',
)
TFDS = [name for name in NAMES if name not in OWN]


def get(name):
  return importlib.import_module(f'configs.{name}').get_config()


class ConfigsTest(parameterized.TestCase):
  def test_there_is_one_of_each_name(self):
    self.assertEqual(
      NAMES,
      sorted(
        [
          'digits',
          'toy2d',
          'mnist',
          'cifar10',
          'cifar100',
          'svhn',
          'celeba64',
          'lsun_church64',
          'lsun_bedroom64',
          'lsun_church128',
          'lsun_bedroom128',
          'celebahq128',
          'celebahq256',
          'images',
          'images_small',
          'cifar10_t1k',
          'digits_t1k',
          'digits_density',
          'toy2d_density',
          'toy2d_t1k',
          'cifar10_cdrl',
          'imagenet32_cdrl',
          'imagenet32_cdrl_classes',
          'cifar10_cdrl_classes',
          'cifar10_16',
          'cifar10_cpu',
          'digits_classes',
          'digits_cdrl',
          'digits_drl',
          'toy2d_cdrl',
        ]
      ),
    )

  @parameterized.parameters(*NAMES)
  def test_nothing_is_wrong_with_it(self, name):
    config_lib.check(config_lib.resolve(get(name)), 1)

  @parameterized.parameters(
    ('cifar10', 8, 256, 0.9, (1, 2, 2, 2)),
    ('celeba64', 6, 128, 0.5, (1, 2, 2, 2, 4)),
    ('lsun_church64', 2, 128, 0.9, (1, 2, 2, 2, 4)),
    ('lsun_bedroom64', 2, 128, 0.9, (1, 2, 2, 2, 4)),
    ('lsun_church128', 2, 64, 0.5, (1, 2, 2, 2, 4, 4)),
    ('lsun_bedroom128', 5, 64, 0.5, (1, 2, 2, 2, 4, 4)),
    ('celebahq256', 2, 64, 0.5, (1, 1, 2, 2, 2, 4, 4)),
  )
  def test_published_settings(self, name, blocks, batch, beta_1, ch_mult):
    config = config_lib.resolve(get(name))
    model, sampling, train = config.model, config.sampling, config.train
    self.assertEqual(
      (model.num_res_blocks, train.batch_size, train.beta_1, model.ch_mult), (blocks, batch, beta_1, ch_mult)
    )
    self.assertEqual(
      (model.ch, model.act, model.final_act, model.norm, model.dropout, model.shortcut),
      (128, 'lrelu', 'relu', 'none', 0.0, 'conv'),
    )
    self.assertTrue(model.spectral_norm and model.use_scale and config.data.random_flip)
    self.assertFalse(model.resample_with_conv or model.attention_resolutions or train.cosine_decay or train.grad_clip)
    self.assertEqual(
      (
        config.diffusion.num_levels,
        sampling.num_steps,
        sampling.step_size,
        sampling.step_size_rule,
        sampling.noise_scale,
        sampling.generation_steps,
      ),
      (6, 30, 2e-4, 'cumulative', 0.99, 0),
    )
    self.assertEqual((train.learning_rate, train.warmup_steps, train.ema_decay), (1e-4, 1000, 0.999))

  @parameterized.parameters('digits', 'toy2d_t1k')
  def test_its_network_takes_one_step_on_its_data(self, name):
    self.take_one_step(name)

  @testing.long
  @parameterized.parameters(
    'cifar10', 'cifar10_cpu', 'cifar10_t1k', 'digits_classes', 'digits_cdrl', 'digits_density', 'toy2d_cdrl'
  )
  def test_each_kind_of_network_takes_one_step_on_its_data(self, name):
    self.take_one_step(name)

  @testing.long
  @parameterized.parameters(*NAMES)
  def test_its_data_have_the_networks_shape_and_classes(self, name):
    config = config_lib.resolve(get(name))
    batch, label = self.read(name, config)
    size = config.data.image_size
    shape = (2,) if config.data.name == 'toy2d' else (size, size, config.data.num_channels)
    self.assertEqual(batch.shape[1:], shape)
    if config.model.num_classes:
      self.assertTrue(np.all((label >= 0) & (label < config.model.num_classes)))

  def read(self, name, config):
    """Two examples of a configuration's data, and their classes, None where there are none."""
    if config.data.name == 'images':
      size = config.data.image_size
      return np.random.default_rng(0).integers(0, 256, (2, size, size, 3)).astype(np.uint8), None
    config.data.train_split = config.data.train_split.partition('[')[0]
    with tfds.testing.mock_data(num_examples=2) if name in TFDS else contextlib.nullcontext():
      source = data.load_source(config.data, 'train')
      return source.read(np.arange(2)), None if source.labels is None else source.labels[:2]

  def take_one_step(self, name):
    config = config_lib.resolve(get(name))
    config.model.update({'ch': 4, 'num_res_blocks': 1, 'ch_mult': (1,)})
    config.proposal.update({'ch': 4, 'num_res_blocks': 1, 'ch_mult': (1,), 'warmup_steps': 0})
    config.sampling.num_steps = 1
    config.train.warmup_steps = 0
    batch, label = self.read(name, config)
    model = model_lib.build(config)
    self.assertEqual(batch.shape[1:], model.shape)
    label = 1 + label if config.model.num_classes else None
    settings = train_step.StepSettings(0, 1, 0.5, config.data.random_flip)
    state, metrics = compilation.once(
      lambda state, batch, label: train_step.train_step(
        state, batch, jnp.arange(2), label, trainable=model.trainable, settings=settings
      )
    )(model.state, batch, label)
    self.assertTrue(np.isfinite(metrics['loss']))
    moved = jax.tree.map(lambda a, b: float(np.max(np.abs(a - b))), state.params, model.state.params)
    self.assertGreater(max(jax.tree.leaves(moved)), 0)

  def test_none_is_taken_for_empty(self):
    config = digits_drl.get_config()
    config.eval.update({'statistics': 'None', 'split': 'None'})
    config.model.ch_mult, config.density.levels = (None,), (None,)
    resolved = config_lib.resolve(config)
    self.assertEqual((resolved.eval.statistics, resolved.eval.split), ('', ''))
    self.assertEqual((resolved.model.ch_mult, resolved.density.levels), ((), ()))
    self.assertEqual(config_lib.resolve(digits_drl.get_config()).to_dict(), digits_drl.get_config().to_dict())

  @parameterized.parameters(
    ('', ''),
    ('photos', '/here/photos'),
    ('../photos.zip', '/photos.zip'),
    ('/a/photos/', '/a/photos'),
    ('~/photos', '/home/me/photos'),
    ('file:///a%20b', '/a b'),
    ('gs://bucket/tfds', 'gs://bucket/tfds'),
    ('https://example.com/a.zip', 'https://example.com/a.zip'),
  )
  def test_resolving_says_where_the_data_are_whatever_folder_comes_next(self, given, expected):
    config = get('images_small')
    config.data.path = given
    with mock.patch.object(os, 'getcwd', return_value='/here'), mock.patch.dict(os.environ, {'HOME': '/home/me'}):
      self.assertEqual(config_lib.resolve(config).data.path, expected)

  def test_resolving_leaves_the_original_alone(self):
    config = get('cifar10')
    self.assertEqual(config_lib.resolve(config).model.ch_mult, (1, 2, 2, 2))
    self.assertEqual(config.model.ch_mult, ())

  def test_every_default_is_read_by_something(self):
    source = ''.join(
      pathlib.Path(path).read_text(encoding='utf-8')
      for path in glob.glob(os.path.join(ROOT, 'diffusion_ebm', '**', '*.py'), recursive=True)
    )
    for key, _ in config_lib.flatten(default.get_config().to_dict()):
      if key not in ('data.train_split', 'data.test_split'):  # read as data[f'{split}_split'] or by name
        self.assertRegex(source, r'\.' + re.escape(key.rpartition('.')[2]) + r'\b', key)


class CheckTest(parameterized.TestCase):
  @parameterized.parameters(
    ('seed', -1),
    ('data.name', ''),
    ('data.max_memory_gb', 0.0),
    ('data.num_workers', -1),
    ('data.num_channels', 2),
    ('data.image_size', 7),
    ('data.image_size', 0),
    ('data.grey_levels', 1),
    ('model.quadratic', -1.0),
    ('diffusion.temperature', 'two'),
    ('train.objective', 'ml'),
    ('train.level_weight', 'x'),
    ('train.time_score', -1.0),
    ('train.score_matching', -1.0),
    ('model.level_embedding', 'x'),
    ('sampling.num_steps', -1),
    ('sampling.generation_steps', -2),
    ('density.split', 'all'),
    ('density.kernel', 'ula'),
    ('density.num_leapfrog', 0),
    ('density.num_chains', 1),
    ('density.pilot_chains', 1),
    ('density.num_steps', 0),
    ('density.data_steps', -1),
    ('density.num_draws', 0),
    ('density.rung_ess', 1.0),
    ('density.overlap', 0.0),
    ('density.rtol', 1.0),
    ('density.num_probes', -1),
    ('density.num_images', -1),
    ('density.bracket', False),
    ('density.num_ladders', 1),
    ('density.num_rounds', 0),
    ('density.exchange_steps', 0),
    ('density.reverse_from', 'exchange'),
    ('density.checks', ('ais',)),
    ('density.acceptance', 1.0),
    ('density.levels', (6,)),
    ('long_run.kernel', 'nuts'),
    ('long_run.split', 'all'),
    ('long_run.extractor', 'vgg'),
    ('long_run.num_leapfrog', 0),
    ('long_run.level', -1),
    ('long_run.num_chains', 1),
    ('long_run.thin', 0),
    ('long_run.num_steps', 1500),
    ('long_run.step_size', -1.0),
    ('long_run.acceptance', 1.0),
    ('long_run.warmup_steps', 0),
    ('model.name', 'transformer'),
    ('model.dtype', 'float16'),
    ('model.act', 'tanh'),
    ('model.final_act', 'tanh'),
    ('model.norm', 'layer'),
    ('model.shortcut', 'none'),
    ('model.ch', 2),
    ('model.num_res_blocks', 0),
    ('model.dropout', 1.0),
    ('model.attention_resolutions', (16,)),
    ('diffusion.num_levels', 1),
    ('diffusion.num_levels', 1001),
    ('sampling.num_steps', 0),
    ('sampling.generation_steps', -1),
    ('sampling.step_size', 0.0),
    ('sampling.step_size_rule', 'x'),
    ('sampling.noise_scale', -0.1),
    ('sampling.full_noise_levels', -1),
    ('sampling.flow_steps', -1),
    ('sampling.flow_steps', 7),
    ('sampling.batch_size', 0),
    ('train.batch_size', 0),
    ('train.batch_size', 7),
    ('train.num_steps', -1),
    ('train.learning_rate', 0.0),
    ('train.learning_rate', 1e40),
    ('model.precision', 'exact'),
    ('train.beta_1', 1.0),
    ('train.warmup_steps', -1),
    ('train.grad_clip', -1.0),
    ('train.ema_decay', 1.0),
    ('train.log_every', 0),
    ('train.sample_every', 0),
    ('train.checkpoint_every', 0),
    ('train.keep_checkpoints', 0),
    ('train.keep_every', -1),
    ('eval.extractor', 'vgg'),
    ('eval.split', 'validation'),
    ('eval.num_samples', 19),
    ('eval.seed', -1),
    ('eval.batch_size', 0),
    ('eval.max_wait_minutes', -1.0),
    ('steps.num_steps', (5, -1)),
  )
  def test_a_bad_value_is_named(self, key, value):
    config = digits_drl.get_config()
    section, _, name = key.rpartition('.')
    (config[section] if section else config)[name] = value
    with self.assertRaisesRegex(UserError, re.escape(key)):
      config_lib.check(config_lib.resolve(config), 2)

  def test_the_flow_has_no_chains_to_correct(self):
    config = digits_drl.get_config()
    config.sampling.update({'flow_steps': 6})
    config_lib.check(config_lib.resolve(config), 1)
    config.sampling.corrected = 'mala'
    with self.assertRaisesRegex(UserError, r'sampling\.flow_steps is 6, but sampling\.corrected asks for chains'):
      config_lib.check(config_lib.resolve(config), 1)

  def test_all_that_is_wrong_is_said_at_once(self):
    config = digits_drl.get_config()
    config.train.learning_rate, config.model.act = -1.0, 'tanh'
    with self.assertRaisesRegex(UserError, r'train\.learning_rate.*model\.act'):
      config_lib.check(config_lib.resolve(config), 1)

  def test_a_width_that_groups_cannot_share_is_refused(self):
    config = digits_drl.get_config()
    config.model.update({'norm': 'group', 'ch': 40})
    with self.assertRaisesRegex(UserError, 'groups'):
      config_lib.check(config, 1)

  def test_image_sizes_without_a_published_width_need_one(self):
    config = get('images')
    config.data.image_size = 48
    with self.assertRaisesRegex(UserError, 'ch_mult'):
      config_lib.check(config_lib.resolve(config), 1)

  def test_vectors_are_scored_as_they_are(self):
    config = get('toy2d')
    config.eval.extractor = 'classifier'
    with self.assertRaisesRegex(UserError, r'eval\.extractor'):
      config_lib.check(config, 1)

  def test_vectors_need_an_mlp(self):
    config = get('toy2d')
    config.model.name = 'resnet'
    with self.assertRaisesRegex(UserError, 'mlp'):
      config_lib.check(config, 1)


class RulesTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.defaults = dict(config_lib.flatten(default.get_config().to_dict()))
    # Between them every rule applies to one; of each, no value is wrong.
    names = ('digits', 'toy2d', 'digits_density', 'digits_cdrl', 'toy2d_cdrl', 'toy2d_density')
    self.configs = [config_lib.resolve(get(name)) for name in names]

  def broken(self, rule, config):
    """`(config, said)`: with a value that breaks the rule, of the type of the key's default, and what is said of it."""
    value = self.defaults[rule.key]
    kind = int if isinstance(value, list) else type(value)
    candidates = {bool: (False, True), str: ('', 'nonsense', 'resnet', 'unet', 'inception', 'step_size')}.get(
      kind, (-2, -1, 0, 1, 2, 3, 4, 1001, 2000)
    )
    wrong = next(kind(each) for each in candidates if not rule.holds(kind(each)))
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict({rule.key: (wrong,) if isinstance(value, list) else wrong})
    return config, f'{rule.key} is {wrong!r}, {rule.wanted}'

  def test_every_key_is_one_of_the_configuration(self):
    self.assertLessEqual({rule.key for rule in config_lib.RULES}, self.defaults.keys())

  def test_a_value_that_breaks_a_rule_is_named_with_what_is_wanted(self):
    for rule in config_lib.RULES:
      with self.subTest(f'{rule.key} {rule.wanted}'):
        config = next(config for config in self.configs if rule.applies(config))
        config_lib.check(config, 1)
        broken, said = self.broken(rule, config)
        with self.assertRaisesRegex(UserError, re.escape(said)):
          config_lib.check(broken, 1)

  def test_a_rule_counts_only_where_it_applies(self):
    for rule in config_lib.RULES:
      for config in self.configs:
        if not rule.applies(config):
          with self.subTest(f'{rule.key} {rule.wanted}'):
            broken, said = self.broken(rule, config)
            self.assertNotIn(said, config_lib._broken_rules(broken))


class WorkdirTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.workdir = self.enterContext(tempfile.TemporaryDirectory())

  def test_what_is_saved_is_read_back(self):
    config = digits_drl.get_config()
    config_lib.save(config, self.workdir)
    self.assertEqual(config_lib.load(self.workdir).to_dict(), config.to_dict())

  def test_another_run_is_refused_and_the_same_one_may_go_on_longer(self):
    config = digits_drl.get_config()
    config_lib.save(config, self.workdir)
    config.train.num_steps += 1
    config.train.log_every += 1
    config_lib.check_same_run(config, self.workdir)
    config.model.ch, config.seed = 32, 5
    with self.assertRaisesRegex(UserError, r'model\.ch \(16 there, 32 here\), seed \(0 there, 5 here\)'):
      config_lib.check_same_run(config, self.workdir)
    config_lib.check_same_run(config, self.workdir, free=('model', 'seed'))

  def test_a_version_of_the_data_set_makes_no_other_run(self):
    config = cifar10.get_config()
    config_lib.save(config, self.workdir)
    config.data.name = 'cifar10:3.0.1'
    config_lib.check_same_run(config, self.workdir)
    config.data.name = 'cifar100:3.0.2'
    with self.assertRaisesRegex(UserError, r"data\.name \('cifar10' there, 'cifar100:3\.0\.2' here\)"):
      config_lib.check_same_run(config, self.workdir)

  def test_with_cosine_decay_the_length_belongs_to_the_run(self):
    config = digits_drl.get_config()
    config.train.cosine_decay = True
    config_lib.save(config, self.workdir)
    config.train.num_steps += 1
    with self.assertRaisesRegex(
      UserError,
      rf'train\.num_steps .*cosine.*another --workdir; --config\.train\.init_from={self.workdir} lets it start',
    ):
      config_lib.check_same_run(config, self.workdir)

  def test_a_damaged_file_is_named(self):
    with open(os.path.join(self.workdir, 'config.json'), 'w', encoding='utf-8') as file:
      file.write('{')
    with self.assertRaisesRegex(UserError, r'config\.json'):
      config_lib.load(self.workdir)


if __name__ == '__main__':
  absltest.main()
