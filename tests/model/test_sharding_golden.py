"""How parameters and activations are spread over four meshes, line by line.

The golden says what a change of a rule or a constraint does to all of them. It
needs no compiler of TPUs: shardings are resolved before anything compiles.
"""

import dataclasses
import difflib
import pathlib

import jax
import pytest

from infoprune_jax.batches import packing
from infoprune_jax.config.experiment import MeshConfig
from infoprune_jax.config.model import ModelConfig
from infoprune_jax.model import mesh as mesh_lib, network, partitioning

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'shardings.txt'
REFRESH = (
  'python -m pytest tests/model/test_sharding_golden.py --refresh-goldens'
)
MESHES = (
  dict(data=8),
  dict(data=2, fsdp=4),
  dict(data=1, fsdp=2, tensor=4),
  dict(data=1, fsdp=2, sequence=2, tensor=2),
)
MODEL = ModelConfig(
  num_layers=2,
  embed_dim=64,
  mlp_dim=96,
  num_heads=8,
  num_kv_heads=4,
  head_dim=16,
  qk_norm=True,
  tie_embeddings=False,
  attention='xla',
  loss_kernel='xla',
  mlp_kernel='xla',
  loss_chunk_tokens=32,
  remat='full',
)
# Two shards divide the vocabulary, four do not.
VOCAB, SEQUENCES, LENGTH = 514, 8, 32


def spread(mesh, spec, shape) -> str:
  """An array's shape, with the mesh axes of each axis: 64/fsdp x 96."""
  axes = [*spec, *([None] * (len(shape) - len(spec)))]
  names = [[a] if isinstance(a, str) else [*(a or ())] for a in axes]
  names = [[one for one in group if mesh.shape[one] > 1] for group in names]
  return ' x '.join(
    '/'.join([str(size), *name])
    for size, name in zip(shape, names, strict=True)
  )


def parameters(mesh) -> list[str]:
  shapes = network.param_shapes(MODEL, VOCAB)
  axes = network.param_axes(MODEL, VOCAB)
  shardings = partitioning.shardings(mesh, shapes, axes, 'Parameter')
  leaves = jax.tree_util.tree_leaves_with_path(shapes)
  return [
    f'{".".join(str(key.key) for key in path)}: {spread(mesh, one.spec, leaf.shape)}'
    for (path, leaf), one in zip(
      leaves, jax.tree.leaves(shardings), strict=True
    )
  ]


def activations(mesh, monkeypatch) -> list[str]:
  """What training and scoring pin, and what each device's programs take."""
  lines: dict[str, None] = {}
  pin, shard_map = jax.lax.with_sharding_constraint, jax.shard_map

  def pinned(x, spec):
    lines[f'pinned: {spread(mesh, spec, x.shape)}'] = None
    return pin(x, spec)

  def mapped(function, *, in_specs, out_specs, **options):
    inner = shard_map(
      function, in_specs=in_specs, out_specs=out_specs, **options
    )
    inside = getattr(function, 'func', function)  # of a partial
    name = inside.__qualname__.partition('.')[0].strip('_')

    def call(*arrays):
      for spec, x in zip(in_specs, arrays, strict=True):
        if hasattr(x, 'shape'):
          lines[f'{name} takes: {spread(mesh, spec, x.shape)}'] = None
      return inner(*arrays)

    return call

  monkeypatch.setattr(jax.lax, 'with_sharding_constraint', pinned)
  monkeypatch.setattr(jax, 'shard_map', mapped)
  batch = packing.empty_sequences(SEQUENCES, LENGTH)
  weights = batch['decoder_loss_weights']
  shapes = network.param_shapes(MODEL, VOCAB)

  def loss(params, batch, weights):
    return network.batch_loss(MODEL, params, batch, weights, 0.0, 0)[0]

  scoring = dataclasses.replace(MODEL, remat='none')
  with partitioning.use_mesh(mesh):
    jax.eval_shape(jax.grad(loss), shapes, batch, weights)
    jax.eval_shape(
      lambda p, b: network.batch_statistics(scoring, p, b), shapes, batch
    )
  monkeypatch.undo()
  return list(lines)


@pytest.mark.skipif(jax.device_count() < 8, reason='needs 8 devices')
def test_shardings_are_those_of_the_golden(request, monkeypatch):
  lines = []
  for sizes in MESHES:
    mesh = mesh_lib.make_mesh(MeshConfig(**sizes), jax.devices()[:8])
    lines += [
      'mesh '
      + ' '.join(f'{axis}={n}' for axis, n in mesh.shape.items() if n > 1),
      *(f'  {line}' for line in parameters(mesh)),
      *(f'  {line}' for line in activations(mesh, monkeypatch)),
    ]
  if request.config.getoption('--refresh-goldens'):
    GOLDEN.write_text('\n'.join(lines) + '\n')
  golden = GOLDEN.read_text().splitlines()
  changed = '\n'.join(difflib.unified_diff(golden, lines, lineterm='', n=1))
  assert not changed, f'{changed}\nIf they are meant to change: {REFRESH}'
