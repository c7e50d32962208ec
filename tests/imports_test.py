"""Arrows between the rooms of the package point one way: read from the imports of its files."""

import ast
import os
import subprocess
import sys

from absl.testing import absltest

from tests import testing

METHOD = {
  'noise_levels',
  'ebm',
  'langevin',
  'recovery',
  'dual_score_matching',
  'train_step',
  'optimizer',
  'proposal',
  'flow_sampling',
  'sampling',
  'inpainting',
  'interpolation',
  'composition',
  'corrected_sampling',
  'class_probabilities',
  'terms',
  'marginal_density',
  'preprocessing',
  'random_keys',
  'training_metrics',
}
# What a room may import beside itself and packages from elsewhere; `run.errors` is run's smallest part.
ALLOWED = {
  'method': {'networks', 'run.errors'},
  'networks': {'noise_levels', 'random_keys'},
  'density': METHOD | {'networks', 'run'},
  'data': {'run'},
  'evaluate': {'run'},
  'run': set(),
  'model': METHOD | {'networks', 'density', 'data', 'evaluate', 'run'},
  'jobs': METHOD | {'networks', 'density', 'data', 'evaluate', 'run', 'model'},
}
TOOLS = {'jobs.benchmark', 'jobs.foretell', 'jobs.replay_bad_step'}
# Files, flags and configurations are not for the method.
OUTSIDE = {'os', 'io', 'pathlib', 'json', 'absl', 'ml_collections', 'orbax', 'PIL', 'matplotlib'}


def modules():
  """Module, such as 'density.ais', to the syntax tree of its file."""
  root = os.path.join(testing.ROOT, 'diffusion_ebm')
  found = {}
  for folder, _, names in os.walk(root):
    for name in names:
      if name.endswith('.py'):
        path = os.path.join(folder, name)
        module = os.path.relpath(path, root).removesuffix('.py').replace(os.sep, '.').removesuffix('.__init__')
        with open(path, encoding='utf-8') as file:
          found[module] = ast.parse(file.read())
  return found


def imports(tree, known):
  """`(ours, others)`: modules of this package, and the names of other packages, that a file imports anywhere in it."""
  ours, others = set(), set()
  for node in ast.walk(tree):
    names = []
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      names = [f'{node.module}.{alias.name}' for alias in node.names]
    for name in names:
      if not name.startswith('diffusion_ebm.'):
        others.add(name.partition('.')[0])
        continue
      name = name.removeprefix('diffusion_ebm.')
      ours.add(name if name in known else name.rpartition('.')[0])
  return ours, others


def room(module):
  """The room of a module; that of the other modules at the root, between method and jobs, is 'model'."""
  top = module.partition('.')[0]
  if top in METHOD:
    return 'method'
  return top if top in ALLOWED and top != 'model' else 'model'


class ImportsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.modules = modules()
    self.modules.pop('__init__')

  def test_each_room_imports_what_it_may(self):
    for module, tree in self.modules.items():
      of = room(module)
      for name in imports(tree, self.modules)[0]:
        allowed = room(name) == of or any(
          name == each or name.startswith(f'{each}.') or each == 'model' and room(name) == 'model'
          for each in ALLOWED[of]
        )
        self.assertTrue(allowed, f'{module} imports {name}')

  def test_no_job_imports_another_but_tools_the_training(self):
    for module, tree in self.modules.items():
      others = {name for name in imports(tree, self.modules)[0] if name.startswith('jobs.')}
      self.assertLessEqual(others, {'jobs.train'} if module in TOOLS else set(), module)

  def test_the_method_knows_no_files_flags_or_configurations(self):
    for module, tree in self.modules.items():
      if room(module) in ('method', 'networks'):
        self.assertEmpty(imports(tree, self.modules)[1] & OUTSIDE, module)

  def test_no_module_imports_itself_by_a_detour(self):
    arrows = {module: imports(tree, self.modules)[0] for module, tree in self.modules.items()}

    def reachable(start):
      found, left = set(), [start]
      while left:
        for name in arrows.get(left.pop(), ()):
          if name not in found:
            found.add(name)
            left.append(name)
      return found

    for module in self.modules:
      self.assertNotIn(module, reachable(module))

  def test_the_package_is_imported_without_what_takes_long(self):
    code = 'import sys, diffusion_ebm; print(*sys.modules)'
    result = subprocess.run([sys.executable, '-c', code], cwd=testing.ROOT, capture_output=True, text=True, check=True)
    loaded = {name.partition('.')[0] for name in result.stdout.split()}
    self.assertEmpty(loaded & {'jax', 'matplotlib', 'grain', 'tensorflow_datasets', 'tensorflow', 'sklearn', 'scipy'})

  def test_the_command_line_is_read_without_the_libraries_of_the_data(self):
    code = 'import sys; from diffusion_ebm import command_line; print(*sys.modules)'
    result = subprocess.run([sys.executable, '-c', code], cwd=testing.ROOT, capture_output=True, text=True, check=True)
    loaded = {name.partition('.')[0] for name in result.stdout.split()}
    self.assertEmpty(loaded & {'grain', 'PIL', 'matplotlib', 'tensorflow_datasets', 'sklearn'})


if __name__ == '__main__':
  absltest.main()
