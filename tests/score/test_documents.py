"""Statistics in token order, and their sums."""

import dataclasses

import numpy as np
import pytest
from random_store import RandomStore as Store

from infoprune_jax.config.validation import UserError
from infoprune_jax.score.documents import Documents

LENGTHS = [5, 0, 1, 70, 3]


@pytest.fixture
def documents(small):
  """(statistics, num_models) -> documents of which all values are there.

  The NLL of the token with id i by model m is i + m, and its entropy 2i + m.
  """

  def call(*names, num_models=1, entropy=lambda ids: 2 * ids, most=0):
    scoring = dataclasses.replace(
      small.score,
      sequence_length=32,
      window_overlap=8,
      statistics=names,
      max_document_tokens=most,
    )
    made = Documents(
      Store(LENGTHS),
      np.zeros(len(LENGTHS), int),
      np.arange(len(LENGTHS)),
      scoring,
      num_models,
    )
    for chosen, batch in made.batches(2, Store.vocab_size):
      ids = batch['decoder_target_tokens'].astype(np.float32)
      made.add(
        chosen,
        [
          {'entropy': entropy(ids) + model, 'nll': ids + model}
          for model in range(num_models)
        ],
      )
    return made

  return call


def by_document():
  store = Store(LENGTHS)
  return [
    ids.astype(float) for ids in np.split(store.tokens, store.offsets[1:-1])
  ]


def test_values_are_in_token_order(documents):
  tokens = Store(LENGTHS).tokens
  first, second = documents('entropy', num_models=2).values()
  assert list(first) == ['nll', 'entropy']
  np.testing.assert_array_equal(first['nll'], tokens)
  np.testing.assert_array_equal(second['nll'], tokens + 1.0)
  np.testing.assert_array_equal(first['entropy'], 2.0 * tokens)
  np.testing.assert_array_equal(second['entropy'], 2.0 * tokens + 1)


def test_nothing_else_is_summed_unless_asked(documents):
  [sums] = documents().sums()
  assert list(sums) == ['nll']
  assert sums['nll'].tolist() == [ids.sum() for ids in by_document()]


@pytest.mark.parametrize('most', [1, 4, 40, 70])
def test_the_first_tokens_stand_for_the_whole_document(documents, most):
  some = documents('entropy', f'nll_first_{most}', most=most)
  [sums], [values] = some.sums(), some.values()
  scored = [ids[:most] for ids in by_document()]
  np.testing.assert_array_equal(values['nll'], np.concatenate(scored))
  means = np.array([ids.mean() if len(ids) else 0.0 for ids in scored])
  np.testing.assert_allclose(sums['nll'], means * LENGTHS, rtol=1e-12)
  np.testing.assert_allclose(sums['entropy'], 2 * means * LENGTHS, rtol=1e-12)
  first = sums[f'nll_first_{most}']
  assert first.tolist() == [ids.sum() for ids in scored]


@pytest.mark.parametrize('name', ['nll_last_1', 'nll_first_5'])
def test_tokens_that_are_not_scored_have_no_sum(documents, name):
  with pytest.raises(UserError, match=rf'{name}, which .*K up to 4'):
    documents(name, most=4)


@pytest.mark.parametrize('k', [1, 3, 69, 70, 500])
def test_the_first_and_the_last_tokens(documents, k):
  """A shorter document is summed whole; also over several windows."""
  [sums] = documents(f'nll_last_{k}', 'entropy', f'nll_first_{k}').sums()
  assert list(sums) == ['nll', f'nll_last_{k}', 'entropy', f'nll_first_{k}']
  whole = by_document()
  expected = [ids[:k].sum() for ids in whole]
  assert sums[f'nll_first_{k}'].tolist() == expected
  expected = [ids[max(len(ids) - k, 0) :].sum() for ids in whole]
  assert sums[f'nll_last_{k}'].tolist() == expected
  assert sums['entropy'].tolist() == [2 * ids.sum() for ids in whole]


def test_a_value_that_is_not_finite_names_statistic_and_document(documents):
  [last] = by_document()[-1][-1:]
  infinite = documents(
    'entropy', entropy=lambda ids: np.where(ids == last, np.inf, ids)
  )
  with pytest.raises(
    UserError, match=r'no finite entropy to .*shard 0, doc_in'
  ):
    infinite.sums()
