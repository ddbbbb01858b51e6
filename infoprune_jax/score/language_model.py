"""A model with its vocabulary: the NLL of texts, and of continuations.

Requests of similar length are packed into sequences as long as the longest of
them needs, so that short ones do not pay for a long context.
"""

import dataclasses
import functools
import posixpath
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import tokenizers

from infoprune_jax.batches import packing
from infoprune_jax.config.corpus import VocabularyConfig
from infoprune_jax.config.experiment import (
  CheckpointConfig,
  MeshConfig,
  ScoringConfig,
)
from infoprune_jax.config.model import RUNTIME_ONLY_FIELDS, ModelConfig
from infoprune_jax.config.validation import UserError, check_range, default_of
from infoprune_jax.model import mesh as mesh_lib, network, partitioning
from infoprune_jax.model.hugging_face import load as hugging_face
from infoprune_jax.model.mesh import Mesh
from infoprune_jax.runtime import manifests
from infoprune_jax.runtime.workdir import vocabulary_dir
from infoprune_jax.score import references, scorer as scorer_lib, sequences
from infoprune_jax.tokens import vocabulary as vocabulary_lib, vocabulary_files
from infoprune_jax.tokens.vocabulary import Vocabulary

BATCH_TOKENS = 8192  # the most tokens of a batch on a device
# The fewest tokens of a sequence. Shorter ones are slower: on a CPU the products
# of attention are too small then, and on a TPU they do not fill its lanes.
MIN_LENGTH = 128
SIZES = 8  # sizes of batches between two powers of two
_LEVELS = 4  # folders above a run that are searched for its vocabulary


@dataclasses.dataclass(frozen=True, eq=False)
class TextLosses:
  """The losses of texts; `nll_sum / num_bytes / ln(2)` is bits per byte."""

  nll_sum: np.ndarray  # [texts] float64, nats
  num_tokens: np.ndarray  # [texts] int64
  num_bytes: np.ndarray  # [texts] int64, in UTF-8
  # For each text, [num_tokens] float32 in nats; None if not asked for.
  token_nll: list[np.ndarray] | None = None


@dataclasses.dataclass(frozen=True)
class Continuation:
  """The NLL of a continuation, given its context."""

  nll: float  # the sum over all its tokens, nats
  is_greedy: bool  # whether each token is the most likely one
  num_tokens: int


@dataclasses.dataclass(frozen=True, eq=False)
class LanguageModel:
  """A model on a mesh. All processes of a job make the same calls."""

  model: ModelConfig
  params: Any  # on the mesh, from `prepared`
  vocab_size: int  # of the model, at least that of the vocabulary
  vocabulary: Vocabulary
  mesh: Mesh
  # Its sequence length is the longest context.
  scoring: ScoringConfig
  # Whether BOS precedes a context. If not, BOS precedes empty contexts only.
  adds_bos: bool = True

  def score(
    self, texts: Sequence[str], *, per_token: bool = False
  ) -> TextLosses:
    """The losses of texts. BOS precedes each text. EOS is not counted.

    Args:
      texts: Texts of any length. Long ones are cut into windows that overlap by
        `scoring.window_overlap` tokens.
      per_token: Whether to return `token_nll`, too.

    Raises:
      UserError: an NLL is not finite.
    """
    bos = [self.vocabulary.bos_id]
    ids = self.vocabulary.encode_all(texts)
    scored = self.statistics([np.concatenate([bos, x]) for x in ids])
    nll = [one['nll'] for one in scored]
    return TextLosses(
      nll_sum=np.array([x.sum(dtype=np.float64) for x in nll]),
      num_tokens=np.array([len(x) for x in ids], np.int64),
      num_bytes=np.array([len(x.encode()) for x in texts], np.int64),
      token_nll=nll if per_token else None,
    )

  def statistics(
    self, tokens: Sequence[np.ndarray], names: Sequence[str] = ()
  ) -> list[dict[str, np.ndarray]]:
    """The result of `sequences.token_statistics` for 'nll' and `names`."""
    if not tokens:
      return []
    lengths = np.array([len(ids) - 1 for ids in tokens])
    results: list[dict[str, np.ndarray]] = [{}] * len(tokens)
    num_shards = partitioning.num_batch_shards(self.mesh)
    for group in groups_by_length(
      lengths, self.scoring.sequence_length, BATCH_TOKENS * num_shards
    ):
      scored = sequences.token_statistics(
        self._scorer(lengths[group], tuple(names)),
        self.params,
        [tokens[number] for number in group],
      )
      for number, result in zip(group, scored, strict=True):
        results[number] = result
    return results

  def _scorer(
    self, num_tokens: np.ndarray, names: tuple[str, ...]
  ) -> scorer_lib.Scorer:
    """The program for documents of these lengths.

    Its sequences are as long as the longest document, and its batches are
    equally full. Lengths are powers of two, and there are few sizes of batches,
    so that few programs are compiled.
    """
    scoring = dataclasses.replace(self.scoring, statistics=names)
    length = power_of_two(max(int(num_tokens.max()), MIN_LENGTH))
    if length < scoring.sequence_length:
      scoring = dataclasses.replace(
        scoring, sequence_length=length, window_overlap=0
      )
    plan = packing.pack(
      num_tokens, scoring.sequence_length, scoring.window_overlap, seed=0
    )
    num_shards = partitioning.num_batch_shards(self.mesh)
    sequences_per_shard = max(-(-plan.num_sequences // num_shards), 1)
    most = max(BATCH_TOKENS // scoring.sequence_length, 1)
    num_batches = -(-sequences_per_shard // most)
    size = -(-sequences_per_shard // num_batches)
    step = max(power_of_two(size) // SIZES, 1)
    return scorer_lib.compile_scorer(
      self.model,
      dataclasses.replace(
        scoring, per_device_batch_size=-(-size // step) * step
      ),
      self.vocab_size,
      self.mesh,
    )

  def continuations(
    self, pairs: Sequence[tuple[str, str]]
  ) -> list[Continuation]:
    """The NLL of each continuation, for pairs (context, continuation) of texts.

    Raises:
      UserError: as `encode_pairs` and `continuations_of_ids`.
    """
    return self.continuations_of_ids(self.encode_pairs(pairs))

  def continuations_of_ids(
    self, encoded: Sequence[tuple[np.ndarray, int]]
  ) -> list[Continuation]:
    """The NLL of each continuation, for pairs from `encode_pairs`.

    A pair that is too long for the model loses its first tokens.

    Raises:
      UserError: a continuation alone is too long for the model.
    """
    most = self.scoring.sequence_length
    longest = max((count for _, count in encoded), default=0)
    if longest > most:
      raise UserError(
        f'A continuation has {longest} tokens, but the model takes {most} at '
        'once: raise max_length or evaluate.scoring.sequence_length, or leave '
        'this task out.'
      )
    scored = self.statistics(
      [ids[-(most + 1) :] for ids, _ in encoded], ('greedy',)
    )
    return [
      Continuation(
        float(one['nll'][-count:].sum(dtype=np.float64)),
        bool(one['greedy'][-count:].all()),
        count,
      )
      for one, (_, count) in zip(scored, encoded, strict=True)
    ]

  def encode_pairs(
    self, pairs: Sequence[tuple[str, str]]
  ) -> list[tuple[np.ndarray, int]]:
    """The tokens of contexts with their continuations.

    Context and continuation are encoded together. The tokens of the context
    alone are counted, and the tokens after this number are the continuation.
    White space at the end of a context counts as the start of the continuation,
    because it is part of a token there.

    Returns:
      For each pair all tokens, [n] int64, and the number of tokens of the
      continuation.

    Raises:
      UserError: a continuation has no token.
    """
    contexts = [context.rstrip() for context, _ in pairs]
    alone = self.vocabulary.encode_all(contexts)
    whole = self.vocabulary.encode_all([a + b for a, b in pairs])
    encoded = []
    for pair, first, ids in zip(pairs, alone, whole, strict=True):
      count = len(ids) - len(first)
      if count <= 0:
        raise UserError(
          f'The continuation {pair[1]!r:.200} adds no token to the context '
          f'{pair[0]!r:.200}: give another continuation.'
        )
      start = [self.vocabulary.bos_id] * (self.adds_bos or not len(first))
      encoded.append((np.concatenate([start, ids]).astype(np.int64), count))
    return encoded


@functools.partial(jax.jit, static_argnums=1)
def prepared(params: Any, dtype: str) -> Any:
  """Parameters in the dtype of the computation."""
  return network.cast_params(params, dtype)


def power_of_two(number: int) -> int:
  """The least power of two that is no smaller than `number`."""
  return 1 << (number - 1).bit_length()


def groups_by_length(
  lengths: np.ndarray, most: int, group_tokens: int
) -> list[np.ndarray]:
  """Requests that go into sequences of one length, the short ones first.

  Attention over a long packed sequence costs more than over short ones.

  Args:
    lengths: [requests] int, in tokens.
    most: The longest sequence; what is longer is cut into windows.
    group_tokens: The least tokens of a group, except the last: each group may
      need another program.

  Returns:
    For each group the numbers of its requests, [n] int, in order.
  """
  fitting = [power_of_two(max(n, MIN_LENGTH)) for n in lengths.tolist()]
  fitting = np.minimum(fitting, power_of_two(most))
  groups, waiting = [], np.zeros(len(lengths), bool)
  for length in np.unique(fitting):
    waiting |= fitting == length
    if lengths[waiting].sum() >= group_tokens:
      groups.append(np.flatnonzero(waiting))
      waiting[:] = False
  return [*groups, np.flatnonzero(waiting)] if waiting.any() else groups


def load_model(
  path: str,
  *,
  step: int = -1,
  vocabulary: str = '',
  max_length: int = 1024,
  window_overlap: int | None = None,
  dtype: str = 'float32',
  adds_bos: bool | None = None,
  mesh: MeshConfig | None = None,
) -> LanguageModel:
  """Loads a model to score texts with.

  Args:
    path: The folder of a finished run (DIR/reference, DIR/train/ARM/seed-N), a
      .safetensors file of tools/export_params.py, a GGUF file, or a model of
      Hugging Face: its folder, or its id on the Hub.
    step: A step that the run has kept; -1 for its last.
    vocabulary: A SentencePiece .model, a tokenizer.json, or a folder with one;
      '' for that beside the model: in its folder, or in the workdir of a run.
    max_length: The most tokens of a context.
    window_overlap: Tokens that two windows of a long text share; None for a
      quarter of `max_length`.
    dtype: The dtype of the computation, 'float32' or 'bfloat16'.
    adds_bos: Whether BOS precedes a context. None to do as the tokenizer of a
      Hugging Face model does, and to add it for models that were trained here.
    mesh: The axes of the devices; None for one copy of the model on each.

  Raises:
    UserError: there is no such model or vocabulary, or they do not belong
      together.
  """
  check_range('max_length', max_length, 2, 2**31 - 1)
  given, words = _open(CheckpointConfig(path=path, step=step), vocabulary)
  length = min(max_length, given.model.max_positions or max_length)
  scoring = ScoringConfig(
    per_device_batch_size=1,
    sequence_length=length,
    window_overlap=length // 4 if window_overlap is None else window_overlap,
    dtype=dtype,
  )
  on = mesh_lib.make_mesh(MeshConfig() if mesh is None else mesh)
  vocab_size = given.facts['vocab_size']
  return LanguageModel(
    given.model,
    prepared(references.load(given, on), dtype),
    vocab_size,
    words,
    on,
    scoring,
    _adds_bos(given.path, words) if adds_bos is None else adds_bos,
  )


def _open(
  checkpoint: CheckpointConfig, vocabulary: str
) -> tuple[references.Reference, Vocabulary]:
  """A model that is not loaded yet, and its vocabulary."""
  how = {
    field.name: default_of(field)
    for field in dataclasses.fields(ModelConfig)
    if field.name in RUNTIME_ONLY_FIELDS
  }
  given = references.open_given('the scores', checkpoint, how)
  words = _vocabulary(given.path, vocabulary)
  if given.facts['vocabulary'] != words.hash:
    raise UserError(
      f'{given.path} was trained with the vocabulary '
      f'{given.facts["vocabulary"]}, but the one named, or the one beside it, is '
      f'{words.hash}: name the vocabulary of the model (vocabulary=PATH).'
    )
  return given, words


def _vocabulary(model_path: str, path: str) -> Vocabulary:
  """The vocabulary that is named, or that lies beside a model."""
  if path:
    return vocabulary_files.open_given(VocabularyConfig(path=path))
  if hugging_face.is_imported(model_path):
    return vocabulary_files.open_given(VocabularyConfig(path=model_path))
  folder = model_path
  for _ in range(_LEVELS):
    folder = posixpath.dirname(folder)
    beside = vocabulary_dir(folder)
    if manifests.read_manifest(beside, 'tokenize') is not None:
      return Vocabulary.load(beside)
  raise UserError(
    f'No vocabulary lies beside {model_path}: name it (vocabulary=PATH), for '
    'instance the file in vocabulary/ of the workdir that it was trained in.'
  )


def _adds_bos(path: str, words: Vocabulary) -> bool:
  """Whether BOS precedes the texts that a model was trained on."""
  if (
    not hugging_face.is_imported(path)
    or words.kind != vocabulary_lib.TOKENIZERS
  ):
    return True
  opened = tokenizers.Tokenizer.from_str(words.model.decode())
  return opened.encode('').ids[:1] == [words.bos_id]
