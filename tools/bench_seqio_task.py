"""The task of `bench_input.py` that SeqIO caches; a variable has its settings.

Imported by `seqio_cache_tasks` and by each of Beam's workers.
"""

import functools
import json
import os

import seqio
import tensorflow as tf

SETTINGS = json.loads(os.environ['BENCH_INPUT'])


class TokenizersVocabulary(seqio.Vocabulary):
  """A tokenizer.json, as a vocabulary of SeqIO."""

  def __init__(self, path: str):
    super().__init__()
    self._path = path

  @functools.cached_property
  def _tokenizer(self):
    import tokenizers

    opened = tokenizers.Tokenizer.from_file(self._path)
    opened.encode_special_tokens = True
    return opened

  def __reduce__(self):
    return TokenizersVocabulary, (self._path,)

  def __eq__(self, other):
    return self._path == other._path

  @property
  def _base_vocab_size(self) -> int:
    return self._tokenizer.get_vocab_size()

  bos_id = eos_id = unk_id = None

  def _encode(self, s: str) -> list[int]:
    return self._tokenizer.encode(s, add_special_tokens=False).ids

  def _decode(self, ids) -> str:
    return self._tokenizer.decode(list(ids))

  def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
    ids = tf.numpy_function(
      lambda text: tf.constant(self._encode(text.decode()), tf.int32).numpy(),
      [s],
      tf.int32,
    )
    return tf.ensure_shape(ids, [None])

  def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
    return tf.numpy_function(self._decode, [ids], tf.string)


def _vocabulary(path: str) -> seqio.Vocabulary:
  if path.endswith('.json'):
    return TokenizersVocabulary(path)
  return seqio.SentencePieceVocabulary(path)


@seqio.map_over_dataset
def _text_of(line: tf.Tensor) -> dict[str, tf.Tensor]:
  text = tf.numpy_function(
    lambda data: json.loads(data)['text'].encode(), [line], tf.string
  )
  return {'targets': tf.ensure_shape(text, [])}


seqio.TaskRegistry.add(
  'bench_input',
  source=seqio.TextLineDataSource({'train': SETTINGS['files']}),
  preprocessors=[
    _text_of,
    seqio.preprocessors.tokenize,
    seqio.CacheDatasetPlaceholder(),
  ],
  output_features={
    'targets': seqio.Feature(_vocabulary(SETTINGS['tokenizer']), add_eos=False)
  },
)
