r"""Time and memory of selecting from shards that no machine holds together.

Command: python tools/bench_select_shards.py --millions=100,1000

Workers make the examples of each shard from its number, in every pass: a
million with lognormal lengths and a score. Half of the tokens is kept, of the
highest scores. Nothing is written but the keep bits. Peak memory is that of the
largest process.
"""

import functools
import pathlib
import resource
import sys
import tempfile
import time

import numpy as np
from absl import app, flags, logging

from infoprune_jax.config import experiment as config_lib
from infoprune_jax.runtime import workers
from infoprune_jax.selection import budget, by_shard

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from configs import base

_MILLIONS = flags.DEFINE_list('millions', ['10'], 'Examples, in millions.')
_GROUPS = flags.DEFINE_integer('groups', 1, 'Groups with budgets of their own.')
_WORKERS = flags.DEFINE_integer('workers', 2, 'Processes.')
_BEAM = flags.DEFINE_list('beam', [], 'Options of Beam, in place of processes.')
_SHARD = 1_000_000


def main(_) -> None:
  """Prints seconds of clocks and of processors, and peak memory."""
  logging.set_verbosity(logging.WARNING)
  for millions in map(int, _MILLIONS.value):
    with tempfile.TemporaryDirectory(prefix='bench-shards-') as workdir:
      start, before = time.perf_counter(), processor_seconds()
      kept = select(workdir, millions)
      print(
        f'{millions:5}M in {millions} shards, {_GROUPS.value} groups: '
        f'{time.perf_counter() - start:.1f} s; of processors '
        f'{processor_seconds() - before:.1f} s; {peak() / 1e9:.2f} GB; keeps '
        f'{kept} examples; {folder_bytes(workdir) / 1e6:.1f} MB of bits',
        flush=True,
      )


def select(workdir: str, num_shards: int) -> int:
  """Writes the keep bits of each shard; returns how many are kept."""
  edits = base.get_config()
  edits.corpus.sources.none = base.text('*.txt')
  edits.corpus.num_workers = _WORKERS.value
  edits.corpus.beam_options = tuple(_BEAM.value)
  config = config_lib.from_mapping(edits)
  groups = _GROUPS.value
  ranking = functools.partial(ranking_of, groups)
  shards = by_shard.Shards(ranking, num_shards, groups, _WORKERS.value)
  kept = 0
  with workers.shared_pool(config.corpus, workdir, 'select'):
    most = by_shard.totals(shards) // 2
    for number, bits in enumerate(by_shard.lowest(shards, most)):
      np.save(pathlib.Path(workdir) / f'keep-{number:05}.npy', bits)
      kept += int(np.bitwise_count(bits).sum())
  return kept


def ranking_of(groups: int, shard: int) -> budget.Ranking:
  """The examples of a shard, the highest score first."""
  rng = np.random.default_rng(shard)
  score = rng.standard_gamma(9.0, _SHARD)
  return budget.Ranking(
    ~budget.ordered_bits(score),
    np.arange(_SHARD) + shard * _SHARD,
    rng.lognormal(5.5, 1.2, _SHARD).astype(np.int32) + 1,
    rng.integers(0, groups, _SHARD, np.int32),
    seed=0,
  )


def processor_seconds() -> float:
  """Of this process and of those that it has ended."""
  used = map(
    resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
  )
  return sum(one.ru_utime + one.ru_stime for one in used)


def peak() -> int:
  """Bytes that the largest process had at once."""
  used = map(
    resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
  )
  return max(one.ru_maxrss for one in used) * 1024


def folder_bytes(folder: str) -> int:
  """The size of the files in a folder."""
  files = pathlib.Path(folder).rglob('*.npy')
  return sum(file.stat().st_size for file in files)


if __name__ == '__main__':
  app.run(main)
