"""Statistics that need no model."""

import math

import numpy as np
import pytest
from hypothesis import given, strategies as st

from infoprune_jax.score import statistics

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
