"""Models with their vocabularies: texts, continuations, and what is loaded."""

import dataclasses
import pathlib
import shutil

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from infoprune_jax import load_model
from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime.workdir import token_store_dir, vocabulary_dir
from infoprune_jax.score import language_model as module
from infoprune_jax.tokens.token_store import TokenStore
from infoprune_jax.train import runs

TEXTS = ['Item 3: the', '', 'All rights reserved. \u00e9 ' * 20, 'Copyright']


@pytest.fixture(scope='module')
def model(language_model):
  return language_model()


@pytest.fixture(scope='module')
def workdir(small, store_workdir, tmp_path_factory) -> pathlib.Path:
  """A workdir with a reference model."""
  path = tmp_path_factory.mktemp('work')
  for folder in (vocabulary_dir, token_store_dir):
    shutil.copytree(folder(store_workdir), folder(str(path)))
  runs.run_reference(small, str(path))
  return path


def test_losses_are_sums_over_all_tokens_of_a_text(model):
  losses = model.score(TEXTS, per_token=True)
  for number, text in enumerate(TEXTS):
    ids = model.vocabulary.encode(text)
    assert losses.num_tokens[number] == len(ids)
    assert losses.num_bytes[number] == len(text.encode())
    assert losses.token_nll[number].shape == (len(ids),)
    assert losses.nll_sum[number] == pytest.approx(
      losses.token_nll[number].astype(np.float64).sum()
    )
    (alone,) = model.statistics([np.array([model.vocabulary.bos_id, *ids])])
    np.testing.assert_allclose(
      losses.token_nll[number], alone['nll'], rtol=1e-4
    )
  assert losses.num_tokens[2] > model.scoring.sequence_length
  assert losses.nll_sum.dtype == np.float64
  assert model.score(TEXTS).token_nll is None
  assert model.score([]).nll_sum.shape == (0,)


def test_each_group_of_texts_has_sequences_of_its_own(model, monkeypatch):
  together = model.score(TEXTS, per_token=True)
  lengths = []
  programs = type(model)._scorer

  def noted(self, num_tokens, names):
    scorer = programs(self, num_tokens, names)
    lengths.append(scorer.scoring.sequence_length)
    return scorer

  monkeypatch.setattr(module, 'BATCH_TOKENS', 1)
  monkeypatch.setattr(module, 'MIN_LENGTH', 32)
  monkeypatch.setattr(type(model), '_scorer', noted)
  apart = model.score(TEXTS, per_token=True)
  assert lengths == sorted(set(lengths)) and len(lengths) > 1
  for one, other in zip(together.token_nll, apart.token_nll, strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-4)


@given(
  st.lists(st.integers(0, 900), min_size=1, max_size=30), st.integers(1, 2000)
)
def test_each_request_is_in_one_group(lengths, group_tokens):
  lengths = np.array(lengths)
  groups = module.groups_by_length(lengths, 512, group_tokens)
  np.testing.assert_array_equal(
    np.sort(np.concatenate(groups)), np.arange(len(lengths))
  )
  longest = [lengths[group].max() for group in groups]
  assert longest == sorted(longest)
  assert all(lengths[group].sum() >= group_tokens for group in groups[:-1])


def test_texts_score_as_the_documents_of_a_store(model, store, small):
  """The same window, model and first token: what the stage `score` sums."""
  from infoprune_jax.score import scorer

  documents = np.arange(12)
  program = scorer.compile_scorer(
    model.model, model.scoring, model.vocab_size, model.mesh
  )
  expected, _ = program.document_nll(
    model.params, store, np.zeros(12, int), documents
  )
  texts = [
    model.vocabulary.decode(store.document(0, document))
    for document in documents
  ]
  np.testing.assert_allclose(model.score(texts).nll_sum, expected, rtol=1e-5)


def test_a_continuation_and_its_context_are_the_whole_text(model):
  """Chain rule: a text is its first half, and the second given that."""
  context, continuation = 'Item 7: the', ' xyz is in stock'
  (second,) = model.continuations([(context, continuation)])
  first = model.score([context]).nll_sum[0]
  whole = model.score([context + continuation])
  if (
    whole.num_tokens[0]
    == model.score([context]).num_tokens[0] + second.num_tokens
  ):
    assert first + second.nll == pytest.approx(whole.nll_sum[0], rel=1e-5)
  (empty,) = model.continuations([('', context)])
  assert empty.nll == pytest.approx(first, rel=1e-5)


@given(
  context=st.text('ab \n', max_size=8), continuation=st.text('ab ', min_size=1)
)
@settings(max_examples=60)
def test_white_space_before_a_continuation_is_part_of_it(
  model, context, continuation
):
  ((ids, count),) = model.encode_pairs([(context, continuation)])
  alone = model.vocabulary.encode(context.rstrip())
  whole = model.vocabulary.encode(context + continuation)
  assert ids[0] == model.vocabulary.bos_id
  assert ids[1:].tolist() == whole.tolist()
  assert count == len(whole) - len(alone)


def test_without_bos_the_first_token_is_read_only(language_model):
  model = language_model(adds_bos=False)
  (ids, count), (empty, all_of_it) = model.encode_pairs(
    [('Item 3', ' is'), ('', 'Item 3')]
  )
  assert ids.tolist() == model.vocabulary.encode('Item 3 is').tolist()
  assert count < len(ids)
  assert empty[0] == model.vocabulary.bos_id
  assert all_of_it == len(empty) - 1


def test_what_cannot_be_scored_is_named(model):
  with pytest.raises(
    UserError, match="continuation '' adds no token to the context 'a'"
  ):
    model.continuations([('a', '')])
  with pytest.raises(UserError, match='tokens, but the model takes 64 at once'):
    model.continuations([('a', ' xq' * 80)])
  (long,) = model.continuations([(' xq' * 80, ' b')])
  assert np.isfinite(long.nll)


def test_a_run_is_loaded_with_the_vocabulary_of_its_workdir(workdir):
  model = load_model(f'{workdir}/reference', max_length=64)
  assert model.adds_bos
  assert model.scoring.sequence_length == 64
  assert model.scoring.window_overlap == 16
  store = TokenStore.open(str(workdir))
  text = model.vocabulary.decode(store.document(0, 0))
  assert model.score([text]).nll_sum[0] > 0
  half = load_model(f'{workdir}/reference', max_length=64, dtype='bfloat16')
  assert half.score([text]).nll_sum[0] == pytest.approx(
    model.score([text]).nll_sum[0], rel=0.02
  )


def test_a_vocabulary_that_is_missing_or_another_is_refused(workdir, tmp_path):
  shutil.copytree(workdir / 'reference', tmp_path / 'a/reference')
  with pytest.raises(UserError, match=r'No vocabulary lies beside .*name it'):
    load_model(f'{tmp_path}/a/reference')
  model = f'{workdir}/vocabulary/sentencepiece.model'
  named = load_model(f'{tmp_path}/a/reference', vocabulary=model, max_length=32)
  assert named.vocabulary.size == named.vocab_size
  other = dataclasses.replace(named.vocabulary, eos_id=5)
  (tmp_path / 'other.model').write_bytes(other.model + b'')
  with (
    pytest.MonkeyPatch.context() as patch,
    pytest.raises(UserError, match='was trained with the vocabulary'),
  ):
    patch.setattr(module, '_vocabulary', lambda path, name: other)
    load_model(f'{workdir}/reference')
  with pytest.raises(UserError, match='max_length must be in'):
    load_model(f'{workdir}/reference', max_length=1)
