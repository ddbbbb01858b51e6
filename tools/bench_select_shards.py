r"""Time and memory of selecting from shards that no machine holds together.

Command: python tools/bench_select_shards.py --millions=100,1000

Workers make the examples of each shard from its number, in every pass: a
million with lognormal lengths and a score. Half of the tokens is kept, of the
highest mean scores. Nothing is written but the keep bits. Peak memory is that of
the largest process.
"""

import functools
import pathlib
import resource
import sys
import tempfile
import time

import numpy as np
import pyarrow as pa
from absl import app, flags, logging

from infoprune_jax.config import experiment as config_lib
from infoprune_jax.config.selection import RuleConfig
from infoprune_jax.runtime import workers
from infoprune_jax.selection import (
  by_shard,
  select as select_lib,
  shown,
  store_order,
  summary,
)
from infoprune_jax.selection.examples import ExampleTable

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from configs import base

_MILLIONS = flags.DEFINE_list('millions', ['10'], 'Examples, in millions.')
_GROUPS = flags.DEFINE_integer('groups', 1, 'Sources with their own budgets.')
_WORKERS = flags.DEFINE_integer('workers', 2, 'Processes.')
_BEAM = flags.DEFINE_list('beam', [], 'Options of Beam, in place of processes.')
_SUMMARY = flags.DEFINE_bool('summary', False, 'Also make the summary.')
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
  """Writes the keep bits; returns how many are kept."""
  edits = base.get_config()
  edits.corpus.sources.none = base.text('*.txt')
  edits.corpus.num_workers = _WORKERS.value
  edits.corpus.beam_options = tuple(_BEAM.value)
  config = config_lib.from_mapping(edits)
  per = 'source' if _GROUPS.value > 1 else ''
  rule = base.arm('top', 'nll_sum / num_tokens', fraction=0.5, per=per)
  open_shard = functools.partial(make_shard, _GROUPS.value)
  with workers.shared_pool(config.corpus, workdir, 'select'):
    examples = by_shard.ExamplesByShard(open_shard, num_shards)
    rules = [RuleConfig(**rule.to_dict())]
    kept, decision = select_lib.decide(rules, examples, 0)
    bits = store_order.bits(examples, kept, num_shards * _SHARD)
    if _SUMMARY.value:
      summary.summarize(examples, kept)
      shown.examples_of(examples, kept, decision, 10)
  np.save(pathlib.Path(workdir) / 'keep.npy', bits)
  return int(np.bitwise_count(bits).sum(dtype=np.int64))


def make_shard(groups: int, shard: int) -> ExampleTable:
  """The examples of a shard."""
  rng = np.random.default_rng(shard)
  tokens = rng.lognormal(5.5, 1.2, _SHARD).astype(np.int32) + 1
  number = rng.integers(0, groups, _SHARD, np.int32)
  names = [f'source-{n:03}' for n in range(groups)]
  columns = {
    'shard': np.full(_SHARD, shard, np.int32),
    'doc_index': np.arange(_SHARD),
    'example_id': pa.repeat('', _SHARD),
    'source': pa.DictionaryArray.from_arrays(number, names),
    'num_tokens': tokens,
    'num_bytes': 4 * tokens,
    'nll_sum': tokens * rng.standard_gamma(9.0, _SHARD),
    'content_hash': rng.integers(0, 2**62, _SHARD),
    'fold': np.zeros(_SHARD, np.int8),
  }
  return ExampleTable(pa.table(columns), np.arange(_SHARD) + shard * _SHARD)


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
