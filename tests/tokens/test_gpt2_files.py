"""Vocabularies of GPT-2's two files, and the tokens added to them."""

import functools
import json
import pathlib
import re

import pytest
from made_vocabularies import LINES, SPECIAL, byte_level, opened
from tokenizers import Tokenizer

from infoprune_jax.config.validation import UserError


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


def test_gpt2_with_a_space_before_the_text(tmp_path):
  vocab, merges = gpt2_parts()
  path = gpt2(tmp_path, vocab, merges)
  spaced = opened(path).encode(' a b').tolist()
  settings = {'add_prefix_space': True, 'eos_token': '<|endoftext|>'}
  (path / 'tokenizer_config.json').write_text(json.dumps(settings))
  assert opened(path).encode('a b').tolist() == spaced
