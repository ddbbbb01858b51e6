"""Text to token ids and back, over SentencePiece and over `tokenizers`.

One class a library, alike in what they offer: `size`, `encode` of many texts,
`decode`, `special_tokens` and `reachable_from_text`. Neither adds BOS or EOS,
cuts or pads, nor takes the text of a special token for that token.
"""

import functools
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import sentencepiece
import tokenizers

from infoprune_jax.tokens import pretokens

# SentencePiece writes spaces as this character, and decodes it to a space.
META_SPACE = '\u2581'
# Words whose ids are remembered: enough for what recurs, in some tens of MB.
MAX_WORDS, MAX_WORD_LENGTH = 1 << 18, 64


@functools.lru_cache(maxsize=1)
def _processor(model: bytes) -> sentencepiece.SentencePieceProcessor:
  """Parses a model once, though it is checked first and used then."""
  return sentencepiece.SentencePieceProcessor(model_proto=model)


class SentencePieceEncoder:
  """A SentencePiece model."""

  def __init__(self, model: bytes):
    """Opens a model.

    Args:
      model: The proto, serialized.

    Raises:
      ValueError: it is none.
    """
    try:
      self._processor = _processor(model)
    except RuntimeError as error:
      raise ValueError(str(error)) from None
    self.size: int = self._processor.get_piece_size()

  @property
  def bos_id(self) -> int:
    """What the model itself says; -1 for none."""
    return self._processor.bos_id()

  @property
  def eos_id(self) -> int:
    """What the model itself says; -1 for none."""
    return self._processor.eos_id()

  @functools.cached_property
  def special_tokens(self) -> dict[str, int]:
    """Control pieces and the unknown one."""
    processor = self._processor
    return {
      processor.id_to_piece(id_): id_
      for id_ in range(self.size)
      if processor.is_control(id_) or processor.is_unknown(id_)
    }

  @functools.cached_property
  def _meta_space_ids(self) -> np.ndarray | None:
    """The bytes of that character; None where the model has no byte pieces."""
    ids = [
      self._processor.piece_to_id(f'<0x{byte:02X}>')
      for byte in META_SPACE.encode()
    ]
    if not all(map(self._processor.is_byte, ids)):
      return None
    return np.array(ids, np.int32)

  def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
    """The ids of each text, int32 [num_tokens]."""
    found = self._processor.encode_as_numpy(list(texts), num_threads=1)
    if self._meta_space_ids is not None:
      for number, text in enumerate(texts):
        if META_SPACE in text:
          found[number] = self._by_bytes(text)
    return found

  def _by_bytes(self, text: str) -> np.ndarray:
    """The character itself goes by its bytes: as a piece it means a space."""
    first, *others = self._processor.encode_as_numpy(
      text.split(META_SPACE), num_threads=1
    )
    shards = [first]
    for shard in others:
      shards += [self._meta_space_ids, shard]
    return np.concatenate(shards)

  def decode(self, ids: Iterable[int]) -> str:
    """The text of `ids`; special tokens decode to nothing."""
    return self._processor.decode([int(i) for i in ids])

  def reachable_from_text(self, id_: int) -> bool:
    """Whether some text is encoded with this id, as far as can be told."""
    [ids] = self.encode([self.decode([id_])])
    return id_ in ids


class TokenizersEncoder:
  """A tokenizer.json of Hugging Face."""

  def __init__(self, model: bytes, special_ids: tuple[int, ...] = ()):
    """Opens a tokenizer.

    Args:
      model: The content of a tokenizer.json.
      special_ids: Ids that no text may be encoded with, besides those that
        the file marks as special.

    Raises:
      ValueError: it is none.
    """
    self._tokenizer = _open(model.decode())
    settings = json.loads(model)
    unmarked = [
      token
      for token in settings.get('added_tokens', ())
      if token['id'] in special_ids and not token['special']
    ]
    if unmarked:
      for token in unmarked:
        token['special'] = True
      self._tokenizer = _open(json.dumps(settings))
    # Alike for every text, and all of it.
    self._tokenizer.no_truncation()
    self._tokenizer.no_padding()
    if settings['model'].get('dropout'):
      self._tokenizer.model.dropout = None
    # The text of a special token is text.
    self._tokenizer.encode_special_tokens = True
    self.size: int = max(self._tokenizer.get_vocab().values(), default=-1) + 1
    unknown = _unknown(settings['model'])
    self._forbidden = set(self.special_tokens.values()) | set(special_ids)
    self._forbidden -= {self.special_tokens.get(unknown, unknown)}
    self._words = _Words.of(self._tokenizer, settings, self._ids)

  @functools.cached_property
  def special_tokens(self) -> dict[str, int]:
    """Added tokens that are marked as special."""
    added = self._tokenizer.get_added_tokens_decoder()
    return {
      token.content: id_
      for id_, token in sorted(added.items())
      if token.special
    }

  def id_of(self, token: str) -> int | None:
    """The id of a token, or None."""
    return self._tokenizer.token_to_id(token)

  @functools.cached_property
  def _respelled(self) -> dict[int, list[int]]:
    """Forbidden ids that the model itself gives, and ids of the same text.

    A piece of a model may be the text of a special token, as '</s>' is in a
    unigram model. Cut after its first character, it is other pieces.
    """
    found = {}
    for id_ in self._forbidden:
      piece = self._tokenizer.id_to_token(id_)
      if piece and len(piece) > 1 and id_ in self._pieces(piece):
        found[id_] = self._pieces(piece[0]) + self._pieces(piece[1:])
    return found

  def _pieces(self, text: str) -> list[int]:
    """Ids by the model alone, without what cuts and normalises before it."""
    return [token.id for token in self._tokenizer.model.tokenize(text)]

  def _ids(self, piece: str) -> list[int]:
    """Ids of what the pre-tokenizer cut, by the model alone."""
    return self._respell(self._pieces(piece))

  def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
    """The ids of each text, int32 [num_tokens]."""
    words = self._words
    found = [None if words is None else words.encode(text) for text in texts]
    missing = [number for number, ids in enumerate(found) if ids is None]
    encoded = self._tokenizer.encode_batch_fast(
      [texts[number] for number in missing], add_special_tokens=False
    )
    for number, one in zip(missing, encoded, strict=True):
      found[number] = np.array(self._respell(one.ids), np.int32)
    return found

  def _respell(self, ids: list[int]) -> list[int]:
    respelled = self._respelled
    if not respelled or respelled.keys().isdisjoint(ids):
      return ids
    return [new for id_ in ids for new in respelled.get(id_, (id_,))]

  def decode(self, ids: Iterable[int]) -> str:
    """The text of `ids`; special tokens decode to nothing."""
    return self._tokenizer.decode([int(i) for i in ids])

  def reachable_from_text(self, id_: int) -> bool:
    """Whether some text is encoded with this id, as far as can be told."""
    piece = self._tokenizer.id_to_token(id_)
    return bool(piece) and id_ in self._ids(piece)


class _Words(dict):
  """The ids of words, int32 as bytes; what a byte-level tokenizer gives them.

  Most of a tokenizer's time goes into cutting; that is done by `pretokens`.
  """

  def __init__(
    self,
    cut: pretokens.Cutter,
    normalizer: tokenizers.normalizers.Normalizer | None,
    splitting_tokens: list[str],
    ids_of: Callable[[str], list[int]],
  ):
    """Cuts, normalises and encodes a word; `splitting_tokens` tokens cut text themselves."""
    super().__init__()
    self._cut, self._normalizer, self._splitting_tokens = (
      cut,
      normalizer,
      splitting_tokens,
    )
    self._ids_of = ids_of
    self._byte_level = tokenizers.pre_tokenizers.ByteLevel(
      add_prefix_space=False, use_regex=False
    ).pre_tokenize_str

  @classmethod
  def of(
    cls,
    tokenizer: tokenizers.Tokenizer,
    settings: dict[str, Any],
    ids_of: Callable[[str], list[int]],
  ) -> '_Words | None':
    """Of a tokenizer with its settings; None where it is of no known kind."""
    cut = pretokens.cutter(
      tokenizer.pre_tokenizer, settings.get('pre_tokenizer')
    )
    if cut is None or settings.get('normalizer') not in (None, {'type': 'NFC'}):
      return None
    added = tokenizer.get_added_tokens_decoder().values()
    splitting_tokens = [token.content for token in added if not token.special]
    # Where a text has a token, it has what that token contains.
    splitting_tokens = [
      content
      for content in splitting_tokens
      if not any(
        other in content for other in splitting_tokens if other != content
      )
    ]
    return cls(cut, tokenizer.normalizer, splitting_tokens, ids_of)

  def encode(self, text: str) -> np.ndarray | None:
    """The ids of a text, or None where the library must encode it."""
    for content in self._splitting_tokens:
      if content in text:
        return None
    if self._normalizer and not text.isascii():
      normalized = self._normalizer.normalize_str(text)
      if normalized != text:
        return None
    words = self._cut(text)
    if words is None:
      return None
    return np.frombuffer(b''.join(map(self.__getitem__, words)), np.int32)

  def __missing__(self, word: str) -> bytes:
    ids = [
      id_ for piece, _ in self._byte_level(word) for id_ in self._ids_of(piece)
    ]
    data = np.array(ids, np.int32).tobytes()
    if len(word) <= MAX_WORD_LENGTH:
      if len(self) >= MAX_WORDS:
        self.clear()
      self[word] = data
    return data


def _open(model: str) -> tokenizers.Tokenizer:
  try:
    return tokenizers.Tokenizer.from_str(model)
  except Exception as error:
    if type(error) is not Exception:  # The class that the library raises.
      raise
    raise ValueError(str(error)) from None


def _unknown(model: dict[str, Any]) -> str | int | None:
  """The token or the id that a model gives for what it does not know."""
  unknown = model.get('unk_token')
  return model.get('unk_id') if unknown is None else unknown
