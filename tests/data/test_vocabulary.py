"""Vocabularies: any text comes back as it was."""

import io

import numpy as np
import pytest
import sentencepiece
from hypothesis import example, given, settings, strategies as st

from infoprune_jax import artifacts, config, files
from infoprune_jax.config import UserError
from infoprune_jax.data import vocabulary
from infoprune_jax.data.vocabulary import Vocabulary

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


def settings_of(**fields) -> config.VocabularyConfig:
  return config.VocabularyConfig(
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


def trained(**options) -> bytes:
  """A model of SentencePiece's own making."""
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(LINES),
    model_writer=model,
    vocab_size=40,
    minloglevel=2,
    **options,
  )
  return model.getvalue()


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


@pytest.mark.parametrize('kind', config.VOCABULARY_TYPES)
def test_training_twice_gives_the_same_bytes(kind):
  first, second = (
    vocabulary.train(settings_of(type=kind), LINES) for _ in range(2)
  )
  assert first.model == second.model
  assert first.hash == second.hash
  other = vocabulary.train(settings_of(type=kind), LINES[:50])
  assert other.hash != first.hash


@pytest.mark.parametrize('kind', config.VOCABULARY_TYPES)
def test_too_large_a_size_is_refused(kind):
  with pytest.raises(
    UserError, match=r'vocabulary\.size=9000 cannot be trained .*fewer pieces'
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
  assert np.dtype(Vocabulary(b'').token_dtype) == dtype


def test_a_given_model(words, tmp_path):
  path = tmp_path / 'given.model'
  path.write_bytes(words.model)
  given_words = vocabulary.from_file(str(path))
  assert given_words.hash == words.hash
  assert given_words.decode(given_words.encode('a  b ')) == 'a  b '


def test_a_missing_model_is_named():
  with pytest.raises(UserError, match=r"cannot read 'nowhere/x\.model'"):
    vocabulary.from_file('nowhere/x.model')


def test_a_folder_is_no_model(tmp_path):
  with pytest.raises(UserError, match=r'vocabulary\.path'):
    vocabulary.from_file(str(tmp_path))


@pytest.mark.parametrize('data', [b'', b'no model\n', b'\x0a\xff\xff'])
def test_what_is_no_model_is_named(tmp_path, data):
  path = tmp_path / 'x.model'
  path.write_bytes(data)
  with pytest.raises(
    UserError, match=r"x\.model' (is not a SentencePiece model|has no bos)"
  ):
    vocabulary.from_file(str(path))


@pytest.mark.parametrize('name', ['bos', 'eos'])
def test_a_model_without_a_special_piece_is_refused(tmp_path, name):
  path = tmp_path / 'x.model'
  path.write_bytes(trained(**{f'{name}_id': -1}))
  with pytest.raises(UserError, match=f'has no {name} piece.*--{name}_id'):
    vocabulary.from_file(str(path))


def test_a_model_that_loses_text_is_told_of(words, tmp_path, caplog):
  path = tmp_path / 'x.model'
  path.write_bytes(words.model)
  vocabulary.from_file(str(path))
  assert not caplog.records
  path.write_bytes(trained())  # Normalises, and has no byte fallback.
  vocabulary.from_file(str(path))
  assert 'does not keep every text' in caplog.text


def test_load_checks_the_content(tmp_path, words):
  path = str(tmp_path / 'vocabulary')
  artifact = artifacts.Artifact(path, 'vocabulary', 'tokenize', {}, {})
  name = f'{path}/{vocabulary.MODEL_FILE}'
  written = files.write_file(name, lambda file: file.write(words.model))
  with pytest.raises(UserError, match=r'vocabulary .* is not there'):
    Vocabulary.load(path)
  artifact.finish({vocabulary.MODEL_FILE: written})
  assert Vocabulary.load(path) == words
  files.write_file(name, lambda file: file.write(words.model[:-1] + b'x'))
  with pytest.raises(UserError, match=r'sentencepiece\.model is damaged'):
    Vocabulary.load(path)
