"""Text of benchmarks in the corpus: found, dropped by a rule, reported."""

import dataclasses
import json
import pathlib
import shutil

import pytest
from changed_artifacts import rewrite, with_value
from ml_collections import ConfigDict

from configs import base
from infoprune_jax import stages
from infoprune_jax.config import experiment as config_lib
from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime import files, manifests
from infoprune_jax.selection.examples import scored_examples
from infoprune_jax.statistics import decontaminate
from infoprune_jax.tokens.token_store import TokenStore
from infoprune_jax.verify import workdir as verify

CLEAN = base.arm('threshold', 'contaminated_ngrams', high=0)
TABLE = 'contamination'


@pytest.fixture(scope='module')
def records(experiment) -> dict[str, dict]:
  [path] = experiment.corpus.sources.mine.paths
  lines = pathlib.Path(path).read_text().splitlines()
  return {str(r['id']): r for r in map(json.loads, lines)}


@pytest.fixture(scope='module')
def edits(experiment, records, tmp_path_factory) -> ConfigDict:
  """Two benchmarks of texts of the corpus, and one of others."""
  folder = tmp_path_factory.mktemp('eval')
  texts = [r['text'] for r in records.values() if len(r['text'].split()) > 9]
  for name, some in (
    ('first', texts[:40]),
    # The same words with other marks between them.
    ('second', [t.replace(' ', '! \n') for t in texts[30:60]]),
    ('other', ['these words are in no document of the corpus at all']),
  ):
    lines = [json.dumps({'query': f'Well: {text}', 'gold': 1}) for text in some]
    (folder / f'{name}.jsonl').write_text('\n'.join(lines))
  made = experiment.copy_and_resolve_references()
  made.train.seeds = (0,)
  made.select.decontaminate = base.benchmarks(f'{folder}/*.jsonl', ngram=6)
  made.select.arms.clean = CLEAN
  made.select.arms.random.per = 'source'
  return made


@pytest.fixture(scope='module')
def config(edits) -> config_lib.Config:
  return config_lib.from_mapping(edits)


@pytest.fixture(scope='module')
def compared(config, scored, tmp_path_factory) -> str:
  workdir = str(tmp_path_factory.mktemp('compared') / 'work')
  shutil.copytree(scored, workdir)
  decontaminate.run(config, workdir)
  return workdir


def ngrams_of(text: str) -> list[tuple[str, ...]]:
  words = ''.join(c for c in text if c.isalnum() or c.isspace()).lower().split()
  return [tuple(words[n : n + 6]) for n in range(len(words) - 5)]


@pytest.fixture(scope='module')
def expected(config, records) -> dict[str, tuple[int, str]]:
  """Count and benchmarks of each document, by a plain implementation."""
  [pattern] = config.select.decontaminate.paths
  known = {
    path.stem: {
      one
      for line in path.read_text().splitlines()
      for one in ngrams_of(json.loads(line)['query'])
    }
    for path in pathlib.Path(pattern).parent.glob('*.jsonl')
  }
  every = set().union(*known.values())
  return {
    name: (
      sum(one in every for one in ngrams_of(record['text'])),
      ', '.join(
        sorted(n for n in known if known[n] & {*ngrams_of(record['text'])})
      ),
    )
    for name, record in records.items()
  }


def rows_of(workdir: str) -> list[dict]:
  examples = scored_examples(workdir, TokenStore.open(workdir))
  names = ['example_id', 'num_tokens', 'contaminated_ngrams', 'contaminated_by']
  return examples.table.select(names).to_pylist()


def test_counts_are_those_of_a_plain_implementation(compared, expected):
  rows = rows_of(compared)
  for row in rows:
    got = row['contaminated_ngrams'], row['contaminated_by']
    assert got == expected[row['example_id']]
  # Both, one and none of the benchmarks.
  assert {row['contaminated_by'] for row in rows} >= {
    *('', 'first', 'second', 'first, second')
  }


def test_a_rule_drops_them_and_reports_count_them(config, compared, tmp_path):
  workdir = shutil.copytree(compared, str(tmp_path / 'work'))
  stages.STAGES['sweep'].run(config, workdir)
  report = files.read_json(f'{workdir}/selection_report/selections.json')
  found = {row['benchmark']: row for row in report['benchmarks']}
  assert list(found) == ['', 'first', 'second']
  rows = rows_of(workdir)
  for name, row in found.items():
    some = [
      r for r in rows if r['contaminated_by'] and name in r['contaminated_by']
    ]
    sizes = {
      'examples': len(some),
      'tokens': sum(r['num_tokens'] for r in some),
    }
    assert row['arms']['full'] == sizes == {n: row[n] for n in sizes}
    assert row['arms']['clean'] == {'examples': 0, 'tokens': 0}
  clean = next(arm for arm in report['arms'] if arm['name'] == 'clean')
  assert clean['kept']['examples'] == len(rows) - found['']['examples']
  page = pathlib.Path(workdir, 'selection_report/index.html').read_text()
  assert 'Text of benchmarks' in page and 'Groups of random: source' in page
  [groups] = report['groups']
  assert groups['arm'] == 'random' and groups['num_groups'] == 3
  for row in groups['rows']:
    assert 0 < row['kept_tokens'] <= row['tokens'] / 2
  made_from = manifests.read_manifest(f'{workdir}/keep_sets/clean', 'x')
  table = manifests.read_manifest(f'{workdir}/{TABLE}', 'x')
  assert made_from['inputs'][TABLE] == table['fingerprint']
  # Without benchmarks the summaries are written again.
  stages.STAGES['sweep'].run(without_benchmarks(config), workdir)
  report = files.read_json(f'{workdir}/selection_report/selections.json')
  assert report['benchmarks'] == []


def without_benchmarks(config: config_lib.Config) -> config_lib.Config:
  arms = {n: r for n, r in config.select.arms.items() if n != 'clean'}
  section = dataclasses.replace(config.select.decontaminate, paths=())
  select = dataclasses.replace(config.select, arms=arms, decontaminate=section)
  return dataclasses.replace(config, select=select)


def test_a_changed_benchmark_is_named(config, compared, tmp_path):
  [pattern] = config.select.decontaminate.paths
  folder = pathlib.Path(pattern).parent
  assert stages.state(decontaminate.JOB, config, compared).kind == 'finished'
  path = folder / 'second.jsonl'
  before = path.read_text()
  path.write_text(before + '\n{"query": "one more"}')
  state = stages.state(decontaminate.JOB, config, compared)
  assert state.kind == 'stale' and 'benchmark second' in state.reason
  assert 'first' not in state.reason
  path.unlink()
  state = stages.state(decontaminate.JOB, config, compared)
  assert state.reason == 'it was made from benchmark second, too'
  # Where the benchmarks are not, the table stays as it is.
  folder.rename(tmp_path / 'elsewhere')
  assert stages.state(decontaminate.JOB, config, compared).kind == 'finished'
  decontaminate.run(config, compared)
  (tmp_path / 'elsewhere').rename(folder)
  path.write_text(before)


def test_a_killed_job_goes_on_to_the_same_table(config, compared, tmp_path):
  workdir = shutil.copytree(compared, str(tmp_path / 'work'))
  folder = pathlib.Path(workdir, TABLE)
  shard = folder / 'data/part-00001-of-00003.parquet'
  before = shard.read_bytes()
  for name in ('manifest.json', 'part-00001-of-00003.done'):
    (folder / name).unlink()
  shard.unlink()
  ngrams = (folder / 'ngrams/hashes.npy').stat().st_mtime_ns
  decontaminate.run(config, workdir)
  assert shard.read_bytes() == before
  assert (folder / 'ngrams/hashes.npy').stat().st_mtime_ns == ngrams
  # From the start, and between the n-grams and the table, too.
  shutil.rmtree(folder)
  decontaminate.run(config, workdir)
  assert shard.read_bytes() == before


def test_verify_sees_what_is_wrong(compared, tmp_path):
  workdir = shutil.copytree(compared, str(tmp_path / 'work'))
  found = {s.path.partition('work/')[2]: p for s, p in verify.check(workdir)}
  assert found[TABLE] == found[f'{TABLE}/ngrams'] == []
  folder = pathlib.Path(workdir, TABLE)
  rewrite(folder, with_value('contaminated_ngrams', 2, -1))
  hashes = folder / 'ngrams/hashes.npy'
  hashes.write_bytes(hashes.read_bytes()[:-1])
  found = {s.path.partition('work/')[2]: p for s, p in verify.check(workdir)}
  assert 'contaminated_ngrams' in found[TABLE][0]
  assert found[f'{TABLE}/ngrams']


def test_a_changed_corpus_is_refused(config, compared, tmp_path):
  workdir = shutil.copytree(compared, str(tmp_path / 'work'))
  shutil.rmtree(f'{workdir}/{TABLE}')
  [path] = config.corpus.sources['mine'].paths
  before = pathlib.Path(path).read_text()
  pathlib.Path(path).write_text(before.replace('0.5', '0.6'))
  with pytest.raises(UserError, match='is not the one that the token store'):
    decontaminate.run(config, workdir)
  pathlib.Path(path).write_text(before)


def test_bad_config_is_refused_before_work(config, edits):
  bare = without_benchmarks(config)
  select = dataclasses.replace(bare.select, arms=config.select.arms)
  with pytest.raises(UserError, match='clean reads what of a text(.|\n)*none'):
    stages.check(dataclasses.replace(bare, select=select), 'select')
  for fields, message in (
    ({'ngram': 500}, 'ngram is 500, but no text'),
    ({'paths': ('/absent/*.jsonl',)}, 'decontaminate.paths: no file matches'),
  ):
    section = dataclasses.replace(config.select.decontaminate, **fields)
    select = dataclasses.replace(config.select, decontaminate=section)
    with pytest.raises(UserError, match=message):
      stages.check(dataclasses.replace(config, select=select), 'decontaminate')
  made = edits.copy_and_resolve_references()
  made.select.decontaminate.ngram = 0
  with pytest.raises(UserError, match='select.decontaminate.ngram'):
    config_lib.from_mapping(made)
