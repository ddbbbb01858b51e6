"""tools/fit_score.py: a score by columns that need no model."""

import pathlib
import re
import sys

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / 'tools'))

import fit_score


@pytest.fixture
def workdir(tmp_path):
  """Scores that are 0.5 + 2 compressed_bytes / num_bytes, in two shards."""
  rng = np.random.default_rng(0)
  count = 400
  num_bytes = rng.integers(100, 9000, count)
  compressed = (num_bytes * rng.uniform(0.2, 0.9, count)).astype(np.int64)
  keys = {'shard': np.arange(count) // 200, 'doc_index': np.arange(count) % 200}
  scores = {
    **keys,
    'num_bytes': num_bytes,
    'nll_sum': 0.5 * num_bytes + 2.0 * compressed,
    'num_tokens': num_bytes // 3,
    'content_hash': rng.integers(-(2**62), 2**62, count),
  }
  statistics = {
    **keys,
    'compressed_bytes': compressed,
    'unigram_nll_sum': rng.uniform(1.0, 2.0, count) * num_bytes,
  }
  for stage, table in (('scores', scores), ('statistics', statistics)):
    (tmp_path / stage / 'data').mkdir(parents=True)
    (tmp_path / stage / 'manifest.json').touch()
    # The shards of one table are in another order than those of the other.
    rows = rng.permutation(count)
    pq.write_table(
      pa.table({name: column[rows] for name, column in table.items()}),
      tmp_path / stage / 'data/part.parquet',
    )
  return tmp_path


def run(monkeypatch, capsys, *flags):
  monkeypatch.setattr(sys, 'argv', ['fit_score.py', *flags])
  fit_score.main()
  return capsys.readouterr().out.splitlines()


def test_a_fit_is_an_expression_for_a_rule(workdir, monkeypatch, capsys):
  expression, *fits = run(monkeypatch, capsys, f'--workdir={workdir}')
  values = duckdb.sql(
    f"select {expression} - nll_sum / num_bytes from '{workdir}/scores/data/part.parquet' "
    f"join '{workdir}/statistics/data/part.parquet' using (shard, doc_index)"
  ).fetchall()
  assert np.abs(values).max() < 1e-3
  assert [fit.split(':')[0] for fit in fits] == ['fitted on', 'other half']
  assert all(fit.endswith('R2 1.000, rank correlation 1.000') for fit in fits)


def test_the_other_half_is_not_fitted(workdir, monkeypatch, capsys):
  """A score by chance is fitted a little, and not predicted."""
  flags = ('--score=content_hash % 1000', f'--workdir={workdir}')
  _, fitted, other = run(monkeypatch, capsys, *flags)
  r2 = [float(line.split('R2 ')[1].split(',')[0]) for line in (fitted, other)]
  assert r2[0] > 0.0 and r2[1] < r2[0] < 0.1


def test_other_terms(workdir, monkeypatch, capsys):
  flags = ('--terms', 'compressed_bytes / num_bytes', f'--workdir={workdir}')
  expression, *_ = run(monkeypatch, capsys, *flags)
  assert expression == '0.5 +2 * compressed_bytes / num_bytes'


@pytest.mark.parametrize(
  'flag, message',
  [
    ('--score=nll', '--score or --terms: .*"nll" not found'),
    ('--workdir=absent', 'absent has no finished scores: run --job=score'),
  ],
)
def test_a_mistake_is_one_message(workdir, monkeypatch, capsys, flag, message):
  with pytest.raises(SystemExit):
    run(monkeypatch, capsys, f'--workdir={workdir}', flag)
  assert re.search(message, capsys.readouterr().err)
