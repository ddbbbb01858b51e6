"""Limits of a source: lengths, draws of distinct texts, held-out bytes."""

import collections

import numpy as np
import pytest

from configs import base
from infoprune_jax.config.validation import UserError
from infoprune_jax.corpus import corpus_index, draw, file_index


@pytest.fixture
def make_index(tmp_path, make_records, make_jsonl, make_corpus):
  """Indexes 200 records of each of two sources.

  Limits are those of the source 'a', whose records come in `copies`. `shared`
  of these are also in the source 'b'. Other fields are of the corpus.
  """

  def make(limits=None, copies=1, shared=0, **fields):
    records = make_records(200)
    for record in records:
      del record['source']
    of_a = [
      {**record, 'id': f'{record["id"]}-{n}', 'text': record['text'] + ' ' * n}
      for n in range(copies)
      for record in records
    ]
    of_b = make_records(200, seed=1) + [
      {**record, 'id': f'b{record["id"]}'} for record in records[:shared]
    ]
    paths = {'a': tmp_path / 'a.jsonl', 'b': tmp_path / 'b.jsonl'}
    sources = {
      name: base.jsonl(make_jsonl(paths[name], rows), id_column='id')
      for name, rows in (('a', of_a), ('b', of_b))
    }
    sources['a'].update(limits or {})
    return corpus_index.build(make_corpus(sources, **fields))

  return make


def of_source(index, name: str) -> np.ndarray:
  [number] = [n for n, f in enumerate(index.files) if f.source == name]
  return index.file == number


def by_text(index, values) -> dict[int, set]:
  found = collections.defaultdict(set)
  for text, value in zip(index.content_hash.tolist(), values, strict=True):
    found[text].add(int(value))
  return found


def test_no_limit_takes_all(make_index):
  assert len(make_index().split) == 400


def test_a_draw_warns_of_copies_that_it_tears_apart(make_index, caplog):
  whole = int(make_index().num_bytes.sum())
  make_index({'max_bytes': whole})
  assert not caplog.text
  of_a = int(make_index().num_bytes[:200].sum())
  make_index({'max_bytes': of_a // 4})
  [line] = [record.getMessage() for record in caplog.records]
  share = float(line.split('draws ')[1].split(' %')[0])
  assert 23 < share < 27 and 'fewer near-copies' in line


def test_a_limit_is_of_its_source_alone(make_index):
  index = make_index({'max_bytes': 5_000})
  mine = of_source(index, 'a')
  largest = int(make_index().num_bytes.max())
  assert abs(int(index.num_bytes[mine].sum()) - 5_000) <= largest
  assert (~mine).sum() == 200


def test_a_source_may_have_more_than_the_limit_of_all(make_index):
  index = make_index({'max_bytes': 10_000}, max_bytes_per_source=3_000)
  mine, largest = of_source(index, 'a'), int(index.num_bytes.max())
  for size, limit in (
    (index.num_bytes[mine].sum(), 10_000),
    (index.num_bytes[~mine].sum(), 3_000),
  ):
    assert abs(int(size) - limit) <= largest


def test_copies_are_drawn_together(make_index):
  index = make_index({'max_bytes': 20_000}, copies=3)
  counts = collections.Counter(
    index.content_hash[of_source(index, 'a')].tolist()
  )
  assert set(counts.values()) == {3}
  assert 1 < len(counts) < 200


def test_a_draw_goes_by_content_and_seed(make_index):
  def texts(**fields):
    return set(make_index({'max_bytes': 5_000}, **fields).content_hash)

  # Copies are more of each text, so fewer texts, of the same order.
  assert texts(copies=2) < texts()
  assert texts(seed=1) != texts()


def test_a_draw_takes_of_every_split(make_index):
  """Draw and split go by unlike hashes of the same text."""
  index = make_index({'max_bytes': 20_000})
  found = np.bincount(index.split[of_source(index, 'a')], minlength=3)
  everything = np.bincount(make_index().split, minlength=3)
  assert (found > 0).all()
  assert np.abs(found / found.sum() - everything / 400).max() < 0.2


def test_long_documents_are_left_out(make_index):
  longest = int(np.median(make_index().num_bytes))
  index = make_index({'max_document_bytes': longest})
  mine = of_source(index, 'a')
  everything = make_index()
  short = of_source(everything, 'a') & (everything.num_bytes <= longest)
  assert index.num_bytes[mine].tolist() == everything.num_bytes[short].tolist()
  assert 0 < mine.sum() < 200 and (~mine).sum() == 200
  assert (index.num_bytes[~mine] > longest).any()


def test_held_out_text_has_a_limit(make_index):
  index = make_index({'max_heldout_bytes': 3_000}, heldout_fraction=0.4)
  everything = make_index(heldout_fraction=0.4)
  mine = of_source(index, 'a')
  heldout = index.split == draw.HELDOUT
  size = index.num_bytes[mine & heldout].sum()
  assert abs(int(size) - 3_000) <= int(index.num_bytes.max())
  was = everything.split == draw.HELDOUT
  assert was[heldout].all() and (heldout[~mine] == was[~mine]).all()
  # What is no longer held out is scored; the reference split stays.
  assert (index.split[was & ~heldout] == draw.SCORED).all()
  reference = index.split == draw.REFERENCE
  assert (reference == (everything.split == draw.REFERENCE)).all()


def test_copies_in_two_sources_are_in_one_split(make_index):
  limits = {'max_heldout_bytes': 2_000}
  index = make_index(limits, copies=2, shared=100, heldout_fraction=0.4)
  splits = by_text(index, index.split)
  assert all(len(found) == 1 for found in splits.values())
  # The limit is of 'a' alone: what 'b' holds out is held out.
  heldout = {text for text, found in splits.items() if found == {draw.HELDOUT}}
  free = make_index(shared=100, heldout_fraction=0.4)
  assert heldout >= {
    text
    for text, found in by_text(free, free.split).items()
    if found == {draw.HELDOUT}
    and text in set(free.content_hash[of_source(free, 'b')].tolist())
  }


@pytest.mark.parametrize('fraction', [0.0, 0.4])
def test_a_source_is_held_out(make_index, fraction):
  index = make_index({'heldout': True}, shared=100, heldout_fraction=fraction)
  free = make_index(shared=100, heldout_fraction=fraction)
  mine = of_source(index, 'a')
  shared = np.isin(index.content_hash, index.content_hash[mine])
  assert mine.sum() == 200 and shared.sum() == 300
  # Its copies in the other source are held out, too; nothing else changes.
  assert (index.split[shared] == draw.HELDOUT).all()
  assert (index.split[~shared] == free.split[~shared]).all()
  assert (free.split[shared] != draw.HELDOUT).any()


def test_a_held_out_source_has_no_other_limit(make_index):
  message = 'max_heldout_bytes is 9, but a source with heldout=True'
  with pytest.raises(UserError, match=message):
    make_index({'heldout': True, 'max_heldout_bytes': 9})


def test_some_source_is_scored(make_corpus):
  sources = {'mine': base.jsonl('x.jsonl', heldout=True)}
  with pytest.raises(
    UserError, match=r'all of them \(mine\) have heldout=True'
  ):
    make_corpus(sources)


@pytest.mark.parametrize('option', ['max_bytes', 'max_document_bytes'])
def test_a_limit_that_leaves_nothing_is_named(
  tmp_path, make_records, make_jsonl, make_corpus, option, caplog
):
  def build(sources):
    return corpus_index.build(make_corpus(sources))

  path = make_jsonl(tmp_path / 'a.jsonl', make_records(50))
  a = base.jsonl(path, id_column='id')
  a[option] = 1
  with pytest.raises(UserError, match=option):
    build({'a': a})
  other = make_jsonl(tmp_path / 'b.jsonl', make_records(50, seed=1))
  index = build({'a': a, 'b': base.jsonl(other, id_column='id')})
  assert len(index.split) == 50
  assert 'no document of source a is within' in caplog.text


def test_long_files_of_text_are_not_read(tmp_path, make_corpus, monkeypatch):
  for number in range(40):
    (tmp_path / f'{number}.txt').write_text(f'{number} ' * (1 + number))
  read = []
  build = file_index.index_file
  monkeypatch.setattr(
    file_index,
    'index_file',
    lambda file: read.append(file.size) or build(file),
  )
  source = base.text(str(tmp_path / '*.txt'), max_document_bytes=60)
  index = corpus_index.build(make_corpus({'a': source}))
  assert 0 < len(read) < 40 and max(read) <= 60
  assert index.num_bytes.max() <= 60
  source.update(paths=(str(tmp_path / '2?.txt'),), max_document_bytes=9)
  with pytest.raises(UserError, match='every file is longer than max_document'):
    corpus_index.build(make_corpus({'a': source}))
