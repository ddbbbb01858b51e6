"""The first pass: bad records, draws, splits and shards."""

import collections
import random

import numpy as np
import pytest

from configs import base
from infoprune_jax.config.corpus import SPLITS
from infoprune_jax.config.validation import UserError
from infoprune_jax.corpus import corpus_index, draw, sources
from infoprune_jax.runtime.hashing import content_hash


@pytest.fixture
def make_index(tmp_path, make_records, make_jsonl, make_corpus):
  """Indexes records in files of 40; fields are of the corpus."""

  def make(records=None, reverse=False, **fields):
    records = make_records(300) if records is None else records
    paths = [
      make_jsonl(tmp_path / f'{first:06d}.jsonl', records[first : first + 40])
      for first in range(0, len(records), 40)
    ]
    mine = base.jsonl(
      *(paths[::-1] if reverse else paths),
      id_column='id',
      source_column='source',
    )
    return corpus_index.build(make_corpus({'mine': mine}, **fields))

  return make


def documents(index) -> list:
  return list(index.documents(np.ones(len(index.split), bool)))


def test_every_document_once_and_in_order(make_index, make_records):
  index = make_index()
  assert [d.text for d in documents(index)] == [
    record['text'] for record in make_records(300)
  ]
  assert index.num_bytes.tolist() == [
    len(record['text'].encode()) for record in make_records(300)
  ]


def test_a_bad_record_is_refused(make_index, make_records):
  records = make_records(100)
  records[57] = {**records[57], 'text': ' '}
  records[80] = {**records[80], 'text': None}
  with pytest.raises(
    UserError, match=r"000040\.jsonl:18: empty text .*on_bad_record='drop'"
  ):
    make_index(records)


def test_bad_records_are_dropped_and_counted(make_index, make_records):
  records = make_records(300)
  for at in (3, 50, 130):
    records[at] = {**records[at], 'text': ' '}
  records[4] = {'id': 'x'}
  records[299] = {**records[0], 'text': 'another'}
  index = make_index(records, on_bad_record='drop')
  assert index.bad_records == {
    'empty text': 3,
    'no such column': 1,
    'duplicate id': 1,
  }
  dropped = {3, 4, 50, 130, 299}
  assert [d.text for d in documents(index)] == [
    record['text'] for at, record in enumerate(records) if at not in dropped
  ]


def test_no_bad_record_no_count(make_index):
  assert make_index(on_bad_record='drop').bad_records == {}


def test_a_duplicate_id_is_named_with_both_places(make_index, make_records):
  records = make_records(100)
  records[85]['id'] = records[41]['id']
  with pytest.raises(UserError) as caught:
    make_index(records)
  assert '000080.jsonl:6 has the id of ' in str(caught.value)
  assert '000040.jsonl:2, and ids must differ within a source.' in str(
    caught.value
  )


def test_an_id_of_another_type_is_the_same_id(make_index, make_records):
  records = make_records(100)
  records[3]['id'], records[4]['id'] = 12, '12'
  records[4]['source'] = records[3]['source']
  with pytest.raises(UserError, match=r':5 has the id of .*:4, '):
    make_index(records)


@pytest.mark.parametrize('by_record', [True, False])
def test_ids_count_within_a_source(
  tmp_path, make_jsonl, make_corpus, by_record
):
  """The source is that of the record, or that of the config."""
  records = [
    {'id': n % 20, 'text': f'text {n}', 'source': f'source {n // 20}'}
    for n in range(60)
  ]
  paths = [
    make_jsonl(tmp_path / f'{n}.jsonl', records[20 * n : 20 * n + 20])
    for n in range(3)
  ]
  names = {'id_column': 'id', 'source_column': 'source' if by_record else ''}
  three = {f'of-{n}': base.jsonl(path, **names) for n, path in enumerate(paths)}
  found = {'mine': base.jsonl(*paths, **names)} if by_record else three
  index = corpus_index.build(make_corpus(found))
  assert [d.text for d in documents(index)] == [r['text'] for r in records]
  again = make_jsonl(tmp_path / 'again.jsonl', records[47:50])
  if by_record:
    found['more'] = base.jsonl(again, **names)
  else:
    found['of-2'].paths = (paths[2], again)
  with pytest.raises(
    UserError, match=r'again\.jsonl:1 has the id of .*2.*:8, '
  ):
    corpus_index.build(make_corpus(found))
  dropped = corpus_index.build(make_corpus(found, on_bad_record='drop'))
  assert dropped.bad_records == {'duplicate id': 3}
  assert (dropped.text_hash == index.text_hash).all()


def test_two_folders_of_a_source_may_hold_files_of_one_name(
  tmp_path, make_records, make_jsonl, make_corpus
):
  records = make_records(100)
  folders = [tmp_path / name for name in ('en', 'de')]
  for folder, half in zip(folders, (records[:50], records[50:]), strict=True):
    make_jsonl(folder / 'part-0.jsonl', half)
  mine = base.jsonl(*map(str, folders))
  index = corpus_index.build(make_corpus({'mine': mine}))
  assert len(index.split) == 100


def test_copies_fall_on_one_side(make_index, make_records):
  rng = random.Random(0)
  records = make_records(60)
  copies = [
    {**record, 'id': f'{record["id"]}-{n}', 'text': reflow(record['text'], rng)}
    for n in range(5)
    for record in records
  ]
  rng.shuffle(copies)
  index = make_index(copies)
  sides = collections.defaultdict(set)
  for document, split in zip(documents(index), index.split, strict=True):
    sides[document.example_id.rsplit('-', 1)[0]].add(int(split))
  assert len(sides) == 60
  assert all(len(side) == 1 for side in sides.values())


def reflow(text: str, rng: random.Random) -> str:
  """The same words, between other white space."""
  words = ''.join(
    w + rng.choice([' ', '\n', '\t ', '  ']) for w in text.split()
  )
  return rng.choice(['', ' ', '\n']) + words


def test_split_shares(make_index, make_records):
  index = make_index(
    make_records(4000), reference_fraction=0.3, heldout_fraction=0.15
  )
  shares = np.bincount(index.split, minlength=3) / 4000
  assert np.abs(shares - [0.3, 0.55, 0.15]).max() < 0.03
  assert SPLITS[draw.HELDOUT] == 'heldout'


def test_splits_go_by_the_seed_and_not_by_the_order(make_index):
  def by_content(index):
    return dict(zip(index.content_hash.tolist(), index.split, strict=True))

  first = by_content(make_index())
  assert by_content(make_index(reverse=True)) == first
  assert by_content(make_index(seed=1)) != first


def test_a_larger_share_only_adds(make_index):
  small = make_index(reference_fraction=0.2).split == draw.REFERENCE
  large = make_index(reference_fraction=0.4).split == draw.REFERENCE
  assert large[small].all() and large.sum() > small.sum()


def test_dropped_records_are_not_drawn(make_index, make_records):
  records = make_records(300)

  def drawn(records):
    index = make_index(
      records, max_bytes_per_source=8_000, on_bad_record='drop'
    )
    return [document.example_id for document in documents(index)]

  assert drawn(records + records) == drawn(records)


@pytest.mark.parametrize('limit', [2_000, 8_000])
def test_a_draw_is_near_its_limit(make_index, limit):
  index = make_index(max_bytes_per_source=limit)
  drawn = collections.Counter()
  largest = collections.Counter()
  for document, size in zip(documents(index), index.num_bytes, strict=True):
    drawn[document.source] += int(size)
    largest[document.source] = max(largest[document.source], int(size))
  assert set(drawn) == {'web', 'books'}
  for source, size in drawn.items():
    assert abs(size - limit) <= largest[source]


def test_a_limit_above_all_draws_all(make_index):
  assert len(make_index(max_bytes_per_source=10**9).split) == 300


def test_a_draw_does_not_depend_on_order_or_workers(make_index):
  def drawn(**fields):
    index = make_index(max_bytes_per_source=8_000, **fields)
    return {document.example_id for document in documents(index)}

  first = drawn()
  assert 0 < len(first) < 300
  assert drawn(reverse=True) == first
  assert drawn(seed=1) != first


def test_workers_change_nothing(make_index):
  alone, together = (
    make_index(max_bytes_per_source=8_000, num_workers=number)
    for number in (1, 2)
  )
  assert together.fingerprint() == alone.fingerprint()


def test_a_document_above_the_limit_is_left_out(make_index, make_records):
  records = make_records(200)
  records[7]['text'] *= 100
  index = make_index(records, max_bytes_per_source=8_000)
  assert (index.num_bytes < 8_000).all()


def test_a_limit_below_every_document_says_so(make_index):
  with pytest.raises(UserError, match='max_bytes_per_source'):
    make_index(max_bytes_per_source=1)


@pytest.mark.parametrize('num_shards', [1, 3, 16, 500])
def test_shards_are_contiguous_and_hold_each_document_once(
  make_index, num_shards
):
  index = make_index(num_shards=num_shards)
  assert (np.diff(index.shard) >= 0).all()
  assert index.shard.min() >= 0 and index.shard.max() < num_shards
  found = []
  for shard in range(num_shards):
    restricted = index.restricted_to(shard)
    assert (restricted.shard == shard).all()
    found += documents(restricted)
  assert found == documents(index)


def test_shards_are_about_equal(make_index):
  index = make_index()
  size = np.bincount(index.shard, index.num_bytes)
  assert np.abs(size - size.mean()).max() <= 2 * index.num_bytes.max()


def test_documents_that_need_a_worker_are_read_by_one(make_index, monkeypatch):
  index = make_index()
  chosen = np.zeros(300, bool)
  chosen[[2, 41, 45, 299]] = True
  here = list(index.documents(chosen))
  # In the worker the files are JSONL again, and read at once.
  monkeypatch.setattr(sources, 'needs_worker', lambda *configs: True)
  monkeypatch.setattr(sources, 'read_records', None)
  assert list(index.documents(chosen)) == here


def test_a_choice_of_documents_is_read_in_order(make_index, make_records):
  index = make_index()
  chosen = np.zeros(300, bool)
  chosen[[2, 41, 45, 299]] = True
  texts = [document.text for document in index.documents(chosen)]
  assert texts == [make_records(300)[at]['text'] for at in (2, 41, 45, 299)]


@pytest.mark.parametrize('change', ['edited', 'shorter', 'bad', 'shifted'])
def test_a_file_that_changed_is_named(
  make_index, make_records, make_jsonl, tmp_path, change
):
  index = make_index()
  records = make_records(300)[40:80]
  if change == 'edited':
    records[30] = {**records[30], 'text': 'something else'}
  elif change == 'shorter':
    records = records[:30]
  elif change == 'bad':
    records[30] = {**records[30], 'text': ''}
  else:
    records = records[1:] + records[:1]
  path = make_jsonl(tmp_path / '000040.jsonl', records)
  with pytest.raises(UserError, match=r'changed while|shrank while') as caught:
    documents(index)
  assert path in str(caught.value)


def test_the_fingerprint_sees_content_order_and_fate(make_index, make_records):
  records = make_records(300)
  edited = [{**record} for record in records]
  edited[9]['text'] += ' more'
  found = {
    make_index().fingerprint(),
    make_index(edited).fingerprint(),
    make_index(records[1:] + records[:1]).fingerprint(),
    make_index(seed=1).fingerprint(),
    make_index(max_bytes_per_source=9_000).fingerprint(),
  }
  assert len(found) == 5
  assert make_index().fingerprint() == make_index().fingerprint()


def test_an_empty_split_is_refused(make_index, make_records):
  with pytest.raises(UserError, match='The reference split is empty: 2 doc'):
    make_index(make_records(2), reference_fraction=0.001, heldout_fraction=0.5)
  with pytest.raises(UserError, match=r'The heldout split is empty.*=0\.001'):
    make_index(make_records(20), heldout_fraction=0.001)


def test_a_corpus_of_bad_records_is_refused(make_index):
  with pytest.raises(UserError, match='hold no document'):
    make_index([{'id': 1}], on_bad_record='drop')


def test_text_files_are_named_without_a_line(tmp_path, make_corpus):
  (tmp_path / 'x.txt').write_text(' ')
  with pytest.raises(UserError, match=r'x\.txt: empty text'):
    corpus_index.build(make_corpus({'mine': base.text(str(tmp_path))}))


def test_hashes_are_of_the_text(make_index):
  index = make_index()
  assert index.content_hash.tolist() == [
    content_hash(document.text) for document in documents(index)
  ]


def test_a_split_of_nothing_may_be_empty(make_index, make_records):
  index = make_index(reference_fraction=0.0, heldout_fraction=0.0)
  assert (index.split == draw.SCORED).all()
  index = make_index(reference_fraction=0.0, heldout_fraction=0.5)
  assert set(index.split) == {draw.SCORED, draw.HELDOUT}
