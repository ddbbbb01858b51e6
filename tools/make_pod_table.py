r"""Compiles scoring and training for TPU pods, without a TPU, into a table.

Command: python tools/make_pod_table.py --out=pods.jsonl [--only=m124]

Needs `libtpu`, the compiler of TPUs. Each cell is compiled in a process of its
own, as `--compile_only` does, and its figures become a line of `--out`. Cells that have a line are not
compiled again. The program then prints Markdown tables of all lines.

Cells of a model are the programs that a job runs on packed sequences. Cells
of splash attention are its kernels alone, with and without segments and for
several sizes of blocks. Their cycles are the instruction bundles that the
compiler schedules for a block, times the blocks that a causal mask leaves: an
estimate that holds no wait for memory.
"""

import argparse
import dataclasses
import itertools
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from typing import Any

from infoprune_jax.model import chips
from infoprune_jax.pods import libtpu

ROOT = pathlib.Path(__file__).resolve().parent.parent
BLOCKS = (128, 256, 512, 1024)
LENGTHS = (1024, 2048, 4096)


@dataclasses.dataclass(frozen=True)
class Program:
  """The program of a job: a preset of configs/models.py on some chips."""

  preset: str
  job: str  # 'score' or 'train'
  topology: str
  mesh: tuple[int, int, int]  # data, fsdp, tensor
  sequences: int  # of a chip
  sequence_length: int
  vocab: int = 128256

  @property
  def name(self) -> str:
    """Of the cell."""
    mesh = 'x'.join(map(str, self.mesh))
    size = f'{self.sequences}x{self.sequence_length}'
    return f'{self.preset} {self.job} {self.topology} {mesh} {size}'


@dataclasses.dataclass(frozen=True)
class Attention:
  """Splash attention alone, forward and backward, for each size of blocks."""

  topology: str
  head_dim: int
  has_segments: bool

  @property
  def name(self) -> str:
    """Of the cell."""
    what = 'segments' if self.has_segments else 'causal'
    return f'splash {what} {self.head_dim} {self.topology}'


# Of each preset on each chip: topology, mesh and sequences of scoring, then of
# training.
_PODS = {
  'm124': {
    'v5e': ('4x4', (16, 1, 1), 32, '4x4', (16, 1, 1), 16),
    'v6e': ('4x4', (16, 1, 1), 32, '4x4', (16, 1, 1), 16),
  },
  'b1_3': {
    'v4': ('2x2x4', (16, 1, 1), 4, '2x2x4', (1, 16, 1), 4),
    'v5e': ('4x4', (16, 1, 1), 4, '4x4', (1, 16, 1), 4),
    'v5p': ('2x2x4', (16, 1, 1), 4, '2x2x4', (1, 16, 1), 4),
    'v6e': ('4x4', (16, 1, 1), 4, '4x4', (1, 16, 1), 4),
  },
  'b8': {
    'v4': ('4x4x4', (8, 8, 1), 4, '4x4x4', (1, 64, 1), 1),
    'v5e': ('16x16', (32, 8, 1), 4, '16x16', (1, 256, 1), 1),
    'v5p': ('4x4x4', (8, 8, 1), 4, '4x4x4', (1, 64, 1), 2),
    'v6e': ('16x16', (32, 8, 1), 4, '16x16', (1, 256, 1), 1),
  },
  'b70': {
    'v4': ('4x4x8', (16, 8, 1), 4, '8x8x8', (1, 512, 1), 1),
    'v5e': ('16x16', (8, 32, 1), 2, '16x16', (1, 256, 1), 1),
    'v5p': ('4x4x8', (16, 8, 1), 4, '4x8x8', (1, 256, 1), 1),
    'v6e': ('16x16', (32, 8, 1), 4, '16x16', (1, 256, 1), 1),
  },
}
_SIZES = {
  'm124': (1024, 50304),
  'b1_3': (2048, 50304),
  'b8': (4096, 128256),
  'b70': (4096, 128256),
}
# Steps whose time MaxText publishes.
PUBLISHED = (
  Program('b8', 'train', 'v6e:2x4', (1, 8, 1), 3, 8192),
  Program('b8', 'train', 'v6e:16x16', (1, 256, 1), 3, 8192),
  Program('b8', 'train', 'v5p:4x4x4', (1, 64, 1), 1, 65536),
  Program('b70', 'train', 'v5p:4x8x8', (1, 256, 1), 4, 4096, vocab=32000),
)


def cells() -> list[Program | Attention]:
  """All cells, those that compile fastest first."""
  programs = [
    Program(preset, job, f'{chip}:{shape}', mesh, sequences, *_SIZES[preset])
    for preset, of_chips in _PODS.items()
    for chip, pods in of_chips.items()
    for job, (shape, mesh, sequences) in (
      ('score', pods[:3]),
      ('train', pods[3:]),
    )
  ]
  splash = [
    Attention(f'{kind}:2x2', head_dim, has_segments)
    for kind in ('v5e', 'v6e')
    for head_dim in (64, 128)
    for has_segments in (True, False)
  ]
  return [*PUBLISHED, *programs, *splash]


def program_of(cell: Program) -> Any:
  """The `programs.Program` of a cell.

  Layers are a loop, and training keeps nothing but their inputs: what a chip's
  memory allows is not chosen, so that each cell compiles once.
  """
  from configs import base, models
  from infoprune_jax.config.experiment import MeshConfig
  from infoprune_jax.config.model import ModelConfig
  from infoprune_jax.config.scoring import ScoringConfig
  from infoprune_jax.config.training import TrainingConfig
  from infoprune_jax.config.validation import build
  from infoprune_jax.pods import compile_only, programs
  from infoprune_jax.score.references import PlannedModel

  data, fsdp, tensor = cell.mesh
  mesh = compile_only.make_mesh(
    MeshConfig(data=data, fsdp=fsdp, tensor=tensor), cell.topology, 1
  )
  fields = getattr(models, cell.preset)().to_dict()
  fields |= {'remat': 'full', 'scan_unroll': 1}
  model = build(ModelConfig, fields, 'model')
  section: Any = ScoringConfig(
    per_device_batch_size=cell.sequences,
    sequence_length=cell.sequence_length,
    window_overlap=0,
    dtype='bfloat16',
  )
  if cell.job == 'train':
    training = base.training()
    training.update(
      batch_size=cell.sequences * data * fsdp,
      sequence_length=cell.sequence_length,
    )
    section = build(TrainingConfig, training.to_dict(), 'training')
  planned = PlannedModel(model, cell.vocab)
  return programs.Program(cell.name, planned, mesh, cell.job, section)


def program_figures(cell: Program) -> dict[str, Any]:
  """The fields of `programs.Needs`, or None if it does not fit; an estimate."""
  from infoprune_jax.model import chips
  from infoprune_jax.pods import compile_only, roofline

  program = program_of(cell)
  needs = compile_only.compiled(program)
  if isinstance(needs, str):
    return {'too_large': needs}
  chip = chips.of_topology(cell.topology)
  estimate = roofline.estimate(chip, program, needs)
  tokens = program.tokens / program.mesh.devices.size
  return {
    **dataclasses.asdict(needs),
    'estimate': {
      **dataclasses.asdict(estimate),
      'step': estimate.step,
      'bound': estimate.bound,
      'tokens_per_second': tokens / estimate.step,
    },
  }


def attention_figures(cell: Attention, dumps: str) -> dict[str, Any]:
  """The result of `bundles` for each size of blocks and each kernel.

  A step of a kernel handles one block of queries and one of keys.
  """
  import jax

  by_block: dict[str, Any] = {}
  for block in BLOCKS:
    before = set(os.listdir(dumps))
    try:
      compile_attention(cell, block)
    except jax.errors.JaxRuntimeError as error:
      if 'RESOURCE_EXHAUSTED' not in str(error) and 'vmem' not in str(error):
        raise
      continue
    by_block[str(block)] = {
      kernel_name: bundles(pathlib.Path(dumps, file).read_text())
      for file in sorted(set(os.listdir(dumps)) - before)
      for kernel_name in re.findall(
        r'splash_mha_(fwd|dkv|dq)\S*final_bundles\.txt$', file
      )
      if 'schedule-analysis' not in file
    }
  return {'bundles': by_block}


def compile_attention(cell: Attention, block: int) -> None:
  """Compiles the gradient of splash attention, with blocks of one size."""
  import jax
  import jax.numpy as jnp
  from jax.experimental import topologies
  from jax.experimental.pallas.ops.tpu import splash_attention as splash

  topology = topologies.get_topology_desc(cell.topology, 'tpu')
  one = jax.sharding.SingleDeviceSharding(topology.devices[0])  # noqa: TID251
  length = max(BLOCKS)
  fields = dataclasses.fields(splash.BlockSizes)
  names = [field.name for field in fields if field.name.startswith('block_')]
  mask = splash.CausalMask((length, length))
  kernel = splash.make_splash_mha(
    splash.MultiHeadMask([mask] * 2),
    head_shards=1,
    q_seq_shards=1,
    block_sizes=splash.BlockSizes(**dict.fromkeys(names, block)),
  )

  def loss(query: Any, key: Any, value: Any, ids: Any, kernel: Any) -> Any:
    segments = splash.SegmentIds(ids, ids) if cell.has_segments else None
    mixed = jax.vmap(kernel)(query, key, value, segments)
    return mixed.astype(jnp.float32).sum()

  heads = jax.ShapeDtypeStruct(
    (1, 2, length, cell.head_dim), jnp.bfloat16, sharding=one
  )
  ids = jax.ShapeDtypeStruct((1, length), jnp.int32, sharding=one)
  program = jax.jit(jax.grad(loss, (0, 1, 2)))
  program.lower(heads, heads, heads, ids, kernel).compile()


def bundles(text: str) -> list[int]:
  """The bundles of a kernel: of each step, of a line of steps, of a block.

  The three largest branches are those that set up the sums of a line, add a
  block to them, and write them. The block's is the largest.
  """
  lines = re.findall(r'^\s*(0x[0-9a-f]+|\d+)\s+(PF)?', text, re.M)
  places = [(int(place, 0), label) for place, label in lines]
  ends = [0, *(place for place, label in places if label), places[-1][0]]
  branches = sorted(b - a for a, b in itertools.pairwise(ends))
  return [sum(branches[:-3]), sum(branches[-3:-1]), branches[-1]]


def cycles(kernel: list[int], length: int, block: int) -> int:
  """The cycles of a kernel, for one head and one sequence."""
  step, line, one = kernel
  count = -(-length // block)
  return count**2 * step + count * line + count * (count + 1) // 2 * one


def run(name: str) -> dict[str, Any] | None:
  """Compiles a cell in a process of its own; None if that fails."""
  with tempfile.TemporaryDirectory() as dumps:
    dump = f'--xla_jf_dump_to={dumps} --xla_jf_dump_llo_text=true'
    done = subprocess.run(
      [sys.executable, __file__, f'--cell={name}', f'--dumps={dumps}'],
      env={
        **os.environ,
        **libtpu.ENVIRONMENT,
        'LIBTPU_INIT_ARGS': dump if name.startswith('splash') else '',
        'PYTHONPATH': os.pathsep.join([str(ROOT), *sys.path]),
      },
      capture_output=True,
      text=True,
    )
  lines = [x for x in done.stdout.splitlines() if x.startswith('RESULT')]
  if lines:
    return json.loads(lines[-1].removeprefix('RESULT'))
  print(f'{name} failed:\n{done.stderr[-2000:]}', file=sys.stderr)
  return None


def print_programs(results: dict[str, Any]) -> None:
  """Memory, collectives and the estimate of each program that is compiled."""
  print(
    '| program | GB per chip: parameters, optimizer, temporaries | of '
    '| collectives, GB per chip | at best: bound, s per step, tokens/s per chip, '
    'MFU |'
  )
  print('| --- | --- | --- | --- | --- |')
  for cell in cells():
    if not isinstance(cell, Program) or cell.name not in results:
      continue
    figures = results[cell.name]
    of_chip = chips.of_topology(cell.topology).hbm_bytes / 1e9
    if 'too_large' in figures:
      print(f'| {cell.name} | does not fit | {of_chip:.1f} | | |')
      continue
    parts = (
      figures[name] / 1e9 for name in ('parameters', 'optimizer', 'temporaries')
    )
    kinds = 'not printed by libtpu'
    if (by_kind := figures['collectives']) is not None:
      numbers = (
        f'{one["count"]} {kind} {one["bytes"] / 1e9:.2f}'
        for kind, one in by_kind.items()
      )
      kinds = ', '.join(numbers) or 'none'
    best = figures['estimate']
    links = ' by formula' * best['links_are_formula']
    print(
      f'| {cell.name} | {figures["total"] / 1e9:.2f}: '
      f'{", ".join(f"{part:.2f}" for part in parts)} | {of_chip:.1f} | {kinds} '
      f'| {best["bound"]}, {best["step"]:.3g}, '
      f'{best["tokens_per_second"]:,.0f}, {best["mfu"]:.0%} (links{links} '
      f'{best["links"]:.3g}) |'
    )


def print_attention(results: dict[str, Any]) -> None:
  """Cycles of splash attention for one head, forward and all, by blocks."""
  print('\n| kernel | tokens |' + ''.join(f' blocks of {b} |' for b in BLOCKS))
  print('| --- | --- |' + ' --- |' * len(BLOCKS))
  for cell in cells():
    if not isinstance(cell, Attention) or cell.name not in results:
      continue
    for length in LENGTHS:
      row = []
      for block in BLOCKS:
        kernels = results[cell.name]['bundles'].get(str(block))
        if kernels:
          each = {k: cycles(v, length, block) for k, v in kernels.items()}
          row.append(
            f' {each["fwd"] / 1e3:.0f}k, {sum(each.values()) / 1e3:.0f}k |'
          )
        else:
          row.append(' too large |')
      print(f'| {cell.name} | {length} |' + ''.join(row))


def main() -> None:
  """Compiles what is missing, and prints the tables."""
  parser = argparse.ArgumentParser()
  parser.add_argument('--out')
  parser.add_argument('--only', default='', help='cells whose name has this')
  parser.add_argument('--cell', help='used by the program itself')
  parser.add_argument('--dumps', help='used by the program itself')
  options = parser.parse_args()
  by_name = {cell.name: cell for cell in cells()}
  if options.cell:
    cell = by_name[options.cell]
    if isinstance(cell, Attention):
      print('RESULT' + json.dumps(attention_figures(cell, options.dumps)))
      return
    print('RESULT' + json.dumps(program_figures(cell)))
    return
  out = pathlib.Path(options.out)
  out.touch()
  lines = out.read_text().splitlines()
  results = {line['cell']: line['figures'] for line in map(json.loads, lines)}
  for name in by_name:
    if name in results or options.only not in name:
      continue
    figures = run(name)
    if figures:
      results[name] = figures
      with out.open('a') as file:
        file.write(json.dumps({'cell': name, 'figures': figures}) + '\n')
      print(f'{name}: {figures}', file=sys.stderr, flush=True)
  print_programs(results)
  print_attention(results)


if __name__ == '__main__':
  main()
