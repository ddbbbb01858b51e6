r"""Time and memory of a join of a table with any number of made-up examples.

Command: python tools/bench_join.py --millions=1,10,100

Writes the documents of a token store, and a table with a record for each of
them, in an order by chance. For each key, a process of its own joins them. Peak
memory is that of the process. The log says where its partitions are, below the
workdir, and how large they become.
"""

import json
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from absl import app, flags, logging

from infoprune_jax.config import experiment as config_lib
from infoprune_jax.runtime import artifacts, hashing
from infoprune_jax.runtime.workdir import (
  data_file,
  token_store_dir,
  user_table_dir,
)
from infoprune_jax.selection import join
from infoprune_jax.tokens import token_store

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from configs import base

_MILLIONS = flags.DEFINE_list('millions', ['1', '10'], 'Examples, in millions.')
_KEYS = flags.DEFINE_list('keys', ['content_hash', 'example_id'], 'Of tables.')
_CHILD = flags.DEFINE_string('child', '', 'The work of one process, as JSON.')
_SHARD = 1_000_000


def main(_) -> None:
  """Prints seconds of clocks and of processors, and peak memory."""
  if _CHILD.value:
    # The log says where partitions are, and how large.
    logging.set_verbosity(logging.INFO)
    print(json.dumps(join_by(**json.loads(_CHILD.value))))
    return
  for millions in map(int, _MILLIONS.value):
    with tempfile.TemporaryDirectory(prefix='bench-join-') as workdir:
      write_store(workdir, millions)
      write_table(workdir, millions)
      for key in _KEYS.value:
        given = json.dumps({'workdir': workdir, 'key': key})
        command = [sys.executable, __file__, f'--child={given}']
        done = subprocess.run(
          command, check=True, stdout=subprocess.PIPE, text=True
        )
        result = json.loads(done.stdout.splitlines()[-1])
        print(
          f'{millions:4}M by {key:12} {result["seconds"]:6.1f} s, '
          f'{result["processor"]:.1f} s of processors, '
          f'{result["peak"] / 1e9:.2f} GB',
          flush=True,
        )


def keys(numbers: np.ndarray) -> dict[str, pa.Array]:
  """The content hash and the id of documents, by their numbers."""
  ids = numbers.astype('U9').tolist()
  return {
    'content_hash': pa.array(hashing.mix(numbers, 0).view(np.int64)),
    'example_id': pa.array([f'web/00001.jsonl.zst:{n}' for n in ids]),
  }


def write_store(workdir: str, num_shards: int) -> None:
  """A token store of documents without tokens, all of which are scored."""
  path = token_store_dir(workdir)
  store = artifacts.Artifact(path, 'token store', 'tokenize', {}, {})
  written = {}
  for shard in range(num_shards):
    columns = {
      **keys(np.arange(_SHARD) + shard * _SHARD),
      'source': pa.array(['web'] * _SHARD).dictionary_encode(),
      'split': np.ones(_SHARD, np.int8),
      **dict.fromkeys(
        ('num_tokens', 'num_bytes', 'compressed_bytes'),
        np.zeros(_SHARD, np.int32),
      ),
    }
    names = token_store.SCHEMA.names
    table = pa.table([columns[n] for n in names], schema=token_store.SCHEMA)
    name = data_file(shard, num_shards)
    marker = store.finish_shard(
      shard,
      num_shards,
      {name: lambda file, table=table: pq.write_table(table, file)},
    )
    written.update(marker['files'])
  store.finish(
    written,
    num_shards=num_shards,
    documents_per_shard=[_SHARD] * num_shards,
  )


def write_table(workdir: str, num_files: int) -> None:
  """A table with a score and a cluster for each document."""
  rng = np.random.default_rng(0)
  order = rng.permutation(num_files * _SHARD)
  folder = pathlib.Path(workdir) / 'quality'
  folder.mkdir()
  for number in range(num_files):
    numbers = order[number * _SHARD : (number + 1) * _SHARD]
    columns = {
      **keys(numbers),
      'score': rng.random(_SHARD),
      'cluster': rng.integers(0, 10_000, _SHARD, np.int32),
    }
    pq.write_table(pa.table(columns), folder / f'{number:05}.parquet')


def join_by(workdir: str, key: str) -> dict[str, float]:
  """Joins by one key, as the stage does; seconds and bytes."""
  edits = base.get_config()
  edits.corpus.sources.none = base.text('*.txt')
  edits.select.tables[key] = base.table(
    f'{workdir}/quality/*.parquet', on=key, columns=('score', 'cluster')
  )
  start, used = time.perf_counter(), time.process_time()
  join.run(config_lib.from_mapping(edits), workdir)
  seconds = time.perf_counter() - start
  processor = time.process_time() - used
  made = pathlib.Path(user_table_dir(workdir, key))
  assert (made / 'manifest.json').exists()
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  return {'seconds': seconds, 'processor': processor, 'peak': peak}


if __name__ == '__main__':
  app.run(main)
