"""Folders that `datasets.Dataset.save_to_disk` wrote, made by hand here."""

import importlib.util
import json

import pyarrow as pa
import pytest

from configs import base
from infoprune_jax.config import corpus as corpus_config
from infoprune_jax.config.validation import UserError
from infoprune_jax.corpus import corpus_index, sources
from infoprune_jax.corpus.records import BadRecord, Document


def save(folder, *tables: pa.Table, **state) -> str:
  """Writes one file a table, laid out as by datasets 5.2."""
  folder.mkdir(parents=True)
  names = [
    f'data-{number:05}-of-{len(tables):05}.arrow'
    for number in range(len(tables))
  ]
  for name, table in zip(names, tables, strict=True):
    with (
      open(folder / name, 'wb') as file,
      pa.ipc.new_stream(file, table.schema) as stream,
    ):
      stream.write_table(table, max_chunksize=7)
  (folder / 'state.json').write_text(
    json.dumps(
      {
        '_data_files': [{'filename': name} for name in names],
        '_fingerprint': '171fdd2b1504b442',
        '_format_columns': None,
        '_format_kwargs': {},
        '_format_type': None,
        '_output_all_columns': False,
        '_split': None,
        **state,
      }
    )
  )
  (folder / 'dataset_info.json').write_text('{"citation": ""}')
  return str(folder)


def list_files(source) -> list[sources.InputFile]:
  return sources.list_files({'mine': corpus_config.SourceConfig(**source)})


def read(source) -> list[tuple[int, Document | BadRecord]]:
  return [
    record for f in list_files(source) for record in sources.read_records(f)
  ]


def texts(count: int, type_: pa.DataType | None = None) -> pa.Table:
  return pa.table({'text': pa.array([f't{n}' for n in range(count)], type_)})


def test_each_file_is_a_unit_in_the_order_of_the_state(tmp_path):
  path = save(
    tmp_path / 'saved',
    texts(20),
    texts(2),
    _data_files=[
      {'filename': 'data-00001-of-00002.arrow'},
      {'filename': 'data-00000-of-00002.arrow'},
    ],
  )
  files = list_files(base.hf_dataset(path))
  assert [file.name for file in files] == [
    'saved/data-00001-of-00002.arrow',
    'saved/data-00000-of-00002.arrow',
  ]
  assert [file.size for file in files] == [
    (tmp_path / file.name).stat().st_size for file in files
  ]
  found = read(base.hf_dataset(path))
  assert [number for number, _ in found] == [1, 2, *range(1, 21)]
  assert [record.text for _, record in found[2:]] == [
    f't{n}' for n in range(20)
  ]
  assert found[1][1] == Document(
    'mine/saved/data-00001-of-00002.arrow:2', 'mine', 't1'
  )
  assert len({record.example_id for _, record in found}) == 22


@pytest.mark.parametrize(
  'type_',
  [
    pa.large_string(),
    pa.string_view(),
    pa.dictionary(pa.int32(), pa.string()),
  ],
  ids=str,
)
def test_every_type_of_string(tmp_path, type_):
  path = save(tmp_path / 'saved', texts(3, type_))
  found = read(base.hf_dataset(path))
  assert [record.text for _, record in found] == ['t0', 't1', 't2']


def test_nested_columns_and_others_that_are_not_read(tmp_path):
  table = pa.table(
    {
      'raw': [{'text': 'deep', 'lang': 'en'}, None],
      'id': pa.array([7, 8], pa.uint64()),
      'pixels': pa.array([[1], None], pa.list_(pa.uint8())),
    }
  )
  path = save(tmp_path / 'saved', table)
  columns = {
    'text_column': 'raw.text',
    'id_column': 'id',
    'source_column': 'raw.lang',
  }
  (_, first), (number, second) = read(base.hf_dataset(path, **columns))
  assert first == Document('7', 'en', 'deep')
  assert isinstance(second, BadRecord) and number == 2
  assert second.where.endswith('saved/data-00000-of-00001.arrow:2')


def test_a_missing_column_names_those_there_are(tmp_path):
  table = pa.table({'raw': [{'body': 'a', 'lang': 'b'}], 'id': [1]})
  path = save(tmp_path / 'saved', table)
  for name in ('text', 'raw.text', 'id.text'):
    with pytest.raises(
      UserError, match=rf"no column '{name}'.* raw\.body, raw\.lang, id\."
    ):
      read(base.hf_dataset(path, text_column=name))


def test_globs_and_urls(tmp_path):
  for name in ('en', 'de'):
    save(tmp_path / 'all' / name, texts(2))
  (tmp_path / 'all' / 'readme.txt').write_text('no dataset')
  for path in (f'{tmp_path}/all/*', f'file://{tmp_path}/all/*'):
    files = list_files(base.hf_dataset(path))
    assert [file.name for file in files] == [
      'de/data-00000-of-00001.arrow',
      'en/data-00000-of-00001.arrow',
    ]
    assert len(read(base.hf_dataset(path))) == 4


def test_links_to_folders_and_to_files(tmp_path):
  save(tmp_path / 'far/en', texts(2))
  path = save(tmp_path / 'all/de', texts(3))
  (tmp_path / 'all/en').symlink_to('../far/en')
  file = tmp_path / 'all/de/data-00000-of-00001.arrow'
  file.rename(tmp_path / 'blob')
  file.symlink_to('../../blob')
  assert len(read(base.hf_dataset(f'{tmp_path}/all/*'))) == 5
  (tmp_path / 'blob').unlink()
  with pytest.raises(
    UserError, match=r'arrow is a symbolic link to .*does not exist'
  ):
    read(base.hf_dataset(path))
  (tmp_path / 'far/en').rename(tmp_path / 'far/gone')
  for pattern in ('all/*', 'all/en'):
    with pytest.raises(UserError, match=r'all/en is a symbolic link to'):
      read(base.hf_dataset(f'{tmp_path}/{pattern}'))


def test_two_folders_and_an_overlap(tmp_path):
  paths = [save(tmp_path / name, texts(2)) for name in ('en', 'de')]
  found = read(base.hf_dataset(*paths, paths[0], f'{tmp_path}/d*'))
  assert len({record.example_id for _, record in found}) == len(found) == 4


def test_a_dict_of_splits_lists_them(tmp_path):
  for name in ('train', 'test'):
    save(tmp_path / 'all' / name, texts(2))
  (tmp_path / 'all' / 'dataset_dict.json').write_text(
    json.dumps({'splits': ['train', 'test']})
  )
  with pytest.raises(UserError, match=r'all/train., .*all/test.'):
    read(base.hf_dataset(f'{tmp_path}/all'))


@pytest.mark.parametrize('path', ['', '/nowhere', '/saved/none*'])
def test_what_is_no_saved_dataset_is_refused(tmp_path, path):
  save(tmp_path / 'saved', texts(1))
  with pytest.raises(
    UserError, match=r'sources\.mine\.paths: .*(no state\.json|no saved)'
  ):
    read(base.hf_dataset(f'{tmp_path}{path}'))


def test_what_was_saved_without_records_or_with_an_index_is_refused(tmp_path):
  empty = save(tmp_path / 'empty')
  with pytest.raises(UserError, match='holds a record'):
    list_files(base.hf_dataset(empty))
  files = [{'filename': 'indices.arrow'}]
  old = save(tmp_path / 'old', texts(2), _indices_files=files)
  with pytest.raises(UserError, match='save it again'):
    list_files(base.hf_dataset(old))


def test_a_missing_file_and_a_damaged_state_are_named(tmp_path):
  path = save(tmp_path / 'saved', texts(2))
  [file] = list_files(base.hf_dataset(path))
  (tmp_path / 'saved' / 'data-00000-of-00001.arrow').unlink()
  with pytest.raises(UserError, match='data-00000-of-00001'):
    list_files(base.hf_dataset(path))
  with pytest.raises(UserError, match='data-00000-of-00001.*cannot be read'):
    list(sources.read_records(file))
  (tmp_path / 'saved' / 'state.json').write_text('{')
  with pytest.raises(UserError, match=r'state\.json is damaged'):
    list_files(base.hf_dataset(path))


def test_a_file_that_is_cut_anywhere_is_named(tmp_path):
  path = save(tmp_path / 'saved', texts(20))
  name = tmp_path / 'saved' / 'data-00000-of-00001.arrow'
  data = name.read_bytes()
  assert len(read(base.hf_dataset(path))) == 20
  # At 8 from the end the batches are whole: pyarrow alone would not complain.
  for keep in (0, 3, 100, len(data) // 2, len(data) - 8, len(data) - 1):
    name.write_bytes(data[:keep])
    with pytest.raises(UserError, match='00001.arrow cannot be read'):
      read(base.hf_dataset(path))


def test_one_and_two_workers_see_the_same_documents(tmp_path, make_corpus):
  tables = [
    pa.table({'text': [f'file {n}, record {record}' for record in range(40)]})
    for n in range(4)
  ]
  path = save(tmp_path / 'saved', *tables)
  one, two = (
    corpus_index.build(
      make_corpus({'mine': base.hf_dataset(path)}, num_workers=number)
    )
    for number in (1, 2)
  )
  assert len(one.line) == 160
  assert one.fingerprint() == two.fingerprint()


@pytest.mark.skipif(
  importlib.util.find_spec('datasets') is None, reason='not a dependency'
)
def test_the_real_package_writes_such_folders(tmp_path):
  import datasets

  records = [{'text': f't{n}', 'meta': {'id': n}} for n in range(10)]
  saved = datasets.Dataset.from_list(records)
  saved.save_to_disk(str(tmp_path / 'saved'), num_shards=3)
  found = read(base.hf_dataset(f'{tmp_path}/saved', id_column='meta.id'))
  assert [(record.example_id, record.text) for _, record in found] == [
    (str(n), f't{n}') for n in range(10)
  ]
  datasets.DatasetDict({'a': saved}).save_to_disk(str(tmp_path / 'splits'))
  with pytest.raises(UserError, match='splits/a'):
    read(base.hf_dataset(f'{tmp_path}/splits'))
