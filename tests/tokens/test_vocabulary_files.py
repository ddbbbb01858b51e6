"""Vocabularies that others made: special ids, and text that stays text."""

import functools
import io
import json
import logging
import pathlib
import re

import numpy as np
import pytest
import sentencepiece
from hypothesis import example, given, settings, strategies as st
from tokenizers import (
  AddedToken,
  Tokenizer,
  decoders,
  models,
  normalizers,
  pre_tokenizers,
  processors,
  trainers,
)

from infoprune_jax.config import (
  corpus as corpus_config,
  experiment as config_lib,
)
from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime.workdir import vocabulary_dir
from infoprune_jax.tokens import tokenize, vocabulary_files
from infoprune_jax.tokens.token_store import TokenStore
from infoprune_jax.tokens.vocabulary import Vocabulary

LINES = [
  f'line {n:b} of a corpus with {n**5:x} and {n**7 % 9973:o} in it </s>'
  for n in range(99)
]
SPECIAL = ('<|endoftext|>', '<s>', '</s>', '<unk>')
LOUD = '|||NAME|||'  # An added token that is not marked as special.
texts = st.lists(
  st.text(st.characters(exclude_categories=['Cs']))
  | st.sampled_from([*SPECIAL, LOUD, '\r\n', '  ', 'e\u0301', 'ﬁ', 'line ']),
  max_size=6,
).map(''.join)


def settings_of(path, bos_id: int = -1, eos_id: int = -1):
  return corpus_config.VocabularyConfig(
    path=str(path),
    bos_id=bos_id,
    eos_id=eos_id,
    size=340,
    type='bpe',
    train_bytes=1,
  )


def opened(path, **ids: int) -> Vocabulary:
  return vocabulary_files.open_given(settings_of(path, **ids))


@functools.cache
def byte_level() -> str:
  """A byte-level BPE that would add tokens, cut, pad and drop out."""
  tokenizer = Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  tokenizer.train_from_iterator(
    LINES,
    trainers.BpeTrainer(
      vocab_size=320,
      special_tokens=list(SPECIAL),
      initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
      show_progress=False,
    ),
  )
  tokenizer.add_tokens([AddedToken(LOUD, normalized=False)])
  end = tokenizer.token_to_id('</s>')
  tokenizer.post_processor = processors.TemplateProcessing(
    single='</s> $A </s>', special_tokens=[('</s>', end)]
  )
  tokenizer.enable_truncation(3)
  tokenizer.enable_padding(length=9)
  tokenizer.model.dropout = 0.5
  return tokenizer.to_str()


@functools.cache
def unigram() -> str:
  """One whose pieces spell its special tokens, and that knows few letters."""
  tokenizer = Tokenizer(models.Unigram())
  tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
  tokenizer.decoder = decoders.Metaspace()
  tokenizer.train_from_iterator(
    LINES,
    trainers.UnigramTrainer(
      vocab_size=80,
      special_tokens=['<unk>', '<s>', '</s>'],
      unk_token='<unk>',
      show_progress=False,
    ),
  )
  return tokenizer.to_str()


def sentence_model(**options) -> bytes:
  """A model of SentencePiece's own making."""
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(LINES),
    model_writer=model,
    vocab_size=60,
    minloglevel=2,
    **options,
  )
  return model.getvalue()


def in_folder(path: pathlib.Path, tokenizer: str, **beside) -> pathlib.Path:
  """A tokenizer.json in `path`, with other files of JSON beside it."""
  path.mkdir(parents=True, exist_ok=True)
  (path / 'tokenizer.json').write_text(tokenizer)
  for name, value in beside.items():
    (path / f'{name}.json').write_text(json.dumps(value))
  return path


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
  loud = json.loads(byte_level())['added_tokens'][-1]['id']
  assert opened(bytes_path).encode(f'a{LOUD}').tolist()[-1] == loud
  words = opened(bytes_path, eos_id=loud)
  assert loud not in words.encode(f'a{LOUD}')
  assert words.decode(words.encode(f'a{LOUD}')) == f'a{LOUD}'
  assert words.decode([loud]) == ''


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


def gpt2(path: pathlib.Path, vocab: dict, merges: list[str]) -> pathlib.Path:
  path.mkdir(exist_ok=True)
  (path / 'vocab.json').write_text(json.dumps(vocab))
  lines = ['#version: 0.2', *merges, '']
  (path / 'merges.txt').write_text('\n'.join(lines))
  return path


@functools.cache
def gpt2_parts() -> tuple[dict[str, int], list[str]]:
  """Vocabulary and merges, with the special token at the end."""
  model = json.loads(byte_level())['model']
  pieces = [piece for piece in model['vocab'] if piece not in SPECIAL]
  vocab = {piece: number for number, piece in enumerate(pieces)}
  vocab['<|endoftext|>'] = len(vocab)
  return vocab, [' '.join(pair) for pair in model['merges']]


def test_a_folder_of_gpt2(tmp_path):
  vocab, merges = gpt2_parts()
  words = opened(gpt2(tmp_path, vocab, merges))
  assert words.bos_id == words.eos_id == words.size - 1 == len(vocab) - 1
  # The bytes before it in the alphabet shift all ids alike.
  plain = Tokenizer.from_str(byte_level())
  plain.model.dropout = None
  plain.no_truncation()
  plain.no_padding()
  text = LINES[7]
  expected = [
    vocab[token]
    for token in plain.encode(text, add_special_tokens=False).tokens
    if token in vocab
  ]
  found = words.encode(text.removesuffix(' </s>')).tolist()
  assert found == expected[: len(found)]
  for text in (''.join(SPECIAL), ' \x85\u2028 é\r\n', 'a'):
    ids = words.encode(text)
    assert words.decode(ids) == text
    assert words.eos_id not in ids


def test_a_folder_of_gpt2_without_its_special_token(tmp_path):
  vocab, merges = gpt2_parts()
  path = gpt2(tmp_path, {k: v for k, v in vocab.items() if v < 300}, [])
  with pytest.raises(UserError, match=r'with their ids: none\. Set'):
    opened(path)
  assert opened(path, bos_id=1, eos_id=2).bos_id == 1
  (path / 'merges.txt').write_text('\n'.join([*merges, 'zzz yyy']))
  with pytest.raises(UserError, match='cannot be opened'):
    opened(path, bos_id=1, eos_id=2)


def test_added_tokens_of_gpt2(tmp_path):
  vocab, merges = gpt2_parts()
  path = gpt2(tmp_path, vocab, merges)
  plain = opened(path)
  size = len(vocab)
  added = {'<|im_end|>': size + 1, '<|im_start|>': size, 'wordy': size + 2}
  (path / 'added_tokens.json').write_text(json.dumps(added))
  (path / 'special_tokens_map.json').write_text(
    json.dumps(
      {
        'eos_token': {'content': '<|im_end|>'},
        'additional_special_tokens': ['<|im_start|>'],
      }
    )
  )
  words = opened(path)
  assert words.size == size + 3
  assert words.bos_id == plain.bos_id and words.eos_id == size + 1
  # One that is not special is what text is encoded with.
  assert size + 2 in words.encode('a wordy text')
  for text in ('<|im_start|>a<|im_end|>', 'a wordy text'):
    assert words.decode(words.encode(text)) == text
    assert not {size, size + 1} & set(words.encode(text).tolist())
  assert words.encode(LINES[7]).tolist() == plain.encode(LINES[7]).tolist()


@pytest.mark.parametrize(
  'added, said',
  [
    ({'<x>': 10**6}, "gives '<x>' the id 1000000, but"),
    ({'a': 1}, "gives 'a' the id 1, but"),
    ({'<x>': -1}, 'the id -1, expected'),
    ({'<x>': '7'}, "the id '7', expected"),
    ([], 'is not a JSON object'),
  ],
)
def test_added_tokens_that_cannot_be_are_refused(tmp_path, added, said):
  vocab, merges = gpt2_parts()
  path = gpt2(tmp_path, vocab, merges)
  (path / 'added_tokens.json').write_text(json.dumps(added))
  with pytest.raises(UserError, match=re.escape(said)):
    opened(path)


def test_added_tokens_beside_a_tokenizer_are_compared(bytes_path):
  beside = bytes_path / 'added_tokens.json'
  beside.write_text('{"<extra>": 9999}')
  try:
    with pytest.raises(UserError, match="'<extra>' the id 9999, but .* None"):
      opened(bytes_path)
  finally:
    beside.unlink()


def test_gpt2_with_a_space_before_the_text(tmp_path):
  vocab, merges = gpt2_parts()
  path = gpt2(tmp_path, vocab, merges)
  spaced = opened(path).encode(' a b').tolist()
  settings = {'add_prefix_space': True, 'eos_token': '<|endoftext|>'}
  (path / 'tokenizer_config.json').write_text(json.dumps(settings))
  assert opened(path).encode('a b').tolist() == spaced


def test_a_folder_of_neither_is_no_model(tmp_path):
  with pytest.raises(
    UserError, match=r'neither tokenizer\.json nor vocab\.json and merges'
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
  with pytest.raises(UserError, match=r'bos_id is -1, not 0'):
    tokenize.run(config_lib.from_mapping(edits), workdir)


def test_the_stage_tells_of_what_is_lost(tmp_path, make_experiment, caplog):
  edits = make_experiment(tmp_path / 'corpus')
  path = in_folder(tmp_path / 'given', normalising())
  newline = Tokenizer.from_str(byte_level()).token_to_id('Ċ')
  edits.vocabulary.update(path=str(path), bos_id=0, eos_id=newline)
  with caplog.at_level(logging.WARNING):
    tokenize.run(config_lib.from_mapping(edits), str(tmp_path / 'work'))
  first, second = (record.getMessage() for record in caplog.records)
  assert 'does not keep every text' in first
  assert f'{newline}, which marks where documents' in second
