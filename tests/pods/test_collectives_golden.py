"""The collectives of scoring and of a training step on four meshes, line by line.

A change that adds an all-gather shows in the golden as a line. The compiler of
TPUs chooses the collectives, so the golden belongs to one libtpu and one JAX. See
`tpu_compiler`.
"""

import difflib
import importlib.metadata
import pathlib

import pytest
from tpu_compiler import LIBTPU, needs_libtpu, run

ROOT = pathlib.Path(__file__).parents[2]
GOLDEN = ROOT / 'tests/golden/collectives.txt'
JAX = '0.10.2'  # of constraints.txt
REFRESH = (
  'python -m pytest tests/pods/test_collectives_golden.py --refresh-goldens, '
  f'with libtpu=={LIBTPU} and jax=={JAX}'
)
MESHES = (
  ('v5e:2x2', dict(data=4)),
  ('v5e:2x2', dict(data=1, fsdp=4)),
  ('v5e:2x2', dict(data=1, tensor=4)),
  ('v5e:2x4', dict(data=2, fsdp=2, tensor=2)),
)
PROGRAM = """
import json, re, sys
from configs import base, models
from infoprune_jax.config.experiment import MeshConfig
from infoprune_jax.config.model import ModelConfig
from infoprune_jax.config.scoring import ScoringConfig
from infoprune_jax.config.training import TrainingConfig
from infoprune_jax.config.validation import build
from infoprune_jax.pods import compile_only, hlo
from infoprune_jax.score import scorer
from infoprune_jax.train import state

VOCAB = 8192
fields = {**models.m124().to_dict(), 'num_layers': 2}
fields |= {'remat': 'full', 'scan_unroll': 1, 'loss_chunk_tokens': 1024}
model = build(ModelConfig, fields, 'model')
training = base.training()
training.update(batch_size=8, sequence_length=256)
training = build(TrainingConfig, training.to_dict(), 'training')
scoring = ScoringConfig(
  per_device_batch_size=4,
  sequence_length=256,
  window_overlap=0,
  dtype='bfloat16',
)


def lines(program):
  counts = {}
  for one in hlo.Module(program.as_text()).each_collective():
    place = one.op_name.partition('/')[2] or one.op_name or 'not told'
    place = place.replace('closed_call/', '')
    where = 'in a loop' if one.in_loop else 'once'
    line = f'{where}: {one.kind} {one.shape}, for {place}'
    counts[line] = counts.get(line, 0) + one.count
  return [f'{counts[line]} x {line}' for line in sorted(counts)]


result = []
for topology, sizes in json.loads(sys.argv[1])['meshes']:
  mesh = compile_only.make_mesh(MeshConfig(**sizes), topology, 1)
  told = ' '.join(f'{axis}={n}' for axis, n in sizes.items() if n > 1)
  step = state.compile_program(model, training, VOCAB, mesh).step
  score = scorer.choose(model, scoring, VOCAB, mesh).program(1)
  for name, program in (('score', score), ('training step', step)):
    result += [f'{name}, {topology}, mesh {told}']
    result += [f'  {line}' for line in lines(program) or ['none']]
print('RESULT' + json.dumps(result))
"""


@needs_libtpu
@pytest.mark.skipif(
  importlib.metadata.version('jax') != JAX, reason=f'needs jax=={JAX}'
)
def test_collectives_are_those_of_the_golden(request):
  lines = run(PROGRAM, {'meshes': MESHES})
  if request.config.getoption('--refresh-goldens'):
    GOLDEN.write_text('\n'.join(lines) + '\n')
  golden = GOLDEN.read_text().splitlines()
  changed = '\n'.join(difflib.unified_diff(golden, lines, lineterm='', n=1))
  assert not changed, f'{changed}\nIf they are meant to change: {REFRESH}.'
