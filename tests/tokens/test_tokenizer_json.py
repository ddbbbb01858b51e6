"""Vocabularies in the files of Hugging Face."""

import json
import random

import pytest
import tokenizers
from made_vocabularies import byte_level, in_folder, opened
from tiny_corpora import random_text

from infoprune_jax.config.validation import UserError
from infoprune_jax.tokens import tokenizer_json


def test_sentencepiece_models_give_the_same_ids(words):
  made = tokenizer_json.files_of(words)
  other = tokenizers.Tokenizer.from_str(made['tokenizer.json'])
  rng = random.Random(2)
  # Which is bytes here, and a space there.
  texts = [random_text(rng).replace('\u2581', '') for _ in range(100)]
  for text in (*texts, ' a  b\n\tc ', 'naïve 日本 🧬', ''):
    ids = other.encode(text, add_special_tokens=False).ids
    assert ids == words.encode(text).tolist()
    assert other.decode(ids) == text
  settings = json.loads(made['tokenizer_config.json'])
  assert other.token_to_id(settings['bos_token']) == words.bos_id
  assert other.token_to_id(settings['eos_token']) == words.eos_id


def test_a_tokenizer_json_stays_as_it_is(tmp_path):
  special = {'bos_token': '<s>', 'eos_token': '</s>'}
  folder = in_folder(tmp_path, byte_level(), tokenizer_config=special)
  made = tokenizer_json.files_of(opened(folder))
  assert made['tokenizer.json'] == (folder / 'tokenizer.json').read_text()
  settings = json.loads(made['tokenizer_config.json'])
  assert settings.items() >= special.items()


def test_a_model_that_tokenizes_otherwise_is_refused(words, monkeypatch):
  monkeypatch.setattr(tokenizer_json, 'META_SPACE', '_')
  with pytest.raises(UserError, match='has no equal among tokenizers'):
    tokenizer_json.files_of(words)
