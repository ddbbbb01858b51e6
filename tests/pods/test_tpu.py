"""A small program compiled for a TPU, by the compiler of TPUs.

See `tpu_compiler`.
"""

import os
import pathlib
import subprocess
import sys

import pytest
from tpu_compiler import needs_libtpu, run

ROOT = pathlib.Path(__file__).parents[2]
PROGRAM = """
import dataclasses, json
from configs import base, models
from infoprune_jax.config.experiment import MeshConfig
from infoprune_jax.config.model import ModelConfig
from infoprune_jax.config.training import TrainingConfig
from infoprune_jax.config.validation import build
from infoprune_jax.model import flops
from infoprune_jax.pods import compile_only, programs
from infoprune_jax.score.references import PlannedModel

mesh = compile_only.make_mesh(MeshConfig(data=1, fsdp=4), 'v5e:2x2', 1)
fields = {**models.m124().to_dict(), 'num_layers': 2}
fields |= {'remat': 'full', 'scan_unroll': 1, 'loss_chunk_tokens': 1024}
model = build(ModelConfig, fields, 'model')
training = base.training()
training.update(batch_size=4, sequence_length=256)
training = build(TrainingConfig, training.to_dict(), 'training')
planned = PlannedModel(model, 8192)
step = programs.Program('step', planned, mesh, 'train.training', training)
print('RESULT' + json.dumps({
  **dataclasses.asdict(step.compile()),
  'num_params': flops.num_params(model, 8192),
  'chips': len(mesh.devices.flat),
}))
"""


@needs_libtpu
def test_a_step_of_two_layers_needs_what_its_shapes_say():
  needs = run(PROGRAM, {})
  assert needs['chips'] == 4
  # A quarter of the parameters, in float32, and two moments of each.
  assert needs['parameters'] == needs['num_params']
  assert needs['optimizer'] == pytest.approx(2 * needs['parameters'], rel=1e-3)
  assert needs['total'] < 16e9 and needs['num_unknown_loops'] == 0
  # Each chip gathers all parameters at least once, in bfloat16.
  gathered = needs['collectives']['all-gather']
  permuted = needs['collectives'].get('collective-permute', {'bytes': 0})
  assert gathered['bytes'] + permuted['bytes'] >= 2 * needs['num_params']


@needs_libtpu
@pytest.mark.parametrize(
  'options, told',
  [
    (['--topology=v5e:3x3'], 'v5e:3x3: there is no such slice. Known are v5e:'),
    (
      ['--topology=v5e:2x2', '--config.mesh.data=3'],
      'mesh.data=3, mesh.fsdp=1, mesh.sequence=1, mesh.tensor=1 must multiply '
      'to the 4 devices there are (tpu).',
    ),
    (
      ['--topology=v5e:2x2', '--num_slices=2'],
      'must be the number of slices: the 8 tpu devices are in 2.',
    ),
    (
      ['--topology=v5e:2x2', '--config.train.training.batch_size=6'],
      'train.training.batch_size=6 must be divisible by 4',
    ),
  ],
)
def test_what_does_not_suit_the_topology_is_refused(options, told, tmp_path):
  done = subprocess.run(
    [
      *(sys.executable, '-m', 'infoprune_jax.main', '--compile_only'),
      *('--config=configs/jsonl.py', '--job=train', *options),
      f'--workdir={tmp_path / "none"}',
    ],
    cwd=ROOT,
    env={**os.environ, 'XLA_FLAGS': ''},
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 2
  assert told in done.stderr and 'Traceback' not in done.stderr
  assert not list(tmp_path.iterdir())
