"""Examples in parts on disk are those of the table in memory."""

import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs import base
from infoprune_jax.config.selection import RuleConfig
from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime import manifests
from infoprune_jax.runtime.workdir import scores_dir, statistics_dir
from infoprune_jax.selection import (
  arrays,
  copies,
  ranks,
  rules,
  select,
  shown,
  summary,
)
from infoprune_jax.selection.examples import (
  Examples,
  ExampleShards,
  scored_examples,
)
from infoprune_jax.tokens import tables
from infoprune_jax.tokens.token_store import TokenStore

MEAN = 'nll_sum / greatest(num_tokens, 1)'
RULES = {
  'top': base.arm('top', MEAN, fraction=0.3),
  'per source': base.arm('middle', MEAN, fraction=0.3, per='source'),
  'window': base.arm(
    'top', f'percent_rank() OVER (ORDER BY {MEAN})', fraction=0.3
  ),
  'subquery': base.arm(
    'bottom', f'abs({MEAN} - (SELECT avg(nll_sum) FROM scores))', fraction=0.3
  ),
  'ranks': base.arm(
    'top', f'rank({MEAN}) + zscore(unigram_nll_sum)', fraction=0.3
  ),
  'sample': base.arm('sample', MEAN, fraction=0.3),
  'random': base.arm('random', fraction=0.3, unit='bytes'),
  'distinct': base.arm('distinct', per='source'),
}


@pytest.fixture(scope='module')
def opened(scored):
  """The same examples, on disk and in memory."""
  store = TokenStore.open(scored)
  return (
    ExampleShards(scored, store),
    scored_examples(scored, store),
  )


@pytest.fixture
def small_steps(monkeypatch):
  """Steps that end within parts, and scratch files for all but a few bytes."""
  monkeypatch.setattr(arrays, 'STEP', 7)
  monkeypatch.setattr(arrays, '_IN_MEMORY', 8)
  monkeypatch.setattr(copies, '_SORTED', 4)
  monkeypatch.setattr(ranks, '_SORTED', 6)
  monkeypatch.setattr(ranks, '_SAMPLED', 2)


@pytest.mark.parametrize('name', RULES)
def test_shards_are_kept_as_one_table_is(opened, small_steps, name):
  chosen = (RuleConfig(**RULES[name]),)
  on_disk, in_memory = opened
  kept, decision = select.decide(chosen, on_disk, 1)
  assert kept.tolist() == rules.apply(chosen, in_memory, 1).tolist()
  assert 0 < kept.sum() <= len(on_disk)
  assert summary.summarize(on_disk, kept) == summary.summarize(in_memory, kept)
  assert shown.examples_of(on_disk, kept, decision, 4) == shown.examples_of(
    in_memory, kept, decision, 4
  )
  assert shown.by_decile(on_disk, 2) == shown.by_decile(in_memory, 2)
  assert summary.nll_histogram(on_disk) == summary.nll_histogram(in_memory)


def test_steps_do_not_matter(scored, opened, small_steps):
  _, whole = opened
  store = TokenStore.open(scored)
  stepped = ExampleShards(scored, store)
  assert summary.nll_deciles(stepped).tolist() == (
    summary.nll_deciles(whole).tolist()
  )


def test_examples_are_taken_in_the_order_asked_for(opened):
  positions = np.array([-1, 3, 47, 3, 0]) % len(opened[0])
  for examples in opened:
    found = examples.take(positions, ['example_id', 'num_tokens'])
    whole = opened[1].table.select(['example_id', 'num_tokens'])
    assert found.to_pylist() == whole.take(positions).to_pylist()


def test_some_examples_are_read_without_the_rest(workdir, monkeypatch):
  """Of shards in several groups of rows."""
  whole = scored_examples(workdir, TokenStore.open(workdir)).table
  monkeypatch.setattr(tables, 'GROUP_ROWS', 7)
  for path in (
    scores_dir(workdir),
    statistics_dir(workdir),
  ):
    for file in pathlib.Path(path).glob('data/*.parquet'):
      made = pq.read_table(file)
      with open(file, 'wb') as opened:
        tables.write(made, opened)
  monkeypatch.setattr(
    manifests, 'verified', lambda path, _, name: f'{path}/{name}'
  )
  monkeypatch.setattr(
    pq.ParquetFile, 'read', lambda *_, **__: pytest.fail('all of a shard')
  )
  store = TokenStore.open(workdir)
  examples = ExampleShards(workdir, store)
  positions = np.random.default_rng(0).choice(len(examples), 20)
  columns = ['example_id', 'unigram_nll_sum', 'doc_index']
  found = examples.take(positions, columns)
  assert found.to_pylist() == whole.select(columns).take(positions).to_pylist()


@pytest.mark.parametrize('sizes', [[], [0], [3], [0, 2, 0, 3], [2, 0, 0]])
def test_shards_may_be_empty(sizes):
  """Of a shard in which no document is scored."""

  class Shards(Examples):
    starts = np.cumsum([0, *sizes])

    def read(self, shard, columns):
      rows = np.arange(self.starts[shard], self.starts[shard + 1])
      return pa.table({name: rows for name in columns})

  found = list(Shards().shards(['doc_index']))
  assert [shard.num_rows for _, shard in found] == sizes
  for where, shard in found:
    rows = range(where.start, where.stop)
    assert shard['doc_index'].to_pylist() == list(rows)
  assert Shards().column('doc_index', np.int64).tolist() == list(
    range(sum(sizes))
  )


def test_nothing_is_taken_of_nothing(opened):
  for examples in opened:
    assert examples.take(np.zeros(0, int), ['doc_index']).num_rows == 0


def test_other_examples_are_refused(workdir):
  path = statistics_dir(workdir)
  manifest = manifests.read_manifest(path, 'statistics')
  file = f'{path}/{min(manifest["files"])}'
  table = pq.read_table(file)
  rows = table['doc_index'].to_numpy() + 1
  pq.write_table(table.set_column(1, 'doc_index', [rows]), file)
  store = TokenStore.open(workdir)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(manifests, 'verified', lambda path, _, name: f'{path}/{name}')
    examples = ExampleShards(workdir, store)
    with pytest.raises(UserError, match='holds other examples than'):
      _ = examples.index
