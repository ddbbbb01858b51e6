"""Losses by source and by position, against a plain count."""

import math

import numpy as np
import pytest
from hypothesis import given, strategies as st

from infoprune_jax.score import losses

SOURCES = ('a', 'b', 'c')
documents = st.lists(
  st.tuples(st.sampled_from(SOURCES), st.integers(0, 40)), min_size=1
).filter(lambda drawn: any(size for _, size in drawn))


def sums_of(source: list[str], lengths: list[int], seed: int):
  """The sums of documents of random NLL, and the NLL of each, [tokens]."""
  rng = np.random.default_rng(seed)
  nll = rng.exponential(size=(2, sum(lengths))).astype(np.float32)
  sizes = np.array(lengths)
  counts, by_bucket = losses.by_position(sizes, nll)
  columns = dict(zip(('nll_sum', 'nll_sum_other'), by_bucket, strict=True))
  sums = losses.by_source(np.array(source), 3 * sizes, counts, columns)
  return sums, np.split(nll[1], np.cumsum(sizes)[:-1])


def bucket_of(position: int) -> str:
  """By the definition: 1-2, and then from one power of two to the next."""
  last = 2
  while position > last:
    last *= 2
  return f'{last // 2 + 1 if last > 2 else 1}-{last}'


def test_a_shard_without_scored_documents_adds_nothing():
  sums, _ = sums_of([], [], seed=0)
  assert sums == {}


@given(documents, st.integers(0, 99))
def test_losses_are_those_of_a_plain_count(drawn, seed):
  sums, nll = sums_of(*map(list, zip(*drawn, strict=True)), seed)
  summary = losses.summary(sums)
  for name, one in {**summary['sources'], losses.ALL: summary['all']}.items():
    mine = [
      values
      for (source, _), values in zip(drawn, nll, strict=True)
      if name in (source, losses.ALL)
    ]
    values = np.concatenate(mine).astype(float)
    assert one['documents'] == len(mine)
    assert (one['tokens'], one['bytes']) == (len(values), 3 * len(values))
    if not len(values):
      continue
    loss = one['losses']['nll_sum_other']
    assert loss['nats_per_token'] == pytest.approx(values.mean())
    assert loss['perplexity'] == pytest.approx(math.exp(values.mean()))
    bits = values.sum() / math.log(2) / (3 * len(values))
    assert loss['bits_per_byte'] == pytest.approx(bits)
    buckets: dict[str, list[float]] = {}
    for document in mine:
      for position, value in enumerate(document.tolist(), 1):
        buckets.setdefault(bucket_of(position), []).append(value)
    found = loss['nats_per_token_by_position']
    assert found == pytest.approx({k: np.mean(v) for k, v in buckets.items()})
    assert {k: v for k, v in one['tokens_by_position'].items() if v} == {
      bucket: len(values) for bucket, values in buckets.items()
    }


@given(documents, documents)
def test_shards_add_up(first, second):
  """A source may be in one shard alone, and one shard have longer documents."""
  parts = [
    sums_of(*map(list, zip(*drawn, strict=True)), 0)[0]
    for drawn in (first, second)
  ]
  total = losses.total(parts)
  assert losses.total([total]) == total
  assert set(total) == set(parts[0]) | set(parts[1])
  for name, sums in total.items():
    mine = [part[name] for part in parts if name in part]
    for unit in ('documents', 'bytes'):
      assert sums[unit] == sum(part[unit] for part in mine)
    assert sum(sums['tokens']) == sum(sum(part['tokens']) for part in mine)
    assert sum(sums['nll']['nll_sum']) == pytest.approx(
      sum(sum(part['nll']['nll_sum']) for part in mine)
    )


def test_tables_hold_what_the_summary_does():
  sums, _ = sums_of(['a', 'b', 'b'], [3, 9, 5], 0)
  summary = losses.summary(sums)
  table = losses.text(summary)
  assert table.count('source ') == 2 and '(nll_sum_other)' in table
  rows = [line.split()[0] for line in table.splitlines()[1:3]]
  assert rows == ['b', 'a']  # The one with more tokens first.
  perplexity = summary['all']['losses']['nll_sum']['perplexity']
  assert f'{perplexity:.5g}' in table
  by_position = losses.text_by_position(summary).splitlines()
  assert [line.split()[0] for line in by_position[1:]] == [
    '1-2',
    '3-4',
    '5-8',
    '9-16',
  ]


def test_a_table_of_many_sources_is_cut(monkeypatch):
  monkeypatch.setattr(losses, 'MAX_LISTED', 2)
  sums, _ = sums_of(['a', 'b', 'c'], [3, 9, 5], 0)
  table = losses.text(losses.summary(sums))
  assert '(1 more sources are not listed.)' in table
  assert losses.ALL in table and '\na ' not in table
