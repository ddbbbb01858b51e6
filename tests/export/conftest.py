"""A corpus of records with fields, and a workdir with keep sets over it."""

import datetime
import decimal
import gzip
import json
import pathlib
import random
import shutil
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_scores import write_scores
from ml_collections import ConfigDict

from configs import base
from infoprune_jax.config import experiment as config_lib
from infoprune_jax.export import job
from infoprune_jax.runtime.workdir import scores_dir, statistics_dir
from infoprune_jax.selection import select
from infoprune_jax.selection.keep_set import KeepSet
from infoprune_jax.statistics import statistics
from infoprune_jax.tokens import tables, tokenize
from infoprune_jax.tokens.token_store import TokenStore

NEWS = 'dolma/documents/2019/{}.jsonl.gz'
CURVE = ((0.0, 0.0), (0.3, 0.0), (1.0, 300 / 4))  # Counts of two bytes, too.


def json_lines(rng: random.Random, first: int, count: int) -> list[str]:
  """Records whose spelling no writer of JSON would give back."""
  lines = []
  for number in range(first, first + count):
    text = ' '.join(f'{rng.random():.3f}' for _ in range(rng.randint(1, 30)))
    record = {
      'id': f'news-{number}',
      'text': f'é {number} {text}',
      'meta': {'tags': ['a', None][: number % 3], 'score': number / 4},
    }
    if number % 2:
      record['meta']['lang'] = None
      record['url'] = f'http://x/{number}'
    spelled = json.dumps(record, ensure_ascii=number % 2 == 0)
    lines.append(spelled.replace(': ', ':   ', number % 3))
  return lines


def books(rng: random.Random) -> pa.Table:
  """Records of types of their own."""
  records = [
    {
      'isbn': number,
      'body': {'text': f'{number} ' + 'page ' * rng.randint(1, 40)},
      'price': number / 8 if number % 2 else None,
      'pages': [number, None],
    }
    for number in range(60)
  ]
  schema = pa.schema(
    [
      ('isbn', pa.int32()),
      ('body', pa.struct([('text', pa.large_string())])),
      ('price', pa.float32()),
      ('pages', pa.list_(pa.int16())),
    ]
  )
  return pa.Table.from_pylist(records, schema)


@pytest.fixture(scope='session')
def corpus(tmp_path_factory) -> pathlib.Path:
  folder = tmp_path_factory.mktemp('corpus')
  rng = random.Random(0)
  for name, first, count in (('a', 0, 50), ('b', 50, 70)):
    path = folder / NEWS.format(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = '\n'.join(json_lines(rng, first, count)).encode()
    path.write_bytes(gzip.compress(data))
  pq.write_table(books(rng), folder / 'books.parquet', row_group_size=7)
  (folder / 'notes').mkdir()
  for number in range(30):
    (folder / f'notes/{number}.md').write_text(f'# {number}\n' * (number + 1))
  return folder


def edits_over(folder: pathlib.Path) -> ConfigDict:
  edits = base.get_config()
  edits.corpus.sources.news = base.jsonl(
    f'{folder}/dolma/documents/*/*.jsonl.gz', id_column='id'
  )
  edits.corpus.sources.books = base.parquet(
    f'{folder}/books.parquet', text_column='body.text'
  )
  edits.corpus.sources.notes = base.text(f'{folder}/notes')
  edits.corpus.update(num_shards=4, num_workers=1)
  edits.vocabulary.update(size=330, type='bpe')
  edits.select.arms = ConfigDict(
    dict(
      random=base.arm('random', fraction=0.5),
      top=base.arm('top', base.INFORMATION, fraction=0.4),
      everything=base.arm('all_plus_reference'),
    ),
    sort_keys=False,
  )
  edits.report.num_examples = 2
  return edits


@pytest.fixture
def edits(corpus) -> ConfigDict:
  return edits_over(corpus)


def run_to_keep_sets(edits: ConfigDict, workdir: str) -> None:
  made = config_lib.from_mapping(edits)
  tokenize.run(made, workdir)
  statistics.run(made, workdir)
  write_scores(workdir)
  select.run(made, workdir)


@pytest.fixture(scope='session')
def select_all() -> Callable[[ConfigDict, str], None]:
  """Runs a config up to its keep sets."""
  return run_to_keep_sets


@pytest.fixture(scope='session')
def selected(corpus, tmp_path_factory) -> str:
  """A workdir up to the keep sets: for reading only."""
  workdir = str(tmp_path_factory.mktemp('selected'))
  run_to_keep_sets(edits_over(corpus), workdir)
  return workdir


@pytest.fixture
def workdir(selected, tmp_path) -> str:
  """A copy of it to write to."""
  return shutil.copytree(selected, str(tmp_path / 'lr[3e-4]*?::1'))


@pytest.fixture
def export(edits, workdir) -> Callable[..., pathlib.Path]:
  """Exports in one format, and gives the folder of an arm's files."""

  def run(format: str, arm: str = 'top', **fields: Any) -> pathlib.Path:
    edits.export.update(formats=(format,), **fields)
    job.run(config_lib.from_mapping(edits), workdir)
    folder = pathlib.Path(edits.export.folder or f'{workdir}/export')
    return folder / arm / format / 'data'

  return run


@pytest.fixture
def kept_ids(selected) -> Callable[[str], list[str]]:
  """The ids of what a keep set keeps, in the order of the corpus."""
  return lambda selection: ids_kept(selected, selection)


@pytest.fixture
def kept_in(workdir) -> Callable[[str], list[str]]:
  """The same, of the workdir that a test made itself."""
  return lambda selection: ids_kept(workdir, selection)


def ids_kept(workdir: str, selection: str) -> list[str]:
  store = TokenStore.open(workdir)
  chosen = KeepSet.open(workdir, selection, store)
  return [
    example_id
    for number in range(store.num_shards)
    for example_id in store.shard(number)
    .table('example_id')['example_id']
    .take(chosen.doc_indices(number))
    .to_pylist()
  ]


@pytest.fixture
def counts(edits, workdir) -> dict[str, int]:
  """Selects the arm `often`; how often it uses each example, by id."""
  edits.select.arms = {
    'often': base.arm('repeat', base.INFORMATION, curve=CURVE),
    'all': base.arm('all'),
  }
  edits.report.baseline = 'all'
  select.run(config_lib.from_mapping(edits), workdir)
  store = TokenStore.open(workdir)
  kept = KeepSet.open(workdir, 'often', store)
  return {
    example_id: int(count)
    for number in range(store.num_shards)
    for example_id, count in zip(
      store.shard(number).table('example_id')['example_id'].to_pylist(),
      kept.of_shard(number),
      strict=True,
    )
  }


@pytest.fixture
def kept_documents(workdir) -> Callable[[str], list[list[int]]]:
  """The token ids of each document of an arm, as often as an epoch uses it."""

  def read(selection: str) -> list[list[int]]:
    store = TokenStore.open(workdir)
    chosen = KeepSet.open(workdir, selection, store)
    return [
      store.document(number, index).tolist()
      for number in range(store.num_shards)
      for index, count in enumerate(chosen.of_shard(number).tolist())
      for _ in range(count)
    ]

  return read


@pytest.fixture
def scores_of(workdir) -> Callable[[], dict[str, dict[str, Any]]]:
  """Scores and statistics of a workdir, by id."""

  def read() -> dict[str, dict[str, Any]]:
    pair = [
      tables.read_table(path(workdir)).to_pylist()
      for path in (scores_dir, statistics_dir)
    ]
    return {
      one['example_id']: {**other, **one}
      for one, other in zip(*pair, strict=True)
    }

  return read


@pytest.fixture
def exported_records(
  corpus, kept_ids
) -> Callable[[str], list[tuple[str, str, str]]]:
  """Id, source and text of what an arm keeps, read from the corpus."""
  texts = {}
  for path in sorted(corpus.glob('dolma/documents/*/*.gz')):
    for line in gzip.decompress(path.read_bytes()).splitlines():
      record = json.loads(line)
      texts[record['id']] = ('news', record['text'])
  books_ = pq.read_table(corpus / 'books.parquet')['body'].to_pylist()
  for number, body in enumerate(books_, 1):
    texts[f'books/books.parquet:{number}'] = ('books', body['text'])
  for path in (corpus / 'notes').iterdir():
    texts[f'notes/{path.name}'] = ('notes', path.read_text())
  return lambda arm: [(name, *texts[name]) for name in kept_ids(arm)]


TYPED = pa.schema(
  [
    ('text', pa.binary()),
    ('day', pa.date32()),
    ('when', pa.timestamp('us', 'Asia/Tokyo')),
    ('price', pa.decimal128(10, 2)),
    ('tags', pa.map_(pa.string(), pa.int8())),
    ('counts', pa.map_(pa.int64(), pa.decimal128(5, 2))),
  ]
)


@pytest.fixture
def typed(edits, export, workdir, tmp_path):
  """Records of types that are text in JSON, and where an arm's JSONL is."""
  begin = datetime.datetime(2024, 2, 1, 3, 4, 5, tzinfo=datetime.UTC)
  records = [
    {
      'text': f'x {number} {" ".join(map(str, range(number, 40)))}'.encode(),
      'day': begin.date() + datetime.timedelta(days=number),
      'when': begin + datetime.timedelta(microseconds=number),
      'price': decimal.Decimal(number).scaleb(-2) if number % 2 else None,
      'tags': [('é', number), ('all', None)],
      'counts': [(number, decimal.Decimal('0.50'))],
    }
    for number in range(60)
  ]
  table = pa.Table.from_pylist(records, TYPED)
  pq.write_table(table, tmp_path / 'typed.parquet')
  edits.corpus.sources = {}
  edits.corpus.sources.typed = base.parquet(f'{tmp_path}/typed.parquet')
  shutil.rmtree(workdir)
  run_to_keep_sets(edits, workdir)
  return records, export('jsonl')
