"""The training step, compiled for TPU pods by their own compiler, without one.

See `tpu_compiler`.
"""

import dataclasses
import math
import re

import pytest
from tpu_compiler import HBM, needs_libtpu, run

from configs import models


@dataclasses.dataclass(frozen=True)
class Pod:
  """A preset, a topology, and how it is spread over its chips."""

  topology: str
  mesh: tuple[int, int, int]
  preset: str
  sequences: int  # of a chip
  sequence_length: int
  vocab: int
  slices: int = 1
  sequence: int = 1  # chips that share a sequence
  printed: bool = True  # whether this XLA can print the program


PODS = [
  Pod('v5e:4x4', (1, 16, 1), 'b1_3', 4, 2048, 50304),
  Pod('v5p:4x4x4', (1, 64, 1), 'b8', 2, 4096, 128256, printed=False),
  Pod('v6e:16x16', (16, 16, 1), 'b8', 1, 4096, 128256, printed=False),
  Pod('v5e:16x16', (16, 16, 1), 'b8', 1, 4096, 128256, slices=2),
  Pod('v5e:4x4', (1, 4, 1), 'b1_3', 1, 32768, 50304, sequence=4),
]
PROGRAM = """
import json, math, re, sys
import jax
from jax.experimental import topologies
from configs import base, models
from infoprune_jax.model import mesh as mesh_lib
from infoprune_jax.config import experiment as config_lib
from infoprune_jax.model import network, partitioning
from infoprune_jax.train import state

given = json.loads(sys.argv[1])
topology = topologies.get_topology_desc(
  given['topology'], 'tpu', num_slices=given['slices']
)
data, fsdp, tensor = given['mesh']
mesh = mesh_lib.make_mesh(
  config_lib.MeshConfig(
    data=data,
    fsdp=fsdp,
    tensor=tensor,
    dcn_data=given['slices'],
    sequence=given['sequence'],
  ),
  list(topology.devices),
)
# Without a chip, its memory is not known.
fields = {'remat': 'full', 'scan_unroll': 1, 'loss_chunk_tokens': 1024}
fields = {**getattr(models, given['preset'])().to_dict(), **fields}
model = config_lib.build(config_lib.ModelConfig, fields, 'model')
training = base.training()
training.update(
  batch_size=given['sequences'] * data * fsdp * given['slices'],
  sequence_length=given['sequence_length'],
)
training = config_lib.build(
  config_lib.TrainingConfig, training.to_dict(), 'training'
)
program = state.compile_program(model, training, given['vocab'], mesh)
memory = program.step.memory_analysis()
text, reduced = '', []
if given['printed']:  # XLA trips over an async-update of its own in others.
  module, = program.step.runtime_executable().hlo_modules()
  for computation in module.computations():
    lines = [
      re.sub(r'/\\*.*?\\*/', '', instruction.to_string())
      for instruction in computation.instructions()
    ]
    text += '\\n'.join(lines)
    # A TPU's way to write a reduce-scatter: one step, in which the whole is
    # never held.
    if not computation.name.startswith('all-reduce-scatter'):
      for line in lines:
        # Every array that an all-reduce gives; several may come in one.
        reduced += re.findall(r'= ([^=]*?) all-reduce(?:-start)?\\(', line)
shapes = network.param_shapes(model, given['vocab'])
axes = network.param_axes(model, given['vocab'])
matrices = jax.tree.map(
  lambda leaf, names: leaf.shape[names[0] == 'layers':], shapes, axes
)
print('RESULT' + json.dumps({
  'matrices': [
    dims for dims in jax.tree.leaves(
      matrices, is_leaf=lambda node: isinstance(node, tuple)
    ) if len(dims) > 1
  ],
  # The old state's memory is the new one's.
  'bytes': memory.temp_size_in_bytes + memory.argument_size_in_bytes
  + memory.output_size_in_bytes - memory.alias_size_in_bytes,
  'state': memory.alias_size_in_bytes,
  'reduced': [
    [int(n) for n in dims.split(',') if n]
    for shapes in reduced for dims in re.findall(r'\\w+\\[([\\d,]*)\\]', shapes)
  ],
  'splash': len(re.findall(r'%splash\\S* = [^\\n]*tpu_custom_call', text)),
  'largest': max((
    math.prod(int(n) for n in dims.split(','))
    for dims in re.findall(r'bf16\\[([\\d,]+)\\]', text)
  ), default=0),
}))
"""


@needs_libtpu
@pytest.mark.parametrize(
  'pod',
  PODS,
  ids=lambda pod: (
    f'{pod.topology}-{pod.mesh}' + '-sequences' * (pod.sequence > 1)
  ),
)
def test_fits_and_reduces_no_gradient_whole(pod, capsys):
  compiled = run(PROGRAM, dataclasses.asdict(pod))
  hbm = HBM[pod.topology.partition(':')[0]]
  with capsys.disabled():
    print(
      f'\n{pod.preset} on {pod.topology} {pod.mesh}, {pod.sequences} x '
      f'{pod.sequence_length} tokens for {pod.sequence} chips: '
      f'{compiled["bytes"] / 1e9:.2f} of {hbm / 1e9:.0f} GB, '
      f'{compiled["state"] / 1e9:.2f} GB of them state'
    )
  assert compiled['bytes'] < hbm
  if not pod.printed:
    return
  assert compiled['splash'] >= 3  # Forward, again, and the backward pass.
  # Chips of a sequence add up the gradients of the tables.
  if pod.sequence > 1:
    return
  whole = {tuple(sorted(dims)) for dims in compiled['matrices']}
  for dims in compiled['reduced']:
    assert tuple(sorted(n for n in dims if n > 1)) not in whole, dims
  if pod.mesh[0] == 1:  # Norms and losses; a matrix would be of millions.
    assert max(map(math.prod, compiled['reduced'])) <= 2**16, compiled[
      'reduced'
    ]
  # The whole table, or the inputs of all layers for a chip's own sequences.
  model = getattr(models, pod.preset)()
  tokens = pod.sequences * pod.sequence_length
  most = model.embed_dim * max(pod.vocab, model.num_layers * tokens)
  assert compiled['largest'] <= most


TOO_LARGE = """
import json, sys, types
import jax
from jax.experimental import topologies
from configs import base, models
from infoprune_jax.config import experiment as config_lib
from infoprune_jax.model import mesh as mesh_lib
from infoprune_jax.train import loop, state

topology = topologies.get_topology_desc('v5e:2x2', 'tpu')
mesh = mesh_lib.make_mesh(
  config_lib.MeshConfig(data=1, fsdp=4, tensor=1), list(topology.devices)
)
fields = {**models.m124().to_dict(), 'remat': 'none', 'scan_unroll': 1}
model = config_lib.build(config_lib.ModelConfig, fields, 'model')
training = base.training()
training.update(batch_size=128, sequence_length=2048)
training = config_lib.build(
  config_lib.TrainingConfig, training.to_dict(), 'training'
)
compiled = lambda m, t: state.compile_program(m, t, 50304, mesh)
run = types.SimpleNamespace(
  name='run', model=model, training=training, mesh=mesh, compile=compiled
)
try:
  with loop.oom_as_user_error(run):
    compiled(model, training)
except config_lib.UserError as error:
  print('RESULT' + json.dumps({'error': str(error)}))
"""


@needs_libtpu
def test_a_lack_of_memory_is_told_as_the_compiler_says_it():
  error = run(TOO_LARGE, {})['error']
  assert re.match(
    r'run: a step of 128 sequences of 2048 tokens, .*steps=1 and .* needs more '
    r"memory than a device has: .*steps=\d+ and model.remat='none' fits\.$",
    error,
  ), error
