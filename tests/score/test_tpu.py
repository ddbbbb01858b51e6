"""The scoring program, compiled for TPU pods by their own compiler, without one.

See `tpu_compiler`.
"""

import dataclasses
import math
from typing import Any

import pytest
from tpu_compiler import HBM, needs_libtpu, run

DECODER = dict(
  activation='swiglu',
  qk_norm=False,
  logit_softcap=0.0,
  rope_theta=10000.0,
  norm_epsilon=1e-6,
  dtype='bfloat16',
  scan_unroll=1,
  remat='none',
  loss_chunk_tokens=4096,
  attention='auto',
  loss_kernel='auto',
)


@dataclasses.dataclass(frozen=True)
class Pod:
  """A model, a topology, and how it is spread over its chips."""

  topology: str
  mesh: tuple[int, int, int]
  model: dict[str, Any]
  tie: bool
  sequence_length: int


B1_3 = dict(
  num_layers=24,
  embed_dim=2048,
  mlp_dim=5504,
  num_heads=16,
  num_kv_heads=16,
  head_dim=128,
)
B8 = dict(
  num_layers=32,
  embed_dim=4096,
  mlp_dim=14336,
  num_heads=32,
  num_kv_heads=8,
  head_dim=128,
)
# Like Gemma 2: every other layer has a window.
WINDOWED = {
  **B1_3,
  'activation': 'geglu',
  'norm_placement': 'both',
  'attention_softcap': 50.0,
  'layer_pattern': [{'window': 1024}, {}],
}
PODS = [
  Pod('v5e:4x4', (16, 1, 1), B1_3, True, 2048),
  Pod('v5e:4x4', (4, 4, 1), WINDOWED, True, 2048),
  Pod('v5e:4x4', (4, 4, 1), B1_3, True, 2048),
  Pod('v5e:16x16', (32, 8, 1), B8, False, 4096),
  Pod('v5e:16x16', (32, 1, 8), B8, False, 4096),
  Pod('v5p:4x4x4', (8, 8, 1), B8, False, 4096),
  Pod('v5p:4x4x4', (16, 2, 2), B8, False, 4096),
]
VOCAB = 128256
PROGRAM = """
import json, re, sys
from jax.experimental import topologies
from infoprune_jax.model import mesh as mesh_lib
from infoprune_jax.config import experiment as config
from infoprune_jax.config.validation import build
from infoprune_jax.model import partitioning
from infoprune_jax.score import scorer

given = json.loads(sys.argv[1])
topology = topologies.get_topology_desc(given['topology'], 'tpu')
data, fsdp, tensor = given['mesh']
mesh = mesh_lib.make_mesh(
  config.MeshConfig(data=data, fsdp=fsdp, tensor=tensor),
  list(topology.devices),
)
model = build(config.ModelConfig, given['model'], 'model')
scoring = config.ScoringConfig(
  per_device_batch_size=4,
  sequence_length=given['sequence_length'],
  window_overlap=0,
  dtype='bfloat16',
)
made = scorer.compile_scorer(model, scoring, given['vocab'], mesh)
program = made.program(1)
memory = program.memory_analysis()
# This XLA cannot print a program for v5p: it trips over its own async-update.
text = '' if 'v5p' in given['topology'] else program.as_text()
# Every array that a collective gives, with the elements of each.
gathers = re.findall(
  r'= \\(?(?:\\w+)\\[([\\d,]*)\\][^=]*? (all-gather|all-to-all)(?:-start)?\\(',
  text,
)
# The name of each kernel that is called, without its number.
calls = re.findall(
  r'%(logsumexp|splash)\\S* = [^\\n]*custom_call_target="tpu_custom_call"', text
)
print('RESULT' + json.dumps({
  'attention': made.model.attention,
  'loss': made.model.loss_kernel,
  'bytes': memory.temp_size_in_bytes + memory.argument_size_in_bytes
  + memory.output_size_in_bytes,
  'gathers': [[int(n) for n in dims.split(',') if n] for dims, _ in gathers],
  'loss_kernel': {name: calls.count(name) for name in ('logsumexp', 'splash')},
}))
"""


@needs_libtpu
@pytest.mark.parametrize(
  'pod',
  PODS,
  ids=lambda pod: f'{pod.topology}-{pod.mesh}-{pod.model.get("activation")}',
)
def test_fits_and_gathers_no_more_than_a_layer(pod):
  given = {
    'topology': pod.topology,
    'mesh': pod.mesh,
    'model': {**DECODER, **pod.model, 'tie_embeddings': pod.tie},
    'sequence_length': pod.sequence_length,
    'vocab': VOCAB,
  }
  found = run(PROGRAM, given)
  assert (found['attention'], found['loss']) == ('splash', 'tpu')
  if not pod.topology.startswith('v5p'):
    kinds = len(pod.model.get('layer_pattern', [{}]))
    assert found['loss_kernel'] == {'logsumexp': 1, 'splash': kinds}
  assert found['bytes'] < HBM[pod.topology.partition(':')[0]]
  tokens = 4 * pod.sequence_length  # of a device
  width, mlp = pod.model['embed_dim'], pod.model['mlp_dim']
  tensor = pod.mesh[2]
  # One matrix of one layer, a tensor group's activations, a device's share of
  # the table: never a stack of layers, never the logits of a tile.
  most = max(width * mlp, tokens * width * tensor, VOCAB // tensor * width)
  for dims in found['gathers']:
    assert math.prod(dims) <= most, dims
    assert VOCAB not in dims or sorted(dims) == sorted([VOCAB, width]), dims
