"""The collectives of a compiled program, read off its text.

A program is computations of instructions. An instruction may run other
computations: a loop its body, a fusion what is fused, an async start what runs
meanwhile. So an instruction runs as often as all callers of its computation
together, times the trips of loops.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import jax

COLLECTIVES = (
  *('all-gather', 'all-reduce', 'all-to-all'),
  *('collective-permute', 'reduce-scatter', 'ragged-all-to-all'),
)
_BITS = {
  **{'pred': 8, 's4': 4, 'u4': 4, 's8': 8, 'u8': 8, 's16': 16, 'u16': 16},
  **{'s32': 32, 'u32': 32, 's64': 64, 'u64': 64, 'c64': 64, 'c128': 128},
  **{'bf16': 16, 'f16': 16, 'f32': 32, 'f64': 64},
  **{'f8e5m2': 8, 'f8e4m3fn': 8, 'token': 0},
}
# The name of a TPU's way to write a reduce-scatter: an all-reduce in a fusion
# of which a chip keeps its own part.
_SCATTERING = 'all-reduce-scatter'
# Their result names their operands, too.
_WITH_OPERANDS = ('all-gather-start', 'collective-permute-start')
_COMPUTATION = re.compile(r'^(?:ENTRY )?%?([\w.-]+) \(.*-> .*\{$')
_INSTRUCTION = re.compile(
  r'^\s+(ROOT )?%?([\w.-]+) = (.*?) ([a-z][\w-]*)\((.*?)\)(.*)$'
)
_ARRAY = re.compile(r'\b([a-z]+\d*(?:e\dm\d\w*)?)\[([\d,]*)\]')
_CALLS = re.compile(
  r'\b(?:body|calls|to_apply|called_computations|branch_computations|'
  r'true_computation|false_computation)=(\{[^}]*\}|%?[\w.-]+)'
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_CHANNEL = re.compile(r'channel_id=(\d+)')
# Give a value of their operand again.
_COPIES = ('copy', 'bitcast', 'copy-start', 'copy-done')


@dataclasses.dataclass(frozen=True)
class Traffic:
  """The collectives of one kind in a run of a program."""

  count: int  # how often they run
  bytes: int  # of whole arrays: what gathers give, and what reductions take


@dataclasses.dataclass(frozen=True)
class Collective:
  """A collective in a program."""

  kind: str
  shape: str  # of its arrays, without layouts
  bytes: int  # see `Traffic`
  count: int  # how often it runs
  in_loop: bool
  op_name: str  # the JAX operation that it is made from; '' if not told


@dataclasses.dataclass(frozen=True)
class _Instruction:
  """One instruction of a computation."""

  is_root: bool
  name: str
  shape: str  # of its result, as printed
  opcode: str
  arguments: str  # names of its operands; of a constant its value
  attributes: str

  @property
  def operands(self) -> list[str]:
    """The names of its operands."""
    return re.findall(r'%([\w.-]+)', self.arguments)

  @property
  def calls(self) -> Sequence[str]:
    """The computations that it runs, each once or in every trip.

    What an async start runs is named by its updates and its end again.
    """
    if self.opcode in ('async-update', 'async-done'):
      return ()
    return [
      name
      for group in _CALLS.findall(self.attributes)
      for name in re.findall(r'[\w.-]+', group)
    ]


_Computation = dict[str, _Instruction]  # by name


class Module:
  """A printed program.

  Attributes:
    num_unknown_loops: The loops whose number of trips the text does not tell.
      They count as one trip.
  """

  def __init__(self, text: str):
    self._computations = dict(_computations(text))
    self._callers: dict[str, list[tuple[str, int]]] = collections.defaultdict(
      list
    )
    self._fused: set[str] = set()  # what fusions call
    self._bodies: set[str] = set()  # what loops call
    self.num_unknown_loops = 0
    for name, instructions in self._computations.items():
      for one in instructions.values():
        trips = self._trips(one, instructions) if one.opcode == 'while' else 1
        self.num_unknown_loops += trips is None
        if one.opcode == 'fusion':
          self._fused.update(one.calls)
        if one.opcode == 'while':
          self._bodies.update(one.calls)
        for callee in one.calls:
          self._callers[callee].append((name, trips or 1))

  def collectives(self) -> dict[str, Traffic]:
    """The collectives of a run, by kind."""
    total: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
    for one in self.each_collective():
      total[one.kind][0] += one.count
      total[one.kind][1] += one.count * one.bytes
    return {kind: Traffic(*total[kind]) for kind in sorted(total)}

  def each_collective(self) -> list[Collective]:
    """The collectives of the program.

    A reduce-scatter counts as one also where a TPU writes it as a fusion of an
    all-reduce. Of a conditional all branches count.
    """
    # An asynchronous collective is cut into several fusions, which overlap with
    # other work. Its pieces have one channel.
    distinct: dict[tuple[str, int, str], Collective] = {}
    for name, instructions in self._computations.items():
      for one in instructions.values():
        kind = one.opcode.removesuffix('-start')
        if kind not in COLLECTIVES:
          continue
        if kind == 'all-reduce' and name.startswith(_SCATTERING):
          kind = 'reduce-scatter'
        channel = _CHANNEL.search(one.attributes)
        is_piece = name in self._fused and channel
        which = channel[1] if is_piece and channel else f'{name}/{one.name}'
        size = _bytes(one, instructions)
        op_name = _OP_NAME.search(one.attributes)
        new = Collective(
          kind,
          _plain_shape(one),
          size,
          self._runs(name),
          self._is_in_loop(name),
          op_name[1] if op_name else '',
        )
        key = kind, size, which
        before = distinct.setdefault(key, new)
        if new.count > before.count:
          distinct[key] = new
    return list(distinct.values())

  def _runs(self, name: str) -> int:
    """How often a computation runs; one without a caller runs once."""
    if name not in self._callers:
      return 1
    return sum(
      trips * self._runs(caller) for caller, trips in self._callers[name]
    )

  def _is_in_loop(self, name: str) -> bool:
    """Whether a computation runs within the body of a loop."""
    return name in self._bodies or any(
      self._is_in_loop(caller) for caller, _ in self._callers.get(name, ())
    )

  def _trips(self, loop: _Instruction, around: _Computation) -> int | None:
    """The trips of a loop: told, or counted from its start, step and end."""
    if told := _TRIPS.search(loop.attributes):
      return int(told[1])
    body, condition = (
      self._computations.get((re.findall(pattern, loop.attributes) or [''])[0])
      for pattern in (r'body=%?([\w.-]+)', r'condition=%?([\w.-]+)')
    )
    if body is None or condition is None:
      return None
    test = _root(condition)
    if test.opcode != 'compare' or 'direction=LT' not in test.attributes:
      return None
    counter, end = (_origin(name, condition) for name in test.operands)
    place = re.search(r'index=(\d+)', counter.attributes)
    if counter.opcode != 'get-tuple-element' or not place:
      return None
    element = int(place[1])
    start = _element(around[loop.operands[0]], element, around)
    last, first = _constant(end), _constant(start)
    step = _step(_element(_root(body), element, body), element, body)
    if last is None or first is None or not step:
      return None
    return max(0, -(-(last - first) // step))


def printed(compiled: Any) -> Module | None:
  """The text of a compiled program, parsed; None if libtpu does not print it.

  The compiler of v5p and v6e gives some programs an async-update that JAX does
  not read.
  """
  try:
    text = compiled.as_text()
  except jax.errors.JaxRuntimeError as error:
    if 'async-update' not in str(error):
      raise
    return None
  return Module(text)


def _computations(text: str) -> Iterator[tuple[str, _Computation]]:
  """Name and instructions of each computation of a printed module."""
  name, instructions = '', {}
  # Comments count the elements of long tuples.
  for line in re.sub(r'/\*.*?\*/', '', text).splitlines():
    if begins := _COMPUTATION.match(line):
      name, instructions = begins[1], {}
    elif line.startswith('}'):
      yield name, instructions
    elif match := _INSTRUCTION.match(line):
      instructions[match[2]] = _Instruction(bool(match[1]), *match.groups()[1:])


def _root(computation: _Computation) -> _Instruction:
  """The instruction that gives the result of a computation."""
  return next(one for one in computation.values() if one.is_root)


def _origin(name: str, computation: _Computation) -> _Instruction:
  """The instruction whose value an instruction has, as it or a copy of it."""
  one = computation[name]
  while one.opcode in _COPIES:
    one = computation[one.operands[0]]
  return one


def _element(
  one: _Instruction, number: int, computation: _Computation
) -> _Instruction | None:
  """The origin of an element of a tuple; None if it is no tuple of parts."""
  one = _origin(one.name, computation)
  if one.opcode != 'tuple':
    return None
  return _origin(one.operands[number], computation)


def _constant(one: _Instruction | None) -> int | None:
  """The value of an integer constant; None for anything else."""
  if one is None or one.opcode != 'constant':
    return None
  return int(one.arguments) if re.fullmatch(r'-?\d+', one.arguments) else None


def _step(
  one: _Instruction | None, element: int, body: _Computation
) -> int | None:
  """What a body adds to an element of its tuple; None if it does not add."""
  if one is None or one.opcode != 'add':
    return None
  terms = [_origin(name, body) for name in one.operands]
  before = [t for t in terms if t.opcode == 'get-tuple-element']
  if len(before) != 1 or f'index={element}' not in before[0].attributes:
    return None
  return next(filter(None, map(_constant, terms)), None)


def _bytes(one: _Instruction, computation: _Computation) -> int:
  """The bytes of all arrays that a collective gives, or takes if more."""
  if one.opcode in _WITH_OPERANDS:
    return _size(_elements(one.shape)[1])
  if one.opcode.startswith('reduce-scatter'):
    return sum(_size(computation[name].shape) for name in one.operands)
  return _size(one.shape)


def _plain_shape(one: _Instruction) -> str:
  """The shape that a collective gives, without layouts."""
  shape = one.shape
  if one.opcode in _WITH_OPERANDS:
    shape = _elements(shape)[1]
  return ' '.join(
    f'{dtype}[{dims}]'
    for dtype, dims in _ARRAY.findall(re.sub(r'\{.*?\}', '', shape))
  )


def _size(shape: str) -> int:
  """The bytes of the arrays of a shape."""
  return sum(
    _BITS[dtype] * math.prod(int(n) for n in dims.split(',') if n) // 8
    for dtype, dims in _ARRAY.findall(re.sub(r'\{.*?\}', '', shape))
  )


def _elements(shape: str) -> list[str]:
  """The elements of the tuple of a shape, which may be tuples again."""
  elements, depth = [''], 0
  for character in shape[1:-1]:
    depth += (character in '([{') - (character in ')]}')
    if character == ',' and not depth:
      elements.append('')
    else:
      elements[-1] += character
  return elements
