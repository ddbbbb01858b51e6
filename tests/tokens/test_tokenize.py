"""The tokenize stage: resumable, and the same bytes whoever does the work."""

import json
import os
import pathlib
import random
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from configs import base
from infoprune_jax.config import (
  corpus as corpus_config,
  experiment as config_lib,
)
from infoprune_jax.config.validation import UserError
from infoprune_jax.corpus import parts
from infoprune_jax.runtime import files
from infoprune_jax.runtime.hashing import content_hash, uniform
from infoprune_jax.runtime.workdir import token_store_dir, vocabulary_dir
from infoprune_jax.tokens import tokenize
from infoprune_jax.tokens.token_store import TokenStore
from infoprune_jax.tokens.vocabulary import Vocabulary

HOLD = """
import sys, time
from infoprune_jax.runtime import files
with files.lock(sys.argv[1]):
  print('held', flush=True)
  time.sleep(60)
"""


@pytest.fixture(scope='module')
def corpus(tmp_path_factory, make_experiment):
  """A config, over files of this module."""
  return make_experiment(tmp_path_factory.mktemp('corpus'))


@pytest.fixture(scope='module')
def done(corpus, tmp_path_factory) -> str:
  """A finished workdir: for reading only."""
  workdir = str(tmp_path_factory.mktemp('done'))
  tokenize.run(config_lib.from_mapping(corpus), workdir)
  return workdir


def run(edits, workdir: pathlib.Path, **fields) -> str:
  """Runs the stage with other fields of the corpus."""
  edits = edits.copy_and_resolve_references()
  edits.corpus.update(fields)
  tokenize.run(config_lib.from_mapping(edits), str(workdir))
  return str(workdir)


def content(workdir: str) -> dict[str, bytes]:
  """Every file of a workdir but the lock, which holds a process id."""
  return {
    str(path.relative_to(workdir)): path.read_bytes()
    for path in pathlib.Path(workdir).rglob('*')
    if path.is_file() and path.name != '.lock'
  }


def times(workdir: str) -> dict[str, int]:
  return {
    str(path): path.stat().st_mtime_ns
    for path in pathlib.Path(workdir).rglob('*')
    if path.is_file() and path.name != '.lock'
  }


def test_every_document_is_stored_once(done, make_records):
  store = TokenStore.open(done)
  words = Vocabulary.load(vocabulary_dir(done))
  found = {}
  for shard in range(store.num_shards):
    table = store.shard(shard).table().to_pylist()
    for row, document in enumerate(table):
      ids = store.document(shard, row)
      text = words.decode(ids)
      assert document['num_tokens'] == len(ids)
      assert document['num_bytes'] == len(text.encode())
      assert document['example_id'] not in found
      found[document['example_id']] = (text, document['source'])
  expected = {r['id']: (r['text'], r['source']) for r in make_records(120)}
  assert found == expected
  # In the order of the corpus, too.
  assert list(found) == list(expected)


def test_the_manifest_counts(done):
  store = TokenStore.open(done)
  manifest = store.manifest
  for name in corpus_config.SPLITS:
    rows = [
      (store.shard(p), store.shard(p).documents_of(name))
      for p in range(store.num_shards)
    ]
    assert manifest['splits'][name] == {
      'documents': sum(len(r) for _, r in rows),
      'tokens': sum(int(p.column('num_tokens')[r].sum()) for p, r in rows),
      'bytes': sum(int(p.column('num_bytes')[r].sum()) for p, r in rows),
    }
  assert manifest['num_documents'] == 120
  assert sum(manifest['documents_per_shard']) == 120
  for unit in ('tokens', 'bytes'):
    totals = [split[unit] for split in manifest['splits'].values()]
    assert manifest[f'num_{unit}'] == sum(totals)
  words = Vocabulary.load(vocabulary_dir(done))
  assert manifest['vocab_size'] == words.size == 400
  assert (store.bos_id, store.eos_id) == (words.bos_id, words.eos_id)
  assert manifest['inputs']['vocabulary'] == words.hash


def test_nothing_temporary_is_left(done):
  assert not [name for name in content(done) if name.endswith('.tmp')]


def test_workers_do_not_change_a_byte(corpus, done, tmp_path):
  assert content(run(corpus, tmp_path, num_workers=2)) == content(done)


@pytest.mark.parametrize('name', ['a.parquet', 'a.jsonl.zst'])
def test_parts_of_a_long_file_do_not_change_a_byte(
  tmp_path, monkeypatch, make_experiment, make_records, name
):
  """Whatever the number of shards and workers."""
  edits = make_experiment(tmp_path / 'corpus')
  path, records = tmp_path / name, make_records(120)
  if name == 'a.parquet':
    table = pa.Table.from_pylist(records)
    pq.write_table(table, path, row_group_size=7)
    edits.corpus.sources.mine = base.parquet(str(path))
  else:
    data = ''.join(json.dumps(record) + '\n' for record in records).encode()
    frames = [data[n : n + 999] for n in range(0, len(data), 999)]
    path.write_bytes(b''.join(map(zstandard.compress, frames)))
    edits.corpus.sources.mine = base.jsonl(str(path))
  for num_shards in (2, 5):
    whole = run(edits, tmp_path / f'whole{num_shards}', num_shards=num_shards)
    with monkeypatch.context() as patch:
      patch.setattr(parts, 'PACKED_PART_BYTES', 500)
      fields = {'num_shards': num_shards, 'num_workers': num_shards - 1}
      cut = run(edits, tmp_path / f'cut{num_shards}', **fields)
    assert content(cut) == content(whole)


def test_running_again_does_nothing(corpus, tmp_path):
  workdir = run(corpus, tmp_path)
  before = times(workdir)
  run(corpus, tmp_path, num_workers=2)
  assert times(workdir) == before


def test_a_finished_store_needs_no_corpus(tmp_path, make_experiment):
  edits = make_experiment(tmp_path / 'corpus')
  workdir = run(edits, tmp_path / 'work')
  before = times(workdir)
  for path in (tmp_path / 'corpus').iterdir():
    path.unlink()
  run(edits, tmp_path / 'work')
  assert times(workdir) == before


@pytest.mark.parametrize('lost', [[0], [1, 2]])
def test_a_killed_job_writes_only_what_is_missing(corpus, done, tmp_path, lost):
  workdir = run(corpus, tmp_path)
  store = tmp_path / 'token_store'
  (store / 'manifest.json').unlink()
  for shard in lost:
    (store / f'part-{shard:05d}-of-00003.done').unlink()
    # Killed while it was being written.
    (store / f'tokens/part-{shard:05d}-of-00003.npy').write_bytes(b'half')
    half = f'part-{shard:05d}-of-00003.parquet.0123456789abcdef.tmp'
    (store / 'data' / half).write_bytes(b'x')
  before = times(workdir)
  run(corpus, tmp_path)
  assert content(workdir) == content(done)
  kept = [
    name
    for shard in {0, 1, 2} - set(lost)
    for name in before
    if f'part-{shard:05d}' in name
  ]
  assert len(kept) == 4 * (3 - len(lost))
  assert all(times(workdir)[name] == before[name] for name in kept)


def test_a_corpus_that_changed_in_between_is_refused(
  tmp_path, make_experiment, make_records, make_jsonl
):
  edits = make_experiment(tmp_path / 'corpus')
  run(edits, tmp_path / 'work')
  (tmp_path / 'work' / 'token_store' / 'manifest.json').unlink()
  make_jsonl(tmp_path / 'corpus' / 'c.jsonl', make_records(9, seed=5))
  with pytest.raises(UserError, match='another version of corpus'):
    run(edits, tmp_path / 'work')


@pytest.mark.parametrize(
  'fields, key',
  [
    ({'seed': 1}, 'corpus: seed 0 -> 1'),
    ({'num_shards': 4}, 'corpus: num_shards 3 -> 4'),
    ({'reference_fraction': 0.3}, 'corpus: reference_fraction 0.25 -> 0.3'),
  ],
)
def test_another_config_is_refused(corpus, done, fields, key):
  with pytest.raises(UserError, match='token store') as caught:
    run(corpus, done, **fields)
  assert key in str(caught.value)


def test_another_vocabulary_is_refused(corpus, done):
  edits = corpus.copy_and_resolve_references()
  edits.vocabulary.size = 500
  with pytest.raises(UserError, match='vocabulary: size 400 -> 500'):
    run(edits, done)


def test_shards_of_another_config_are_refused(corpus, done, tmp_path):
  edits = corpus.copy_and_resolve_references()
  # A vocabulary trained on other documents would be refused before.
  given = f'{vocabulary_dir(done)}/sentencepiece.model'
  edits.vocabulary.path = given
  run(edits, tmp_path)
  (tmp_path / 'token_store' / 'manifest.json').unlink()
  with pytest.raises(
    UserError, match='token store .* corpus: num_shards 3 -> 4'
  ):
    run(edits, tmp_path, num_shards=4)


def test_a_given_vocabulary_is_taken(corpus, done, tmp_path):
  edits = corpus.copy_and_resolve_references()
  given = f'{vocabulary_dir(done)}/sentencepiece.model'
  edits.vocabulary.path = given
  workdir = run(edits, tmp_path)
  found, expected = content(workdir), content(done)
  tokens = [name for name in expected if name.endswith('.npy')]
  assert all(found[name] == expected[name] for name in tokens)


def test_the_vocabulary_sees_the_reference_split_alone(
  tmp_path, make_experiment, make_jsonl, make_records
):
  """Other scored and held-out documents, the same vocabulary."""
  models = []
  for number in range(2):
    edits = make_experiment(tmp_path / str(number))
    rows = make_records(120)
    if number:
      store = TokenStore.open(str(tmp_path / '0' / 'work'))
      reference = {
        store.shard(p).table('example_id')['example_id'][int(row)].as_py()
        for p in range(store.num_shards)
        for row in store.shard(p).documents_of('reference')
      }
      rows = [row for row in rows if row['id'] in reference]
      rows += others(make_records(60, seed=3), edits)
    make_jsonl(tmp_path / str(number) / 'a.jsonl', rows)
    (tmp_path / str(number) / 'b.jsonl.gz').unlink()
    workdir = run(edits, tmp_path / str(number) / 'work')
    models.append(Vocabulary.load(vocabulary_dir(workdir)).hash)
  assert models[0] == models[1]


def others(rows, edits) -> list:
  """Those of the rows that fall outside the reference split."""
  hashes = np.array([content_hash(row['text']) for row in rows])
  point = uniform(hashes, edits.corpus.seed)
  outside = point >= edits.corpus.reference_fraction
  assert outside.any()
  return [row for row, out in zip(rows, outside, strict=True) if out]


def test_a_second_process_is_refused(corpus, tmp_path):
  path = token_store_dir(str(tmp_path))
  paths = {**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)}
  command = [sys.executable, '-c', HOLD, path]
  with subprocess.Popen(command, env=paths, stdout=subprocess.PIPE) as process:
    assert process.stdout.readline() == b'held\n'
    with pytest.raises(UserError, match=f'another process .pid {process.pid}'):
      run(corpus, tmp_path)
    process.kill()
  run(corpus, tmp_path)


def test_bad_rows_are_in_the_manifest(tmp_path, make_experiment, make_jsonl):
  edits = make_experiment(tmp_path / 'corpus', on_bad_record='drop')
  bad = [{'id': 'x', 'text': ' ', 'source': 's'}]
  make_jsonl(tmp_path / 'corpus' / 'c.jsonl', bad)
  workdir = run(edits, tmp_path / 'work')
  assert TokenStore.open(workdir).manifest['bad_records'] == {'empty text': 1}


def test_more_shards_than_documents(tmp_path, make_experiment):
  edits = make_experiment(tmp_path / 'corpus', count=30, num_shards=50)
  edits.corpus.update(reference_fraction=0.4, heldout_fraction=0.3)
  edits.vocabulary.size = 330
  store = TokenStore.open(run(edits, tmp_path / 'work'))
  assert sum(store.documents_per_shard) == 30
  assert 0 in store.documents_per_shard
  lengths = [
    len(store.document(shard, row))
    for shard in range(50)
    for row in range(store.documents_per_shard[shard])
  ]
  assert sum(lengths) == store.manifest['num_tokens']


def test_a_memory_workdir(corpus, done, tmp_path):
  workdir = f'memory://{tmp_path}/work'
  tokenize.run(config_lib.from_mapping(corpus), workdir)
  store, other = TokenStore.open(workdir), TokenStore.open(done)
  assert store.fingerprint == other.fingerprint
  assert store.shard(1).tokens.tolist() == other.shard(1).tokens.tolist()
  assert files.read_json(f'{workdir}/token_store/manifest.json')


def test_shuffled_texts_give_other_shards_and_the_same_splits(
  tmp_path, make_experiment, make_records, make_jsonl
):
  splits = []
  for number in range(2):
    edits = make_experiment(tmp_path / str(number))
    rows = make_records(120)
    random.Random(number).shuffle(rows)
    make_jsonl(tmp_path / str(number) / 'a.jsonl', rows)
    (tmp_path / str(number) / 'b.jsonl.gz').unlink()
    store = TokenStore.open(run(edits, tmp_path / str(number) / 'work'))
    splits.append(
      {
        row['example_id']: row['split']
        for shard in range(3)
        for row in store.shard(shard).table().to_pylist()
      }
    )
  assert splits[0] == splits[1]
