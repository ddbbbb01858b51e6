"""A corpus that grows: what is there stays, what is new is appended."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from configs import base
from infoprune_jax.config import experiment as config_lib
from infoprune_jax.config.corpus import SPLITS
from infoprune_jax.config.validation import UserError
from infoprune_jax.corpus import generations
from infoprune_jax.runtime import artifacts, files, manifests
from infoprune_jax.runtime.workdir import token_store_dir
from infoprune_jax.tokens import original_documents, tokenize
from infoprune_jax.tokens.token_store import TokenStore
from infoprune_jax.verify import workdir as verify_workdir

REFERENCE, SCORED, HELDOUT = range(3)


def grow(edits, workdir, extend: bool = True) -> TokenStore:
  config = config_lib.from_mapping(edits)
  tokenize.run(config, str(workdir), extend=extend)
  return TokenStore.open(str(workdir))


def content(workdir: pathlib.Path) -> dict[str, bytes]:
  return {
    str(path.relative_to(workdir)): path.read_bytes()
    for path in workdir.rglob('*')
    if path.is_file() and path.name != '.lock'
  }


def is_shard(name: str) -> bool:
  return 'part-' in name


def documents(store: TokenStore) -> list[dict]:
  shards = [store.shard(n).table() for n in range(store.num_shards)]
  return [row for shard in shards for row in shard.to_pylist()]


class Grown:
  """A folder of a corpus, and a workdir."""

  def __init__(self, folder, make_experiment, make_jsonl, make_records):
    self.corpus, self.workdir = folder / 'corpus', folder / 'work'
    self.edits = make_experiment(self.corpus)
    self.write, self._records = make_jsonl, make_records

  def add(self, name: str, count: int, seed: int) -> list[dict]:
    rows = self._records(count, seed)
    self.write(self.corpus / name, rows)
    return rows

  def grow(self, **how) -> TokenStore:
    return grow(self.edits, self.workdir, **how)


@pytest.fixture
def corpus(tmp_path, make_experiment, make_jsonl, make_records) -> Grown:
  return Grown(tmp_path, make_experiment, make_jsonl, make_records)


def test_old_shards_stay_and_new_documents_are_appended(corpus):
  old = documents(corpus.grow())
  before = content(corpus.workdir)
  times = {p: p.stat().st_mtime_ns for p in corpus.workdir.rglob('part-*')}
  # It sorts before the files that are there.
  rows = corpus.add('a-more.jsonl', 60, seed=7)
  store = corpus.grow()
  after = content(corpus.workdir)
  for name in filter(is_shard, before):
    assert after[name] == before[name]
  assert {p: p.stat().st_mtime_ns for p in times} == times
  assert after['vocabulary/manifest.json'] == before['vocabulary/manifest.json']
  assert store.num_shards > 3 and store.totals[:3] == [3, 3, 3]
  assert documents(store)[: len(old)] == old
  new = documents(store)[len(old) :]
  assert [row['example_id'] for row in new] == [row['id'] for row in rows]
  assert {row['split'] for row in new} == {SCORED, HELDOUT}
  totals = store.manifest['splits']
  for number, name in enumerate(SPLITS):
    count = sum(row['split'] == number for row in old + new)
    assert totals[name]['documents'] == count
  # Shards are about as large as the first ones.
  sizes = [sum(store.shard(n).column('num_bytes')) for n in range(3)]
  assert store.shard(3).column('num_bytes').sum() == pytest.approx(
    np.mean(sizes), rel=0.5
  )


def test_a_source_is_added(corpus, tmp_path, make_jsonl, make_records):
  """Its ids may be those of another, and it may stand first in the config."""
  old = documents(corpus.grow())
  sources = corpus.edits.corpus.sources
  path = make_jsonl(tmp_path / 'other.jsonl', make_records(30, 3))
  sources.another = base.jsonl(path, id_column='id')
  with pytest.raises(UserError, match='sources: another absent'):
    corpus.grow(extend=False)
  store = corpus.grow()
  assert documents(store)[: len(old)] == old
  added = documents(store)[len(old) :]
  assert len(added) == 30
  assert {row['source'] for row in added} == {'another'}
  # The next run has nothing to do.
  before = content(corpus.workdir)
  corpus.grow()
  corpus.grow(extend=False)
  assert content(corpus.workdir) == before


def test_growths_in_a_row_equal_another_workdir_with_the_same(corpus, tmp_path):
  other = tmp_path / 'other'
  for number in range(3):
    store = corpus.grow()
    grow(corpus.edits, other)
    assert len(store.earlier) == number
    corpus.add(f'more-{number}.jsonl', 20 + 20 * number, seed=10 + number)
  assert content(corpus.workdir) == content(other)
  assert store.totals == sorted(store.totals)
  assert len(set(store.totals)) == 3
  assert store.first.fingerprint == store.earlier[0]
  assert store.first.num_shards == 3
  # Without the flag nothing is looked for.
  before = content(corpus.workdir)
  corpus.grow(extend=False)
  assert content(corpus.workdir) == before


class Killed(Exception):
  pass


@pytest.mark.parametrize('writes', range(12))
def test_killed_and_resumed_equals_uninterrupted(
  corpus, tmp_path, monkeypatch, writes
):
  """Killed before any of its writes; the first are records."""
  other = tmp_path / 'other'
  corpus.grow()
  grow(corpus.edits, other)
  corpus.add('more.jsonl', 60, seed=7)
  grow(corpus.edits, other)
  write, count = artifacts.Artifact.write_file, []

  def killed(self, path, write_content):
    count.append(path)
    if len(count) > writes:
      raise Killed
    return write(self, path, write_content)

  with monkeypatch.context() as patch:
    patch.setattr(artifacts.Artifact, 'write_file', killed)
    try:
      corpus.grow()
    except Killed:
      # Neither lost nor taken for the finished whole.
      manifest = manifests.read_manifest(
        token_store_dir(str(corpus.workdir)), 'tokenize'
      )
      assert manifest is None or 'generations' not in manifest
  corpus.grow()
  assert content(corpus.workdir) == content(other)


def test_killed_before_the_manifest_goes(corpus, tmp_path, monkeypatch):
  other = tmp_path / 'other'
  corpus.grow()
  grow(corpus.edits, other)
  corpus.add('more.jsonl', 60, seed=7)
  grow(corpus.edits, other)

  def killed(path):
    if path.endswith(manifests.MANIFEST):
      raise Killed

  with monkeypatch.context() as patch, pytest.raises(Killed):
    patch.setattr(artifacts.files, 'remove', killed)
    corpus.grow()
  corpus.add('later.jsonl', 10, seed=8)
  (corpus.corpus / 'later.jsonl').unlink()
  corpus.grow()
  assert content(corpus.workdir) == content(other)


def test_files_that_come_while_it_grows_wait(corpus, monkeypatch):
  corpus.grow()
  corpus.add('more.jsonl', 60, seed=7)
  with monkeypatch.context() as patch, pytest.raises(Killed):
    patch.setattr(tokenize, '_write', lambda *_: (_ for _ in ()).throw(Killed))
    corpus.grow()
  corpus.add('later.jsonl', 30, seed=8)
  store = corpus.grow()
  assert store.manifest['num_documents'] == 180
  store = corpus.grow()
  assert store.manifest['num_documents'] == 210
  assert len(store.earlier) == 2


def changed(path: pathlib.Path) -> str:
  path.write_bytes(path.read_bytes().replace(b'"0 ', b'"9 ', 1))
  return 'a.jsonl .source mine. has other records'


def cut(path: pathlib.Path) -> str:
  path.write_bytes(path.read_bytes()[:-1])
  return r'a.jsonl .source mine. has \d+ bytes, expected \d+'


def vanished(path: pathlib.Path) -> str:
  path.unlink()
  return 'a.jsonl .source mine. has vanished'


@pytest.mark.parametrize('damage', [changed, cut, vanished])
def test_files_that_differ_are_named(corpus, damage):
  corpus.grow()
  before = content(corpus.workdir)
  corpus.add('more.jsonl', 30, seed=7)
  message = damage(corpus.corpus / 'a.jsonl')
  with pytest.raises(UserError, match=message):
    corpus.grow()
  assert content(corpus.workdir) == before


def test_another_vocabulary_is_refused(corpus, tmp_path):
  corpus.grow()
  corpus.add('more.jsonl', 30, seed=7)
  before = content(corpus.workdir)
  other = corpus.edits.copy_and_resolve_references()
  other.vocabulary.size = 380
  grow(other, tmp_path / 'other')
  name = 'vocabulary/sentencepiece.model'
  given = corpus.edits.copy_and_resolve_references()
  given.vocabulary.update(size=4096, type='unigram')
  given.vocabulary.path = str(tmp_path / 'other' / name)
  with pytest.raises(UserError, match='cannot grow'):
    grow(given, corpus.workdir)
  assert content(corpus.workdir) == before
  # The vocabulary of the workdir was replaced, as if made from the same corpus.
  own = corpus.workdir / 'vocabulary'
  inputs = json.loads((own / 'manifest.json').read_text())['inputs']
  options = json.loads((own / 'manifest.json').read_text())['options']
  shutil.rmtree(own)
  shutil.copytree(tmp_path / 'other' / 'vocabulary', own)
  for path in own.glob('*.json'):
    record = json.loads(path.read_text())
    record.update(inputs=inputs, options=options)
    record.pop('checksum')
    files.write_record(str(path), record)
  with pytest.raises(UserError, match='a corpus that grows keeps its vocabul'):
    corpus.grow()


@pytest.mark.parametrize(
  'name, value', [('seed', 5), ('num_shards', 4), ('heldout_fraction', 0.2)]
)
def test_other_options_are_refused(corpus, name, value):
  corpus.grow()
  corpus.add('more.jsonl', 30, seed=7)
  corpus.edits.corpus[name] = value
  with pytest.raises(UserError, match=f'cannot grow: corpus: {name}'):
    corpus.grow()


def test_an_option_of_a_source_is_refused(corpus):
  corpus.grow()
  corpus.edits.corpus.sources.mine.max_document_bytes = 300
  with pytest.raises(UserError, match='cannot grow: corpus.sources.mine: max'):
    corpus.grow()


def test_other_columns_to_keep_are_refused(corpus, tmp_path, make_jsonl):
  corpus.grow()
  path = make_jsonl(tmp_path / 'b.jsonl', [{'text': 'a b', 'url': 'c'}])
  corpus.edits.corpus.sources.more = base.jsonl(path, keep_columns=('url',))
  with pytest.raises(UserError, match="keep the columns .'url'."):
    corpus.grow()


def test_a_store_without_records_is_refused_if_it_must_grow(corpus, tmp_path):
  corpus.grow()
  store = pathlib.Path(token_store_dir(str(corpus.workdir)))
  (store / generations.record_name(0)).unlink()
  corpus.grow()  # Files that were added cannot be told.
  path = corpus.corpus / 'a.jsonl'
  corpus.edits.corpus.sources.more = base.jsonl(str(path))
  with pytest.raises(UserError, match='did not record its files'):
    corpus.grow()
  # What the message says.
  (store / 'manifest.json').unlink()
  more = corpus.edits.corpus.sources.more
  del corpus.edits.corpus.sources.more
  corpus.grow(extend=False)
  path = corpus.add('../more.jsonl', 9, seed=4) and corpus.corpus / '..'
  more.paths = (str(path / 'more.jsonl'),)
  corpus.edits.corpus.sources.more = more
  assert corpus.grow().manifest['num_documents'] == 129


def test_ids_that_are_there_are_refused_or_dropped(corpus):
  store = corpus.grow()
  corpus.add('more.jsonl', 9, seed=0)  # The ids and texts of the first.
  with pytest.raises(UserError, match='more.jsonl:1 has the id of .*a.jsonl:1'):
    corpus.grow()
  corpus.edits.corpus.on_bad_record = 'drop'
  with pytest.raises(UserError, match='corpus: on_bad_record'):
    corpus.grow()
  assert store.num_shards == 3


@pytest.mark.parametrize('splits', [(SCORED, HELDOUT), (HELDOUT,)])
def test_copies_go_where_the_first_is(corpus, make_records, splits):
  """Copies of reference texts, and of scored ones to hold out, are left out."""
  old = documents(corpus.grow())
  rows = [{**row, 'id': f'copy-{row["id"]}'} for row in make_records(120)]
  rows.append({'id': 'new', 'text': 'a text of its own', 'source': 'web'})
  path = corpus.write(corpus.workdir.parent / 'copies.jsonl', rows)
  edits = {'id_column': 'id', 'heldout': splits == (HELDOUT,)}
  corpus.edits.corpus.sources.copies = base.jsonl(path, **edits)
  rest = documents(store := corpus.grow())[len(old) :]
  split = {f'copy-{row["example_id"]}': row['split'] for row in old}
  new = {d['example_id']: d['split'] for d in rest}
  assert new.pop('new') in splits
  assert new == {i: s for i, s in split.items() if s in splits}
  left_out = len(split) - len(new)
  assert [*store.manifest['bad_records'].values()] == [left_out] != [0]


def test_limits_hold_for_all_generations_together(corpus):
  mine = corpus.edits.corpus.sources.mine
  mine.max_bytes, mine.max_heldout_bytes = 30_000, 2_000
  mine.source_column = ''
  first = corpus.grow()
  corpus.add('more.jsonl', 100, seed=7)
  store = corpus.grow()
  size = store.manifest['num_bytes']
  assert first.manifest['num_bytes'] < size < 30_600
  assert store.manifest['splits']['heldout']['bytes'] < 2_600
  corpus.add('later.jsonl', 100, seed=8)
  with pytest.raises(UserError, match='hold no document that it takes'):
    corpus.grow()


def test_the_corpus_is_read_again_as_it_was_tokenized(corpus):
  corpus.grow()
  corpus.add('a-more.jsonl', 60, seed=7)
  store = corpus.grow()
  corpus.add('later.jsonl', 9, seed=8)  # Not a part of the store yet.
  config = config_lib.from_mapping(corpus.edits)
  index = original_documents.read_again(config, store, 'export')
  texts = index.documents(np.ones(len(index.line), bool))
  assert [d.example_id for d in texts] == [
    row['example_id'] for row in documents(store)
  ]
  changed(corpus.corpus / 'a.jsonl')
  with pytest.raises(UserError, match='first differ at .*a.jsonl:1'):
    original_documents.read_again(config, store, 'export')


def test_groups_of_near_duplicates_stay_together(corpus, make_records):
  corpus.edits.corpus.split_by = 'near_duplicate_group'
  old = documents(corpus.grow())
  rows = [
    {**row, 'id': f'near-{row["id"]}', 'text': row['text'] + ' too'}
    for row in make_records(120)
  ]
  path = corpus.corpus / 'near.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  store = corpus.grow()
  assert documents(store)[: len(old)] == old
  split = {f'near-{row["example_id"]}': row['split'] for row in old}
  new = {d['example_id']: d['split'] for d in documents(store)[len(old) :]}
  apart = [i for i, s in new.items() if split[i] != s]
  # One word more than 20 changes a few n-grams of a text.
  assert len(apart) < 0.1 * len(new)
  assert store.manifest['bad_records']['near-copy of a training text'] > 10


@pytest.mark.parametrize('growths', [0, 1])
def test_damaged_records_are_named(corpus, growths):
  corpus.grow()
  for number in range(growths):
    corpus.add(f'more-{number}.jsonl', 30, seed=7)
    corpus.grow()
  name = generations.record_name(0)
  path = pathlib.Path(token_store_dir(str(corpus.workdir))) / name
  path.write_bytes(path.read_bytes().replace(b'mine', b'mina'))
  corpus.add('later.jsonl', 30, seed=8)
  for attempt in (
    corpus.grow,
    lambda: verify_workdir.run(str(corpus.workdir), {}),
  ):
    with pytest.raises(UserError, match=f'{name} is damaged|1 of 2 artifacts'):
      attempt()
