"""What a configuration will need on accelerators that are not there: memory and time, from XLA's own compilers.

  python -m diffusion_ebm.jobs.foretell --config=configs/cifar10.py --topology=v5e:2x4 [--batch=256] [--dtype=bfloat16]
      [--nosampler] [--config.KEY=VALUE]

Compiles the training step and the sampler that training and sampling run, for all chips of a TPU topology or for one
GPU (`--gpu=h100`). Prints a table, and as its last line the same as one JSON object. Nothing is run. All times are
estimates: on TPUs XLA's, of the cycles of each kernel, added up; on GPUs from operations and memory traffic. Time
between kernels, input and host are not in them.
"""

from collections.abc import Callable
import json
import math
import os
import sys
import time
from typing import NamedTuple

from absl import flags
from absl import logging as absl_logging
import jax
import jax.numpy as jnp

from diffusion_ebm import command_line, generate, networks
from diffusion_ebm import config as config_lib
from diffusion_ebm import model as model_lib
from diffusion_ebm.jobs import train
from diffusion_ebm.networks import flops
from diffusion_ebm.run import accelerators, compiled_cost, errors, parallel
from diffusion_ebm.run.errors import UserError

_NUM_SAMPLES = 50_000
_REACHED = 0.69  # of the published rate of products, by a large one: measured on an H100 in bfloat16


class Program(NamedTuple):
  """What is compiled.

  Attributes:
    name: to be read.
    compile: compiles it.
    flops: of a device, as `networks.flops` counts them.
    precision: of products of float32, as of `parallel.compile_for`.
    remedy: what to change where it does not fit.
  """

  name: str
  compile: Callable[[], jax.stages.Compiled]
  flops: float
  precision: str
  remedy: str


def foretell(config, devices: list, chip: accelerators.Chip, sampler: bool = True) -> dict:
  """Compiles a configuration for devices that are described.

  Args:
    config: the configuration.
    devices: of `accelerators.tpu` or `accelerators.gpu`.
    chip: likewise.
    sampler: compile the sampler too.

  Returns:
    `step`, and `sampler` if asked for. Of each: `compile_s`; bytes of a device: `arguments`, `results`, `program`,
    `temporary`, `peak`, `traffic`, `collectives`; `flops` of a device, as `networks.flops` counts them, and
    `peak_flops` a second; `cycles` by kind; `types`, as of `compiled_cost.operand_types`; `seconds`, estimated, of
    which `link_s` on the links between chips. Of the step: `share_of_peak`; `images_per_s`; `num_steps`, `hours` and
    `chip_hours` of the whole training; `largest_batch` of all devices, if the temporary memory grows in proportion. Of
    the sampler: `hours` for 50,000 samples.

  Raises:
    UserError: something is wrong with the configuration, or it does not fit.
  """
  config = config_lib.resolve(config)
  with parallel.described_devices(devices):
    config_lib.check(config, len(devices))
    model = model_lib.build(config)
    result = {'num_devices': len(devices), 'batch': config.train.batch_size, 'dtype': config.model.dtype}
    result['memory'] = chip.memory
    result['step'] = _step(config, model, chip, len(devices))
    if sampler:
      result['sampler'] = _sampler(config, model, chip, len(devices))
  return result


def _step(config, model, chip, count) -> dict:
  size, kind = config.train.batch_size, jnp.float32 if len(model.shape) == 1 else jnp.uint8
  label = parallel.split_like(jax.ShapeDtypeStruct((size,), jnp.int32)) if config.model.num_classes else None
  batch = (parallel.split_like(jax.ShapeDtypeStruct((size, *model.shape), kind)), label)
  work = flops.train_step(model.network, model.shape, size, config.sampling.num_steps, model.proposal_network) / count
  program = Program(
    'the training step',
    lambda: train.compile_step(config, model, model.described_state, batch),
    work,
    config.model.precision,
    'more chips, a smaller --batch, --config.train.micro_batches=2 or --config.model.remat=true',
  )
  found = _measure(chip, count, config.model.dtype, program)
  seconds, steps = found['seconds'], config.train.num_steps
  parts = count * config.train.micro_batches
  room = (chip.memory - found['peak'] + found['temporary']) / max(found['temporary'] * parts / size, 1)
  return found | {
    'share_of_peak': work / seconds / found['peak_flops'] if seconds else math.nan,
    'images_per_s': size / seconds if seconds else math.nan,
    'num_steps': steps,
    'hours': seconds * steps / 3600,
    'chip_hours': count * seconds * steps / 3600,
    'largest_batch': int(room) * parts if found['temporary'] else 0,
  }


def _sampler(config, model, chip, count) -> dict:
  size = parallel.up_to_devices(config.sampling.batch_size)
  state = model.described_state
  shared = (
    model.ebm(state.ema_params),
    model.proposal(state.proposal.ema_params) if state.proposal else None,
    jax.ShapeDtypeStruct((), jnp.uint32),
  )
  draw, precision = generate.draw_function(config, model.shape), generate.precision(config)
  index = parallel.split_like(jax.ShapeDtypeStruct((size,), jnp.int32))
  program = Program(
    'the sampler',
    lambda: parallel.compile_for(draw, shared, index, replicated=(0,), out_axes=0, precision=precision),
    _sampler_flops(config, model) * size / count,
    precision,
    'more chips, or a smaller --config.sampling.batch_size',
  )
  found = _measure(chip, count, config.model.dtype, program)
  return found | {'images': size, 'hours': found['seconds'] * math.ceil(_NUM_SAMPLES / size) / 3600}


def _sampler_flops(config, model) -> int:
  """Operations of a sample."""
  levels, terms = model.levels.num_models, 2 if config.sampling.guidance else len(config.sampling.compose) or 1
  drawn = generate.settings(config)
  if drawn.flow_steps:
    return flops.sampler(model.network, model.shape, drawn.flow_steps, drawn.flow_steps, None, terms)
  gradients, proposal = drawn.num_steps or 1, model.proposal_network
  if config.sampling.corrected:
    settings, proposal = generate.corrected_settings(config), None
    gradients = settings.num_steps * (settings.num_leapfrog if settings.kernel == 'hmc' else 1)
  return flops.sampler(model.network, model.shape, gradients * levels, levels, proposal, terms)


def _measure(chip, count, dtype, program) -> dict:
  print(f'compiling {program.name}: this takes a minute, or several for a large network', file=sys.stderr)
  began = time.perf_counter()
  try:
    compiled = program.compile()
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    raise _too_large(program, ' '.join(str(error).split())[:200]) from error
  compile_seconds = time.perf_counter() - began
  memory, text = compiled.memory_analysis(), compiled.as_text()
  cost, rate = compiled_cost.cost(text), chip.rate(dtype, program.precision)
  if chip.clock:
    seconds = sum(cost.cycles.values()) / chip.clock
  else:  # XLA says nothing of the time; of the step that was measured on an H100 this gives 97 %
    seconds = program.flops / (_REACHED * rate) + cost.traffic / chip.bandwidth
  collectives = sum(cost.collectives.values())
  links = 2 * collectives * (count - 1) / count / chip.network if chip.network else 0.0  # a ring: about twice each byte
  found = {
    'compile_s': compile_seconds,
    'arguments': memory.argument_size_in_bytes,
    'results': memory.output_size_in_bytes - memory.alias_size_in_bytes,
    'program': memory.generated_code_size_in_bytes,
    'temporary': memory.temp_size_in_bytes,
  }
  found['peak'] = sum(found[part] for part in ('arguments', 'results', 'program', 'temporary'))
  if found['peak'] > chip.memory:
    raise _too_large(program, f'{found["peak"] / accelerators.GIB:.1f} GiB of {chip.memory / accelerators.GIB:.1f}')
  return found | {
    'traffic': cost.traffic,
    'collectives': collectives,
    'cycles': cost.cycles,
    'types': compiled_cost.operand_types(text),
    'flops': program.flops,
    'peak_flops': rate,
    'link_s': links,
    'seconds': seconds + links,
  }


def _too_large(program, needs) -> UserError:
  return UserError(f'{program.name} does not fit into the memory of a chip ({needs}): take {program.remedy}')


# The table.


def table(name: str, result: dict, chip: accelerators.Chip) -> str:
  """What `foretell` found, to be read.

  Args:
    name: of the devices.
    result: of `foretell`.
    chip: likewise.
  """
  number = result['num_devices']
  lines = [
    f'{name} ({number} {"chip" if number == 1 else "chips"}), batch {result["batch"]}, {result["dtype"]}: estimates, '
    'nothing was run'
  ]
  for part in ('step', 'sampler'):
    if part in result:
      lines.append('training step' if part == 'step' else f'sampler, {result[part]["images"]} images at once')
      lines += [f'  {what:<32}{value:>12} {unit}'.rstrip() for what, value, unit in _rows(part, result[part], chip)]
  return '\n'.join(lines)


def _rows(part, found, chip):
  """Name, number and unit of each line of the table."""
  rate, bandwidth, total = found['peak_flops'], chip.bandwidth, max(found['seconds'], 1e-12)
  rows = [('compilation, on this machine', _number(found['compile_s']), 's'), *_memory_rows(found, chip)]
  rows += [
    (
      'operations',
      _number(found['flops'] / 1e9),
      f'GFLOP a chip: {_time(found["flops"] / rate)} at the published rate',
    ),
    ('memory traffic', _number(found['traffic'] / 1e9), f'GB a chip: {_time(found["traffic"] / bandwidth)}, likewise'),
    ('collectives', _number(found['collectives'] / 1e6), 'MB a chip'),
  ]
  for kind, types in found['types'].items():
    if types:
      wide = types.get('f32', 0)
      rows.append((f'{kind} of float32', str(wide), f'of {sum(types.values())} in the program'))
  if chip.clock:
    for kind, cycles in found['cycles'].items():
      if kind != 'collectives':
        rows.append((f'time: {kind}', _time(cycles / chip.clock), f'({cycles / chip.clock / total:.0%})'))
    rows.append(('time: links between chips', _time(found['link_s']), f'({found["link_s"] / total:.0%})'))
  rows.append(('time' if chip.clock else 'time, roughly', _time(found['seconds']), ''))
  if part == 'sampler':
    return rows + [(f'{_NUM_SAMPLES:,} samples', _time(3600 * found['hours']), '')]
  rows += [
    ('share of the published rate', f'{found["share_of_peak"]:.1%}', ''),
    ('images a second', _number(found['images_per_s']), ''),
    (f'{found["num_steps"]:,} steps', _time(3600 * found['hours']), f'({_number(found["chip_hours"])} chip-hours)'),
  ]
  if found['largest_batch']:
    rows.append(('largest batch, about', _number(found['largest_batch']), 'over all chips'))
  return rows


def _memory_rows(found, chip):
  gib = accelerators.GIB
  rows = [('memory of a chip', _number(found['peak'] / gib), f'GiB of {chip.memory / gib:.0f}')]
  names = {'arguments': 'state and input', 'results': 'results', 'program': 'program', 'temporary': 'temporary'}
  return rows + [(f'  {name}', _number(found[key] / gib), 'GiB') for key, name in names.items()]


def _number(value: float) -> str:
  return f'{value:,.0f}' if value >= 1000 or value == int(value) else f'{value:.3g}'


def _time(seconds: float) -> str:
  for unit, name in ((3600, 'h'), (60, 'min'), (1, 's'), (1e-3, 'ms')):
    if seconds >= unit:
      return f'{_number(seconds / unit)} {name}'
  return f'{_number(1e6 * seconds)} us'


def _define_flags():
  """When the command is run: other tools have flags of these names."""
  return (
    flags.DEFINE_string('topology', None, 'Of TPUs: v4, v5e, v5p or v6e, and the shape, as v5e:2x4.'),
    flags.DEFINE_enum('gpu', None, tuple(accelerators.GPUS), 'One GPU, in the place of TPUs.'),
    flags.DEFINE_integer('batch', None, '--config.train.batch_size'),
    flags.DEFINE_enum('dtype', None, tuple(networks.DTYPES), '--config.model.dtype'),
    flags.DEFINE_boolean('sampler', True, 'The sampler too.'),
  )


def main(argv: list[str]):
  """The command, with the name of the program first."""
  topology, gpu, batch, dtype, sampler = _define_flags()
  absl_logging.set_verbosity(absl_logging.ERROR)
  jax.config.update('jax_platforms', 'cpu')
  from configs import default

  digits = os.path.join(os.path.dirname(default.__file__), 'digits.py')
  with errors.shown():
    config = command_line.parse(argv, lambda _: digits, default.get_config())
    if (gpu.value is None) == (topology.value is None):
      raise UserError('name one of --topology=v5e:2x4 (TPUs) and --gpu=h100')
    if batch.value is not None:
      config.train.batch_size = batch.value
    if dtype.value is not None:
      config.model.dtype = dtype.value
    config_lib.check(config_lib.resolve(config), 1)
    name = gpu.value or topology.value
    devices, chip = accelerators.gpu(name) if gpu.value else accelerators.tpu(name)
    result = {'topology': name} | foretell(config, devices, chip, sampler.value)
    print(table(name, result, chip))
    print(json.dumps(result))


if __name__ == '__main__':
  main(sys.argv)
