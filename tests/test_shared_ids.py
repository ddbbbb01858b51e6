"""Two sources with the same ids, from their files to SeqIO tasks and exports."""

import collections
import json
import pathlib
import random
import shutil
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import seqio
import tensorflow as tf
from ml_collections import ConfigDict
from small_corpus import only_arms, small_config
from tiny_corpora import random_text, write_jsonl

from configs import base
from infoprune_jax import stages
from infoprune_jax.batches import loader
from infoprune_jax.config import experiment as config_lib
from infoprune_jax.config.training import TrainingConfig
from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime.workdir import (
  scores_dir,
  user_table_dir,
  vocabulary_dir,
)
from infoprune_jax.selection import join
from infoprune_jax.selection.keep_set import KeepSet
from infoprune_jax.seqio_tasks import tasks
from infoprune_jax.tokens import tables, vocabulary
from infoprune_jax.tokens.token_store import TokenStore
from infoprune_jax.verify import workdir as verify

COUNTS = {'books': 70, 'web': 110}
ARM = 'top'
Key = tuple[str, str]  # source and id


def edits_over(folder: pathlib.Path) -> ConfigDict:
  """Each source has the ids 0, 1, 2 and so on."""
  rng = random.Random(0)
  edits = small_config('')
  del edits.corpus.sources.made_up
  for source, count in COUNTS.items():
    rows = [
      {'id': n, 'text': f'{source} {n} {random_text(rng)}'}
      for n in range(count)
    ]
    path = write_jsonl(folder / source / 'documents' / 'all.jsonl', rows)
    edits.corpus.sources[source] = base.jsonl(path, id_column='id')
  edits.select.arms[ARM] = base.arm('top', base.INFORMATION, fraction=0.5)
  only_arms(edits, ARM)
  edits.report.baseline = ARM
  edits.export.formats = ('jsonl', 'keep_set', 'scores', 'dolma_attributes')
  return edits


@pytest.fixture(scope='module')
def edits(tmp_path_factory) -> ConfigDict:
  return edits_over(tmp_path_factory.mktemp('shared'))


@pytest.fixture(scope='module')
def workdir(edits, tmp_path_factory) -> str:
  workdir = str(tmp_path_factory.mktemp('shared') / 'shared')
  config = config_lib.from_mapping(edits)
  for job in (
    'tokenize',
    'reference',
    'statistics',
    'score',
    'select',
    'export',
  ):
    stages.run(config, workdir, job)
  return workdir


@pytest.fixture(scope='module')
def store(workdir) -> TokenStore:
  return TokenStore.open(workdir)


@pytest.fixture(scope='module')
def words(workdir) -> vocabulary.Vocabulary:
  return vocabulary.Vocabulary.load(vocabulary_dir(workdir))


@pytest.fixture(scope='module')
def documents(store, workdir) -> dict[Key, dict[str, Any]]:
  """Each document of the store, with its tokens and whether it is kept."""
  keep_set = KeepSet.open(workdir, ARM, store)
  return {
    (row['source'], row['example_id']): {
      **row,
      'tokens': tuple(store.document(shard, n).tolist()),
      'place': (shard, n),
      'kept': bool(keep_set.of_shard(shard)[n]),
    }
    for shard in range(store.num_shards)
    for n, row in enumerate(store.shard(shard).table().to_pylist())
  }


def test_no_document_is_lost_or_mixed_up(documents, store, words):
  assert store.manifest['bad_records'] == {}
  assert set(documents) == {
    (source, str(n)) for source, count in COUNTS.items() for n in range(count)
  }
  for (source, id_), row in documents.items():
    assert words.decode(row['tokens']).startswith(f'{source} {id_} ')


def test_each_has_its_own_score(documents, workdir):
  rows = tables.read_table(scores_dir(workdir)).to_pylist()
  scored = {k for k, row in documents.items() if row['split'] == 1}
  keys = [(row['source'], row['example_id']) for row in rows]
  assert len(keys) == len(scored) and set(keys) == scored
  for key, row in zip(keys, rows, strict=True):
    assert (row['shard'], row['doc_index']) == documents[key]['place']
    assert row['num_tokens'] == len(documents[key]['tokens'])


def of_each_sort(documents) -> set[str]:
  """Ids that one source keeps, and the other scores and prunes."""
  return {
    id_
    for (source, id_), row in documents.items()
    if source == 'web'
    and row['split'] == 1
    and (other := documents.get(('books', id_)))
    and other['split'] == 1
    and row['kept'] != other['kept']
  }


def kept_of(documents, source: str = '') -> collections.Counter:
  return collections.Counter(
    row['tokens']
    for (name, _), row in documents.items()
    if row['kept'] and source in ('', name)
  )


def read(name: str, split: str = 'train') -> collections.Counter:
  dataset = seqio.get_mixture_or_task(name).get_dataset(
    None, split=split, shuffle=False
  )
  return collections.Counter(
    tuple(one['targets'].tolist()[:-1]) for one in dataset.as_numpy_iterator()
  )


def test_seqio_tasks_read_what_each_source_keeps(documents, workdir):
  assert len(of_each_sort(documents)) > 5
  tasks.register(workdir, 'shared')
  assert read(f'shared.{ARM}') == kept_of(documents)
  for source in COUNTS:
    assert read(f'shared.{ARM}.{source}') == kept_of(documents, source)
  heldout = [row['tokens'] for row in documents.values() if row['split'] == 2]
  assert read(f'shared.{ARM}', 'validation') == collections.Counter(heldout)


def test_a_task_of_others_is_pruned_by_the_ids_of_its_source(
  documents, workdir
):
  for source, count in COUNTS.items():
    ids = tasks.kept_ids(workdir, ARM, source)
    assert len(ids) == len(set(ids))
    dataset = tf.data.Dataset.from_tensor_slices(
      {'key': [str(n) for n in range(count)]}
    )
    dataset = tasks.keep_examples(ids, 'key')(dataset)
    assert [one['key'].decode() for one in dataset.as_numpy_iterator()] == [
      str(n)
      for n in range(count)
      for row in [documents[source, str(n)]]
      if row['kept'] or row['split'] == 2
    ]
  with pytest.raises(
    UserError, match=r"70 ids are of more .* as '\d+'.*source="
  ):
    tasks.kept_ids(workdir, ARM)
  with pytest.raises(UserError, match="no document of the source 'wbe'"):
    tasks.kept_ids(workdir, ARM, 'wbe')


def test_seqio_repeats_each_as_often_as_asked(documents, store, words):
  """Whatever another source does with the same id."""
  rng = np.random.default_rng(0)
  train = {k: row for k, row in documents.items() if row['split'] != 2}
  repeats = dict(zip(train, rng.integers(0, 4, len(train)), strict=True))
  keep = [
    np.array(
      [
        row['place'][1]
        for key, row in train.items()
        if row['place'][0] == shard
        for _ in range(repeats[key])
      ],
      np.int64,
    )
    for shard in range(store.num_shards)
  ]
  preprocessor = tasks.keep_documents(store, keep)
  corpus = tasks.Corpus(store, words)
  found: list = []
  for task in corpus.tasks_by_source('repeats', preprocessor).values():
    dataset = task.get_dataset(None, split='train', shuffle=False)
    found += [
      (tuple(one['targets'].tolist()[:-1]), n)
      for n, one in enumerate(dataset.as_numpy_iterator())
    ]
  assert collections.Counter(tokens for tokens, _ in found) == (
    collections.Counter(
      {documents[k]['tokens']: n for k, n in repeats.items() if n}
    )
  )
  # Copies are in passes of their own: far apart.
  where = collections.defaultdict(list)
  for tokens, n in found:
    where[tokens].append(n)
  assert min(np.diff(n).min() for n in where.values() if len(n) > 1) > 10


def test_exports_tell_the_sources_apart(documents, workdir):
  folder = pathlib.Path(workdir, 'export')
  texts = [
    json.loads(line)['text']
    for path in sorted(folder.glob(f'{ARM}/jsonl/data/*.zst'))
    for line in pa.input_stream(str(path), compression='zstd')
    .read()
    .splitlines()
  ]
  kept = {k for k, row in documents.items() if row['kept']}
  # In the order of the keep set, which has their sources.
  assert [tuple(text.split(' ', 2)[:2]) for text in texts] == [
    key for key in documents if key in kept
  ]
  for name, column in (
    (f'{ARM}/keep_set', 'kept'),
    ('every-arm/scores', f'keep_{ARM}'),
  ):
    rows = [
      row
      for path in folder.glob(f'{name}/data/*.parquet')
      for row in pq.read_table(path).to_pylist()
    ]
    assert len(rows) == len(documents)
    assert {(r['source'], r['example_id']) for r in rows if r[column]} == kept
  for source, count in COUNTS.items():
    below = f'every-arm/dolma_attributes/data/{source}/attributes/infoprune'
    lines = (folder / below / 'all.jsonl').read_text().splitlines()
    assert len(lines) == count
    for n, record in enumerate(map(json.loads, lines)):
      [[_, _, keep]] = record['attributes'][f'infoprune__{ARM}_keep']
      assert (record['source'], record['id']) == (source, n)
      assert keep == float(documents[source, str(n)]['kept'])


def test_a_table_must_say_of_which_source_an_id_is(
  documents, edits, workdir, tmp_path
):
  """Also if only one of the documents with this id was scored."""
  path = tmp_path / 'made.parquet'
  made = [
    {'source': source, 'example_id': id_, 'score': n / 2}
    for n, (source, id_) in enumerate(documents)
  ]

  def joined(rows: list[dict[str, Any]], *on: str, **fields: Any) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path)
    edits.select.tables.made = base.table(str(path), on=on, **fields)
    join.run(config_lib.from_mapping(edits), workdir)

  web = [
    {'example_id': row['example_id'], 'score': row['score']}
    for row in made
    if row['source'] == 'web'
  ]
  with pytest.raises(UserError, match="no column 'source'"):
    joined(web, 'source', 'example_id')
  with pytest.raises(
    UserError,
    match="several sources have the id of 70 records, such as '[0-9]+' of the "
    r"source 'books' .*write on=\('source', 'example_id'\)",
  ):
    joined(web, 'example_id')
  other = next(
    id_
    for (source, id_), row in documents.items()
    if source == 'books'
    and row['split'] == 1
    and documents['web', id_]['split'] != 1
  )
  with pytest.raises(
    UserError, match=f"the id of 1 record, such as '{other}' of"
  ):
    joined(
      [row for row in web if row['example_id'] == other],
      'example_id',
      missing=0.0,
    )
  expected = {(r['source'], r['example_id']): r['score'] for r in made}
  for on in (('source', 'example_id'), ('example_id',)):
    joined(made, *on)
    rows = tables.read_table(user_table_dir(workdir, 'made')).to_pylist()
    assert len(rows) == sum(row['split'] == 1 for row in documents.values())
    key_of = {row['place']: key for key, row in documents.items()}
    for row in rows:
      key = key_of[row['shard'], row['doc_index']]
      assert row['score'] == expected[key]
    shutil.rmtree(user_table_dir(workdir, 'made'))


def test_examples_of_a_step_are_named_by_their_sources(documents, store):
  training = TrainingConfig(
    num_steps=1, learning_rate=1e-3, sequence_length=4096, batch_size=64
  )
  keep = [np.arange(count) for count in store.documents_per_shard]
  found = loader.grain_reader(store, keep, training, seed=0).examples(0)
  assert len(found) == len(documents) and set(found) == set(documents)


def test_verify_finds_nothing(workdir):
  assert not [lines for _, lines in verify.check(workdir) if lines]
