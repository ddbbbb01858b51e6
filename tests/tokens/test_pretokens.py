"""Words: cut and encoded as the library itself does, to the letter."""

import functools
import unicodedata

import pytest
from hypothesis import example, given, settings, strategies as st
from tokenizers import (
  AddedToken,
  Regex,
  Tokenizer,
  decoders,
  models,
  normalizers,
  pre_tokenizers,
  trainers,
)

from infoprune_jax.tokens import encoders
from infoprune_jax.tokens.encoders import TokenizersEncoder

BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False)
BARE = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def split(pattern: str) -> pre_tokenizers.PreTokenizer:
  first = pre_tokenizers.Split(Regex(pattern), 'isolated')
  return pre_tokenizers.Sequence([first, BARE])


LLAMA3 = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
  r' ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)
QWEN2 = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
  r' ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)
KINDS = {
  'gpt2': BYTE_LEVEL,
  'digits': pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(individual_digits=True), BYTE_LEVEL]
  ),
  'llama3': split(LLAMA3),
  'qwen2': split(QWEN2),
}
LINES = [
  f"It's {n**3} naïve lines, isn't it?\n\n  Да, 北京 {n}!" for n in range(99)
]
texts = st.lists(
  st.text()
  | st.text(st.sampled_from(" \n\r\t\v\x1c'sSdDlLrReEvVmM09aé!."))
  | st.characters(categories=['N', 'Z', 'M'])
  | st.sampled_from(
    [
      *("'s", "'LL ", "'\u017f", '\x85', '\u2028', '\xbd', '\u0663', '\uff15'),
      *('\u200b', 'e\u0301', '\u212a', '\xaa', '\u2167', '  '),
      *('<|end|>', '|NAME|', '||NAME||'),
    ]
  ),
  max_size=9,
).map(''.join)


@functools.cache
def tokenizer(kind: str) -> Tokenizer:
  found = Tokenizer(models.BPE())
  found.pre_tokenizer = KINDS[kind]
  found.decoder = decoders.ByteLevel()
  found.train_from_iterator(
    LINES,
    trainers.BpeTrainer(
      vocab_size=400,
      special_tokens=['<|end|>'],
      initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
      show_progress=False,
    ),
  )
  return found


@functools.cache
def encoder(kind: str, *, loud: bool = False, nfc: bool = False):
  made = Tokenizer.from_str(tokenizer(kind).to_str())
  if loud:
    made.add_tokens([AddedToken(text) for text in ('|NAME|', '||NAME||', '  ')])
  if nfc:
    made.normalizer = normalizers.NFC()
  return TokenizersEncoder(made.to_str().encode())


def by_library(encoder: TokenizersEncoder, text: str) -> list[int]:
  return encoder._tokenizer.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize('kind', KINDS)
@settings(max_examples=100, deadline=None)
@given(text=texts)
@example(text=' a  b 1 22  333 4444 \n\n x\r\n  \r y!!\n\n')
@example(text="I'll 'S '\u017f don't''s")
@example(text='\uff11\uff12 \xbd\xa0é\u3000北京\u2028x')
def test_words_are_the_librarys(kind, text):
  plain = encoder(kind)
  words = plain._words
  expected = by_library(plain, text)
  [found] = plain.encode([text])
  assert found.tolist() == expected
  cut = words._cut(text)
  if cut is not None:
    spans = KINDS[kind].pre_tokenize_str(text)
    assert cut == [text[first:last] for _, (first, last) in spans]


@pytest.mark.parametrize('nfc', [False, True])
@settings(max_examples=100, deadline=None)
@given(text=texts)
@example(text='a||NAME||b')
@example(text='a  b')
@example(text='e\u0301')
def test_added_tokens_and_composition_are_the_librarys(nfc, text):
  loud = encoder('gpt2', loud=True, nfc=nfc)
  assert loud.encode([text])[0].tolist() == by_library(loud, text)


@pytest.mark.parametrize('kind', KINDS)
def test_most_text_needs_no_library(kind):
  text = "It's naïve:\n\n\tЖю, 北京 — 12 “words” and 345 more…\u00a0\r\n  end"
  assert encoder(kind)._words.encode(text) is not None
  assert encoder(kind)._words._cut("a'\u017f") is None  # Folds to 's'.


def test_each_letter_and_number_is_like_another():
  """What is none of both, the library cuts; few characters are."""
  words = encoder('gpt2')._words
  odd = []
  for code in range(128, 0x3000, 7):
    character = chr(code)
    if words._cut(character) is None:
      odd.append(character)
      continue
    kind = unicodedata.category(character)[0]
    if kind in 'LN':
      alike = words._cut._classes[code]
      assert alike == {'L': 'a', 'N': '0'}[kind], hex(code)
  assert len(odd) < 5


@pytest.mark.parametrize(
  'other',
  [
    pre_tokenizers.ByteLevel(add_prefix_space=True),
    pre_tokenizers.Whitespace(),
    pre_tokenizers.Sequence([pre_tokenizers.Digits(), BYTE_LEVEL]),
    pre_tokenizers.Sequence([BYTE_LEVEL]),
    split(r'\s+'),
  ],
)
def test_other_kinds_are_left_to_the_library(other):
  made = Tokenizer.from_str(tokenizer('gpt2').to_str())
  made.pre_tokenizer = other
  found = TokenizersEncoder(made.to_str().encode())
  assert found._words is None
  for text in (LINES[3], "a  b 12 'll"):
    assert found.encode([text])[0].tolist() == by_library(found, text)


def test_words_are_not_remembered_without_end(monkeypatch):
  monkeypatch.setattr(encoders, 'MAX_WORDS', 5)
  found = TokenizersEncoder(tokenizer('gpt2').to_str().encode())
  for text in (' '.join(f'{n:x}' for n in range(300)), 'x' * 65, 'x' * 64):
    assert found.encode([text])[0].tolist() == by_library(found, text)
    assert len(found._words) <= 5
  assert 'x' * 64 in found._words
  assert 'x' * 65 not in found._words
