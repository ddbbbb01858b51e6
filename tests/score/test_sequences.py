"""Statistics of sequences in memory, against a plain pass over each alone."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from infoprune_jax.config.validation import UserError
from infoprune_jax.model import network, partitioning
from infoprune_jax.score.sequences import SequenceStore


@pytest.fixture(scope='module')
def model(language_model):
  return language_model()


@pytest.fixture(scope='module')
def plain(model, next_token):
  """(ids) -> statistics of one sequence, without packing."""

  def call(ids: np.ndarray) -> dict[str, np.ndarray]:
    length = len(ids) - 1
    batch = {
      'decoder_input_tokens': ids[None, :-1],
      'decoder_target_tokens': ids[None, 1:],
      'decoder_positions': np.arange(length)[None],
      'decoder_segment_ids': np.ones((1, length)),
    }
    batch = {name: jnp.asarray(x, jnp.int32) for name, x in batch.items()}
    with partitioning.use_mesh(model.mesh):
      nll = network.batch_statistics(model.model, model.params, batch)['nll']
    said = [next_token(model, ids[:-1], at) for at in range(length)]
    return {'nll': np.asarray(nll)[0], 'greedy': np.array(said) == ids[1:]}

  return call


def drawn(model, *lengths: int) -> list[np.ndarray]:
  rng = np.random.default_rng(0)
  return [rng.integers(0, model.vocab_size, length) for length in lengths]


def test_equals_each_sequence_alone(model, plain, next_token):
  """Also those without a token after the first, and what the model would say."""
  tokens = drawn(model, 9, 1, 30, 2, 64, 65, 5)
  for number in (0, 2):  # The likeliest token once, so that one is greedy.
    tokens[number][3] = next_token(model, tokens[number][:3], 2)
  statistics = model.statistics(tokens, ('greedy',))
  for ids, one in zip(tokens, statistics, strict=True):
    assert one['nll'].shape == one['greedy'].shape == (len(ids) - 1,)
    assert one['nll'].dtype == one['greedy'].dtype == np.float32
    if len(ids) > 1:
      expected = plain(ids)
      np.testing.assert_allclose(one['nll'], expected['nll'], rtol=1e-4)
      np.testing.assert_array_equal(one['greedy'], expected['greedy'])
  assert statistics[0]['greedy'][2] == statistics[2]['greedy'][2] == 1.0


def test_the_first_token_is_read(model):
  one, other = drawn(model, 6, 6)
  other[1:] = one[1:]
  first, second = model.statistics([one, other])
  assert (first['nll'] != second['nll']).all()


def test_a_long_sequence_is_cut_into_windows_with_context(model, plain):
  (tokens,) = drawn(model, 150)
  (one,) = model.statistics([tokens])
  assert one['nll'].shape == (149,)
  # The second window begins after 64 - 16 tokens, and its first 16 are context.
  expected = plain(tokens[48:113])['nll'][16:]
  np.testing.assert_allclose(one['nll'][64:112], expected, rtol=1e-4)


def test_other_sequences_and_devices_do_not_matter(model, language_model):
  tokens = drawn(model, *range(2, 40, 3))
  alone = [model.statistics([ids])[0]['nll'] for ids in tokens]
  spread = language_model({'data': 2, 'fsdp': 2, 'tensor': 2})
  for found in (
    model.statistics(tokens),
    spread.statistics(tokens),
  ):
    for one, expected in zip(found, alone, strict=True):
      np.testing.assert_allclose(one['nll'], expected, rtol=1e-4)


@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=8))
@settings(max_examples=50)
def test_a_store_has_the_tokens_after_the_first(lengths):
  numbers = np.split(np.arange(sum(lengths)), np.cumsum(lengths)[:-1])
  store = SequenceStore(numbers)
  for document, ids in enumerate(numbers):
    start, size = store.offsets[document], store.num_tokens[document]
    np.testing.assert_array_equal(store.tokens[start - 1], ids[0])
    np.testing.assert_array_equal(store.tokens[start : start + size], ids[1:])


def test_a_token_beyond_the_vocabulary_is_refused(model):
  with pytest.raises(UserError, match='has the token id 400'):
    model.statistics([np.array([0, model.vocab_size])])
