"""The vocabulary: token ids for text and back.

A small type of our own over SentencePiece and `tokenizers`, without TensorFlow.
"""

import dataclasses
import functools
import hashlib
import io
import posixpath
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import sentencepiece

from infoprune_jax import artifacts, checksums, files
from infoprune_jax.config import UserError, VocabularyConfig
from infoprune_jax.data.encoders import (
  META_SPACE,
  SentencePieceEncoder,
  TokenizersEncoder,
)

SENTENCEPIECE, TOKENIZERS = KINDS = ('sentencepiece', 'tokenizers')
MODEL_FILES = {
  SENTENCEPIECE: 'sentencepiece.model',
  TOKENIZERS: 'tokenizer.json',
}
# White space, composition, and characters that no vocabulary has a piece for.
PROBES = (f' two  spaces\n\ttab e\u0301 \U0001f9ec {META_SPACE}a', 'Start')


@dataclasses.dataclass(frozen=True)
class Vocabulary:
  """Encodes text without BOS or EOS, and decodes it again.

  What is encoded comes back to the letter, unless `loses_text`. A pickle holds
  the fields alone.
  """

  kind: str  # one of KINDS
  # A SentencePiece model proto, or a tokenizer.json.
  model: bytes = dataclasses.field(repr=False)
  bos_id: int  # what the first token of a document is conditioned on
  eos_id: int  # what ends a document in training

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
    """The ids of each text, as `encode` gives them, in less time."""
    dtype = self.token_dtype
    return [ids.astype(dtype) for ids in self._encoder.encode(texts)]

  def decode(self, ids: Iterable[int]) -> str:
    """The text of `ids`; BOS, EOS and padding decode to nothing."""
    return self._encoder.decode(ids)

  @property
  def loses_text(self) -> bool:
    """Whether some text does not come back: by trial, not by proof."""
    return any(self.decode(self.encode(text)) != text for text in PROBES)

  @property
  def spelled(self) -> list[int]:
    """Those of BOS and EOS that text is encoded with too."""
    return [
      id_
      for id_ in dict.fromkeys((self.bos_id, self.eos_id))
      if self._encoder.spelled(id_)
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
      UserError: it is not there, or damaged.
    """
    manifest = artifacts.open_finished(path, 'vocabulary', 'tokenize')
    checksums.check_sizes(path, manifest, 'vocabulary', 'tokenize')
    kind = manifest['model_kind']
    file = posixpath.join(path, MODEL_FILES[kind])
    model = files.read_bytes(file)
    checksums.check_content(
      file, model, manifest['files'][MODEL_FILES[kind]], 'tokenize'
    )
    return cls(kind, model, manifest['bos_id'], manifest['eos_id'])


def train(config: VocabularyConfig, texts: Iterable[str]) -> Vocabulary:
  """Trains a vocabulary whose every text round-trips.

  Identity normalisation keeps the text as it is, and byte fallback covers what
  the pieces do not.

  Raises:
    UserError: the texts hold too few distinct pieces for the size asked.
  """
  model = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(texts),
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
      max_sentence_length=1 << 20,
      minloglevel=2,
    )
  except RuntimeError as error:
    raise UserError(
      f'vocabulary.size={config.size} cannot be trained on the reference '
      f'split: {error}. Ask for fewer pieces, or give more text.'
    ) from None
  return Vocabulary(SENTENCEPIECE, model.getvalue(), bos_id=2, eos_id=1)
