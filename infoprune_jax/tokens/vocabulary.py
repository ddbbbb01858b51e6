"""The vocabulary: token ids for text and back.

A small type over SentencePiece and `tokenizers`, without TensorFlow.
"""

import collections
import dataclasses
import functools
import hashlib
import io
import posixpath
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import sentencepiece

from infoprune_jax.config.corpus import VocabularyConfig
from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime import artifacts, files, manifests
from infoprune_jax.runtime.progress import logger
from infoprune_jax.tokens.encoders import (
  META_SPACE,
  SentencePieceEncoder,
  TokenizersEncoder,
)

SENTENCEPIECE, TOKENIZERS = KINDS = ('sentencepiece', 'tokenizers')
MODEL_FILES = {
  SENTENCEPIECE: 'sentencepiece.model',
  TOKENIZERS: 'tokenizer.json',
}
# White space, composition, and characters that no vocabulary has a token for.
PROBES = (f' two  spaces\n\ttab e\u0301 \U0001f9ec {META_SPACE}a', 'Start')


# SentencePiece silently skips sentences of more bytes.
MAX_SENTENCE_BYTES = 1 << 20
# The most characters between spaces, or of spaces. With 65,536 SentencePiece
# ends the process. With fewer it may take minutes, if the text is repetitive.
MAX_WORD = 2048
_LONG_WORD = re.compile(f' ?[^ ]{{{MAX_WORD},}}| {{{MAX_WORD},}}')
# All bytes, and padding, BOS, EOS and the unknown token.
_NO_CHARACTERS = 256 + 4


class _VocabularyManifest(manifests.Manifest):
  """A finished vocabulary."""

  hash: str
  model_kind: str
  bos_id: int
  eos_id: int


@dataclasses.dataclass(frozen=True)
class Vocabulary:
  """Encodes text without BOS or EOS, and decodes it again.

  Decoding gives the exact text back, unless `is_lossy`. A pickle holds the
  fields alone.
  """

  kind: str  # one of KINDS
  # A SentencePiece model proto, or a tokenizer.json.
  model: bytes = dataclasses.field(repr=False)
  bos_id: int  # the token before the first token of a document
  eos_id: int  # the token that ends a document in training

  def __reduce__(self) -> tuple[Any, ...]:
    return Vocabulary, (self.kind, self.model, self.bos_id, self.eos_id)

  @functools.cached_property
  def _encoder(self) -> SentencePieceEncoder | TokenizersEncoder:
    if self.kind == SENTENCEPIECE:
      return SentencePieceEncoder(self.model)
    return TokenizersEncoder(self.model, (self.bos_id, self.eos_id))

  @property
  def size(self) -> int:
    """Number of ids."""
    return self._encoder.size

  @functools.cached_property
  def hash(self) -> str:
    """A digest of the model and the special ids."""
    digest = hashlib.sha256(self.model)
    digest.update(f'{self.kind} {self.bos_id} {self.eos_id}'.encode())
    return digest.hexdigest()[:16]

  @functools.cached_property
  def token_dtype(self) -> type[np.unsignedinteger]:
    """The smallest of uint16 and uint32 that holds every id."""
    return np.uint16 if self.size <= 2**16 else np.uint32

  def encode(self, text: str) -> np.ndarray:
    """The ids of `text`, [num_tokens], without BOS or EOS."""
    return self.encode_all([text])[0]

  def encode_all(self, texts: Sequence[str]) -> list[np.ndarray]:
    """The ids of each text, as by `encode`, in less time."""
    dtype = self.token_dtype
    return [ids.astype(dtype) for ids in self._encoder.encode(texts)]

  def decode(self, ids: Iterable[int]) -> str:
    """The text of `ids`; BOS, EOS and padding decode to nothing."""
    return self._encoder.decode(ids)

  @property
  def is_lossy(self) -> bool:
    """Whether decoding changes some text: by trial, not by proof."""
    return any(self.decode(self.encode(text)) != text for text in PROBES)

  @property
  def reachable_from_text(self) -> list[int]:
    """The ids among BOS and EOS that some text encodes to."""
    return [
      id_
      for id_ in dict.fromkeys((self.bos_id, self.eos_id))
      if self._encoder.reachable_from_text(id_)
    ]

  def save(self, artifact: artifacts.Artifact) -> None:
    """Writes the vocabulary as an artifact, for `load`."""
    name = MODEL_FILES[self.kind]
    artifact = artifact.take_over()
    written = artifact.write_file(
      posixpath.join(artifact.path, name), lambda file: file.write(self.model)
    )
    artifact.finish(
      {name: written},
      hash=self.hash,
      model_kind=self.kind,
      bos_id=self.bos_id,
      eos_id=self.eos_id,
    )

  @classmethod
  def load(cls, path: str) -> 'Vocabulary':
    """The vocabulary in a folder that `save` wrote.

    Raises:
      UserError: it is missing or damaged.
    """
    manifest = cast(
      _VocabularyManifest,
      manifests.open_finished(path, 'vocabulary', 'tokenize'),
    )
    manifests.check_sizes(path, manifest, 'vocabulary', 'tokenize')
    kind = manifest['model_kind']
    file = posixpath.join(path, MODEL_FILES[kind])
    model = files.read_bytes(file)
    manifests.check_content(
      file, model, manifest['files'][MODEL_FILES[kind]], 'tokenize'
    )
    return cls(kind, model, manifest['bos_id'], manifest['eos_id'])


def _sentences(texts: Iterable[str]) -> Iterator[str]:
  """Texts for SentencePiece, changed only where it cannot take them."""
  seen: set[str] = set()  # Copies of a long text are slow, and add nothing.
  for text in texts:
    end = 0
    for word in _LONG_WORD.finditer(text):
      yield from _by_size(text[end : word.start()])
      end = word.end()
      for start in range(word.start(), end, MAX_WORD):
        piece = text[start : min(start + MAX_WORD, end)]
        if piece not in seen:
          seen.add(piece)
          yield piece
    yield from _by_size(text[end:])


def _by_size(text: str) -> Iterator[str]:
  """A text cut before spaces, where it is too long for one sentence."""
  most = MAX_SENTENCE_BYTES // 4  # characters, of up to four bytes
  if len(text) > most and len(text.encode()) > MAX_SENTENCE_BYTES:
    while len(text) > most:
      end = text.rindex(' ', 1, most)
      yield text[:end]
      text = text[end:]
  if text:
    yield text


def _common_characters(texts: list[str], size: int) -> list[str]:
  """Texts without their rarest characters, which a vocabulary cannot hold.

  These are encoded as bytes. Half of the vocabulary is left for longer tokens.
  """
  counts: collections.Counter[str] = collections.Counter()
  for text in texts:
    counts.update(text)
  room = (size - _NO_CHARACTERS) // 2
  rare = ''.join(character for character, _ in counts.most_common()[room:])
  logger.warning(
    'tokenize: the text has %d different characters, too many for '
    'vocabulary.size=%d: the rarest %d are encoded as bytes',
    len(counts),
    size,
    len(rare),
  )
  cut = re.compile(f'[{re.escape(rare)}]+')
  return [shard for text in texts for shard in cut.split(text) if shard]


def train(config: VocabularyConfig, texts: Iterable[str]) -> Vocabulary:
  """Trains a vocabulary whose every text round-trips.

  Normalisation is off, and byte fallback covers text without a token of its
  own.

  Raises:
    UserError: the texts are too few or too alike for the size of the
      vocabulary.
  """
  sentences = list(_sentences(texts))
  try:
    try:
      model = _train_model(config, sentences)
    except RuntimeError as error:
      if 'required_chars' not in str(error):
        raise
      model = _train_model(config, _common_characters(sentences, config.size))
  except RuntimeError as error:
    raise UserError(
      f'vocabulary.size={config.size} cannot be trained on the reference '
      f'split: {error}. Set a smaller size, or give more text.'
    ) from None
  return Vocabulary(SENTENCEPIECE, model, bos_id=2, eos_id=1)


def _train_model(config: VocabularyConfig, sentences: list[str]) -> bytes:
  """A SentencePiece model."""
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(sentences),
    model_writer=model,
    vocab_size=config.size,
    model_type=config.type,
    byte_fallback=True,
    normalization_rule_name='identity',
    remove_extra_whitespaces=False,
    add_dummy_prefix=False,
    allow_whitespace_only_pieces=True,
    pad_id=0,
    eos_id=1,
    bos_id=2,
    unk_id=3,
    num_threads=1,  # More would make the model depend on their timing.
    max_sentence_length=MAX_SENTENCE_BYTES,
    minloglevel=2,
  )
  return model.getvalue()
