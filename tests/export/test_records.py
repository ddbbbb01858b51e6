"""ArrayRecord and TFDS, read back by their own readers."""

import json
import pathlib
import shutil

import grain
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, strategies as st

from configs import base
from infoprune_jax.config import experiment as config_lib
from infoprune_jax.corpus import quiet_tensorflow
from infoprune_jax.export import job, records

TEXT = st.text(st.characters(codec='utf-8'), max_size=300)


@pytest.fixture(scope='module')
def tf():
  quiet_tensorflow.import_tfds()
  import tensorflow as tf

  return tf


@given(features=st.dictionaries(TEXT, TEXT, max_size=4))
def test_an_example_is_what_tensorflow_parses(features, tf):
  data = records.encode_example(**features)
  found = tf.train.Example.FromString(data).features.feature
  assert {
    name: feature.bytes_list.value[0].decode()
    for name, feature in found.items()
  } == features


@pytest.mark.parametrize('arm', ['top', 'random-seed-1'])
def test_grain_reads_array_record(arm, export, kept_ids, exported_records, tf):
  folder = export('array_record', arm)
  source = grain.sources.ArrayRecordDataSource(
    [str(path) for path in sorted(folder.glob('*.array_record'))]
  )
  found = []
  # As MaxText's ParseFeatures does: every value of `text` is one string.
  for index in range(len(source)):
    example = tf.train.Example.FromString(source[index]).features.feature
    (text,) = example['text'].bytes_list.value
    found.append(
      (
        example['id'].bytes_list.value[0].decode(),
        example['source'].bytes_list.value[0].decode(),
        text.decode(),
      )
    )
  assert [record[0] for record in found] == kept_ids(arm)
  assert found == exported_records(arm)


def test_tfds_opens_the_folder(export, kept_ids, exported_records):
  folder = export('tfds', 'random-seed-0')
  tfds = quiet_tensorflow.import_tfds()
  builder = tfds.builder_from_directory(str(folder))
  assert builder.info.name == 'random_seed_0'
  split = builder.info.splits['train']
  assert split.num_examples == len(kept_ids('random-seed-0'))
  in_order = tfds.ReadConfig(interleave_cycle_length=1)
  found = [
    tuple(record[name].decode() for name in ('id', 'source', 'text'))
    for record in builder.as_dataset(
      split='train', read_config=in_order
    ).as_numpy_iterator()
  ]
  assert found == exported_records('random-seed-0')
  size = sum(
    len(records.encode_example(id=i, source=s, text=t)) for i, s, t in found
  )
  assert split.num_bytes == size


def test_a_source_without_records_gives_its_documents(
  edits, export, exported_records, select_all, workdir, kept_in
):
  folder = export('tfds', 'random-seed-0')
  texts = {
    (source, text) for _, source, text in exported_records('random-seed-0')
  }
  moved = shutil.move(folder, f'{workdir}-tfds')
  edits.corpus.sources = {}
  edits.corpus.sources.again = base.tfds(moved, source_column='source')
  edits.select.arms = {'top': base.arm('all')}
  shutil.rmtree(workdir)
  edits.report.baseline = 'top'
  # With the same seed, all would be scored again.
  edits.corpus.update(seed=1, num_shards=2)
  select_all(edits, workdir)
  edits.export.formats = ('jsonl', 'parquet')
  job.run(config_lib.from_mapping(edits), workdir)
  exported = pathlib.Path(workdir, 'export/top')
  found = read_jsonl(exported / 'jsonl/data')
  assert [record['id'] for record in found] == kept_in('top')
  assert {tuple(record) for record in found} == {('id', 'source', 'text')}
  assert (
    found and {(record['source'], record['text']) for record in found} <= texts
  )
  tables = sorted((exported / 'parquet/data').glob('*.parquet'))
  assert pa.concat_tables(map(pq.read_table, tables)).to_pylist() == found


def read_jsonl(folder: pathlib.Path) -> list[dict[str, str]]:
  records = []
  for path in sorted(folder.glob('part-*.jsonl.zst')):
    with pa.input_stream(str(path), compression='zstd') as stream:
      records += map(json.loads, stream.read().splitlines())
  return records
