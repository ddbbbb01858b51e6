"""Vocabularies: any text comes back as it was."""

import base64
import pickle
import random

import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st

from infoprune_jax.config import corpus as corpus_config
from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime import artifacts, files
from infoprune_jax.tokens import vocabulary
from infoprune_jax.tokens.vocabulary import Vocabulary

LINES = [
  f'line {n:b} of a corpus with {n**5:x} and {n**7 % 9973:o} in it'
  for n in range(99)
]
pieces = st.text(st.characters(exclude_categories=['Cs'])) | st.sampled_from(
  [
    '\u2581',
    '\0',
    '\r\n',
    '<s>',
    '</s>',
    '<unk>',
    '<pad>',
    '<0x41>',
    '  ',
    '\ufeff',
    'e\u0301',
    'ﬁ',
    '\u202e',
    'the model',
  ]
)
texts = st.lists(pieces, max_size=5).map(''.join)


def settings_of(**fields) -> corpus_config.VocabularyConfig:
  return corpus_config.VocabularyConfig(
    **{
      'path': '',
      'bos_id': -1,
      'eos_id': -1,
      'size': 340,
      'type': 'bpe',
      'train_bytes': 1,
      **fields,
    }
  )


@settings(max_examples=200, deadline=None)
@given(text=texts)
@example(text='')
@example(text=' ')
@example(text=' leading and trailing ')
@example(text='\u2581 \u2581')
@example(text='a\nb\r\n\n\tc')
def test_any_text_comes_back(words, text):
  ids = words.encode(text)
  assert ids.dtype == words.token_dtype
  assert words.decode(ids) == text
  assert (ids < words.size).all()
  # Text never spells a special token.
  assert not np.isin(ids, [words.bos_id, words.eos_id]).any()


def test_special_ids(words):
  assert words.size == 400
  assert len({words.bos_id, words.eos_id, 0}) == 3
  ids = [words.bos_id, *words.encode('a b'), words.eos_id, 0]
  assert words.decode(ids) == 'a b'


def test_common_words_are_shorter_than_bytes(words):
  text = 'the of naïve 北京 поезд the of '
  assert len(words.encode(text)) < 0.8 * len(text.encode())


@pytest.mark.parametrize('kind', corpus_config.VOCABULARY_TYPES)
def test_training_twice_gives_the_same_bytes(kind):
  first, second = (
    vocabulary.train(settings_of(type=kind), LINES) for _ in range(2)
  )
  assert first.model == second.model
  assert first.hash == second.hash
  other = vocabulary.train(settings_of(type=kind), LINES[:50])
  assert other.hash != first.hash


@pytest.mark.parametrize('kind', corpus_config.VOCABULARY_TYPES)
def test_too_large_a_size_is_refused(kind):
  with pytest.raises(
    UserError, match=r'vocabulary\.size=9000 cannot be trained .*smaller size'
  ):
    vocabulary.train(settings_of(type=kind, size=9000), LINES)


def test_no_text_is_refused():
  with pytest.raises(UserError, match='cannot be trained'):
    vocabulary.train(settings_of(), [])


@pytest.mark.parametrize(
  'size, dtype', [(2**16, 'uint16'), (2**16 + 1, 'uint32')]
)
def test_token_dtype_holds_every_id(monkeypatch, size, dtype):
  monkeypatch.setattr(Vocabulary, 'size', size)
  words = Vocabulary(vocabulary.SENTENCEPIECE, b'', 1, 2)
  assert np.dtype(words.token_dtype) == dtype


def test_the_hash_sees_model_and_special_ids():
  fields = ((vocabulary.SENTENCEPIECE, vocabulary.TOKENIZERS), (b'a', b'b'))
  found = {
    Vocabulary(kind, model, bos, eos).hash
    for kind in fields[0]
    for model in fields[1]
    for bos in (1, 2, 11)
    for eos in (1, 2, 11)
  }
  assert len(found) == 2 * 2 * 3 * 3


def test_a_pickle_holds_the_fields_alone(words):
  words.encode('opened')
  data = pickle.dumps(words)
  assert len(data) < len(words.model) + 200
  again = pickle.loads(data)
  assert again == words
  assert again.encode('the same').tolist() == words.encode('the same').tolist()


def test_many_texts_are_encoded_like_each(words):
  texts = ['the', '', 'a \u2581 b', 'naïve 北京 ' * 9, '\u2581']
  together = words.encode_all(texts)
  assert [ids.tolist() for ids in together] == [
    words.encode(text).tolist() for text in texts
  ]
  assert {ids.dtype for ids in together} == {np.dtype(words.token_dtype)}


def test_a_trained_vocabulary_loses_nothing(words):
  assert not words.is_lossy
  assert words.reachable_from_text == []


def test_load_checks_the_content(tmp_path, words):
  path = str(tmp_path / 'vocabulary')
  artifact = artifacts.Artifact(path, 'vocabulary', 'tokenize', {}, {})
  name = f'{path}/sentencepiece.model'
  files.write_file(name, lambda file: file.write(words.model))
  with pytest.raises(UserError, match=r'vocabulary .* is not there'):
    Vocabulary.load(path)
  words.save(artifact)
  assert Vocabulary.load(path) == words
  files.write_file(name, lambda file: file.write(words.model[:-1] + b'x'))
  with pytest.raises(UserError, match=r'sentencepiece\.model is damaged'):
    Vocabulary.load(path)


def test_the_manifest_says_kind_and_special_ids(tmp_path, words):
  path = str(tmp_path / 'vocabulary')
  words.save(artifacts.Artifact(path, 'vocabulary', 'tokenize', {}, {}))
  manifest = files.read_json(f'{path}/manifest.json')
  names = ('model_kind', 'bos_id', 'eos_id', 'hash')
  assert [manifest[name] for name in names] == [
    'sentencepiece',
    2,
    1,
    words.hash,
  ]


def giants() -> dict[str, str]:
  """Runs without a space, each longer than SentencePiece can take."""
  rng = random.Random(0)
  return {
    'base64': base64.b64encode(rng.randbytes(49_500)).decode(),
    'one character': 'a' * 70_001,
    'two characters': '=-' * 40_000,
    'tabs': '\t' * 70_000,
    'spaces': ' ' * 70_000,
    'cjk': ''.join(
      chr(0x4E00 + int(rng.paretovariate(0.7)) % 200) for _ in range(66_000)
    ),
    'mixed': ''.join(
      rng.choice('ab\u03b1\u03b2\u0436\u4e00e\u0301-0') for _ in range(66_000)
    ),
  }


@pytest.mark.parametrize(
  'kind, name',
  [
    *(('bpe', name) for name in giants()),
    # The others train, but for longer than a test should.
    *(('unigram', name) for name in ('base64', 'one character', 'spaces')),
  ],
)
def test_runs_without_a_space(kind, name):
  giant = giants()[name]
  words = vocabulary.train(
    settings_of(type=kind, size=400), [*LINES, f'item: {giant}', giant]
  )
  for text in (giant, LINES[0]):
    assert words.decode(words.encode(text)) == text


def test_a_line_that_sentencepiece_would_skip_is_learnt_from():
  line = ' '.join(LINES) + ' '
  line *= 1 + (1 << 20) // len(line)
  words = vocabulary.train(settings_of(), [line])
  assert len(words.encode(line)) < len(line) / 2


def test_ordinary_text_is_given_as_it_is():
  texts = [*LINES, 'x' * 2047 + ' ' + 'y' * 2046, ' ' * 2047, 'é ' * 100_000]
  assert list(vocabulary._sentences(texts)) == texts
  long = 'a b ' + 'xy' * 2000 + ' c ' + 'xy' * 2000
  assert list(vocabulary._sentences([long])) == [
    'a b',
    ' ' + 'xy' * 1023 + 'x',
    'yx' * 976 + 'y',
    ' c',
  ]


def test_more_characters_than_the_vocabulary_holds(caplog):
  common = [f'\u4e2d\u6587 word {n % 9}' for n in range(99)]
  rare = ''.join(chr(0x4E00 + n) for n in range(3000))
  words = vocabulary.train(settings_of(size=500), [*common * 9, rare])
  assert words.decode(words.encode(rare)) == rare
  assert len(words.encode('\u4e2d')) == 1
  assert 'too many for vocabulary.size=500' in caplog.text
