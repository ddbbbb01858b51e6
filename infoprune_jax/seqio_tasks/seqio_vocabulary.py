"""Our vocabulary as SeqIO's. Needs TensorFlow and SeqIO."""

from collections.abc import Iterable

import numpy as np
import seqio
import tensorflow as tf

from infoprune_jax.tokens.vocabulary import Vocabulary


class SeqIOVocabulary(seqio.Vocabulary):
  """Our vocabulary as SeqIO's; the same ids."""

  def __init__(self, vocabulary: Vocabulary):
    super().__init__()
    self._vocabulary = vocabulary

  @property
  def bos_id(self) -> int:
    """The token before the first token of a document."""
    return self._vocabulary.bos_id

  @property
  def eos_id(self) -> int:
    """The token that ends a document."""
    return self._vocabulary.eos_id

  @property
  def unk_id(self) -> None:
    """None: no text is unknown."""
    return None

  @property
  def _base_vocab_size(self) -> int:
    return self._vocabulary.size

  def _encode(self, s: str) -> list[int]:
    return self._vocabulary.encode(s).tolist()

  def _decode(self, ids: Iterable[int]) -> str:
    return self._vocabulary.decode(ids)

  def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
    def encode(text: bytes | np.ndarray) -> np.ndarray:
      data = np.asarray(text).item()  # An array when called eagerly.
      return self._vocabulary.encode(data.decode()).astype(np.int32)

    ids = tf.numpy_function(encode, [s], tf.int32)
    ids.set_shape([None])
    return ids

  def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
    return tf.numpy_function(
      lambda ids: self._vocabulary.decode(ids).encode(), [ids], tf.string
    )

  def __eq__(self, other: object) -> bool:
    return (
      isinstance(other, SeqIOVocabulary)
      and self._vocabulary.hash == other._vocabulary.hash
    )
