"""`--long`: the tests that take long, too; `--optimized`: with XLA's optimisations; what a run compiles is shared."""

import gc
import os
import shutil
import sys
import tempfile

import pytest

from tests import forks


def pytest_addoption(parser):
  parser.addoption('--long', action='store_true', help='run the tests that take long, too')
  parser.addoption('--optimized', action='store_true', help='compile as a user does, which takes several times as long')


def pytest_configure(config):
  if config.getoption('--long'):
    os.environ['LONG_TESTS'] = '1'
  if not config.getoption('--optimized'):  # most of the time goes into compiling programs that run for a moment
    os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {forks.QUICK}'
  os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')  # its threads spin where other tests run beside
  gc.set_threshold(50_000, 20, 50)  # what JAX traces is alive: looking for garbage finds none
  if not hasattr(config, 'workerinput'):  # workers inherit the environment
    config.compilation_cache = tempfile.mkdtemp()
    os.environ['JAX_COMPILATION_CACHE_DIR'] = config.compilation_cache
    os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.5'


def pytest_unconfigure(config):
  shutil.rmtree(getattr(config, 'compilation_cache', ''), ignore_errors=True)


@pytest.fixture(scope='module', autouse=True)
def _drops_programs():
  """Drops what a file compiled: each program takes maps of memory, of which Linux gives a process 65,530."""
  yield
  if 'jax' in sys.modules:
    sys.modules['jax'].clear_caches()
