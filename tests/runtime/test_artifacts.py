"""Artifacts: shards, markers, manifests, and what is refused."""

import json
import random
import shutil

import pytest
from hypothesis import given, strategies as st

from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime import files, filesystems, manifests
from infoprune_jax.runtime.artifacts import Artifact
from infoprune_jax.runtime.workdir import (
  data_file,
  evaluation_dir,
  keep_set_dir,
  labels_dir,
  reference_dir,
  report_dir,
  run_dir,
  scores_dir,
  shard_name,
  token_store_dir,
  vocabulary_dir,
)

OPTIONS = {'dtype': 'float32', 'window': {'length': 64, 'overlap': 8}}
INPUTS = {'token_store': 'a' * 16}


@pytest.fixture(params=['', 'memory://'])
def path(request, tmp_path):
  return f'{request.param}{tmp_path}/scores'


def artifact(path: str, options=OPTIONS, inputs=INPUTS) -> Artifact:
  return Artifact(path, 'score table', 'score', options, inputs)


def shard_files(text: str, shard: int, num_shards: int) -> dict:
  return {
    data_file(shard, num_shards): (lambda file: file.write(text.encode())),
    data_file(shard, num_shards, '.b', 'more'): (
      lambda file: file.write(2 * text.encode())
    ),
  }


def write(made: Artifact, texts=('one', 'two'), **facts) -> dict:
  made.begin()
  markers = [
    made.finish_shard(
      shard, len(texts), shard_files(text, shard, len(texts)), rows=shard
    )
    for shard, text in enumerate(texts)
  ]
  written = {name: f for m in markers for name, f in m['files'].items()}
  return made.finish(written, **facts)


def shuffled(value, rng: random.Random):
  """The same JSON value, with the keys of its objects in another order."""
  if isinstance(value, dict):
    keys = list(value)
    rng.shuffle(keys)
    return {key: shuffled(value[key], rng) for key in keys}
  if isinstance(value, list):
    return [shuffled(item, rng) for item in value]
  return value


values = st.recursive(
  st.integers() | st.text(max_size=3) | st.booleans(),
  lambda inner: (
    st.dictionaries(st.text(max_size=3), inner) | st.lists(inner, max_size=3)
  ),
  max_leaves=10,
)


@given(value=values, seed=st.integers(0, 9))
def test_a_fingerprint_does_not_depend_on_the_order_of_keys(value, seed):
  other = shuffled(value, random.Random(seed))
  assert manifests.fingerprint(value) == manifests.fingerprint(other)


@given(first=values, second=values)
def test_a_fingerprint_tells_values_apart(first, second):
  same = json.dumps(first, sort_keys=True) == json.dumps(second, sort_keys=True)
  found = manifests.fingerprint(first) == manifests.fingerprint(second)
  assert found is same


def test_shard_names_sort_in_order():
  names = [shard_name(shard, 1000) for shard in range(1000)]
  assert names == sorted(set(names))
  assert names[3] == 'part-00003-of-01000'


def test_paths_do_not_meet():
  paths = [
    vocabulary_dir('w'),
    token_store_dir('w'),
    reference_dir('w'),
    scores_dir('w'),
    report_dir('w'),
    keep_set_dir('w', 'a'),
    run_dir('w', 'a', 0),
    run_dir('w', 'a', 1),
    evaluation_dir('w', 'a', 0),
    labels_dir('w', '0'),
    labels_dir('w', '1'),
  ]
  assert len({*paths}) == len(paths)
  assert all(path.startswith('w/') for path in paths)


def test_written_and_opened(path):
  assert artifact(path).finished() is None
  manifest = write(artifact(path), num_examples=7)
  assert artifact(path).finished() == manifest
  assert manifests.open_finished(path, 'score table', 'score') == manifest
  assert manifest['num_examples'] == 7
  assert list(manifest['files']) == sorted(manifest['files'])
  for name, facts in manifest['files'].items():
    data = files.read_bytes(f'{path}/{name}')
    assert facts['bytes'] == len(data)
    manifests.check_content(f'{path}/{name}', data, facts, 'score')
  manifests.check_sizes(path, manifest, 'score table', 'score')


def test_the_fingerprint_covers_what_decides_the_bytes(tmp_path):
  made = iter(range(100))

  def fingerprint(options=OPTIONS, inputs=INPUTS, **fields) -> str:
    path = str(tmp_path / str(next(made)))
    return write(artifact(path, options, inputs), **fields)['fingerprint']

  same = fingerprint()
  reordered = dict(reversed(OPTIONS.items()))
  assert fingerprint(options=reordered, seconds=3.5) == same
  others = [
    fingerprint(options={**OPTIONS, 'dtype': 'bfloat16'}),
    fingerprint(inputs={'token_store': 'b' * 16}),
    fingerprint(texts=('one', 'too')),
    fingerprint(texts=('one', 'two', 'three')),
  ]
  assert len({same, *others}) == 5


def test_options_may_be_tuples(path):
  options = {'rules': ({'keep': 'top'}, {'keep': 'all'})}
  write(artifact(path, options))
  assert artifact(path, options).finished()


@pytest.mark.parametrize(
  'options, inputs, difference',
  [
    (
      {**OPTIONS, 'dtype': 'bfloat16'},
      INPUTS,
      "options: dtype 'float32' -> 'bfloat16'",
    ),
    (
      {**OPTIONS, 'window': {'length': 64, 'overlap': 9}},
      INPUTS,
      'window: overlap 8 -> 9',
    ),
    (
      {'dtype': 'float32'},
      INPUTS,
      "options: window {'length': 64, 'overlap': 8} -> absent",
    ),
    ({**OPTIONS, 'z': 1}, INPUTS, 'options: z absent -> 1'),
    (
      OPTIONS,
      {'token_store': 'b' * 16},
      'it was made from another version of token_store',
    ),
    (OPTIONS, {}, 'it was made from token_store, too'),
  ],
)
def test_another_origin_is_refused(path, options, inputs, difference):
  made, other = artifact(path), artifact(path, options, inputs)
  made.begin()
  with pytest.raises(UserError, match='does not belong') as caught:
    other.begin()
  assert difference in str(caught.value)
  write(made)
  with pytest.raises(UserError) as caught:
    other.finished()
  for said in (difference, path, 'score table', '--job=score', '--workdir'):
    assert said in str(caught.value)


@pytest.mark.parametrize(
  'spelled',
  ['./c.jsonl', '{here}/c.jsonl', '~/c.jsonl', 'file://{here}/c.jsonl'],
)
def test_a_path_may_be_spelled_otherwise(path, tmp_path, monkeypatch, spelled):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('HOME', str(tmp_path))

  def over(corpus, vocabulary='', text='text'):
    mine = {'paths': [corpus, 'd'], 'text_column': text, 'data_dir': ''}
    options = {
      'corpus': {'sources': {'a.b': mine}},
      'vocabulary': {'path': vocabulary},
    }
    return artifact(path, options)

  again = over(spelled.format(here=tmp_path))
  over('c.jsonl').begin()
  again.begin()
  write(over('c.jsonl'))
  assert again.finished()['options']['corpus']['sources']['a.b']['paths'] == [
    'c.jsonl',
    'd',
  ]
  for other in (
    over('c.json'),
    over('c.jsonl', vocabulary='.'),  # '' is no path.
    over('c.jsonl', text='./text'),
  ):
    with pytest.raises(UserError, match='does not belong'):
      other.finished()
  # From a folder elsewhere: what was relative still is.
  (tmp_path / 'clone').mkdir()
  monkeypatch.chdir(tmp_path / 'clone')
  assert over('c.jsonl').finished()


def test_begin_again_changes_nothing(path):
  artifact(path).begin()
  before = files.read_bytes(f'{path}/{manifests.BEGUN}')
  artifact(path).begin()
  assert files.read_bytes(f'{path}/{manifests.BEGUN}') == before


def test_a_shard_is_done_after_its_files(path):
  made = artifact(path)
  first, second = shard_files('x', 1, 2)

  def broken(file):
    assert files.read_bytes(f'{path}/{first}') == b'x'
    raise OSError('unplugged')

  with pytest.raises(OSError, match='unplugged'):
    made.finish_shard(
      1, 2, {first: lambda file: file.write(b'x'), second: broken}
    )
  assert made.finished_shard(1, 2) is None
  marker = made.finish_shard(1, 2, shard_files('x', 1, 2), num_examples=4)
  assert made.finished_shard(1, 2) == marker
  assert made.finished_shard(0, 2) is None
  assert marker['num_examples'] == 4
  assert set(marker['files']) == {
    'data/part-00001-of-00002.parquet',
    'more/part-00001-of-00002.b',
  }


def test_open_says_how_far_it_is(path):
  with pytest.raises(UserError, match=r'is not there\. Run --job=score first'):
    manifests.open_finished(path, 'score table', 'score')
  made = artifact(path)
  made.begin()
  for shard in (0, 2):
    made.finish_shard(shard, 4, shard_files('x', shard, 4))
  with pytest.raises(
    UserError, match=r'has 2 finished shards but no manifest.*shards are kept'
  ):
    manifests.open_finished(path, 'score table', 'score')


def test_another_format_is_refused(path, monkeypatch):
  write(artifact(path))
  ours = manifests.FORMAT_VERSION
  monkeypatch.setattr(manifests, 'FORMAT_VERSION', ours + 1)
  said = f'has format {ours}, but this version of infoprune_jax reads format'
  for read in (
    lambda: manifests.open_finished(path, 'score table', 'score'),
    artifact(path).finished,
    artifact(path).begin,
  ):
    with pytest.raises(UserError, match=said):
      read()


def test_what_format_2_has_begun_is_refused(path):
  # Its shards lie beside their markers; its note names no format.
  begun = {'job': 'score', 'options': OPTIONS, 'inputs': INPUTS}
  files.write_record(f'{path}/{manifests.BEGUN}', begun)
  with pytest.raises(UserError, match='has format 2 or older.* new --workdir'):
    artifact(path).begin()
  assert manifests.BEGUN in filesystems.names_in(path)


def test_the_data_files_of_a_shard_are_alone_in_a_folder(path):
  write(artifact(path))
  assert filesystems.names_in(f'{path}/data') == [
    'part-00000-of-00002.parquet',
    'part-00001-of-00002.parquet',
  ]
  assert 'part-00000-of-00002.done' in filesystems.names_in(path)


def test_check_made_from_names_both_sides():
  manifest = {'inputs': {'token_store': 'a' * 16}}
  arguments = ('score table', 'token_store')
  manifests.check_made_from(
    manifest, *arguments, {'fingerprint': 'a' * 16}, 'token store'
  )
  with pytest.raises(UserError, match=r'score table .* token store') as caught:
    manifests.check_made_from(
      manifest, *arguments, {'fingerprint': 'b' * 16}, 'token store'
    )
  assert 'a' * 16 in str(caught.value) and 'b' * 16 in str(caught.value)


def test_damaged_content_is_named(path):
  facts = write(artifact(path))['files']['data/part-00000-of-00002.parquet']
  with pytest.raises(UserError, match=r'/name\.a is damaged.*--job=score'):
    manifests.check_content(f'{path}/name.a', b'onf', facts, 'score')


def test_a_missing_or_short_file_is_named(tmp_path):
  path = str(tmp_path / 'scores')
  manifest = write(artifact(path))
  shard = tmp_path / 'scores/more/part-00001-of-00002.b'
  shard.write_bytes(b'twot')
  with pytest.raises(
    UserError, match=r'00001-of-00002\.b has 4 bytes, .* says 6 bytes'
  ):
    manifests.check_sizes(path, manifest, 'score table', 'score')
  shard.unlink()
  with pytest.raises(UserError, match=r'00001-of-00002\.b is missing'):
    manifests.check_sizes(path, manifest, 'score table', 'score')


def test_a_damaged_marker_is_named(tmp_path):
  made = artifact(str(tmp_path))
  (tmp_path / 'part-00000-of-00002.done').write_text('{"files":')
  with pytest.raises(UserError, match=r'00002\.done is damaged'):
    made.finished_shard(0, 2)


def test_an_artifact_may_be_moved(tmp_path):
  write(artifact(str(tmp_path / 'here')))
  shutil.move(tmp_path / 'here', tmp_path / 'there')
  assert artifact(str(tmp_path / 'there')).finished()


def test_links_are_followed_and_those_to_nowhere_named(tmp_path):
  path = str(tmp_path / 'scores')
  manifest = write(artifact(path))
  file = tmp_path / 'scores/data/part-00000-of-00002.parquet'
  file.rename(tmp_path / 'far')
  file.symlink_to('../../far')
  manifests.check_sizes(path, manifest, 'score table', 'score')
  assert artifact(path).finished_shard(0, 2)
  (tmp_path / 'far').unlink()
  for check in (
    lambda: manifests.check_sizes(path, manifest, 'score table', 'score'),
    lambda: artifact(path).finished_shard(0, 2),
  ):
    with pytest.raises(
      UserError, match='of-00002.parquet is a symbolic link to'
    ):
      check()
