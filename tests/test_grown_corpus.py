"""The whole job over a corpus that grows."""

import json
import pathlib
import re
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from three_arms import edited, run, times

from configs import base
from infoprune_jax import stages
from infoprune_jax.config import experiment as config_lib
from infoprune_jax.config.validation import UserError
from infoprune_jax.tokens.token_store import TokenStore

KEPT = ('token_store', 'vocabulary', 'statistics', 'scores', 'reference')


@pytest.fixture
def copied(three_arms_run, tmp_path) -> pathlib.Path:
  return shutil.copytree(three_arms_run, tmp_path / 'work')


@pytest.fixture
def grown(three_arms, tmp_path) -> config_lib.Config:
  """The config with one more source."""
  rng = np.random.default_rng(0)
  lines = []
  for number in range(60):
    text = ' '.join(f'word{w}' for w in rng.integers(0, 90, 40))
    lines.append(json.dumps({'id': f'doc-{number}', 'text': text}))
  path = tmp_path / 'week.jsonl'
  path.write_text('\n'.join(lines))
  edits = three_arms.copy_and_resolve_references()
  edits.corpus.sources.week = base.jsonl(str(path), id_column='id')
  return config_lib.from_mapping(edits)


def test_a_grown_corpus_is_scored_and_selected_as_a_whole(
  three_arms, three_arms_run, copied, grown, tmp_path, caplog
):
  before = times(copied)
  with pytest.raises(UserError, match='give --extend'):
    run(grown, copied, None)
  # The arms that are finished are named, and nothing is made before.
  with pytest.raises(UserError) as refused:
    run(grown, copied, None, extend=True)
  message = str(refused.value)
  assert 'the corpus grows by 1 file' in message and 'week' in message
  assert 'Trained before: random, top_nll.' in message
  assert times(copied) == before
  state = str(stages.state('tokenize', grown, str(copied), extend=True))
  assert 'as the corpus grows by 1 file' in state

  with caplog.at_level('INFO'):
    run(grown, copied, None, extend=True, stale='redo')
  after = times(copied)
  for name in before:
    if name.split('/')[0] in KEPT and 'part-' in name:
      assert after[name] == before[name], name
    if name.split('/')[0] in ('reference', 'vocabulary'):
      assert after[name] == before[name], name
  deleted = re.findall(r'stale: .*/work/(\S+) is deleted: (.*)', caplog.text)
  assert {name.split('/')[0] for name, _ in deleted} >= {
    *('keep_sets', 'near_duplicates', 'train', 'evaluate'),
  }
  assert {name for name, _ in deleted} >= {
    'train/random/seed-0',
    'train/top_nll/seed-0',
  }
  assert 'fractions are of the whole corpus, which has grown' in caplog.text

  # What is appended equals what a run over the whole store writes.
  store = TokenStore.open(str(copied))
  assert store.num_shards > store.first.num_shards == 3
  whole = tmp_path / 'whole' / 'work'
  for name in ('token_store', 'vocabulary', 'reference'):
    shutil.copytree(copied / name, whole / name)
  run(grown, whole, 'statistics', 'score', 'near_duplicates')
  for name in ('statistics', 'scores', 'near_duplicates'):
    files = {p.name: p.read_bytes() for p in (whole / name).glob('data/*')}
    assert len(files) == store.num_shards
    assert files == {
      p.name: p.read_bytes() for p in (copied / name).glob('data/*')
    }
  assert (whole / 'scores/manifest.json').read_bytes() == (
    copied / 'scores/manifest.json'
  ).read_bytes()

  # Every reader has all documents.
  run(grown, copied, 'export', stale='redo')
  table = pq.read_table(copied / 'export/every-arm/scores/data')
  assert table.num_rows == store.manifest['num_documents']
  in_week = np.array(table['source'].to_pylist()) == 'week'
  is_scored = np.array(table['split'].to_pylist()) == 'scored'
  assert (in_week & is_scored).sum() > 30
  nll = table['nll_sum'].to_numpy()
  assert (np.isfinite(nll) == is_scored).all()
  kept = np.array(table['keep_top_nll'].to_pylist())
  assert kept[in_week & is_scored].any()
  tokens = table['num_tokens'].to_numpy()
  fraction = tokens[kept].sum() / tokens[is_scored].sum()
  assert fraction == pytest.approx(0.5, abs=0.03)
  run(grown, copied, 'verify')
  run(grown, copied, None)  # Nothing is stale, and nothing is left to do.


def test_stage_by_stage(copied, grown, capsys):
  """Each stage names what the growth makes stale, until it is made anew."""
  run(grown, copied, 'tokenize', extend=True)
  run(grown, copied, 'statistics', 'score')
  again = 'the token store has grown from 3 to 4 shards'
  assert str(stages.state('reference', grown, str(copied))) == 'finished'
  assert str(stages.state('statistics', grown, str(copied))) == 'finished'
  for job in ('near_duplicates', 'select', 'train', 'evaluate', 'export'):
    assert again in str(stages.state(job, grown, str(copied))), job
    with pytest.raises(UserError, match=again):
      run(grown, copied, job)
  with pytest.raises(UserError):
    run(grown, copied, 'verify')
  assert again in capsys.readouterr().out


def test_a_corpus_that_changed_is_refused_before_work(
  three_arms, corpus_path, tmp_path, grown
):
  path = tmp_path / 'corpus.jsonl'
  shutil.copy(corpus_path, path)
  name = 'corpus.sources.made_up.paths'
  config = edited(three_arms, **{name: (str(path),)})
  workdir = tmp_path / 'work'
  run(config, workdir, 'tokenize', 'statistics')
  path.write_text(path.read_text() + '{"id": "new", "text": "more"}\n')
  before = times(workdir)
  for stale in ('refuse', 'redo'):
    with pytest.raises(UserError, match='corpus.jsonl .* has .* bytes, expec'):
      run(config, workdir, None, extend=True, stale=stale)
  assert times(workdir) == before
  state = stages.state('tokenize', config, str(workdir), extend=True)
  assert state.kind == 'refused' and 'expected' in state.reason


def test_seqio_tasks_read_all_documents(copied, grown):
  import seqio

  from infoprune_jax.seqio_tasks import tasks, token_store_source

  run(grown, copied, 'tokenize', 'statistics', 'score', extend=True)
  run(grown, copied, 'near_duplicates', 'select', stale='redo')
  workdir = shutil.copytree(copied, copied.parent / 'grown')
  task, *_ = tasks.register(str(workdir))
  store = TokenStore.open(str(workdir))
  for split, inside in token_store_source.SPLITS.items():
    dataset = seqio.get_mixture_or_task(task).get_dataset(
      None, split=split, shuffle=False
    )
    read = [tuple(e['targets'].tolist()) for e in dataset.as_numpy_iterator()]
    documents = [
      (*store.document(shard, index).tolist(), store.eos_id)
      for shard in range(store.num_shards)
      for name in inside
      for index in store.shard(shard).documents_of(name)
    ]
    assert sorted(read) == sorted(documents)
