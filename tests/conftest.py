"""All test processes of a run share what they compile."""

import os
import shutil
import tempfile


def pytest_configure(config):
  if not hasattr(config, 'workerinput'):  # workers inherit the environment
    config.compilation_cache = tempfile.mkdtemp()
    os.environ['JAX_COMPILATION_CACHE_DIR'] = config.compilation_cache
    os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.5'


def pytest_unconfigure(config):
  shutil.rmtree(getattr(config, 'compilation_cache', ''), ignore_errors=True)
