"""Exports of an arm that repeats examples say how often, in every format."""

import json
import pathlib
import random
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs import base
from infoprune_jax.config import experiment as config_lib
from infoprune_jax.config.validation import UserError
from infoprune_jax.corpus import quiet_tensorflow
from infoprune_jax.export import job


def tables(folder: pathlib.Path, pattern: str = '*.parquet') -> pa.Table:
  return pa.concat_tables(map(pq.read_table, sorted(folder.glob(pattern))))


def lines_of(folder: pathlib.Path) -> list[bytes]:
  lines = []
  for path in sorted(folder.glob('*.jsonl.zst')):
    with pa.input_stream(str(path), compression='zstd') as stream:
      lines += stream.read().splitlines()
  return lines


def test_every_format_has_the_counts(edits, counts, workdir):
  used = {name: count for name, count in counts.items() if count}
  assert 10 < len(used) < len(counts) and max(used.values()) > 50
  edits.export.formats = (
    *('jsonl', 'parquet', 'array_record', 'tfds', 'keep_set', 'scores'),
  )
  job.run(config_lib.from_mapping(edits), workdir)
  folder = pathlib.Path(workdir, 'export')
  table = tables(folder / 'often/keep_set/data')
  ids = table['example_id'].to_pylist()
  found = dict(zip(ids, table['repeats'].to_pylist(), strict=True))
  assert found == counts and table.column_names[-2:] == ['kept', 'repeats']
  assert table['kept'].to_pylist() == [count > 0 for count in found.values()]
  assert 'repeats' not in tables(folder / 'all/keep_set/data').column_names
  every = tables(folder / 'every-arm/scores/data')
  assert every['repeats_often'].to_pylist() == list(counts.values())
  assert 'repeats_all' not in every.column_names
  # Records, in the order of the corpus; other bytes of lines stay.
  records = [json.loads(line) for line in lines_of(folder / 'often/jsonl/data')]
  assert [r['repeats'] for r in records] == list(used.values())
  news = [r for r in records if 'id' in r and str(r['id']).startswith('news-')]
  assert {r['id']: r['repeats'] for r in news} == {
    name: count for name, count in used.items() if name.startswith('news-')
  }
  whole = set(lines_of(folder / 'all/jsonl/data'))
  for line in lines_of(folder / 'often/jsonl/data'):
    assert line.rpartition(b', "repeats": ')[0] + b'}' in whole
  for source in ('news', 'books', 'notes'):
    mine = tables(folder / 'often/parquet/data', f'*.{source}.parquet')
    assert mine['repeats'].to_pylist() == [
      count for name, count in used.items() if name.startswith(source)
    ]
  tfds = quiet_tensorflow.import_tfds()
  builder = tfds.builder_from_directory(str(folder / 'often/tfds/data'))
  found = {
    record['id'].decode(): int(record['repeats'])
    for record in builder.as_dataset(split='train').as_numpy_iterator()
  }
  assert found == used
  import grain
  import tensorflow as tf

  paths = sorted((folder / 'often/array_record/data').glob('*.array_record'))
  source = grain.sources.ArrayRecordDataSource(list(map(str, paths)))
  found = {}
  for n in range(len(source)):
    feature = tf.train.Example.FromString(source[n]).features.feature
    [name] = feature['id'].bytes_list.value
    found[name.decode()] = feature['repeats'].int64_list.value[0]
  assert found == used


@pytest.mark.parametrize('source', [base.jsonl, base.parquet])
def test_a_field_of_that_name_is_refused(
  source, edits, workdir, select_all, tmp_path, export
):
  rng = random.Random(0)
  records = [
    {'text': ' '.join(f'{rng.random():.3f}' for _ in range(20)), 'repeats': n}
    for n in range(60)
  ]
  lines = ''.join(json.dumps(record) + '\n' for record in records)
  (tmp_path / 'x.jsonl').write_text(lines)
  pq.write_table(pa.Table.from_pylist(records), tmp_path / 'x.parquet')
  edits.select.arms = {'often': base.arm('repeat', '2')}
  edits.report.baseline = 'often'
  path = str(tmp_path / f'x.{source.__name__}')
  edits.corpus.sources = {'mine': source(path)}
  shutil.rmtree(workdir)
  select_all(edits, workdir)
  for format in ('jsonl', 'parquet'):
    with pytest.raises(UserError, match="have a field 'repeats' already"):
      export(format, 'often')
  kept = tables(export('keep_set', 'often'))
  assert np.unique(kept['repeats']).tolist() == [0, 2]
