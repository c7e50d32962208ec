"""The command line, from the outside."""

import importlib
import json
import os
import pkgutil
import re
import signal
import subprocess
import sys
import tempfile

from absl.testing import absltest

from configs import default
from diffusion_ebm import config as config_lib
from diffusion_ebm import jobs
import main
from tests import forks, testing

MAIN = os.path.join(testing.ROOT, 'main.py')
CHECKPOINT = os.path.join(testing.ROOT, 'tests', 'fixtures', 'cdrl_checkpoint.pth.tar')


def run(*args, **kwargs):
  return subprocess.run(
    [sys.executable, *args],
    cwd=testing.ROOT,
    capture_output=True,
    text=True,
    check=False,
    env=os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': forks.QUICK},
    **kwargs,
  )


class WrongTest(absltest.TestCase):
  def assert_one_line(self, code, stderr, message):
    self.assertEqual(code, 2, stderr)
    self.assertRegex(stderr, r'\Aerror: [^\n]*\n\Z')
    self.assertRegex(stderr, message)

  def setUp(self):
    super().setUp()
    self.folder = self.enterContext(tempfile.TemporaryDirectory())
    self.workdir = os.path.join(self.folder, 'run')

  @testing.long
  def test_what_is_wrong_is_one_line_and_nothing_is_written(self):
    for name in ('empty', 'saved'):
      os.mkdir(os.path.join(self.folder, name))
    config_lib.save(config_lib.resolve(testing.digits_config()), os.path.join(self.folder, 'saved'))
    with open(os.path.join(self.folder, 'file'), 'w', encoding='utf-8') as file:
      file.write('no folder')
    workdir, digits = f'--workdir={self.workdir}', '--config=configs/digits.py'
    images = '--config=configs/images.py'
    number, broken = (os.path.join(self.folder, name) for name in ('number.py', 'broken.py'))
    for path, text in ((number, 'def get_config():\n  return 5\n'), (broken, 'def get_config(:\n')):
      with open(path, 'w', encoding='utf-8') as file:
        file.write(text)
    cases = [
      ([workdir, digits, '--config.train.speed=3'], r'command line: no such configuration key: .*speed'),
      ([workdir, digits, '--config.train={}'], r'command line: --config lacks train.batch_size, .*, \.\.\.: begin'),
      (
        [workdir, digits + ':x'],
        r'--config=configs/digits.py:x: TypeError: .* 0 positional arguments.*; name a file such',
      ),
      ([workdir, f'--config={number}'], r'command line: --config lacks everything: begin it with a copy'),
      ([workdir, f'--config={broken}'], r'command line: --config cannot be run \(SyntaxError: .*broken.py, line 1\)'),
      ([workdir, digits, '--speed=3'], r"command line: .*Unknown .*'speed'"),
      ([workdir, digits, '--mode=dance'], r'command line: .*--mode=dance.*train\|sample'),
      ([workdir, '--config=configs/none.py'], r'command line: --config: .*configs/none\.py.*/configs has celeba64'),
      ([workdir, digits, 'toy2d'], r"command line: 'toy2d' is not a flag"),
      ([workdir, digits, '--config.train.batch_size=many'], r'command line: .*train\.batch_size=many'),
      ([workdir, digits, '--num_samples=1.5', '--mode=sample'], r'command line: .*num_samples=1\.5'),
      ([workdir, digits, '--config.train.batch_size=0'], r'configuration: train\.batch_size is 0, but must be'),
      ([workdir, digits, '--config.model.ch_mult=(1,1,1,1,1)'], r'data\.image_size is 8, not divisible by 16'),
      ([workdir, images], r'--config\.data\.path=PATH'),
      ([workdir, images, f'--config.data.path={self.folder}/nowhere'], r'/nowhere does not exist'),
      ([workdir, images, f'--config.data.path={self.folder}/empty'], r'/empty holds no images'),
      ([digits], r'--workdir is missing'),
      ([f'--workdir={self.folder}/file/run', digits], r'--workdir=.*/file/run cannot be written'),
      ([workdir, digits, '--mode=sample'], r'/run has no checkpoint: train first'),
      ([f'--workdir={self.folder}/empty', '--mode=sample'], r'/empty has no checkpoint: train first'),
      ([workdir, digits, '--mode=sample', '--num_samples=0'], r'configuration: sampling\.num_samples is 0,'),
      ([workdir, digits, '--mask=left'], r'--mask is for --mode=inpaint, not for --mode=train'),
      ([workdir, digits, '--mode=sample', '--mask=left'], r'--mask is for --mode=inpaint, not for --mode=sample'),
      ([workdir, digits, '--mode=inpaint', '--frames=3'], r'--frames is for --mode=interpolate, not for .*=inpaint'),
      ([workdir, digits, '--mode=inpaint', '--mask=middle'], r'--mask=middle is neither a file in .* nor one of left'),
      ([workdir, '--mode=import'], r'--path is missing: name cifar10_16, .*toy2d, .*a checkpoint of CDRL'),
      ([workdir, '--mode=import', '--path=none.pth'], r'--path=.*/none\.pth is no file: name cifar10_16, .* of CDRL'),
      ([workdir, '--mode=import', '--pretrained=digits'], r'--pretrained is not for --mode=import: name the model by'),
      (
        [workdir, '--mode=sample', '--pretrained=none'],
        r'^error: none is no model: name cifar10_16, .*toy2d, or the path',
      ),
      (
        [f'--workdir={self.folder}/saved', '--mode=sample', '--pretrained=digits'],
        r'/saved holds another run than --pretrained=digits: name another --workdir',
      ),
      ([workdir, '--mode=export'], r'/run has no checkpoint: train first'),
      ([f'{workdir}[', '--mode=export'], r'^error: --workdir=.* holds \[, with which'),
      ([workdir, digits, '--mode=import', f'--path={CHECKPOINT}'], r'configuration: weights of CDRL need model\.'),
      ([workdir, digits, f'--path={CHECKPOINT}'], r'--path is for --mode=import, export, not for'),
      ([f'--workdir={self.folder}/saved', '--mode=import', f'--path={CHECKPOINT}'], r'/saved holds a run already'),
      ([workdir, digits, '--mode=interpolate'], r'/run has no checkpoint: train first'),
      ([workdir, digits, '--mode=ood', '--against='], r'--against names nothing'),
      ([workdir, digits, '--mode=ood', '--seed=-1'], r'--seed is -1'),
      ([workdir, digits, '--mode=eval'], r'/run holds no run: train first'),
      ([workdir, digits, '--mode=eval', '--seed=1'], r'--seed is not for --mode=eval: set --config\.eval\.seed'),
      ([workdir, digits, '--mode=steps'], r'/run has no checkpoint: train first'),
      ([workdir, digits, '--mode=steps', '--seed=1'], r'--seed is not for --mode=steps: set --config\.eval\.seed'),
      ([workdir, digits, '--mode=steps', '--num_samples=9'], r'configuration: eval\.num_samples is 9, but must be'),
      ([workdir, digits, '--mode=steps', '--config.steps.num_steps=()'], r'steps\.num_steps names no number of steps'),
      (
        [f'--workdir={self.folder}/saved', '--mode=eval', '--num_samples=9'],
        r'configuration: eval\.num_samples is 9, but must be',
      ),
    ]
    before = testing.contents(self.folder), os.listdir(self.folder)
    results = forks.run([[{'args': args}] for args, _ in cases])
    for (args, message), (result,) in zip(cases, results, strict=True):
      with self.subTest(args[-1]):
        self.assert_one_line(*result, message)
    self.assertEqual((testing.contents(self.folder), os.listdir(self.folder)), before)

  def test_a_process_of_its_own_says_it_likewise(self):
    result = run(MAIN, f'--workdir={self.workdir}', '--config.model.depth=3')
    self.assert_one_line(result.returncode, result.stderr, 'no such configuration key: .*depth')
    self.assertEqual((result.stdout, os.listdir(self.folder)), ('', []))


class PipeTest(absltest.TestCase):
  """Nobody reads any more, as after `| head -1`."""

  def setUp(self):
    super().setUp()
    read, self.pipe = os.pipe()
    os.close(read)
    self.addCleanup(os.close, self.pipe)

  def run_main(self, *args, **streams):
    env = os.environ | {'JAX_PLATFORMS': 'cpu'}
    return subprocess.run([sys.executable, MAIN, *args], stdout=self.pipe, text=True, env=env, check=False, **streams)

  def test_help_ends_without_a_word(self):
    result = self.run_main('--help', stderr=subprocess.PIPE)
    self.assertEqual((result.returncode, result.stderr), (-signal.SIGPIPE, ''))

  @testing.long
  def test_a_job_goes_on_where_nobody_ever_read(self):
    workdir = self.enterContext(tempfile.TemporaryDirectory())
    testing.save_first_state(testing.toy2d_config(), workdir)
    command = f'exec {sys.executable} {MAIN} --workdir={workdir} --mode=sample --num_samples=4 >&- 2>&-'
    result = subprocess.run(['bash', '-c', command], env=os.environ | {'JAX_PLATFORMS': 'cpu'}, check=False)
    self.assertEqual(result.returncode, 0)
    self.assertIn('samples_0.npz', os.listdir(os.path.join(workdir, 'samples')))

  @testing.long
  def test_a_job_goes_on(self):
    workdir = self.enterContext(tempfile.TemporaryDirectory())
    testing.save_first_state(testing.toy2d_config(), workdir)
    result = self.run_main(f'--workdir={workdir}', '--mode=sample', '--num_samples=4', stderr=self.pipe)
    self.assertEqual(result.returncode, 0)
    self.assertIn('samples_0.npz', os.listdir(os.path.join(workdir, 'samples')))


class TablesTest(absltest.TestCase):
  def test_each_short_name_names_a_key_that_has_a_default(self):
    config = default.get_config()
    for name, keys in main._SHORT_NAMES.items():
      for mode, key in keys.items():
        section, _, last = key.partition('.')
        self.assertIn(mode, main._JOBS)
        self.assertIn(last, config[section], f'--{name}')

  def test_a_new_workdir_starts_on_the_configuration_of_what_is_done(self):
    for args, name in (
      ([], 'digits'),
      (['--mode=sample', '--path=x.npz'], 'digits'),
      (['--mode=import', '--path=Cifar_10.pth.tar'], 'cifar10_cdrl'),
      (['--mode=import'], 'cifar10_cdrl'),
      (['--config.import_weights.path=drl.npz', '--mode', 'import'], 'cifar10'),
      (['--mode', 'import', '--path', 'drl.npz'], 'cifar10'),
    ):
      self.assertEqual(main._default_config(args), os.path.join(testing.ROOT, 'configs', f'{name}.py'), args)

  def test_each_job_has_a_mode(self):
    names = [name for _, name, _ in pkgutil.iter_modules(jobs.__path__)]
    with_run = [name for name in names if hasattr(importlib.import_module(f'diffusion_ebm.jobs.{name}'), 'run')]
    self.assertCountEqual(with_run, main._JOBS.values())


class RunTest(absltest.TestCase):
  @testing.long
  def test_a_run_of_an_older_version_gets_the_defaults_of_what_it_does_not_know(self):
    workdir = self.enterContext(tempfile.TemporaryDirectory())
    config = config_lib.resolve(testing.digits_config())
    testing.save_first_state(config, workdir, 4)
    path = os.path.join(workdir, 'config.json')
    with open(path, encoding='utf-8') as file:
      saved = json.load(file)
    del saved['eval'], saved['sampling']['denoise']
    with open(path, 'w', encoding='utf-8') as file:
      json.dump(saved, file)
    result = run(
      MAIN,
      f'--workdir={workdir}',
      '--mode=eval',
      '--num_samples=20',
      '--config.eval.extractor=pixels',
      '--config.eval.baselines=False',
    )
    self.assertEqual(result.returncode, 0, result.stderr)
    with open(os.path.join(workdir, 'eval', 'results.jsonl'), encoding='utf-8') as file:
      (record,) = map(json.loads, file)
    self.assertEqual((record['step'], record['num_samples']), (4, 20))

  @testing.long
  def test_weights_of_another_implementation_are_imported_and_sampled(self):
    workdir = os.path.join(self.enterContext(tempfile.TemporaryDirectory()), 'cdrl')
    path = f'--config.import_weights.path={CHECKPOINT}'
    data = ('--config.data.name=images', '--config.data.path=/nowhere', '--config.data.image_size=8')
    result = run(MAIN, '--mode=import', path, f'--workdir={workdir}', *data)
    self.assertEqual(result.returncode, 0, result.stderr)
    self.assertIn(f'imported into {workdir}: draw samples with --mode=sample', result.stderr)
    result = run(MAIN, '--mode=sample', f'--workdir={workdir}', '--num_samples=2')
    self.assertEqual(result.returncode, 0, result.stderr)
    self.assertIn('samples_0.npz', os.listdir(os.path.join(workdir, 'samples')))

  def test_ctrl_c_ends_in_one_line_and_the_workdirs_own_configuration_goes_on(self):
    workdir = self.enterContext(tempfile.TemporaryDirectory())
    config = testing.digits_config(num_steps=1_000_000, checkpoint_every=1_000_000, sample_every=1_000_000)
    config_lib.save(config_lib.resolve(config), workdir)
    with subprocess.Popen(
      [sys.executable, MAIN, f'--workdir={workdir}'],
      cwd=testing.ROOT,
      stderr=subprocess.PIPE,
      text=True,
      env=os.environ | {'JAX_PLATFORMS': 'cpu'},
    ) as process:
      lines = []
      for line in process.stderr:
        lines.append(line)
        if 'training 5/1000000' in line:
          process.send_signal(signal.SIGINT)
    self.assertEqual(process.returncode, 130, ''.join(lines))
    stopped = re.fullmatch(r'stopped at step (\d+), which is saved: run the same command .*\n', lines[-1])
    self.assertIsNotNone(stopped, lines[-1])
    step = int(stopped[1])
    self.assertGreaterEqual(step, 5)
    self.assertEqual(testing.steps_of(workdir), [step])

    result = run(MAIN, f'--workdir={workdir}', f'--config.train.num_steps={step + 2}')
    self.assertEqual(result.returncode, 0, result.stderr)
    self.assertIn(f'going on from step {step}\n', result.stderr)
    self.assertEqual(testing.steps_of(workdir), [step, step + 2])
    self.assertEqual([record['step'] for record in testing.records(workdir)], list(range(1, step + 3)))
    self.assertEqual(config_lib.load(workdir).model.ch, 8)


if __name__ == '__main__':
  absltest.main()
