"""Greedy texts, against a loop that picks one token after another."""

import dataclasses

import numpy as np
import pytest

from infoprune_jax.config.validation import UserError
from infoprune_jax.score import generation

PROMPTS = ['Item 7: the', 'Copyright', '', 'All rights reserved. ' * 4]


@pytest.fixture(scope='module')
def model(language_model):
  return language_model()


@pytest.fixture(scope='module')
def plain(model, next_token):
  """(prompt, num_tokens) -> new ids; a long prompt leaves room for them."""

  def call(prompt: str, num_tokens: int) -> list[int]:
    ids = [model.vocabulary.bos_id, *model.vocabulary.encode(prompt).tolist()]
    ids = ids[-(model.scoring.sequence_length - num_tokens) :]
    for position in range(len(ids) - 1, len(ids) + num_tokens - 1):
      ids.append(next_token(model, ids, position))
    return ids[-num_tokens:]

  return call


def until_eos(model, ids: list[int]) -> str:
  eos = model.vocabulary.eos_id
  return model.vocabulary.decode(ids[: ids.index(eos)] if eos in ids else ids)


@pytest.fixture(scope='module')
def expected(model, plain) -> list[str]:
  """20 tokens, more than are looked at together."""
  return [until_eos(model, plain(prompt, 20)) for prompt in PROMPTS]


def test_picks_the_most_likely_token_each_time(model, expected):
  assert generation.greedy(model, PROMPTS, 20) == expected
  assert len(set(expected)) == len(PROMPTS)


def test_devices_do_not_matter(language_model, expected):
  spread = language_model({'data': 2, 'fsdp': 2, 'tensor': 2})
  assert generation.greedy(spread, PROMPTS, 20) == expected


def test_a_long_prompt_loses_its_first_tokens(model, plain):
  prompt = 'All rights reserved. Item 5. ' * 20
  (text,) = generation.greedy(model, [prompt], 20)
  assert text == until_eos(model, plain(prompt, 20))


def test_a_text_ends_before_a_stop_and_at_eos(model, plain, expected):
  stop = expected[0][3:5]
  texts = generation.greedy(model, PROMPTS, 20, ['', stop])
  assert texts == [text.partition(stop)[0] for text in expected]
  assert texts[0] == expected[0][: expected[0].index(stop)]
  new = plain(PROMPTS[1], 3)
  words = dataclasses.replace(model.vocabulary, eos_id=new[2])
  other = dataclasses.replace(model, vocabulary=words)
  (text,) = generation.greedy(other, [PROMPTS[1]], 20)
  assert text == until_eos(other, new)


def test_no_prompts_and_no_room(model):
  assert generation.greedy(model, [], 5) == []
  with pytest.raises(UserError, match='no room for a prompt before 64 new'):
    generation.greedy(model, ['a'], 64)


def test_new_tokens_are_as_many_as_asked(model, plain):
  (short,) = generation.greedy(model, ['Copyright'], 3)
  assert short == until_eos(model, plain('Copyright', 3))
  assert np.size(plain('Copyright', 3)) == 3
