"""The job that holds scores to labels, on pages made of the corpus's texts."""

import dataclasses
import json
import math
import os
import pathlib
import shutil

import numpy as np
import pyarrow as pa
import pytest

from infoprune_jax import stages
from infoprune_jax.config import validation
from infoprune_jax.config.experiment import Config
from infoprune_jax.config.validation import UserError
from infoprune_jax.evaluate import labels
from infoprune_jax.runtime import files
from infoprune_jax.runtime.workdir import scores_dir, statistics_dir
from infoprune_jax.selection.examples import scored_examples
from infoprune_jax.statistics import auc, statistics
from infoprune_jax.tokens import folds as folds_lib, tables
from infoprune_jax.tokens.token_store import TokenStore
from infoprune_jax.verify import workdir as verify


def with_labels(config: Config, path: object, **fields) -> Config:
  section = dataclasses.replace(
    config.labels, path=str(path), bootstrap_samples=50, **fields
  )
  return dataclasses.replace(config, labels=section)


def every_second(corpus_path: str) -> list[dict]:
  """Half of the corpus, by rows."""
  lines = pathlib.Path(corpus_path).read_text().splitlines()
  return [json.loads(line) for line in lines[::2]]


def pages_of(home: str) -> pa.Table:
  """Scores and statistics of the pages."""
  return scored_examples(home, TokenStore.open(home)).table


@pytest.fixture(scope='module', params=[1, 2], ids='{}-folds'.format)
def scored(request, small, tmp_path_factory) -> tuple[Config, str]:
  """A config of so many folds, and a workdir up to its scores."""
  workdir = str(tmp_path_factory.mktemp('scored'))
  reference = dataclasses.replace(small.reference, folds=request.param)
  config = dataclasses.replace(small, reference=reference)
  for job in ('tokenize', 'statistics', 'reference', 'score'):
    stages.STAGES[job].run(config, workdir)
  return config, workdir


@pytest.fixture(scope='module')
def rows(corpus_path) -> list[dict]:
  """Texts of the corpus, with labels that go by no score."""
  return [
    {'page': row['text'], 'good': n * 7 % 5 % 2, 'set': f'of {row["source"]}'}
    for n, row in enumerate(every_second(corpus_path))
  ]


@pytest.fixture(scope='module')
def judged(rows, tmp_path_factory) -> pathlib.Path:
  path = tmp_path_factory.mktemp('judged') / 'judged.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return path


@pytest.fixture(scope='module')
def done(scored, judged) -> tuple[Config, str, str, dict]:
  """Config, workdir, the folder of the pages, and the figures."""
  config, workdir = scored
  config = with_labels(
    config, judged, text_column='page', label_column='good', group_column='set'
  )
  stages.run(config, workdir, 'labels')
  (home,) = (pathlib.Path(workdir) / 'labels').iterdir()
  found = files.read_json(str(home / 'auc' / labels.FILE))
  return config, workdir, str(home), found


def test_pages_score_as_the_same_texts_of_the_corpus(done, corpus_path):
  """By the same model, and by the frequencies that it was trained with."""
  config, workdir, home, _ = done
  texts = every_second(corpus_path)
  there = tables.read_table(scores_dir(workdir)).to_pylist()
  statistic = tables.read_table(statistics_dir(workdir)).to_pylist()
  by_id = {
    row['example_id']: {**row, **more}
    for row, more in zip(there, statistic, strict=True)
    if row['fold'] == 0
  }
  compared = 0
  for text, row in zip(texts, pages_of(home).to_pylist(), strict=True):
    if text['id'] not in by_id:
      continue
    expected = by_id[text['id']]
    compared += 1
    for name in ('num_tokens', 'num_bytes', 'compressed_bytes', 'content_hash'):
      assert row[name] == expected[name]
    for name in ('nll_sum', 'unigram_nll_sum'):
      assert row[name] == pytest.approx(expected[name], rel=1e-5)
  assert compared > 10
  store = TokenStore.open(workdir)
  folds = config.reference.folds
  counts = folds_lib.unigram_counts(store, 0, folds, range(store.num_shards))
  nll = statistics.unigram_nll(counts)
  own = TokenStore.open(home)
  for row, found in enumerate(pages_of(home)['unigram_nll_sum']):
    expected = math.fsum(nll[own.document(0, row)])
    assert found.as_py() == pytest.approx(expected)


def test_the_figures_are_of_distinct_pages(done, rows):
  config, _, home, found = done
  assert [group['group'] for group in found['groups']] == [
    labels.ALL,
    'of copies',
    'of prose',
    'of template',
  ]
  examples = pages_of(home)
  tokens = examples['num_tokens'].to_numpy().astype(float)
  for group in found['groups']:
    inside = [
      n for n, row in enumerate(rows) if group['group'] in ('', row['set'])
    ]
    first = {(rows[n]['page'], rows[n]['good']): n for n in inside[::-1]}
    pages = sorted(first.values())
    label = np.array([rows[n]['good'] for n in pages], bool)
    assert group['pages'] == {'1': label.sum(), '0': (~label).sum()}
    assert group['copies'] == len(inside) - len(pages)
    assert [row['score'] for row in group['auc']] == list(config.labels.scores)
    length = next(row for row in group['auc'] if row['score'] == 'length')
    assert length['auc'] == auc.auc(tokens[pages], label)
    bounds = auc.interval(tokens[pages], label, 50, config.labels.seed)
    assert (length['low'], length['high']) == (bounds or (None, None))
  assert found['groups'][0]['copies'] > 0


def test_pages_that_the_model_was_trained_on_are_counted(done, rows, caplog):
  config, workdir, _, found = done
  store = TokenStore.open(workdir)
  trained = set()
  for number in range(store.num_shards):
    shard = store.shard(number)
    inside = folds_lib.trained_documents(shard, 0, config.reference.folds)
    trained |= set(shard.column('content_hash')[inside].tolist())
  own = TokenStore.open(done[2]).shard(0).column('content_hash').tolist()
  expected = sum(value in trained for value in own)
  assert found['trained_on'] == expected
  assert 0 < expected < len(rows)
  stages.run(config, workdir, 'labels')
  message = f'{expected} of {len(rows)} pages are in the training text'
  assert message in caplog.text


def test_again_and_with_another_score_nothing_is_scored(done, capsys):
  config, workdir, home, found = done
  scores = pathlib.Path(home, 'scores', 'manifest.json')
  before = scores.stat().st_mtime_ns
  section = dataclasses.replace(config.labels, scores={'tokens': 'num_tokens'})
  stages.run(dataclasses.replace(config, labels=section), workdir, 'labels')
  out = capsys.readouterr().out
  again = files.read_json(f'{home}/auc/{labels.FILE}')
  assert scores.stat().st_mtime_ns == before
  (one,) = again['groups'][0]['auc']
  length = found['groups'][0]['auc'][-1]
  assert (one['score'], one['auc']) == ('tokens', length['auc'])
  for words in (
    'pages labelled 1 have the higher score',
    'copies counted once',
    f'tokens  {one["auc"]:.3f}  {one["low"]:.3f} to {one["high"]:.3f}',
  ):
    assert words in out
  stages.run(config, workdir, 'labels')


def test_other_pages_have_a_folder_of_their_own(done, rows, tmp_path):
  config, workdir, home, _ = done
  path = tmp_path / 'few.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows[:9]))
  section = dataclasses.replace(config.labels, path=str(path))
  stages.run(dataclasses.replace(config, labels=section), workdir, 'labels')
  (other,) = {
    str(folder) for folder in (pathlib.Path(workdir) / 'labels').iterdir()
  } - {home}
  found = files.read_json(f'{other}/auc/{labels.FILE}')
  # Too few for intervals, and in some groups for areas.
  assert found['groups'][0]['auc'][0]['auc'] is not None
  assert all(row['low'] is None for g in found['groups'] for row in g['auc'])
  shutil.rmtree(other)


def test_verify_sees_labelled_pages(done, tmp_path):
  _, workdir, home, _ = done
  copied = shutil.copytree(workdir, tmp_path / 'copied')
  own = copied / 'labels' / os.path.basename(home)
  checked = {found.path: wrong for found, wrong in verify.check(str(copied))}
  for name in ('token_store', 'statistics', 'scores', 'auc'):
    assert checked[str(own / name)] == []
  for name in (
    'token_store/tokens/part-00000-of-00001.npy',
    'scores/data/part-00000-of-00001.parquet',
    f'auc/{labels.FILE}',
  ):
    data = (own / name).read_bytes()
    (own / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    (wrong,) = (w for _, w in verify.check(str(copied)) if w)
    assert name in wrong[0]
    assert 'run --job=labels again' in wrong[0]
    (own / name).write_bytes(data)


def test_an_expression_is_refused_before_anything_is_done(small, judged):
  config = with_labels(small, judged, scores={'mine': 'nll_sums / num_tokens'})
  with pytest.raises(UserError, match=r'In labels\.scores\.mine: The rule'):
    stages.run(config, 'nowhere', 'labels')
  assert not os.path.exists('nowhere')


def test_what_is_missing_is_named(small, judged, tmp_path):
  config = with_labels(small, judged)
  with pytest.raises(UserError, match='Run --job=tokenize first'):
    stages.run(config, str(tmp_path), 'labels')
  stages.run(config, str(tmp_path), 'tokenize')
  with pytest.raises(UserError, match=r'labels\.path is empty'):
    stages.run(small, str(tmp_path), 'labels')
  with pytest.raises(UserError, match="no such column .no 'label'"):
    stages.run(config, str(tmp_path), 'labels')
  named = with_labels(small, judged, text_column='page', label_column='good')
  with pytest.raises(UserError, match='Run --job=reference first'):
    stages.run(named, str(tmp_path), 'labels')


def test_another_vocabulary_is_refused(done, tmp_path):
  config, workdir, _, _ = done
  copied = str(shutil.copytree(workdir, tmp_path / 'copied'))
  shutil.rmtree(f'{copied}/vocabulary')
  other = str(tmp_path / 'other')
  vocabulary = dataclasses.replace(config.vocabulary, size=380)
  stages.run(
    dataclasses.replace(config, vocabulary=vocabulary), other, 'tokenize'
  )
  os.rename(f'{other}/vocabulary', f'{copied}/vocabulary')
  with pytest.raises(UserError, match='vocabulary: size 380 -> 400'):
    stages.run(config, copied, 'labels')


def test_the_default_scores_are_of_the_base_config(small):
  labels.check(small)
  assert {'nll', 'length', 'compression', 'unigram_mean'} <= set(
    small.labels.scores
  )
  assert validation.to_plain(small)['labels']['path'] == ''
