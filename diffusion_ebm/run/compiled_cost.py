"""What a compiled program will cost, read from its text: XLA's own estimate of cycles, memory traffic, collectives.

XLA's compiler for TPUs writes `estimated_cycles` beside each kernel. Here they are added up: what is in a loop counts
as often as the loop runs, and of the branches of a condition the dearest counts.
"""

import collections
import functools
import math
import re
from typing import NamedTuple

_COMPUTATION = re.compile(r'^(?:ENTRY )?%?([\w.\-]+) (?:\([^{]*)?.*\{$')
_INSTRUCTION = re.compile(r'^\s+(?:ROOT )?%?([\w.\-]+) = (.+)$')
_OPCODE = re.compile(r'(?:\)|\}|\]) ([a-z][\w\-]*)\(')
_SHAPE = re.compile(r'(pred|[suf]\d+|bf16|f8\w*)\[([\d,]*)\](?:\{([^}]*)\})?')
_BYTES = {'pred': 1, 'bf16': 2}
_WINDOW = re.compile(r'window=\{[^}]*size=(?!1\b|1x1\b)')  # not of one pixel
_LIBRARY = re.compile(r'custom_call_target="__(cudnn\$conv|cublas)')
KINDS = ('convolutions', 'products', 'collectives', 'copies', 'other')


class Instruction(NamedTuple):
  """One line of a computation.

  Attributes:
    opcode: such as fusion.
    result: the text of its type.
    line: all of it.
  """

  opcode: str
  result: str
  line: str


class Cost(NamedTuple):
  """Of a program, on one device.

  Attributes:
    cycles: of each of `KINDS`.
    traffic: bytes between the device's main memory and its processors.
    collectives: bytes that collectives take in, by opcode.
  """

  cycles: dict[str, float]
  traffic: float
  collectives: dict[str, float]


def read(text: str) -> tuple[dict[str, dict[str, Instruction]], str]:
  """Computations by name, each from an instruction's name to the instruction, and the name of the first to run."""
  computations, entry, current = {}, '', None
  for line in text.splitlines():
    if current is None:
      if line.endswith('{') and (match := _COMPUTATION.match(line)):
        current = computations[match[1]] = {}
        entry = match[1] if line.startswith('ENTRY') else entry
    elif line.startswith('}'):
      current = None
    elif match := _INSTRUCTION.match(line):
      opcode = _OPCODE.search(match[2])
      if opcode:
        current[match[1]] = Instruction(opcode[1], match[2][: opcode.start() + 1], match[2])
  return computations, entry


def cost(text: str) -> Cost:
  """Adds up the text of a compiled program (`compiled.as_text()`)."""
  computations, entry = read(text)

  @functools.cache
  def total(name) -> Cost:
    found = Cost(dict.fromkeys(KINDS, 0.0), 0.0, {})
    for instruction in computations[name].values():
      found = _add(found, *of_instruction(instruction, computations[name]))
    return found

  def of_instruction(instruction, others):
    """`(cost, times)` of an instruction with what it calls."""
    line = instruction.line
    if instruction.opcode == 'while':
      return total(_called(line, 'body')[0]), trips(line, computations[_called(line, 'condition')[0]])
    if instruction.opcode == 'conditional':
      branches = _called(line, 'branch_computations', 'true_computation', 'false_computation')
      return max(map(total, branches), key=lambda each: (sum(each.cycles.values()), each.traffic)), 1
    if instruction.opcode == 'call':
      return total(_called(line, 'to_apply')[0]), 1
    kind = _kind(instruction, computations)
    taken = {}
    if kind == 'collectives' and not instruction.opcode.endswith('-done'):
      taken[instruction.opcode.removesuffix('-start')] = sum(
        size(others[name].result, everywhere=True) for name in _operands(instruction) if name in others
      )
    return Cost({kind: _cycles(line)}, _moved(instruction, others, computations), taken), 1

  return total(entry)


def _add(one: Cost, other: Cost, times: int) -> Cost:
  def added(a, b):
    return {key: a.get(key, 0.0) + times * b.get(key, 0.0) for key in a | b}

  return Cost(
    added(one.cycles, other.cycles), one.traffic + times * other.traffic, added(one.collectives, other.collectives)
  )


def _called(line: str, *keys: str) -> list[str]:
  """The names of the computations that an instruction calls by these attributes."""
  found = (re.search(rf'\b{key}=(\{{[^}}]*\}}|%?[\w.\-]+)', line) for key in keys)
  return [name for match in found if match for name in re.findall(r'[\w.\-]+', match[1])]


def operand_types(text: str) -> dict[str, dict[str, int]]:
  """How many of the `convolutions` (but pointwise ones) and `products` of a program take operands of each type.

  The wider of two operands' types counts, as XLA names it: bf16, f32.
  """
  found = {'convolutions': collections.Counter(), 'products': collections.Counter()}
  for instructions in read(text)[0].values():
    for instruction in instructions.values():
      opcode, line = instruction.opcode, instruction.line
      if opcode in ('convolution', 'dot') or opcode == 'custom-call' and _LIBRARY.search(line):
        shapes = (_SHAPE.search(instructions[name].result) for name in _operands(instruction) if name in instructions)
        kind = 'convolutions' if _WINDOW.search(line) else 'products'
        found[kind][max((shape[1] for shape in shapes if shape), key=_width)] += 1
  return {kind: dict(types) for kind, types in found.items()}


def trips(line: str, condition: dict[str, Instruction]) -> int:
  """How often a loop runs; 1 where it cannot be read."""
  if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', line):
    return int(known[1])
  constants = {
    name: re.search(r'constant\((-?\d+)\)', i.line) for name, i in condition.items() if i.opcode == 'constant'
  }
  for instruction in condition.values():
    if instruction.opcode in ('compare', 'fusion'):
      for name in re.findall(r'%([\w.\-]+)', instruction.line):
        if constants.get(name):
          return int(constants[name][1])
  return 1


def _cycles(line: str) -> float:
  found = re.search(r'"estimated_cycles":"(\d+)"', line)
  return float(found[1]) if found else 0.0


_COLLECTIVES = ('all-reduce', 'all-gather', 'reduce-scatter', 'collective-permute', 'all-to-all')


def _kind(instruction, computations) -> str:
  opcode = instruction.opcode
  if opcode.startswith(_COLLECTIVES):
    return 'collectives'
  inside = [instruction.line] + [i.line for i in _fused(instruction, computations)]
  windows = [line for line in inside if ' convolution(' in line]
  if any(_WINDOW.search(line) for line in windows):
    return 'convolutions'
  if windows or any(' dot(' in line for line in inside):
    return 'products'
  return 'copies' if opcode.startswith(('copy', 'transpose')) else 'other'


def _fused(instruction, computations):
  for inner in _called_by_fusion(instruction, computations).values():
    yield inner
    yield from _fused(inner, computations)


def _called_by_fusion(instruction, computations) -> dict[str, Instruction]:
  names = _called(instruction.line, 'calls') if instruction.opcode == 'fusion' else []
  return computations.get(names[0], {}) if names else {}


# Bytes.

_NO_TRAFFIC = ('parameter', 'get-tuple-element', 'tuple', 'bitcast', 'constant')
_SLICES = ('slice', 'dynamic-slice', 'gather')
_ON_CHIP = re.compile(r'S\([13]\)')  # memory spaces: of a v4, the larger one as well


def size(result: str, everywhere: bool = False) -> float:
  """Bytes of the arrays in the text of a type: those in the main memory, or `everywhere`."""
  total = 0.0
  for kind, shape, layout in _SHAPE.findall(result):
    if everywhere or not _ON_CHIP.search(layout):
      total += _width(kind) * math.prod(int(n) for n in shape.split(',') if n)
  return total


def _width(kind: str) -> float:
  return _BYTES.get(kind) or int(re.search(r'\d+', kind)[0]) / 8


def _operands(instruction) -> list[str]:
  return re.findall(r'%([\w.\-]+)', instruction.line[len(instruction.result) :].partition('),')[0])


def _moved(instruction, others, computations) -> float:
  """Bytes that an instruction reads from and writes to the main memory: of what it slices or updates, the slice."""
  opcode, operands = instruction.opcode, [others[n] for n in _operands(instruction) if n in others]
  if opcode in _NO_TRAFFIC or opcode.endswith('-done'):
    return 0.0
  if opcode == 'copy-start':  # gives the copy, and beside it the original
    return size(_SHAPE.search(instruction.result)[0]) + sum(size(each.result) for each in operands)
  if opcode in _SLICES:
    return 2 * size(instruction.result)
  if opcode == 'dynamic-update-slice':
    return 2 * size(operands[1].result) if len(operands) > 1 else 0.0
  inner = _called_by_fusion(instruction, computations)
  roots = [each for each in inner.values() if each.opcode == 'dynamic-update-slice']
  whole = sum(size(each.result) for each in operands)
  written = size(instruction.result)
  parameters = {re.search(r'parameter\((\d+)\)', i.line)[1]: n for n, i in inner.items() if i.opcode == 'parameter'}
  for number, operand in enumerate(operands):
    name = parameters.get(str(number))
    users = [each for each in inner.values() if name in _operands(each)]
    first = [each for each in users if _operands(each)[0] == name]
    if users and len(first) == len(users) and all(each.opcode in (*_SLICES, 'dynamic-update-slice') for each in users):
      read = sum(size(each.result, everywhere=True) for each in users if each.opcode in _SLICES)
      whole -= max(size(operand.result) - read, 0.0)
  for each in roots:  # updated in place
    update = _operands(each)[1]
    if update in inner and size(each.result, everywhere=True) <= written:
      written -= size(each.result, everywhere=True) - size(inner[update].result, everywhere=True)
  return whole + written
