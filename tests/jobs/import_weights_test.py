"""The importing job, on a checkpoint that PyTorch wrote and on figures of both published implementations."""

import functools
import json
import os
import pathlib
import pickle
import tempfile
import zipfile

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np

from configs import cifar10, cifar10_cdrl
import diffusion_ebm
from diffusion_ebm import config as config_lib
from diffusion_ebm import model as model_lib
from diffusion_ebm import recovery, sampling, trained
from diffusion_ebm.jobs import evaluate, import_weights, sample
from diffusion_ebm.run import checkpoints, torch_file
from diffusion_ebm.run.errors import UserError
from tests import testing, torch_files
from tests.networks import published_weights_test
from tests.networks.cdrl_weights_test import assert_close, generation_noise, images

FIXTURES = pathlib.Path(__file__).parents[1] / 'fixtures'
CHECKPOINT = str(FIXTURES / 'cdrl_checkpoint.pth.tar')


@functools.cache
def figures(name='cdrl_checkpoint'):
  with np.load(FIXTURES / f'{name}.npz', allow_pickle=False) as file:
    return dict(file)


def cdrl_config(path=CHECKPOINT):
  config = cifar10_cdrl.get_config()
  config.import_weights.path = str(path)
  config.data.update({'name': 'images', 'path': '/nowhere', 'image_size': 8})
  config.sampling.update({'num_steps': 3, 'batch_size': 2, 'num_samples': 2})
  return config


def drl_config(path, **model):
  config = cifar10.get_config()
  config.import_weights.path = str(path)
  config.model.update(model)
  return config


def checkpoint():
  """What the checkpoint holds, with arrays for tensors; everything is a copy."""

  def arrays(value):
    if isinstance(value, torch_file.Tensor):
      return value.read()
    if isinstance(value, dict):
      return {key: arrays(each) for key, each in value.items()}
    return [arrays(each) for each in value] if isinstance(value, list) else value

  with torch_file.opened(CHECKPOINT, 2**22) as saved:
    return arrays(saved)


def restore(workdir):
  """`(state, batches_read)` of the checkpoint."""
  manager = checkpoints.open_for_reading(workdir)
  restored = checkpoints.restore(manager, model_lib.build(config_lib.load(workdir)).abstract_state)
  manager.close()
  return restored


class CdrlTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.workdir = cls.enterClassContext(tempfile.TemporaryDirectory())
    with cls.assertLogs(cls(), 'diffusion_ebm', 'INFO') as logs:
      import_weights.run(cdrl_config(), cls.workdir)
    cls.said = [record.getMessage() for record in logs.records]
    cls.config = config_lib.load(cls.workdir)

  def runTest(self):  # so that the class can be made for `assertLogs`
    pass

  def test_energy_and_its_gradient_are_those_of_the_averaged_weights(self):
    _, ebm, *_ = trained.load(self.config, self.workdir)
    y = images(figures()['noise'][0])
    # The figures are of log SNR 0.1411, near that of level 3.
    angle = 2000 / np.pi * np.arctan(np.exp(-0.1411 / 2))
    self.assertAlmostEqual(ebm.network.coordinates[3], angle, delta=0.01)
    ebm = ebm.replace(network=ebm.network.clone(coordinates=(angle,) * 6))

    @jax.jit
    def compute(ebm):
      model = ebm.at(jnp.zeros(len(y), int))
      return model.f(y), jax.grad(lambda y: jnp.sum(model.f(y)))(y)

    f, gradient = compute(ebm)
    assert_close(f, figures()['f'])
    assert_close(gradient, images(figures()['grad_f']))

  @testing.long
  def test_samples_are_those_of_the_averaged_weights(self):
    _, ebm, proposal, *_ = trained.load(self.config, self.workdir)
    white, noise = generation_noise(figures()['noise'], 3)
    settings = sampling.Settings(3, denoised=True, denoise_factor=2.0)
    samples, _ = jax.jit(lambda ebm, proposal: sampling.descend(ebm, white, noise, settings, proposal=proposal))(
      ebm, proposal
    )
    assert_close(samples, images(figures()['samples']), 5e-4)

  def test_the_state_is_what_the_checkpoint_holds(self):
    state, batches = restore(self.workdir)
    saved = checkpoint()
    self.assertEqual((int(state.step), int(state.bad_steps), batches), (0, 0, 0))
    weights = {key.removeprefix('module.'): value for key, value in saved['pi_state_dict'].items()}
    averages = saved['pi_ema_state_dict']['shadow_params']
    body = state.params['body']['level_1_block_0']
    expected = weights['module_list.3.conv1.weight_orig'].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(body['conv_1']['kernel'], expected)
    np.testing.assert_array_equal(body['conv_2']['scale'], weights['module_list.3.g'].ravel())
    u = state.spectral['embedding']['level_0_block_0']['kernel']
    np.testing.assert_array_equal(u, weights['module_list.1.temb_map.weight_u'])
    np.testing.assert_array_equal(state.ema_params['embedding']['dense_0']['bias'], averages[0])
    np.testing.assert_array_equal(state.ema_params['embedding']['head']['kernel'], averages[-1].T)
    out = saved['p_ema_state_dict']['shadow_params'][-1], saved['p_state_dict']['module.final_conv.bias']
    np.testing.assert_array_equal(state.proposal.ema_params['conv_out']['bias'], out[0])
    np.testing.assert_array_equal(state.proposal.params['conv_out']['bias'], out[1])
    for moments in jax.tree.leaves((state.opt_state, state.proposal.opt_state)):
      self.assertFalse(np.any(moments))

  def test_the_configuration_says_what_the_networks_are_made_of(self):
    model, proposal = self.config.model, self.config.proposal
    self.assertEqual((model.ch, model.ch_mult, model.num_res_blocks, model.spectral_norm), (8, (1, 2), 1, True))
    self.assertEqual((proposal.ch, proposal.ch_mult, proposal.num_res_blocks), (32, (1,), 1))
    self.assertEqual(proposal.attention_resolutions, (8,))
    self.assertEqual(self.config.import_weights.path, CHECKPOINT)
    self.assertEqual(self.config.sampling.step_size, 4e-4)

  def test_what_was_imported_is_said(self):
    self.assertIn('of CDRL, step 0: energy network of ch 8, ch_mult (1, 2), num_res_blocks 1 (8,720 par', self.said[-2])
    self.assertIn('with spectral normalisation; initialiser of ch 32', self.said[-2])
    self.assertIn('(196,835 parameters)', self.said[-2])
    self.assertIn(f'imported into {self.workdir}: draw samples with --mode=sample', self.said[-1])

  def test_training_has_ended_for_the_evaluation(self):
    self.assertTrue(evaluate._has_ended(self.workdir, checkpoints.steps(self.workdir)))

  def test_a_run_is_not_overwritten(self):
    before = testing.contents(self.workdir)
    with self.assertRaisesRegex(UserError, 'holds a run already: import into another --workdir'):
      import_weights.run(cdrl_config(), self.workdir)
    self.assertEqual(testing.contents(self.workdir), before)

  @testing.long
  def test_jobs_and_the_api_work_on_it(self):
    samples = sample.run(self.config, self.workdir)
    self.assertEqual(samples.shape, (2, 8, 8, 3))
    self.assertIn('samples_0.png', os.listdir(os.path.join(self.workdir, 'samples')))
    model = diffusion_ebm.load(self.workdir)
    self.assertEqual((model.shape, model.num_levels), ((8, 8, 3), 6))
    self.assertTrue(np.all(np.isfinite(model.energy(samples, 0))))

  def test_the_step_is_that_of_the_average(self):
    saved, folder = checkpoint(), self.enterContext(tempfile.TemporaryDirectory())
    saved['pi_ema_state_dict']['num_updates'] = 400_000
    path, workdir = os.path.join(folder, 'step.pth.tar'), os.path.join(folder, 'run')
    torch_files.save(saved, path, legacy=True)
    import_weights.run(cdrl_config(path), workdir)
    self.assertEqual(testing.steps_of(workdir), [400_000])
    self.assertTrue(evaluate._has_ended(workdir, [400_000]))
    state, _ = restore(workdir)
    first, _ = restore(self.workdir)
    jax.tree.map(np.testing.assert_array_equal, state, first.replace(step=np.int32(400_000)))


class DrlTest(parameterized.TestCase):
  def check(self, name, path, **model):
    """Compares an imported variant of the published network with its figures."""
    given, workdir = figures(name), os.path.join(self.enterContext(tempfile.TemporaryDirectory()), 'run')
    meta = json.loads(str(given['meta']))
    import_weights.run(drl_config(path, act=meta['act'], final_act=meta['final_act'], **model), workdir)
    config, ebm, proposal, _, step = trained.load(config_lib.load(workdir), workdir)
    self.assertIsNone(proposal)
    self.assertEqual(step, 0)
    found = config.model
    self.assertEqual(
      (found.ch, found.ch_mult, found.num_res_blocks, found.spectral_norm, found.use_scale),
      (meta['ch'], tuple(meta['ch_mult']), meta['nres'], not meta['no_sn'], not meta['no_scale']),
    )
    self.assertEqual(found.attention_resolutions, (16,) if meta['attn'] else ())
    self.assertEqual((found.shortcut, found.resample_with_conv), ('nin' if meta['nin'] else 'conv', meta['resamp']))
    t, x, x_next = (jnp.asarray(given[name]) for name in ('t', 'x', 'x_t_plus_1'))
    noise = jnp.asarray(given['langevin_noise'])

    @jax.jit
    def compute(ebm):
      model = ebm.at(t)
      x_neg = recovery.sample_conditional(model, x_next, lambda k: noise[k], meta['K'])
      return model.f(x), jax.grad(lambda x: jnp.sum(model.f(x)))(x), x_neg

    f, gradient, x_neg = compute(ebm)
    published_weights_test.assert_close(f, given['f'])
    published_weights_test.assert_close(gradient, given['grad_f'])
    published_weights_test.assert_close(x_neg - x_next, given['x_neg'] - given['x_t_plus_1'], 2e-3)

  def test_figures_of_the_plain_network(self):
    self.check('base', FIXTURES / 'base.npz')

  @parameterized.parameters('attention_swish', 'resample_conv_nin', 'no_spectral_norm')
  @testing.long
  def test_figures_of_other_networks(self, name):
    model = {'spectral_norm': False} if name == 'no_spectral_norm' else {}
    self.check(name, FIXTURES / f'{name}.npz', **model)

  @testing.long
  def test_names_without_a_prefix(self):
    path = os.path.join(self.enterContext(tempfile.TemporaryDirectory()), 'weights.npz')
    weights = {key[7:]: np.float64(value) for key, value in figures('base').items() if key.startswith('params/')}
    np.savez(path, **weights)
    self.check('base', path)

  def assert_refused(self, message, config):
    workdir = os.path.join(self.enterContext(tempfile.TemporaryDirectory()), 'run')
    with self.assertRaisesRegex(UserError, message) as caught:
      import_weights.run(config, workdir)
    self.assertNotIn('\n', str(caught.exception))
    self.assertFalse(os.path.exists(workdir))

  def test_what_does_not_fit_is_refused(self):
    path = os.path.join(self.enterContext(tempfile.TemporaryDirectory()), 'weights.npz')
    base = {key: value for key, value in figures('base').items() if key.startswith('params/')}
    last = 'params/level_3/block_0/conv_2/kernel'
    for change, message in (
      ({last: None}, r'does not fit \(energy network: body/level_3_block_0/conv_2/kernel is missing\)'),
      ({last: np.zeros((3, 3, 16, 8))}, r'conv_2/kernel has the shape \(3, 3, 16, 8\), not \(3, 3, 16, 16\)'),
      ({last: base[last] * np.nan}, r'energy network: body/level_3_block_0/conv_2/kernel is not finite'),
      ({'params/level_0/block_0/conv_9/kernel': np.zeros(3)}, r'body/level_0_block_0/conv_9/kernel is unknown'),
      ({'params/conv_in/kernel': None}, r'cannot be imported \(it has no conv_in/kernel'),
      ({'params/level_2/block_0/conv_1/kernel': np.zeros((3, 3, 16, 9))}, r'\(the blocks of its network are not'),
      ({'params/temb_dense_0/u': None}, r'spectral normalisation: embedding/dense_0/kernel is missing'),
    ):
      with self.subTest(message):
        np.savez(path, **{key: value for key, value in (base | change).items() if value is not None})
        self.assert_refused(message, drl_config(path))
    np.savez(path, x=np.zeros(3))
    self.assert_refused(r'cannot be imported \(it has no conv_in/kernel', drl_config(path))
    np.savez(path, x=np.array([{}]))
    self.assert_refused(r'cannot be imported \(Object arrays', drl_config(path))

  def test_weights_without_vectors_must_be_said_to_have_none(self):
    message = r'no vectors of spectral normalisation .*--config\.model\.spectral_norm=False'
    self.assert_refused(message, drl_config(FIXTURES / 'no_spectral_norm.npz'))

  def test_the_configuration_of_cdrl_is_refused(self):
    message = (
      r"configuration: weights of DRL need .*model\.level_embedding='index' \(here 'angle'\).*"
      r"proposal\.name='' \(here 'unet'\): start from --config=configs/cifar10\.py"
    )
    self.assert_refused(message, cdrl_config(FIXTURES / 'base.npz'))


class RefusedTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = self.enterContext(tempfile.TemporaryDirectory())
    self.path = os.path.join(self.folder, 'weights.pth.tar')

  def assert_refused(self, message, config=None):
    workdir = os.path.join(self.folder, 'run')
    with self.assertRaisesRegex(UserError, message) as caught:
      import_weights.run(config or cdrl_config(self.path), workdir)
    self.assertNotIn('\n', str(caught.exception))
    self.assertFalse(os.path.exists(workdir))

  def save(self, tree):
    torch_files.save(tree, self.path)

  def test_no_file(self):
    self.assert_refused(r'--path=.*weights\.pth\.tar is no file: name .*an exported model .*a checkpoint of CDRL')
    self.assert_refused(r'--path=.* is no file', cdrl_config(self.folder))
    self.assert_refused(r'--path is missing: name .*an exported model .*a checkpoint of CDRL', cdrl_config(''))

  @parameterized.parameters(
    (b'', 'it is empty'),
    (b'<!DOCTYPE html><title>Google Drive - Virus scan warning</title>', 'it is a web page'),
    (b'version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 6\n', 'it is a pointer of Git LFS'),
    (b'\x89PNG\r\n\x1a\n', 'it is an image'),
    (pathlib.Path(CHECKPOINT).read_bytes()[:100_000], 'it is cut short'),
    (b'weights', 'invalid load key'),
  )
  def test_other_files(self, content, cause):
    pathlib.Path(self.path).write_bytes(content)
    self.assert_refused(rf'weights\.pth\.tar cannot be imported \({cause}.*\): it should be a checkpoint of CDRL')

  def test_a_file_that_executes_something(self):
    marker = self.path + '.ran'

    class Evil:
      def __reduce__(self):
        return os.mkdir, (marker,)

    with zipfile.ZipFile(self.path, 'w') as archive:
      archive.writestr('x/data.pkl', pickle.dumps({'pi_state_dict': Evil()}))
    self.assert_refused(r'cannot be imported \(it calls .*mkdir, which no file of weights needs\)')
    self.assertFalse(os.path.exists(marker))

  def test_weights_of_other_models(self):
    self.save({'conv1.weight': np.zeros((64, 3, 7, 7)), 'fc.bias': np.zeros(1000)})
    self.assert_refused(r'\(it has no pi_state_dict, as checkpoints of CDRL have\)')
    self.save([np.zeros(3)])
    self.assert_refused(r'\(it has no pi_state_dict, as checkpoints of CDRL have\)')
    with np.load(FIXTURES / 'cdrl_uncond.npz') as file:
      saved = checkpoint() | {'pi_state_dict': {'net.weight': file['input/x_0']}}
    self.save(saved)
    self.assert_refused(r'averages \(shadow_params\) for 1 weights')

  def test_a_model_with_classes_in_one_network_alone(self):
    for network, name in (('pi', 'y_map.weight_orig'), ('p', 'y_mlp.0.weight')):
      saved = checkpoint()
      saved[f'{network}_state_dict'][f'module.{name}'] = np.zeros((64, 4), np.float32)
      saved[f'{network}_ema_state_dict']['shadow_params'].append(np.zeros((64, 4), np.float32))
      self.save(saved)
      self.assert_refused('label')

  def test_what_does_not_fit(self):
    kernel, bias = 'module.module_list.1.conv2.weight_orig', 'module.downs.0.0.norm1.bias'

    def change(network, name, value):
      saved = checkpoint()
      names = [key for key in saved[f'{network}_state_dict'] if not key.endswith(('_u', '_v'))]
      place, averages = names.index(name), saved[f'{network}_ema_state_dict']['shadow_params']
      if value is None:
        del saved[f'{network}_state_dict'][name], averages[place]
      else:
        saved[f'{network}_state_dict'][name] = averages[place] = np.asarray(value, np.float32)
      return saved

    def nan():
      saved = checkpoint()
      saved['p_ema_state_dict']['shadow_params'][3][0] = np.nan
      return saved

    def without_vector():
      saved = checkpoint()
      del saved['pi_state_dict']['module.module_list.1.conv2.weight_u']
      return saved

    for saved, message in (
      (
        change('pi', kernel, None),
        r'does not fit \(energy network: body/level_0_block_0/conv_2/kernel is missing, aver',
      ),
      (change('p', bias, None), r'\(initialiser: down_0_block_0/norm_1/bias is missing, average of the initialiser: '),
      (change('p', bias, np.zeros(31)), r'norm_1/bias has the shape \(31,\), not \(32,\)'),
      (nan(), r'does not fit \(average of the initialiser: dense_0/bias is not finite\): it is damaged'),
      (without_vector(), r'\(spectral normalisation: body/level_0_block_0/conv_2/kernel is missing\)'),
      (change('pi', 'module.module_list.3.conv1.weight_orig', np.zeros((12, 8, 3, 3))), 'blocks of its energy network'),
      (change('p', 'module.downs.0.0.conv1.weight', np.zeros((33, 32, 3, 3))), 'the blocks of its initialiser'),
    ):
      with self.subTest(message):
        self.save(saved)
        self.assert_refused(message)

  def test_averages_that_are_not_as_many(self):
    saved = checkpoint()
    saved['p_ema_state_dict']['shadow_params'].pop()
    self.save(saved)
    self.assert_refused(r'it has 87 averages \(shadow_params\) for 88 weights')
    saved['p_ema_state_dict']['shadow_params'] = None
    self.save(saved)
    self.assert_refused('it has no shadow_params, as checkpoints of CDRL have')

  def test_a_step_that_is_none(self):
    for value, message in ((None, 'it has no num_updates'), (-1, 'num_updates is -1'), (2**31, 'num_updates is 2147')):
      saved = checkpoint()
      saved['pi_ema_state_dict']['num_updates'] = value
      self.save(saved)
      self.assert_refused(message)

  def test_images_of_another_kind(self):
    config = cdrl_config()
    config.data.num_channels = 1
    message = (
      r'body/conv_in/kernel has the shape \(3, 3, 3, 8\), not \(3, 3, 1, 8\).*other images than 8x8x1 \(--config'
    )
    self.assert_refused(message, config)

  def test_a_configuration_that_contradicts(self):
    self.assert_refused(
      r"configuration: weights of CDRL need model\.level_embedding='angle' \(here 'index'\), .*proposal\.name='unet' "
      r"\(here ''\): start from --config=configs/cifar10_cdrl\.py",
      drl_config(CHECKPOINT),
    )


if __name__ == '__main__':
  absltest.main()
