"""Statistics that need no model."""

import dataclasses
import math
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, strategies as st

from configs import base
from infoprune_jax.config.experiment import Config
from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime import artifacts
from infoprune_jax.runtime.workdir import statistics_dir
from infoprune_jax.selection import expressions
from infoprune_jax.selection.examples import ExampleTable
from infoprune_jax.statistics import statistics
from infoprune_jax.tokens import folds as folds_lib, tables
from infoprune_jax.tokens.token_store import TokenStore


def begin(
  config: Config, store_workdir: str, path: pathlib.Path, folds: int
) -> tuple[Config, str]:
  """A config of so many folds, and a workdir with a token store."""
  path.mkdir()
  os.symlink(f'{store_workdir}/token_store', path / 'token_store')
  reference = dataclasses.replace(config.reference, folds=folds)
  return dataclasses.replace(config, reference=reference), str(path)


stretches = st.lists(
  st.lists(st.floats(-1e6, 1e6, width=32), max_size=6), max_size=8
)


@given(stretches=stretches)
def test_sums_are_those_of_each_stretch(stretches):
  flat = np.array([v for one in stretches for v in one], np.float32)
  num_tokens = np.array([len(one) for one in stretches], np.int32)
  sums = statistics.sums_by_document(flat, num_tokens)
  assert sums.dtype == np.float64
  assert sums.tolist() == pytest.approx([math.fsum(one) for one in stretches])


@pytest.mark.parametrize(
  'num_tokens', [[], [0], [0, 0, 0], [0, 3, 0, 0], [3, 0], [1, 0, 2]]
)
def test_documents_without_tokens_have_none(num_tokens):
  num_tokens = np.array(num_tokens, int)
  sums = statistics.sums_by_document(np.ones(num_tokens.sum()), num_tokens)
  assert sums.tolist() == num_tokens.tolist()


def test_sums_are_of_float64():
  """In float32 the small one would be lost."""
  values = np.array([2.0**24, 1.0, 1.0, 2.0**24], np.float32)
  sums = statistics.sums_by_document(values, np.array([2, 2]))
  assert sums.tolist() == [2.0**24 + 1] * 2


@given(counts=st.lists(st.integers(0, 10**12), min_size=1, max_size=50))
def test_unigram_frequencies_sum_to_one(counts):
  nll = statistics.unigram_nll(np.array(counts, np.int64))
  assert np.exp(-nll).sum() == pytest.approx(1.0)
  assert np.isfinite(nll).all()
  order = np.argsort(counts, kind='stable')
  assert (np.diff(nll[order]) <= 0).all()


def test_a_literal_unigram_nll():
  nll = statistics.unigram_nll(np.array([0, 1, 5]))
  assert nll.tolist() == pytest.approx(
    [math.log(9 / 1), math.log(9 / 2), math.log(9 / 6)]
  )


@given(
  counts=st.lists(st.integers(0, 10**6), min_size=2, max_size=9),
  seed=st.integers(0, 99),
)
def test_the_sums_give_the_deviation_within_a_document(counts, seed):
  """Of the frequencies, by the baselines' expression and by numpy."""
  frequency = np.exp(-statistics.unigram_nll(np.array(counts)))
  ids = np.random.default_rng(seed).integers(0, len(counts), 7)
  made = statistics.token_values(np.array(counts, np.int64))
  sums = {name: [float(values[ids].sum())] for name, values in made.items()}
  rows = pa.table({**sums, 'num_tokens': pa.array([7], pa.int32())})
  (found,) = expressions.score(
    ExampleTable(rows, np.zeros(1, np.int64)), base.FREQUENCY_DEVIATION
  )
  # A difference of squares near one has half of the digits of float64.
  assert found == pytest.approx(np.std(frequency[ids]), rel=1e-6, abs=1e-7)


def test_a_table_of_fewer_columns_is_refused(small, store_workdir, tmp_path):
  """As versions before wrote it: never taken for a finished one."""
  made, workdir = begin(small, store_workdir, tmp_path / 'w', 1)
  path = statistics_dir(workdir)
  store = TokenStore.open(workdir)
  artifacts.Artifact(
    path,
    'table of statistics',
    'statistics',
    {'folds': 1},
    {'token_store': store.fingerprint},
  ).finish({})
  with pytest.raises(UserError) as caught:
    statistics.run(made, workdir)
  said = f'options: columns absent -> .*delete {path} and run'
  assert re.search(said, str(caught.value))


@pytest.mark.parametrize('folds', [1, 2])
def test_the_table_is_of_what_is_scored(small, store_workdir, tmp_path, folds):
  """Each document by the words of where its fold's model trains."""
  made, workdir = begin(small, store_workdir, tmp_path / 'w', folds)
  statistics.run(made, workdir)
  store = TokenStore.open(workdir)
  found = tables.read_table(statistics_dir(workdir)).to_pylist()
  expected = []
  for number in range(store.num_shards):
    shard = store.shard(number)
    compressed = shard.column('compressed_bytes')
    for fold in range(folds):
      counts = folds_lib.unigram_counts(
        store, fold, folds, range(store.num_shards)
      )
      values = statistics.token_values(counts)
      for row in folds_lib.scored_documents(shard, fold, folds).tolist():
        ids = store.document(number, row)
        expected.append(
          {
            'shard': number,
            'doc_index': row,
            **{
              name: pytest.approx(math.fsum(by_id[ids]))
              for name, by_id in values.items()
            },
            'compressed_bytes': compressed[row],
          }
        )
  expected.sort(key=lambda row: (row['shard'], row['doc_index']))
  assert found == expected


def test_processes_and_a_kill_do_not_matter(small, store_workdir, tmp_path):
  def table_of(workdir):
    path = pathlib.Path(statistics_dir(workdir))
    return {
      file.name: file.read_bytes()
      for file in path.rglob('*')
      if file.is_file() and file.name != '.lock'
    }

  made, one = begin(small, store_workdir, tmp_path / 'one', 2)
  statistics.run(made, one)
  corpus = dataclasses.replace(made.corpus, num_workers=2)
  several = dataclasses.replace(made, corpus=corpus)
  _, two = begin(small, store_workdir, tmp_path / 'two', 2)
  statistics.run(several, two)
  assert table_of(two) == table_of(one)
  for name in ('manifest.json', 'part-00001-of-00003.done'):
    (pathlib.Path(statistics_dir(two)) / name).unlink()
  statistics.run(several, two)
  assert table_of(two) == table_of(one)


def test_its_processes_have_no_jax():
  code = 'import sys, infoprune_jax.statistics.statistics; print("jax" in sys.modules)'
  result = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert result.stdout.strip() == 'False'
