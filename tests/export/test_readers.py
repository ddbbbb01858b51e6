"""Folders of a workdir as other programs read them, and as the docs say.

The workdir is the one that an earlier version wrote, with exports of this one.
`make test-readers` has all the programs; without one its tests are skipped.
"""

import glob
import importlib.util
import pathlib
import re
import shutil
import tarfile
from collections.abc import Callable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infoprune_jax import stages
from infoprune_jax.config import experiment as config_lib
from infoprune_jax.tokens import tables, token_store

ROOT = pathlib.Path(__file__).parents[2]
# The folders with a documented schema, and the keys of their records.
PLACE = ('shard', 'doc_index')
FOLDERS = {
  'token_store': ('example_id',),
  'statistics': PLACE,
  'near_duplicates': PLACE,
  'scores': PLACE,
  'evaluate/random/seed-0': PLACE,
  'export/every-arm/scores': PLACE,
  'export/top_sum/keep_set': PLACE,
}
RECORDS = 'export/top_sum/parquet'


@pytest.fixture(scope='module')
def golden(tmp_path_factory) -> pathlib.Path:
  folder = tmp_path_factory.mktemp('golden')
  with tarfile.open(ROOT / 'tests/golden_workdir.tar.xz') as archive:
    archive.extractall(folder, filter='data')
  spec = importlib.util.spec_from_file_location('golden', folder / 'config.py')
  assert spec and spec.loader
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  edits = module.get_config()
  shutil.rmtree(folder / 'workdir/export')
  edits.export.formats = ('jsonl', 'parquet', 'keep_set', 'scores')
  edits.export.arms = ('random', 'top_sum')  # Those of its keep sets.
  edits.export.include_locations = True
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(folder)  # The config names the corpus from here.
    stages.run(config_lib.from_mapping(edits), 'workdir', 'export')
  return folder / 'workdir'


def documented(folder: str) -> dict[str, str]:
  """The type of each column of a folder, by the tables of docs/artifacts.md."""
  page = (ROOT / 'docs/artifacts.md').read_text()
  arms = folder.replace('/random/seed-0', '/ARM/seed-N')
  title = f'\n### `{arms.replace("/top_sum/", "/ARM/")}/data/`\n'
  assert title in page, title
  section = re.split(r'\n###? ', page.partition(title)[2])[0]
  rows = re.findall(r'^\| `(\w+)` \| ([^|]+) \|', section, re.MULTILINE)
  assert len(rows) == len(dict(rows))
  return dict(rows)


def of_schema(schema: pa.Schema) -> dict[str, str]:
  """The same of a schema; columns of arms are one."""
  return {
    re.sub('^keep_.*', 'keep_ARM', field.name): (
      f'{field.type.value_type} (dictionary)'
      if pa.types.is_dictionary(field.type)
      else str(field.type)
    )
    for field in schema
  }


@pytest.mark.parametrize('folder', FOLDERS)
def test_the_docs_have_the_columns_of_the_files(folder, golden):
  """Rewrite the table in docs/artifacts.md when a column changes."""
  files = sorted((golden / folder / 'data').iterdir())
  assert [file.suffix for file in files] == ['.parquet'] * 2
  expected = documented(folder)
  for file in files:
    actual = of_schema(pq.read_schema(file))
    assert list(actual.items()) == list(expected.items())


@pytest.mark.parametrize(
  'folder, schema',
  [
    ('token_store', token_store.SCHEMA),
    ('statistics', tables.STATISTICS_SCHEMA),
    ('near_duplicates', tables.NEAR_DUPLICATES_SCHEMA),
    ('heldout_copies', tables.HELDOUT_COPIES_SCHEMA),
    ('contamination', tables.CONTAMINATION_SCHEMA),
    ('duplicated_text', tables.DUPLICATED_TEXT_SCHEMA),
    ('classifiers/NAME', tables.classifier_schema('NAME')),
    ('scores', tables.score_schema(['nll_sum'])),
    ('evaluate/random/seed-0', tables.LOSS_SCHEMA),
  ],
)
def test_the_docs_have_the_schemas_of_the_code(folder, schema):
  assert list(documented(folder).items()) == list(of_schema(schema).items())


def test_the_docs_have_no_other_table():
  page = (ROOT / 'docs/artifacts.md').read_text()
  titles = re.findall(r'^### `(.*)/data/`$', page, re.MULTILINE)
  # The golden workdir has none of these.
  absent = [
    *('classifiers/NAME', 'contamination', 'heldout_copies'),
    *('duplicated_text', 'own_scores/ARM/seed-N'),
  ]
  assert len(titles) == len([*FOLDERS, *absent])


# A program's table of all records of a folder, as a table of Arrow.
Reader = Callable[[pathlib.Path], pa.Table]


def of_pandas(folder: pathlib.Path) -> pa.Table:
  pandas = pytest.importorskip('pandas')
  return pa.Table.from_pandas(pandas.read_parquet(folder))


def of_polars(folder: pathlib.Path) -> pa.Table:
  polars = pytest.importorskip('polars')
  return polars.read_parquet(folder).to_arrow()


def of_duckdb(folder: pathlib.Path) -> pa.Table:
  duckdb = pytest.importorskip('duckdb')
  table = duckdb.read_parquet(str(folder)).to_arrow_table()
  files = duckdb.read_parquet(f'{folder}/*.parquet').to_arrow_table()
  assert files.equals(table)
  return table


def of_datasets(folder: pathlib.Path) -> pa.Table:
  datasets = pytest.importorskip('datasets')
  loaded = datasets.load_dataset(
    'parquet',
    data_dir=str(folder),
    split='train',
    cache_dir=str(folder.parents[2] / 'cache'),
  )
  return loaded.with_format('arrow')[:]


@pytest.fixture(scope='module')
def spark() -> Iterator:
  sql = pytest.importorskip('pyspark.sql')
  if not shutil.which('java'):
    pytest.skip('Spark needs Java, which is not installed')
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('SPARK_LOCAL_IP', '127.0.0.1')
    session = (
      sql.SparkSession.builder.master('local[1]')
      .config('spark.ui.enabled', 'false')
      .config('spark.sql.session.timeZone', 'UTC')
      .getOrCreate()
    )
    yield session
    session.stop()


def rows(table: pa.Table, schema: pa.Schema, keys: tuple[str, ...]) -> list:
  """The records of a table, in the types of a schema, sorted."""
  assert table.column_names == schema.names
  table = table.cast(schema)
  return table.sort_by([(key, 'ascending') for key in keys]).to_pylist()


def compare(read: Reader, golden: pathlib.Path, folder: str) -> None:
  """A program reads what the files hold, each record once."""
  data = golden / folder / 'data'
  expected = pa.concat_tables(
    pq.read_table(file) for file in sorted(data.iterdir())
  )
  # A program may read a dictionary as strings, and null as not a number.
  schema = pa.schema(
    [
      (
        field.name,
        field.type.value_type
        if pa.types.is_dictionary(field.type)
        else field.type,
      )
      for field in expected.schema
    ]
  )
  keys = FOLDERS.get(folder, ('id',))
  assert expected.num_rows > 10
  assert rows(read(data), schema, keys) == rows(expected, schema, keys)


@pytest.mark.parametrize('folder', [*FOLDERS, RECORDS])
@pytest.mark.parametrize('read', [of_pandas, of_polars, of_duckdb, of_datasets])
def test_a_program_reads_the_folder(read, folder, golden):
  compare(read, golden, folder)


@pytest.mark.parametrize('folder', [*FOLDERS, RECORDS])
def test_spark_reads_the_folder(folder, golden, spark):
  def read(data: pathlib.Path) -> pa.Table:
    return spark.read.parquet(str(data)).toArrow()

  compare(read, golden, folder)


def test_programs_read_the_folder_of_json(golden, tmp_path):
  datasets = pytest.importorskip('datasets')
  polars = pytest.importorskip('polars')
  duckdb = pytest.importorskip('duckdb')
  pandas = pytest.importorskip('pandas')
  shards = sorted((golden / RECORDS / 'data').iterdir())
  expected = [
    name for shard in shards for name in pq.read_table(shard)['id'].to_pylist()
  ]
  data = golden / 'export/top_sum/jsonl/data'
  files = [str(file) for file in sorted(data.iterdir())]
  loaded = datasets.load_dataset(
    'json', data_dir=str(data), split='train', cache_dir=str(tmp_path)
  )
  assert loaded['id'] == expected
  by_duckdb = duckdb.read_json(files, format='newline_delimited')
  assert [name for (name,) in by_duckdb.select('id').fetchall()] == expected
  frames = [pandas.read_json(file, lines=True) for file in files]
  assert pandas.concat(frames)['id'].tolist() == expected
  frames = [polars.read_ndjson(file) for file in files]
  assert polars.concat(frames)['id'].to_list() == expected


def test_programs_read_one_source_of_several(export, kept_ids, tmp_path):
  """Files of several sources are told apart by their names."""
  datasets = pytest.importorskip('datasets')
  pandas = pytest.importorskip('pandas')
  polars = pytest.importorskip('polars')
  files = f'{glob.escape(str(export("parquet")))}/*.news.parquet'
  expected = [name for name in kept_ids('top') if name.startswith('news-')]
  assert pandas.read_parquet(sorted(glob.glob(files)))['id'].tolist() == (
    expected
  )
  shutil.copytree(export('parquet'), tmp_path / 'data')
  files = f'{tmp_path}/data/*.news.parquet'
  assert polars.read_parquet(files)['id'].to_list() == expected
  loaded = datasets.load_dataset(
    'parquet', data_files=files, split='train', cache_dir=str(tmp_path / 'c')
  )
  assert loaded['id'] == expected


def test_programs_read_times_decimals_and_maps(typed, tmp_path):
  """Text of ISO 8601 and decimals, as pandas and datasets parse it."""
  datasets = pytest.importorskip('datasets')
  pandas = pytest.importorskip('pandas')
  records, folder = typed
  # pandas takes the name of the workdir for a URL.
  folder = shutil.copytree(folder, tmp_path / 'data')
  shards = [str(shard) for shard in sorted(folder.iterdir())]
  frame = pandas.concat(
    pandas.read_json(shard, lines=True, dtype=False) for shard in shards
  )
  assert len(frame)
  numbers = [int(text.split()[1]) for text in frame['text']]
  chosen = [records[number] for number in numbers]
  times = pandas.to_datetime(frame['when'], format='ISO8601')
  assert times.tolist() == [record['when'] for record in chosen]
  assert frame['tags'].tolist() == [dict(record['tags']) for record in chosen]
  loaded = datasets.load_dataset(
    'json', data_files=shards, split='train', cache_dir=str(tmp_path / 'c')
  )
  for number, record in zip(numbers, loaded, strict=True):
    price = records[number]['price']
    assert record['price'] == (None if price is None else str(price))
    assert str(record['day'])[:10] == records[number]['day'].isoformat()
    assert record['tags']['all'] is None
    [[(key, value)]] = [records[number]['counts']]
    assert record['counts'] == [{'key': key, 'value': str(value)}]
