"""How fast a configuration is on this machine.

  python -m diffusion_ebm.jobs.benchmark --config=configs/cifar10.py [--batch=64] [--width=64] [--blocks=2] [--K=10]
      [--dtype=bfloat16] [--devices=2] [--seconds=10] [--config.KEY=VALUE]

Prints a table, and as its last line the same as one JSON object. Times are medians after a warm-up.
"""

import json
import sys
import time

from absl import app, flags
from absl import logging as absl_logging
import jax
import jax.numpy as jnp
from ml_collections import config_flags
import numpy as np

from diffusion_ebm import composition, data, generate, langevin, networks, random_keys, recovery, trained
from diffusion_ebm import config as config_lib
from diffusion_ebm import model as model_lib
from diffusion_ebm.jobs import train
from diffusion_ebm.networks import flops
from diffusion_ebm.run import compilation, errors, parallel, writers
from diffusion_ebm.run.errors import UserError

_CONFIG = config_flags.DEFINE_config_file('config', None, 'The configuration.', lock_config=True)
_DEVICES = flags.DEFINE_integer('devices', 0, 'How many devices; on a CPU they share its cores. 0 for all.')
_SHORTCUTS = (
  (flags.DEFINE_integer('batch', None, '--config.train.batch_size'), 'train', 'batch_size'),
  (flags.DEFINE_integer('width', None, '--config.model.ch'), 'model', 'ch'),
  (flags.DEFINE_integer('blocks', None, '--config.model.num_res_blocks'), 'model', 'num_res_blocks'),
  (flags.DEFINE_integer('K', None, '--config.sampling.num_steps'), 'sampling', 'num_steps'),
  (flags.DEFINE_enum('dtype', None, tuple(networks.DTYPES), '--config.model.dtype'), 'model', 'dtype'),
)
_SECONDS = flags.DEFINE_float('seconds', 10.0, 'About how long each measurement takes; the sampler runs once at least.')

_PRODUCT = {'cpu': 2048}  # rows of the square matrices whose product sets the scale; 8192 elsewhere


def benchmark(config, seconds: float = 10.0) -> dict:
  """Measures a configuration on all devices.

  Args:
    config: the configuration.
    seconds: about how long each measurement takes.

  Returns:
    Name to figure. Times are medians in seconds, beside their interquartile range; rates are operations (as `flops`
    counts them) or images a second over all devices. `gradient_s` is one gradient of f outside of a chain,
    `langevin_step_s` one step of a chain of K. With classes, `guidance_factor` is the time of a gradient with guidance
    over that of one of twice as many examples. The rate of the input is None where the data are not at hand.

  Raises:
    UserError: something is wrong with the configuration.
  """
  config = config_lib.resolve(config)
  config_lib.check(config, parallel.num_devices())
  model = model_lib.build(config)
  size = config.train.batch_size
  result = {
    'device': jax.devices()[0].device_kind,
    'platform': jax.default_backend(),
    'num_devices': parallel.num_devices(),
    'dtype': config.model.dtype,
    'batch': size,
    'width': config.model.ch,
    'blocks': config.model.num_res_blocks,
    'K': config.sampling.num_steps,
    'micro_batches': config.train.micro_batches,
  }
  trained_a_little = _measure_training(config, model, seconds, result)
  ebm, proposal = trained.averaged(model, trained_a_little)
  _measure_chain(config, ebm, model.shape, seconds, result)
  if config.model.num_classes:
    _measure_guidance(config, ebm, model.shape, seconds, result)

  sampler = generate.make_sampler(config, model.shape, size)
  (times,) = _measure(seconds, lambda: sampler(ebm, proposal, 0, 0, size), least=1)
  result |= _summary('sampler_s', times)
  result['sampler_images_per_s'] = size / result['sampler_s']
  result['input_images_per_s'] = _input_rate(config, seconds)
  result['peak_memory_bytes'] = _peak_memory()
  return result


def _measure_training(config, model, seconds, result):
  """Adds the figures of the training step, beside those of a product of matrices; returns the last state."""
  size, state = config.train.batch_size, model.state
  label = np.ones(size, np.int32) if config.model.num_classes else None
  batch = jax.tree.map(parallel.split, (_random_batch(model.shape, size), label))
  began = time.perf_counter()
  step = train.compile_step(config, model, state, batch)
  result['compile_s'] = time.perf_counter() - began
  product, product_flops = _matrix_product(networks.DTYPES[config.model.dtype])

  def train_once():
    nonlocal state
    state, _ = step(state, batch)
    return state

  # The two in turn, so that both see the same state of the machine.
  times, product_times = _measure(seconds, train_once, product)
  result |= _summary('train_step_s', times)
  products = 1 if jax.default_backend() == 'cpu' else parallel.num_devices()  # devices of a CPU share its cores
  result['images_per_s'] = size / result['train_step_s']
  result['flops_per_step'] = flops.train_step(
    model.network, model.shape, size, config.sampling.num_steps, model.proposal_network
  )
  result['matmul_flops_per_s'] = product_flops * products / float(np.median(product_times))
  result['achieved_flops_per_s'] = result['flops_per_step'] / result['train_step_s']
  result['fraction_of_matmul'] = result['achieved_flops_per_s'] / result['matmul_flops_per_s']
  return state


def _measure_chain(config, ebm, shape, seconds, result):
  """Adds the time of a step of a chain of K, and of one gradient alone."""
  size, steps = config.train.batch_size, config.sampling.num_steps
  t = parallel.split(np.arange(size, dtype=np.int32) % ebm.levels.num_models)
  y = parallel.split(np.random.default_rng(0).normal(size=(size, *shape)).astype(np.float32))

  def chain(ebm, y, t):
    noise = langevin.normal_noise(random_keys.sample_keys(0, parallel.example_index(len(y))), shape)
    return recovery.sample_conditional(ebm.at(t), y, noise, steps)

  def gradient(ebm, y, t):
    model = ebm.at(t)
    return jax.grad(lambda y: jnp.sum(model.f(y)))(y)

  programs = [_program(config, function) for function in (chain, gradient)]
  times, gradient_times = _measure(seconds, *(lambda program=program: program(ebm, y, t) for program in programs))
  result |= _summary('langevin_step_s', [t / steps for t in times]) | _summary('gradient_s', gradient_times)


def _measure_guidance(config, ebm, shape, seconds, result):
  """Adds the time of a gradient with guidance, over that of as many evaluations without."""
  size, per_device = config.train.batch_size, config.train.batch_size // parallel.num_devices()
  t = np.arange(2 * size, dtype=np.int32) % ebm.levels.num_models
  y = np.random.default_rng(0).normal(size=(2 * size, *shape)).astype(np.float32)

  def guided(ebm, y, t):
    return composition.guided(ebm, jnp.ones(per_device, int), 0.5).score(y, t)

  def plain(ebm, y, t):
    return composition.of_class(ebm, jnp.ones(2 * per_device, int)).score(y, t)

  programs = [_program(config, function) for function in (guided, plain)]
  batches = [jax.tree.map(parallel.split, batch) for batch in ((y[:size], t[:size]), (y, t))]
  calls = [
    lambda program=program, batch=batch: program(ebm, *batch) for program, batch in zip(programs, batches, strict=True)
  ]
  times, plain_times = _measure(seconds, *calls)
  result['guidance_factor'] = float(np.median(times) / np.median(plain_times))


def _program(config, function):
  return parallel.on_devices(function, replicated=(0,), out_axes=0, precision=config.model.precision)


def _random_batch(shape, size):
  rng = np.random.default_rng(0)
  if len(shape) == 3:
    return rng.integers(0, 256, (size, *shape), np.uint8)
  return rng.normal(size=(size, *shape)).astype(np.float32)


def _matrix_product(dtype):
  rows = _PRODUCT.get(jax.default_backend(), 8192)
  a = jax.random.normal(jax.random.key(0), (rows, rows)).astype(dtype)
  compiled = jax.jit(jnp.matmul).lower(a, a).compile()
  return lambda: compiled(a, a), 2 * rows**3


def _measure(seconds, *functions, least=3):
  """Times of each function in turn, after a first round that does not count."""
  for function in functions:
    jax.block_until_ready(function())
  times = [[] for _ in functions]
  until = time.perf_counter() + seconds
  while len(times[0]) < least or time.perf_counter() < until:
    for function, its_times in zip(functions, times, strict=True):
      began = time.perf_counter()
      jax.block_until_ready(function())
      its_times.append(time.perf_counter() - began)
  return times


def _summary(name, times):
  low, middle, high = np.percentile(times, (25, 50, 75))
  return {name: float(middle), f'{name.removesuffix("_s")}_spread_s': float(high - low)}


def _input_rate(config, seconds):
  """Images/s of the input pipeline alone, from the source to the host's memory; None without data."""
  try:
    source = data.load_source(config.data, 'train')
  except UserError as error:
    print(f'the input is not measured: {error}', file=sys.stderr)
    return None
  batches = data.train_batches(source, config.train.batch_size, config.seed)
  for _ in range(16):  # those made ahead
    next(batches)
  began, count = time.perf_counter(), 0
  while count == 0 or time.perf_counter() < began + min(seconds, 5.0):
    count += sum(len(next(batches)[0]) for _ in range(16))
  rate = count / (time.perf_counter() - began)
  batches.close()
  return rate


def _peak_memory() -> int:
  """Bytes: of the fullest device where it counts them, of the process elsewhere."""
  stats = [device.memory_stats() or {} for device in jax.local_devices()]
  return max((s.get('peak_bytes_in_use', 0) for s in stats), default=0) or int(writers.peak_memory_gb() * 2**30)


def _table(result) -> str:
  def row(what, value, unit, spread=None):
    return f'  {what:<24}{value:>12.4g} {unit}' + ('' if spread is None else f'  (spread {spread:.2g})')

  lines = [
    f'{result["num_devices"]} x {result["device"]}, {result["dtype"]}: batch {result["batch"]}, width '
    f'{result["width"]}, {result["blocks"]} blocks, K = {result["K"]}',
    row('train step', result['train_step_s'], 's', result['train_step_spread_s']),
    row('', result['images_per_s'], 'images/s'),
    row('', result['flops_per_step'] / 1e9, 'GFLOP'),
    row('', result['achieved_flops_per_s'] / 1e9, 'GFLOP/s'),
    row('large matrix product', result['matmul_flops_per_s'] / 1e9, 'GFLOP/s'),
    row('fraction of it', result['fraction_of_matmul'], ''),
    row('Langevin step', result['langevin_step_s'], 's', result['langevin_step_spread_s']),
    row('one gradient alone', result['gradient_s'], 's', result['gradient_spread_s']),
    row('sampler', result['sampler_images_per_s'], 'images/s'),
  ]
  if 'guidance_factor' in result:
    lines.append(row('guidance', result['guidance_factor'], 'of two gradients as one batch'))
  if result['input_images_per_s'] is not None:
    lines.append(row('input', result['input_images_per_s'], 'images/s'))
  return '\n'.join(
    [
      *lines,
      row('compilation', result['compile_s'], 's'),
      row('peak memory', result['peak_memory_bytes'] / 2**30, 'GiB'),
    ]
  )


def _main(argv):
  if len(argv) > 1:
    raise app.UsageError(f'{argv[1]!r} is not a flag; flags begin with --')
  if _CONFIG.value is None:
    raise app.UsageError('--config is missing: name a configuration, such as configs/digits.py')
  absl_logging.set_verbosity(absl_logging.ERROR)  # of JAX, about platforms that are not there
  if _DEVICES.value:
    jax.config.update('jax_num_cpu_devices', _DEVICES.value)
    jax.config.update('jax_cuda_visible_devices', ','.join(map(str, range(_DEVICES.value))))
  compilation.use_cache()
  config = _CONFIG.value
  for flag, section, key in _SHORTCUTS:
    if flag.value is not None:
      config[section][key] = flag.value
  with errors.shown():
    result = benchmark(config, _SECONDS.value)
  print(_table(result))
  print(json.dumps(result))


if __name__ == '__main__':
  app.run(_main)
