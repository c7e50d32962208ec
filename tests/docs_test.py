"""The examples in docs/, on a tiny run: what stands behind an expression as a comment is its value."""

import glob
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib

from absl.testing import absltest

from configs import digits, digits_classes
from tests import docs_examples, forks, testing

# With the least number of values that are said.
_PAGES = {'docs/api.md': 20, 'docs/tuning.md': 1, 'docs/pretrained.md': 0, 'README.md': 0}


@testing.long
class DocsTest(absltest.TestCase):
  """With the package alone, as after `pip install .`: neither `configs/` nor `main.py` can be imported."""

  def setUp(self):
    super().setUp()
    self.folder = os.path.realpath(self.enterContext(tempfile.TemporaryDirectory()))
    shutil.copytree(os.path.join(testing.ROOT, 'diffusion_ebm'), os.path.join(self.folder, 'site', 'diffusion_ebm'))
    for configuration in (digits, digits_classes):
      config = configuration.get_config()
      config.model.update({'ch': 8, 'ch_mult': (1,)})
      config.sampling.update({'num_steps': 2, 'generation_steps': 2})
      workdir = os.path.join(self.folder, 'runs', configuration.__name__.rpartition('.')[2])
      os.makedirs(workdir)
      testing.save_first_state(config, workdir)
    density = os.path.join(self.folder, 'runs', 'digits', 'density')
    os.mkdir(density)
    with open(os.path.join(density, 'results.json'), 'w', encoding='utf-8') as file:
      json.dump({'step': 0, 'log_z': [{'level': 0, 'log_z': 1.0}]}, file)

  def run_python(self, *args):
    """What a process prints that finds the package and what it requires, but not the project."""
    env = os.environ | {'PYTHONPATH': os.path.join(self.folder, 'site'), 'PYTHONSAFEPATH': '1', 'JAX_PLATFORMS': 'cpu'}
    env['XLA_FLAGS'] = forks.QUICK
    result = subprocess.run([sys.executable, *args], cwd=self.folder, env=env, capture_output=True, text=True)
    self.assertEqual(result.returncode, 0, result.stderr)
    return result.stdout

  def test_examples_say_what_is_so(self):
    code = 'from importlib.util import find_spec as f; print(f("configs"), f("main"), f("diffusion_ebm").origin)'
    self.assertEqual(self.run_python('-c', code), f'None None {self.folder}/site/diffusion_ebm/__init__.py\n')
    pages = [os.path.join(testing.ROOT, page) for page in _PAGES]
    printed = self.run_python(docs_examples.__file__, *pages)
    for (page, least), checked in zip(_PAGES.items(), json.loads(printed), strict=True):
      self.assertEqual([said for said, _ in checked], [found for _, found in checked], page)
      self.assertGreaterEqual(len(checked), least)


class LinksTest(absltest.TestCase):
  def test_what_is_linked_is_there(self):
    pages = ['README.md', *glob.glob(os.path.join('docs', '*.md'), root_dir=testing.ROOT)]
    for page in pages:
      with open(os.path.join(testing.ROOT, page), encoding='utf-8') as file:
        links = re.findall(r'\]\(([^)#]+)', file.read())
      for link in links:
        if '://' not in link:
          with self.subTest(page, link=link):
            self.assertTrue(os.path.exists(os.path.join(testing.ROOT, os.path.dirname(page), link)))
    self.assertGreater(len(pages), 10)


class PackageTest(absltest.TestCase):
  def test_what_is_installed_is_all_that_there_is(self):
    # setuptools looks for packages, folders with an __init__.py, and takes the Python files in them, and what is named.
    root = os.path.join(testing.ROOT, 'diffusion_ebm')
    with open(os.path.join(testing.ROOT, 'pyproject.toml'), 'rb') as file:
      named = tomllib.load(file)['tool']['setuptools']['package-data']['diffusion_ebm']
    data = {path for pattern in named for path in glob.glob(os.path.join(root, pattern))}
    self.assertNotEmpty(data)
    for folder, _, names in os.walk(root):
      if os.path.basename(folder) != '__pycache__':
        others = {os.path.join(folder, name) for name in names if not name.endswith('.py')}
        self.assertEmpty(others - data, folder)
        self.assertTrue('__init__.py' in names or others, folder)


if __name__ == '__main__':
  absltest.main()
