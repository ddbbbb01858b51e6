"""Vocabularies that others made: special ids, and text that stays text."""

import json
import logging
import pathlib

import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st
from made_vocabularies import (
  LINES,
  ORDINARY,
  SPECIAL,
  byte_level,
  in_folder,
  opened,
  sentence_model,
  unigram,
)
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from configs import score
from infoprune_jax.config import experiment as config_lib
from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime.workdir import vocabulary_dir
from infoprune_jax.tokens import own_vocabulary, tokenize, vocabulary_files
from infoprune_jax.tokens.token_store import TokenStore
from infoprune_jax.tokens.vocabulary import Vocabulary

texts = st.lists(
  st.text(st.characters(exclude_categories=['Cs']))
  | st.sampled_from(
    [*SPECIAL, ORDINARY, '\r\n', '  ', 'e\u0301', 'ﬁ', 'line ']
  ),
  max_size=6,
).map(''.join)


@pytest.fixture(scope='module')
def bytes_path(tmp_path_factory) -> pathlib.Path:
  folder = tmp_path_factory.mktemp('bytes')
  named = {'bos_token': '<s>', 'eos_token': {'content': '</s>'}}
  return in_folder(folder, byte_level(), tokenizer_config=named)


@pytest.fixture(scope='module')
def byte_words(bytes_path) -> Vocabulary:
  return opened(bytes_path)


@settings(max_examples=200, deadline=None)
@given(text=texts)
@example(text='')
@example(text=''.join(SPECIAL))
@example(text=' leading and trailing ')
@example(text='longer than what it would be cut to')
def test_any_text_comes_back_from_bytes(byte_words, text):
  ids = byte_words.encode(text)
  assert byte_words.decode(ids) == text
  assert ids.dtype == np.uint16
  assert (ids < byte_words.size).all()
  # The text of a special token is text: none of its ids, and none added.
  assert not np.isin(ids, range(len(SPECIAL))).any()


def test_a_text_is_always_encoded_alike(byte_words):
  assert json.loads(byte_words.model)['model']['dropout'] == 0.5
  found = {tuple(byte_words.encode(LINES[5]).tolist()) for _ in range(9)}
  assert len(found) == 1


def test_special_ids_are_what_the_settings_name(byte_words):
  assert (byte_words.bos_id, byte_words.eos_id) == (1, 2)
  assert byte_words.decode([1, *byte_words.encode('a b'), 2, 0]) == 'a b'
  assert not byte_words.is_lossy
  assert byte_words.reachable_from_text == []


def test_an_added_token_is_found_in_text_unless_it_is_special(bytes_path):
  ordinary = json.loads(byte_level())['added_tokens'][-1]['id']
  assert opened(bytes_path).encode(f'a{ORDINARY}').tolist()[-1] == ordinary
  words = opened(bytes_path, eos_id=ordinary)
  assert ordinary not in words.encode(f'a{ORDINARY}')
  assert words.decode(words.encode(f'a{ORDINARY}')) == f'a{ORDINARY}'
  assert words.decode([ordinary]) == ''


@settings(max_examples=100, deadline=None)
@given(
  text=st.lists(st.sampled_from(['a ', 'line', '<s>', '</s>'])).map(''.join)
)
@example(text='</s>')
def test_pieces_of_a_unigram_model_do_not_spell_special_tokens(
  unigram_path, text
):
  words = opened(unigram_path, bos_id=1, eos_id=2)
  assert (
    Tokenizer.from_str(words.model.decode()).model.tokenize('</s>')[0].id == 2
  )
  assert not np.isin(words.encode(text), [1, 2]).any()
  # But for unknown letters, it is all there.
  assert words.decode(words.encode(text)).strip() == text.strip()


@pytest.fixture(scope='module')
def unigram_path(tmp_path_factory) -> pathlib.Path:
  return in_folder(tmp_path_factory.mktemp('unigram'), unigram())


def test_an_ordinary_letter_as_eos_is_told_of(tmp_path, caplog):
  path = in_folder(tmp_path, byte_level())
  newline = Tokenizer.from_str(byte_level()).token_to_id('Ċ')
  words = opened(path, bos_id=0, eos_id=newline)
  assert words.reachable_from_text == [newline]
  assert words.decode(words.encode('a\n\nb')) == 'a\n\nb'


@pytest.mark.parametrize('named', ['special_tokens_map', 'tokenizer_config'])
def test_either_file_beside_names_them(tmp_path, named):
  special = {'bos_token': '<s>', 'eos_token': '</s>'}
  path = in_folder(tmp_path, byte_level(), **{named: special})
  for found in (opened(path), opened(path / 'tokenizer.json')):
    assert (found.bos_id, found.eos_id) == (1, 2)
  found = opened(path, eos_id=0)
  assert (found.bos_id, found.eos_id) == (1, 0)


def test_a_folder_of_links_by_any_name(tmp_path, monkeypatch):
  """As the cache of the Hugging Face hub has them."""
  special = {'bos_token': '<s>', 'eos_token': '</s>'}
  in_folder(tmp_path, byte_level(), tokenizer_config=special)
  folder = tmp_path / 'a::1[2]'
  folder.mkdir()
  for name in ('tokenizer.json', 'tokenizer_config.json'):
    (folder / name).symlink_to(f'../{name}')
  monkeypatch.setenv('HOME', str(tmp_path))
  for path in (folder, f'file://{folder}/', '~/a::1[2]/tokenizer.json'):
    assert opened(path).bos_id == 1
  for name in ('tokenizer_config.json', 'tokenizer.json'):
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=rf'{name} is a symbolic link to'):
      opened(folder)


def test_the_tokenizer_config_goes_first(tmp_path):
  path = in_folder(
    tmp_path,
    byte_level(),
    tokenizer_config={'bos_token': None, 'eos_token': '</s>'},
    special_tokens_map={'bos_token': '<s>', 'eos_token': '<|endoftext|>'},
  )
  found = opened(path)
  assert (found.bos_id, found.eos_id) == (1, 2)


def test_special_ids_that_nothing_says(tmp_path):
  path = in_folder(tmp_path, byte_level(), tokenizer_config={'bos_token': None})
  with pytest.raises(UserError) as caught:
    opened(path)
  message = str(caught.value)
  assert "'<|endoftext|>' (0), '<s>' (1), '</s>' (2), '<unk>' (3)." in message
  assert (
    '--config.vocabulary.bos_id=ID and --config.vocabulary.eos_id' in message
  )
  with pytest.raises(UserError) as caught:
    opened(path, eos_id=0)
  assert 'starts a document (bos). ' in str(caught.value)
  assert 'eos_id=ID' not in str(caught.value)


def test_a_named_token_that_is_not_there(tmp_path):
  named = {'bos_token': '<s>', 'eos_token': '<end>'}
  path = in_folder(tmp_path, byte_level(), tokenizer_config=named)
  with pytest.raises(UserError, match=r"name '<end>' as eos_token.* \(0\),"):
    opened(path)


@pytest.mark.parametrize('name', ['bos_id', 'eos_id'])
def test_ids_out_of_range_are_refused(bytes_path, byte_words, name):
  size = byte_words.size
  assert opened(bytes_path, **{name: size - 1})
  with pytest.raises(
    UserError, match=rf'{name} is {size}, .* from 0 to {size - 1}\.'
  ):
    opened(bytes_path, **{name: size})


def test_added_tokens_beside_a_tokenizer_are_compared(bytes_path):
  beside = bytes_path / 'added_tokens.json'
  beside.write_text('{"<extra>": 9999}')
  try:
    with pytest.raises(UserError, match="'<extra>' the id 9999, but .* None"):
      opened(bytes_path)
  finally:
    beside.unlink()


def test_a_folder_of_neither_is_no_model(tmp_path):
  with pytest.raises(
    UserError,
    match=r'none of tokenizer\.json, tokenizer\.model, and vocab\.json with',
  ):
    opened(tmp_path)


def test_a_missing_model_is_named():
  with pytest.raises(UserError, match=r"cannot read 'nowhere/x\.model'"):
    opened('nowhere/x.model')


@pytest.mark.parametrize(
  'name, data',
  [
    ('x.model', b'no model\n'),
    ('x.model', b'\x0a\xff\xff'),
    ('x.model', b'{"model": 3}'),
    ('x.json', b''),
    ('x.json', b'\xff'),
    ('x.json', b'[]'),
    ('x.json', b'{"version": "1.0"}'),
  ],
)
def test_what_is_no_model_is_named(tmp_path, name, data):
  path = tmp_path / name
  path.write_bytes(data)
  with pytest.raises(UserError, match=rf"{name}' cannot be opened"):
    opened(path)


@pytest.mark.parametrize('data', ['{', '[]'])
def test_settings_that_are_no_json_are_named(tmp_path, data):
  path = in_folder(tmp_path, byte_level())
  (path / 'tokenizer_config.json').write_text(data)
  with pytest.raises(UserError, match=r'tokenizer_config\.json is not '):
    opened(path)


def test_a_sentencepiece_model(tmp_path):
  path = tmp_path / 'x.model'
  path.write_bytes(sentence_model())
  words = opened(path)
  assert (words.size, words.bos_id, words.eos_id) == (60, 1, 2)
  ids = words.encode('</s> <s> line')
  assert not np.isin(ids, [1, 2]).any()
  found = opened(path, bos_id=2)
  assert (found.bos_id, found.eos_id) == (2, 2)
  assert found.hash != words.hash
  assert opened(path, bos_id=9).reachable_from_text == [9]


@pytest.mark.parametrize('name', ['bos', 'eos'])
def test_a_sentencepiece_model_without_a_special_piece(tmp_path, name):
  path = tmp_path / 'x.model'
  path.write_bytes(sentence_model(**{f'{name}_id': -1}))
  with pytest.raises(
    UserError, match=rf"\({name}\).*'<unk>' \(0\).*vocabulary\.{name}_id=ID"
  ):
    opened(path)
  assert opened(path, **{f'{name}_id': 0})


def normalising() -> str:
  tokenizer = Tokenizer.from_str(byte_level())
  tokenizer.normalizer = normalizers.NFC()
  return tokenizer.to_str()


def prefixing() -> str:
  tokenizer = Tokenizer.from_str(byte_level())
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
  return tokenizer.to_str()


@pytest.mark.parametrize('make', [normalising, prefixing, unigram])
def test_a_tokenizer_that_loses_text_is_known(tmp_path, make):
  path = in_folder(tmp_path, make())
  assert opened(path, bos_id=1, eos_id=2).is_lossy


def test_a_tokenizer_that_cannot_encode_a_text_is_refused(tmp_path):
  tokenizer = Tokenizer(models.WordLevel({'a': 0}, unk_token='none'))
  path = in_folder(tmp_path, tokenizer.to_str())
  with pytest.raises(UserError, match='cannot encode every text: WordLevel'):
    opened(path, bos_id=0, eos_id=0)


def test_the_stage_takes_a_tokenizer(
  tmp_path, make_experiment, make_records, bytes_path, caplog
):
  edits = make_experiment(tmp_path / 'corpus', num_workers=2)
  edits.vocabulary.path = str(bytes_path)
  workdir = str(tmp_path / 'work')
  tokenize.run(config_lib.from_mapping(edits), workdir)
  words = Vocabulary.load(vocabulary_dir(workdir))
  assert words == opened(bytes_path)
  store = TokenStore.open(workdir)
  assert (store.bos_id, store.eos_id) == (1, 2)
  found = [
    words.decode(store.document(shard, row))
    for shard in range(store.num_shards)
    for row in range(store.documents_per_shard[shard])
  ]
  assert found == [row['text'] for row in make_records(120)]
  assert not caplog.records
  edits.vocabulary.bos_id = 0
  with pytest.raises(UserError, match='bos_id -1 -> 0'):
    tokenize.run(config_lib.from_mapping(edits), workdir)


def test_the_stage_tells_of_what_is_lost(tmp_path, make_experiment, caplog):
  edits = make_experiment(tmp_path / 'corpus')
  path = in_folder(tmp_path / 'given', normalising())
  newline = Tokenizer.from_str(byte_level()).token_to_id('Ċ')
  edits.vocabulary.update(path=str(path), bos_id=0, eos_id=newline)
  with caplog.at_level(logging.WARNING):
    tokenize.run(config_lib.from_mapping(edits), str(tmp_path / 'work'))
  first, second = (record.getMessage() for record in caplog.records)
  assert 'changes some text' in first
  assert f'the id {newline} starts or ends documents' in second


def config_of(model, **vocabulary) -> config_lib.Config:
  """A config whose scores are by a model from elsewhere."""
  made = score.get_config()
  made.reference.checkpoint.path = str(model)
  made.vocabulary.update(vocabulary)
  return config_lib.from_mapping(made)


def test_a_vocabulary_is_that_of_the_model_unless_it_is_named(tmp_path):
  special = {'bos_token': '<s>', 'eos_token': '</s>'}
  folder = in_folder(tmp_path / 'm', byte_level(), tokenizer_config=special)
  (folder / 'config.json').write_text('{}')
  found = vocabulary_files.of_config(config_of(folder))
  assert found == opened(folder)
  other = in_folder(tmp_path / 'o', unigram(), tokenizer_config=special)
  found = vocabulary_files.of_config(config_of(folder, path=str(other)))
  assert found == opened(other)


def test_a_model_without_bos_starts_documents_with_eos(tmp_path, caplog):
  """As Qwen: its settings name EOS, and BOS as null or not at all."""
  for beside in (
    {'eos_token': '</s>'},
    {'eos_token': '</s>', 'bos_token': None},
  ):
    folder = in_folder(tmp_path, byte_level(), tokenizer_config=beside)
    found = vocabulary_files.of_config(config_of(folder))
    assert found.bos_id == found.eos_id == 2
  with caplog.at_level('INFO', logger='infoprune_jax'):
    own_vocabulary.warn(found, str(folder))
  assert 'EOS, the id 2, conditions the first token' in caplog.text


def test_a_folder_with_a_sentencepiece_model(tmp_path):
  (tmp_path / 'tokenizer.model').write_bytes(sentence_model())
  found = vocabulary_files.of_config(config_of(tmp_path))
  assert found == opened(tmp_path / 'tokenizer.model')
  assert found.kind == 'sentencepiece'
  assert (found.bos_id, found.eos_id) == (1, 2)
  # Tokens may have been added to this one.
  special = {'bos_token': '<s>', 'eos_token': '</s>'}
  in_folder(tmp_path, byte_level(), tokenizer_config=special)
  assert opened(tmp_path).kind == 'tokenizers'


def test_no_model_is_not_the_current_folder(tmp_path, monkeypatch):
  in_folder(tmp_path, byte_level(), config={})
  monkeypatch.chdir(tmp_path)
  assert vocabulary_files.of_config(config_of('')) is None


@pytest.mark.parametrize(
  'run', ['reference', 'train/top/seed-0', 'x.safetensors']
)
def test_a_model_of_ours_has_the_vocabulary_of_its_workdir(
  store_workdir, tmp_path, run
):
  (tmp_path / 'vocabulary').symlink_to(vocabulary_dir(store_workdir))
  found = vocabulary_files.of_config(config_of(tmp_path / run))
  assert found == Vocabulary.load(vocabulary_dir(store_workdir))


def test_a_model_without_a_vocabulary_is_refused(tmp_path):
  folder = tmp_path / 'a' / 'b' / 'c' / 'd'
  folder.mkdir(parents=True)
  with pytest.raises(UserError, match='no vocabulary for the model .*c/d'):
    vocabulary_files.of_config(config_of(folder))
  with pytest.raises(UserError, match=r'there is no .*/nowhere'):
    vocabulary_files.of_config(config_of(folder / 'nowhere'))
  made = score.get_config()
  made.reference.checkpoint.path = str(folder)
  made.corpus.reference_fraction = 0.5  # One can be trained on it.
  made = config_lib.from_mapping(made)
  assert vocabulary_files.of_config(made) is None
  (folder / 'config.json').write_text('{}')  # Not for a model of others.
  with pytest.raises(UserError, match='no vocabulary for the model'):
    vocabulary_files.of_config(made)
