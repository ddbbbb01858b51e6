"""A linear classifier over n-grams: its features, its fit, its log odds."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from infoprune_jax.statistics import classifier
from infoprune_jax.statistics.classifier import Texts

BITS = 10


def texts_of(ids: list[list[int]]) -> Texts:
  flat = np.array([one for text in ids for one in text], np.uint16)
  return Texts(flat, np.array([len(text) for text in ids], np.int32))


@settings(deadline=None)  # The first call imports SciPy.
@given(
  ids=st.lists(st.lists(st.integers(0, 9), max_size=6), min_size=1, max_size=9),
  longest=st.integers(1, 3),
)
def test_log_odds_are_the_mean_weight_of_a_texts_own_ngrams(ids, longest):
  rng = np.random.default_rng(0)
  weights = rng.normal(size=1 << BITS).astype(np.float32)
  made = classifier.Classifier(weights, 0.5, longest)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(classifier, '_PIECE', 7)  # Some texts are longer.
    texts = texts_of(ids)
    odds = made.log_odds(texts)
    x = classifier.features(texts, longest, BITS)
  np.testing.assert_allclose(x @ weights.astype(float) + 0.5, odds)
  # By hand, and as if there were no other text.
  for text, value in zip(ids, odds, strict=True):
    assert made.log_odds(texts_of([text])) == pytest.approx([value])
  counts = [sum(max(len(text) - n, 0) for n in range(longest)) for text in ids]
  sums = x.sum(axis=1)
  np.testing.assert_allclose(sums, np.array(counts) > 0)
  assert (x.data * np.repeat(counts, np.diff(x.indptr)) > 1 - 1e-9).all()


def labelled(count: int = 60) -> tuple:
  """Texts of two vocabularies that overlap, and their labels."""
  rng = np.random.default_rng(1)
  is_good = np.arange(count) % 3 == 0
  ids = [
    rng.integers(0, 12, rng.integers(1, 30)) + (4 if good else 0)
    for good in is_good
  ]
  x = classifier.features(texts_of([one.tolist() for one in ids]), 2, BITS)
  return x, is_good


def test_labels_count_alike_and_can_be_exchanged():
  x, is_good = labelled()
  one = classifier.fit(x, is_good, 1e-2, 2)
  other = classifier.fit(x, ~is_good, 1e-2, 2)
  np.testing.assert_allclose(one.weights, -other.weights, atol=1e-3)
  assert one.bias == pytest.approx(-other.bias, abs=1e-4)
  odds = x @ one.weights + one.bias
  assert (odds[is_good] > 0).mean() > 0.8 < (odds[~is_good] < 0).mean()


def test_a_larger_penalty_gives_smaller_weights():
  x, is_good = labelled()
  norms = [
    np.linalg.norm(classifier.fit(x, is_good, l2, 2).weights)
    for l2 in (1e-4, 1e-2, 1.0)
  ]
  assert norms[0] > 2 * norms[1] > 4 * norms[2] > 0


def test_the_fit_is_that_of_scikit_learn():
  linear_model = pytest.importorskip('sklearn.linear_model')
  x, is_good = labelled()
  l2 = 1e-2
  made = classifier.fit(x, is_good, l2, 2)
  # They add up losses, and we the mean; features of norm 1 on average.
  scale = 1 / np.sqrt((x.data**2).sum() / x.shape[0])
  theirs = linear_model.LogisticRegression(
    C=1 / (l2 * x.shape[0]), class_weight='balanced', tol=1e-9, max_iter=1000
  ).fit(x * scale, is_good)
  np.testing.assert_allclose(
    theirs.decision_function(x * scale), x @ made.weights + made.bias, atol=1e-3
  )
