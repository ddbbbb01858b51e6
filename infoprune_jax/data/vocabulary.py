"""The vocabulary: token ids for text and back, over SentencePiece.

A small type of our own, without TensorFlow.
"""

import dataclasses
import functools
import hashlib
import io
import posixpath
from collections.abc import Iterable

import numpy as np
import sentencepiece

from infoprune_jax import artifacts, files
from infoprune_jax.config import UserError, VocabularyConfig
from infoprune_jax.progress import logger

MODEL_FILE = 'sentencepiece.model'
# SentencePiece writes spaces as this character, and decodes it to a space.
META_SPACE = '\u2581'
# White space, composition and a character that no vocabulary has a piece for.
PROBE = ' two  spaces\n\ttab e\u0301 \U0001f9ec'


@dataclasses.dataclass(frozen=True)
class Vocabulary:
  """Encodes any text, and decodes to the very same text."""

  model: bytes = dataclasses.field(repr=False)  # a SentencePiece model proto

  @functools.cached_property
  def _processor(self) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=self.model)

  @functools.cached_property
  def _meta_space_ids(self) -> list[int]:
    return [
      self._processor.piece_to_id(f'<0x{byte:02X}>')
      for byte in META_SPACE.encode()
    ]

  @property
  def size(self) -> int:
    """Number of ids."""
    return self._processor.get_piece_size()

  @property
  def bos_id(self) -> int:
    """What the first token of a document is conditioned on."""
    return self._processor.bos_id()

  @property
  def eos_id(self) -> int:
    """What ends a document in training."""
    return self._processor.eos_id()

  @property
  def hash(self) -> str:
    """A digest of the model."""
    return hashlib.sha256(self.model).hexdigest()[:16]

  @property
  def token_dtype(self) -> type[np.unsignedinteger]:
    """The smallest of uint16 and uint32 that holds every id."""
    return np.uint16 if self.size <= 2**16 else np.uint32

  def encode(self, text: str) -> np.ndarray:
    """The ids of `text`, [num_tokens], without BOS or EOS."""
    segments = self._processor.encode(text.split(META_SPACE))
    ids = segments[0]
    for segment in segments[1:]:
      # The character itself goes by its bytes: as a piece it means a space.
      ids += self._meta_space_ids + segment
    return np.asarray(ids, self.token_dtype)

  def decode(self, ids: Iterable[int]) -> str:
    """The text of `ids`; BOS, EOS and padding decode to nothing."""
    return self._processor.decode([int(i) for i in ids])

  @classmethod
  def load(cls, path: str) -> 'Vocabulary':
    """The vocabulary in a folder that `train` or `import_model` wrote."""
    manifest = artifacts.open_finished(path, 'vocabulary', 'tokenize')
    artifacts.check_sizes(path, manifest, 'vocabulary', 'tokenize')
    file = posixpath.join(path, MODEL_FILE)
    model = files.read_bytes(file)
    artifacts.check_content(
      file, model, manifest['files'][MODEL_FILE], 'tokenize'
    )
    return cls(model)


def from_file(path: str) -> Vocabulary:
  """A vocabulary of an existing SentencePiece model.

  Raises:
    UserError: there is no such model, or it has no BOS or EOS.
  """
  try:
    vocabulary = Vocabulary(files.read_bytes(path))
    processor = vocabulary._processor
  except OSError as error:
    raise UserError(f'vocabulary.path: cannot read {path!r}: {error}') from None
  except RuntimeError as error:
    raise UserError(
      f'vocabulary.path: {path!r} is not a SentencePiece model ({error}).'
    ) from None
  for name in ('bos', 'eos'):
    if getattr(processor, f'{name}_id')() < 0:
      raise UserError(
        f'vocabulary.path: {path!r} has no {name} piece, which marks the '
        f'{"start" if name == "bos" else "end"} of a document: train it with '
        f'--{name}_id.'
      )
  if vocabulary.decode(vocabulary.encode(PROBE)) != PROBE:
    logger.warning(
      'tokenize: the vocabulary %s does not keep every text as it is (it '
      'normalises, or has no byte fallback): what it loses is not scored',
      path,
    )
  return vocabulary


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
  return Vocabulary(model.getvalue())
