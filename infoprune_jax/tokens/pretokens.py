"""Cuts text into words as `tokenizers` does, but with `re`, which is faster.

Byte-level tokenizers cut with regular expressions over letters (L), numbers
(N), white space and other characters. The ids of a word do not depend on its
neighbours, so that `encoders` keeps them in a table. This module asks the
library once for each character beyond ASCII which class the character is in.
"""

import bisect
import itertools
import re
from collections.abc import Callable
from typing import Any

import tokenizers

# The expressions of GPT-2, Llama 3 and Qwen 2, as tokenizer.json has them.
# ByteLevel uses the first.
_GPT2 = (
  r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
)
LLAMA3 = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
  r' ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)
QWEN2 = LLAMA3.replace('{1,3}', '')
# The expression of GPT-2 after `Digits`, which makes a word of each digit.
_DIGITS = _GPT2.replace(r' ?\p{N}+', r'\p{N}').replace(
  r'(?!\S)', r'(?![^\s\p{N}])'
)
DIGITS_FIRST = {'type': 'Digits', 'individual_digits': True}

# One character of each class: letter, number, white space and other.
_ALIKE = 'a0\v!'
_BEYOND_ASCII = re.compile('[^\x00-\x7f]+')
_NEIGHBOURS = ('', 'a', '0', '\v', '!', ' ', '\n', "'")
# This character matches the 's' of a contraction if case is ignored.
_LONG_S = '\u017f'


def cutter(
  pre_tokenizer: tokenizers.pre_tokenizers.PreTokenizer | None,
  settings: Any,
) -> 'Cutter | None':
  """A cutter that equals a pre-tokenizer, or None for an unknown kind.

  Args:
    pre_tokenizer: The pre-tokenizer of the library.
    settings: Its settings in tokenizer.json.
  """
  pattern = _pattern(settings)
  if pre_tokenizer is None or pattern is None:
    return None
  return Cutter(pre_tokenizer, pattern)


def _pattern(settings: Any) -> str | None:
  """The regular expression in settings of a pre-tokenizer, if known."""
  if not isinstance(settings, dict):
    return None
  if settings['type'] != 'Sequence':
    return _GPT2 if _is_byte_level(settings, use_regex=True) else None
  if len(settings['pretokenizers']) != 2:
    return None
  first, second = settings['pretokenizers']
  if first == DIGITS_FIRST and _is_byte_level(second, use_regex=True):
    return _DIGITS
  if _is_byte_level(second, use_regex=False):
    for pattern in (_GPT2, LLAMA3, QWEN2):
      if first == split_by(pattern):
        return pattern
  return None


def split_by(pattern: str) -> dict[str, Any]:
  """A pre-tokenizer that makes a word of each match, as settings."""
  return {
    'type': 'Split',
    'pattern': {'Regex': pattern},
    'behavior': 'Isolated',
    'invert': False,
  }


def _is_byte_level(settings: dict[str, Any], use_regex: bool) -> bool:
  return (
    settings['type'] == 'ByteLevel'
    and not settings['add_prefix_space']
    and settings['use_regex'] == use_regex
  )


class Cutter:
  """Cuts text into words."""

  def __init__(
    self,
    pre_tokenizer: tokenizers.pre_tokenizers.PreTokenizer,
    pattern: str,
  ):
    """Cuts as `pre_tokenizer` does, by `pattern` in the library's syntax."""
    ascii_ = pattern.replace(r'[^\r\n\p{L}\p{N}]', r'[^\r\nA-Za-z0-9]')
    ascii_ = ascii_.replace(r'[^\s\p{L}\p{N}]', r'[^\sA-Za-z0-9]')
    ascii_ = ascii_.replace(r'[^\s\p{N}]', r'[^\s0-9]')
    ascii_ = ascii_.replace(r'\p{L}', '[A-Za-z]').replace(r'\p{N}', '[0-9]')
    self._words = re.compile(ascii_, re.ASCII).findall
    self._classes = _Classes(pre_tokenizer)

  def __call__(self, text: str) -> list[str] | None:
    """The words of a text, or None where the library must cut it."""
    if text.isascii():
      return self._words(text)
    try:
      words = self._words(_BEYOND_ASCII.sub(self._alike, text))
    except _OddCharacter:
      return None
    ends = list(itertools.accumulate(map(len, words)))
    for match in _BEYOND_ASCII.finditer(text):
      number = bisect.bisect_right(ends, match.start())
      last = ends[number] - len(words[number])
      while last < match.end():
        first, last = last, ends[number]
        words[number] = text[first:last]
        number += 1
    return words

  def _alike(self, match: re.Match[str]) -> str:
    return match[0].translate(self._classes)


class _OddCharacter(Exception):
  """A character that the library treats like no ASCII character."""


class _Classes(dict):
  """For each character, an ASCII character that the library treats alike."""

  def __init__(self, pre_tokenizer: tokenizers.pre_tokenizers.PreTokenizer):
    super().__init__()
    self._cut: Callable[[str], Any] = pre_tokenizer.pre_tokenize_str
    self._cuts = {self._around(alike): alike for alike in _ALIKE}

  def _around(self, character: str) -> tuple[tuple[int, int], ...]:
    """Where the library cuts around a character, between any neighbours."""
    text = '\n\n'.join(
      f'{other}{character}\n\na{character}{other}' for other in _NEIGHBOURS
    )
    return tuple(span for _, span in self._cut(text))

  def __missing__(self, code: int) -> str:
    character = chr(code)
    alike = self._cuts.get(self._around(character))
    if alike is None or character == _LONG_S:
      raise _OddCharacter
    self[code] = alike
    return alike
