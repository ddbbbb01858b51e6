"""TFDS and SeqIO sources: all tests that import TensorFlow for a source."""

import hashlib
import os
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from told_datasets import NUM_SHARDS, TASKS, make_dataset

from configs import base
from infoprune_jax.config import corpus as corpus_config
from infoprune_jax.config.validation import UserError
from infoprune_jax.corpus import (
  corpus_index,
  quiet_tensorflow,
  seqio_source,
  sources,
)
from infoprune_jax.corpus.records import BadRecord, Document


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A data_dir, and a module of tasks over it, which can be imported."""
  if not quiet_tensorflow_is_installed():
    pytest.skip("needs pip install 'infoprune_jax[seqio]'")
  path = tmp_path_factory.mktemp('tasks')
  make_dataset(path)
  for name in ('a', 'b'):
    records = ''.join(f'{name}{n} Zürich\n' for n in range(30))
    (path / f'lines_{name}.txt').write_text(records)
    (path / f'copies_{name}.txt').write_text('x\ny\nz\n')
  (path / 'told_tasks.py').write_text(TASKS)
  sys.path.insert(0, str(path))
  yield path
  sys.path.remove(str(path))
  seqio = quiet_tensorflow.import_seqio()
  if 'told_tasks' in sys.modules:
    seqio.TaskRegistry.reset()
    seqio.MixtureRegistry.reset()


def quiet_tensorflow_is_installed() -> bool:
  try:
    quiet_tensorflow.import_seqio()
  except UserError:
    return False
  return True


def list_files(**edits) -> list[sources.InputFile]:
  return sources.list_files(
    {
      name: corpus_config.SourceConfig(**source)
      for name, source in edits.items()
    }
  )


def read(source, units: slice = slice(None)) -> list[Document | BadRecord]:
  """The records of a source named 'mine'."""
  files = list_files(mine=source)[units]
  return [record for file in files for _, record in sources.read_records(file)]


FIRST = slice(1)  # A unit costs TensorFlow most of a second.


def told(folder, **fields):
  return base.tfds('told_text:1.0.0', data_dir=str(folder), **fields)


def task(*names, **fields):
  return base.seqio(*names, module='told_tasks', **fields)


def tfds_ids(folder, split: str) -> dict[str, str]:
  """What TFDS itself says: text by id."""
  tfds = quiet_tensorflow.import_tfds()
  builder = tfds.builder('told_text:1.0.0', data_dir=str(folder))
  records = builder.as_dataset(
    split=split, read_config=tfds.ReadConfig(add_tfds_id=True)
  )
  return {
    record['tfds_id'].decode(): record['text'].decode()
    for record in records.as_numpy_iterator()
  }


def test_a_shard_is_a_unit_and_ids_are_those_of_tfds(folder):
  files = list_files(mine=told(folder))
  assert len(files) == NUM_SHARDS
  assert all(file.size > 0 for file in files)
  assert [os.path.basename(file.path)[:16] for file in files] == [
    'told_text-train.'
  ] * NUM_SHARDS
  found = read(told(folder))
  expected = tfds_ids(folder, 'train')
  assert len(expected) == 40
  assert {record.example_id: record.text for record in found} == expected
  assert {record.source for record in found} == {'mine'}
  assert read(told(folder)) == found


def test_a_folder_and_shards_of_splits(folder, tmp_path):
  shutil.copytree(folder / 'told_text' / '1.0.0', tmp_path / '1.0.0')
  split = 'train[15:25]+validation[:30%]'
  found = read(base.tfds(f'{tmp_path}/1.0.0', split=split))
  assert {record.example_id: record.text for record in found} == tfds_ids(
    folder, split
  )
  assert len(found) == 13


def test_columns_of_tfds(folder):
  columns = {'text_column': 'meta.url', 'id_column': 'meta.n'}
  found = read(told(folder, source_column='data', **columns), FIRST)
  assert len(found) == 20
  for record in found:
    assert (record.text, record.source) == (f'train/{record.example_id}', 'raw')


def test_bytes_that_are_no_utf8_cost_their_record_alone(folder):
  found = read(told(folder, split='validation', text_column='data'))
  [bad] = [record for record in found if isinstance(record, BadRecord)]
  assert len(found) == 10 and bad.reason == 'not UTF-8'
  assert 'told_text-validation.tfrecord-0000' in bad.where


def test_a_data_dir_by_any_name(folder, tmp_path, monkeypatch):
  data_dir = tmp_path / 'lr[3e-4]::1'
  shutil.copytree(folder / 'told_text', data_dir / 'told_text')
  monkeypatch.setenv('HOME', str(tmp_path))
  for path in (data_dir, f'file://{data_dir}/', '~/lr[3e-4]::1'):
    found = read(base.tfds('told_text:1.0.0', data_dir=str(path)))
    assert len(found) == len(read(base.tfds(f'{path}/told_text/1.0.0'))) == 40
    with pytest.raises(UserError, match='Prepared in .*: told_text:1'):
      list_files(mine=base.tfds('t', data_dir=str(path)))


def test_what_tfds_lacks_is_refused(folder, tmp_path):
  def refuses(message, source):
    with pytest.raises(UserError, match=message):
      list_files(mine=source)

  named = 'told_text:1.0.0'
  refuses(r"no split 'test'; splits are train, val", told(folder, split='test'))
  refuses('no split', told(folder, split='train[90:95]'))
  for column in ('txt', 'meta.txt', 'text.txt'):
    refuses(
      rf"no feature '{column}'; .*meta\.url", told(folder, text_column=column)
    )
  refuses(rf'Prepared in .*: {named}', base.tfds('t', data_dir=str(folder)))
  refuses("Did you mean 'mnist'", base.tfds('mnits', data_dir=str(tmp_path)))
  refuses(
    rf'tfds build mnist:3\.0\.1 --data_dir={tmp_path}\.',
    base.tfds('mnist:3.0.1', data_dir=str(tmp_path)),
  )
  refuses('cannot open', base.tfds('mnist:9.9.9', data_dir=str(folder)))
  refuses('cannot open', base.tfds('a b', data_dir=str(folder)))
  refuses("namespace 'huggingface'", base.tfds('huggingface:glue'))
  refuses(r'told_text/1\.0\.0', base.tfds(str(folder)))
  refuses(r'no dataset_info\.json', base.tfds(f'{tmp_path}/none'))
  shutil.copytree(folder / 'told_text' / '1.0.0', tmp_path / '1.0.0')
  (tmp_path / '1.0.0' / 'dataset_info.json').write_text('{')
  refuses('prepare it again', base.tfds(f'{tmp_path}/1.0.0'))


def test_a_shard_that_is_gone_or_cut_is_named(folder, tmp_path):
  shutil.copytree(folder / 'told_text' / '1.0.0', tmp_path / '1.0.0')
  files = list_files(mine=base.tfds(f'{tmp_path}/1.0.0'))
  with open(files[0].path, 'r+b') as file:
    file.truncate(200)
  os.remove(files[1].path)
  for file in files:
    with pytest.raises(UserError, match=f'{file.path} cannot be read'):
      list(sources.read_records(file))


def test_datasets_whose_files_have_one_name_need_ids(folder, tmp_path):
  shutil.copytree(folder / 'told_text' / '1.0.0', tmp_path / '1.0.0')
  first, second = f'{folder}/told_text/1.0.0', f'{tmp_path}/1.0.0'
  with pytest.raises(UserError, match=r'sources\.both: .*same tfds_id'):
    list_files(both=base.tfds(first, second))
  for sources_of_both in (
    {'both': base.tfds(first, second, id_column='meta.url')},
    {'one': base.tfds(first), 'two': base.tfds(second)},
  ):
    assert len(list_files(**sources_of_both)) == 2 * NUM_SHARDS


def test_a_task_over_tfds_has_its_ids(folder):
  seqio = quiet_tensorflow.import_seqio()
  tfds = quiet_tensorflow.import_tfds()
  mine = tfds.ReadConfig(interleave_cycle_length=2)
  seqio.utils.set_tfds_read_config_override(mine)
  try:
    found = read(task('told'))
    assert seqio.utils._TFDS_DATA_READ_CONFIG_OVERRIDE is mine
    assert not mine.add_tfds_id
  finally:
    seqio.utils.set_tfds_read_config_override(None)
  assert {record.example_id: record.text for record in found} == tfds_ids(
    folder, 'train'
  )


def test_examples_without_an_id_have_their_fingerprint(folder):
  found = read(task('lines'))
  expected = [f'{name}{n} Zürich' for name in 'ab' for n in range(30)]
  assert [record.text for record in found] == expected
  digest = hashlib.blake2b('a0 Zürich'.encode(), digest_size=8).digest()
  assert found[0].example_id == digest[::-1].hex()
  assert [record.example_id for record in found] == [
    seqio_source.fingerprint(text) for text in expected
  ]


def test_other_columns_of_a_task(folder):
  columns = {'id_column': 'meta.n', 'source_column': 'meta.url'}
  found = read(task('told', **columns), FIRST)
  assert len(found) == 20
  assert all(record.source == f'train/{record.example_id}' for record in found)


def test_token_ids_are_decoded_with_a_warning(folder, caplog):
  with caplog.at_level('WARNING'):
    found = read(task('lines_of_ids', text_column='targets'), FIRST)
  assert found[7].text == 'a7 Zürich'
  assert caplog.text.count('which may change') == 1


def test_padding_and_eos_end_token_ids_and_nothing_else(folder):
  vocabulary = quiet_tensorflow.import_seqio().ByteVocabulary()
  ids = vocabulary.encode('ab')
  for tail in ([], [1], [1, 0, 0], [0]):
    assert seqio_source._decode(vocabulary, [*ids, *tail]) == 'ab'
  with pytest.raises(Exception, match='tokens after EOS'):
    seqio_source._decode(vocabulary, [*ids, 1, *ids])


def test_a_mixture_is_its_tasks(folder):
  files = list_files(mine=task('mixed', 'lines'))
  assert [(file.source, file.name) for file in files] == [
    ('function', 'function/train-00000-of-00001'),
    ('lines', 'lines/train-00000-of-00002'),
    ('lines', 'lines/train-00001-of-00002'),
    *[('told', f'told/train-{n:05}-of-00002') for n in range(NUM_SHARDS)],
  ]
  records = [record for _, record in sources.read_records(files[0])]
  assert [record.text for record in records] == ['n0', 'n1', 'n2', 'n3', 'n4']
  assert {record.source for record in records} == {'function'}
  # A task that is named itself is of the config's source.
  assert {file.source for file in list_files(mine=task('told'))} == {'mine'}


def test_preprocessors_that_draw_draw_again(folder):
  texts = [record.text for record in read(task('noisy'))]
  assert texts == [record.text for record in read(task('noisy'))]
  assert len({text.rpartition(' ')[2] for text in texts}) > 50


def test_what_seqio_lacks_is_refused(folder):
  def refuses(message, source):
    with pytest.raises(UserError, match=message):
      list_files(mine=source)

  refuses(r"Did you mean 'lines'", task('lnes'))
  refuses(r'\d+ are registered: broken, copies', task('zzz'))
  refuses(r"'nowhere' cannot be imported", base.seqio('x', module='nowhere'))
  refuses(r"no split 'test'; splits are train", task('lines', split='test'))
  refuses('no file for its split', task('no_file'))
  refuses(
    'columns are targets; of text: none; of .* decoded: targets',
    task('lines_of_ids'),
  )
  refuses("no column 'key'", task('lines', id_column='key'))
  refuses('neither text nor token', task('told', text_column='pixels'))
  refuses(r'tfds build mnist:3\.0\.1', task('unprepared'))
  refuses("task 'broken' cannot be opened: TypeError", task('broken'))


def test_copies_are_refused_or_dropped(folder, make_corpus):
  fields = {'reference_fraction': 0.3, 'heldout_fraction': 0.3}
  mine = {'mine': task('copies', 'lines')}
  with pytest.raises(
    UserError,
    match=r'copies/train-00001-of-00002:1 has the id of '
    r"copies/train-00000-of-00002:1, .*fingerprint.*on_bad_record='drop'",
  ):
    corpus_index.build(make_corpus(mine, **fields))
  index = corpus_index.build(make_corpus(mine, on_bad_record='drop', **fields))
  assert index.bad_records == {'duplicate id': 3}
  assert len(index.line) == 3 + 60


def test_other_text_in_the_second_pass_is_refused(folder, make_corpus):
  index = corpus_index.build(make_corpus({'mine': task('lines')}))
  path = folder / 'lines_b.txt'
  before = path.read_text()
  path.write_text(before.replace('b7', 'b_7'))
  try:
    with pytest.raises(UserError, match='another text .*preprocessors draw'):
      list(index.documents(np.ones(len(index.line), bool)))
  finally:
    path.write_text(before)


IN_A_PROCESS = """
import sys
from configs import base
from infoprune_jax.config import experiment as config_lib
from infoprune_jax.runtime import progress
from infoprune_jax.corpus import corpus_index

def digest(num_workers, folder):
  edits = base.get_config()
  edits.corpus.num_workers = num_workers
  edits.corpus.sources.tfds = base.tfds('told_text:1.0.0', data_dir=folder)
  edits.corpus.sources.lines = base.seqio('lines', module='told_tasks')
  index = corpus_index.build(config_lib.from_mapping(edits).corpus)
  return index.fingerprint()  # Of every text and id, in their order.

if __name__ == '__main__':
  progress.log_to_stderr()
  print(digest(2, sys.argv[1]), 'tensorflow' in sys.modules)
"""


def test_two_workers_and_a_main_process_without_tensorflow(folder, tmp_path):
  script = tmp_path / 'script.py'
  script.write_text(textwrap.dedent(IN_A_PROCESS))
  names: dict = {}
  exec(compile(IN_A_PROCESS, 'script', 'exec'), names)
  expected = names['digest'](1, str(folder))
  paths = {**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)}
  found = subprocess.run(
    [sys.executable, str(script), str(folder)],
    env=paths,
    capture_output=True,
    text=True,
  )
  assert found.stdout.split() == [expected, 'False'], found.stderr
  # Nothing but our own lines: TensorFlow is quiet.
  lines = found.stderr.splitlines()
  assert lines and all(' tokenize: ' in line for line in lines)
