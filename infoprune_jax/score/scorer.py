"""The NLL of documents under a model, or under several at once.

Packed sequences go through the compiled program; per-token NLL comes back in
float32, is put in token order on the host, and is summed there in float64. BOS
conditions a document's first token; EOS is not counted.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import jax
import numpy as np

from infoprune_jax.batches import packing
from infoprune_jax.config.experiment import ScoringConfig
from infoprune_jax.config.model import ModelConfig
from infoprune_jax.config.validation import UserError
from infoprune_jax.model import (
  attention,
  backends,
  flops,
  network,
  partitioning,
)
from infoprune_jax.model.mesh import Mesh
from infoprune_jax.runtime import distributed
from infoprune_jax.score import memory, stream
from infoprune_jax.statistics import statistics
from infoprune_jax.tokens.token_store import TokenStore

# What every table of losses takes over from the store.
DOCUMENT_COLUMNS = (
  'example_id',
  'source',
  'num_tokens',
  'num_bytes',
  'content_hash',
)
_SENT = 10_000  # numbers to the other hosts at once


class Documents:
  """Documents laid out in sequences, and the NLL of their tokens as it comes."""

  def __init__(
    self,
    store: TokenStore,
    shard_index: np.ndarray,
    doc_index: np.ndarray,
    scoring: ScoringConfig,
    num_models: int = 1,
  ):
    """Packs documents.

    Args:
      store: Where they are.
      shard_index: [documents] int, the shard of each.
      doc_index: [documents] int, its index in the shard.
      scoring: Length and overlap of sequences.
      num_models: Which give each token an NLL.
    """
    self._store = store
    self._shard_index, self._doc_index = shard_index, doc_index
    self._num_tokens = _num_tokens(store, shard_index, doc_index)
    self._offsets = np.cumsum(self._num_tokens) - self._num_tokens
    plan = packing.pack(
      self._num_tokens, scoring.sequence_length, scoring.window_overlap, seed=0
    )
    # Sequences of a batch with about as many segments: see `Scorer.program`.
    plan = plan.ordered(np.argsort(plan.segments_per_sequence, kind='stable'))
    self.sequences = packing.PackedSequences(
      store, shard_index, doc_index, plan
    )
    self.size = len(shard_index)
    # NaN marks a token not scored yet: each must be reached, exactly once.
    shape = (num_models, self._num_tokens.sum())
    self._nll = np.full(shape, np.nan, np.float32)

  def batches(
    self, size: int, vocab_size: int
  ) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Which sequences, and the sequences themselves, padded to `size`.

    Raises:
      UserError: a token id is beyond the model's vocabulary, whose NLL would
        be that of another token; the document is named.
    """
    for first in range(0, len(self.sequences), size):
      chosen = np.arange(first, min(first + size, len(self.sequences)))
      batch = self.sequences.batch(chosen, size)
      if batch['decoder_target_tokens'].max() >= vocab_size:
        self._refuse_tokens(chosen, batch, vocab_size)
      yield chosen, batch

  def _refuse_tokens(
    self, chosen: np.ndarray, batch: dict[str, np.ndarray], vocab_size: int
  ) -> NoReturn:
    slots = self.sequences.plan.slots(chosen)
    ids = batch['decoder_target_tokens'].reshape(-1)[slots.place]
    where = int(np.flatnonzero(ids >= vocab_size)[0])
    document = slots.document[where]
    raise UserError(
      f'Document {self._place(document)} has token id {ids[where]} at {slots.position[where]}'
      f', the model has a vocabulary of {vocab_size}: score with a model that '
      'was trained on this token store.'
    )

  def add(self, chosen: np.ndarray, nll: Sequence[np.ndarray]) -> int:
    """Takes each model's NLL of sequences, [size, T]; returns how many tokens."""
    return packing.scatter(
      self.sequences.plan, chosen, nll, self._offsets, self._nll
    )

  def _place(self, document: int) -> str:
    """Where a document is, for a message."""
    shard, doc_index = self._shard_index[document], self._doc_index[document]
    return f'(shard {shard}, doc_index {doc_index}) of {self._store.path}'

  def max_segments(self, chosen: np.ndarray | slice = slice(None)) -> int:
    """The most segments of any sequence, or of any of some sequences."""
    return int(self.sequences.plan.segments_per_sequence[chosen].max(initial=0))

  def sums(self) -> np.ndarray:
    """The NLL of each document, [models, documents] float64, in nats.

    Raises:
      UserError: a model gave a token no finite NLL; the document is named.
    """
    finite = np.isfinite(self._nll)
    if not finite.all():
      first = np.nonzero(~finite)[1][0]
      bad = np.searchsorted(self._offsets, first, side='right')
      raise UserError(
        f'The model gives no finite NLL to document {self._place(bad - 1)}: is '
        'its checkpoint sound, and its dtype wide enough?'
      )
    return np.stack(
      [statistics.sums_by_document(x, self._num_tokens) for x in self._nll]
    )


@dataclasses.dataclass(frozen=True)
class Scorer:
  """A model's NLL programs for a mesh and a batch shape."""

  mesh: Mesh
  model: ModelConfig  # with the kernels of the mesh
  scoring: ScoringConfig
  vocab_size: int

  @property
  def flops_per_token(self) -> float:
    """Of a full sequence, by our own formula."""
    return flops.forward_flops_per_token(
      self.model, self.vocab_size, self.scoring.sequence_length
    )

  def prepare(self, params: Any) -> Any:
    """Parameters as the programs take them, cast once and for all batches."""
    return _cast(params, self.scoring.dtype)

  def program(self, max_segments: int) -> Callable[[Any, Any], jax.Array]:
    """The compiled program for sequences of at most so many segments.

    Only cuDNN's attention wants to know: it is the slower the more there may
    be. There is one program for each of a few limits.

    Returns:
      A function of prepared parameters and a batch on the mesh, to [B, T].
    """
    limit = 0
    if self.model.attention == 'cudnn':
      limit = attention.segment_limit(max_segments)
    return _compile(self.model, self.scoring, self.vocab_size, self.mesh, limit)

  @functools.cached_property
  def groups(self) -> list[tuple[list[int], list[int]]]:
    """As `partitioning.process_groups`."""
    return partitioning.process_groups(self.mesh)

  @functools.cached_property
  def group(self) -> int:
    """Which of the groups this process is in."""
    return [
      distributed.index() in processes for processes, _ in self.groups
    ].index(True)

  @property
  def batch_size(self) -> int:
    """Sequences that this process feeds at once."""
    _, shards = self.groups[self.group]
    return len(shards) * self.scoring.per_device_batch_size

  def flops(self, documents: Documents) -> float:
    """What its sequences cost; sequences of padding are no part of the work."""
    slots = len(documents.sequences) * self.scoring.sequence_length
    return slots * self.flops_per_token

  def run(
    self,
    items: Iterator[stream.Item],
    times: stream.Times,
    others_bytes: int = 0,
  ) -> None:
    """Runs batches through programs, see `stream.run`.

    Args:
      items: The batches.
      times: Is added to.
      others_bytes: What else a device holds all the while.
    """
    with memory.oom_as_user_error(self, others_bytes):
      stream.run(self.mesh, items, times)

  def document_nll(
    self,
    params: Any,
    store: TokenStore,
    shard_index: np.ndarray,
    doc_index: np.ndarray,
    on_batch: Callable[[int], None] = lambda tokens: None,
  ) -> tuple[np.ndarray, float]:
    """The NLL of whole documents, which all processes ask for together.

    Args:
      params: The model's parameters, on the mesh.
      store: Where the documents are.
      shard_index: [documents] int, the shard of each.
      doc_index: [documents] int, its index in the shard.
      on_batch: Called with the number of tokens counted in each batch.

    Returns:
      [documents] float64 sums in nats (zero for a document without tokens),
      and the FLOPs spent.

    Raises:
      UserError: the model gave a token no finite NLL; the document is named.
    """
    # Documents go round the groups of hosts.
    turns = [slice(i, None, len(self.groups)) for i in range(len(self.groups))]
    groups = [
      Documents(store, shard_index[turn], doc_index[turn], self.scoring)
      for turn in turns
    ]
    params = self.prepare(params)
    self.run(self._items(groups, params, on_batch), stream.Times())
    sums = np.empty(len(shard_index))
    for turn, of_group in zip(turns, self._gathered(groups), strict=True):
      sums[turn] = of_group
    return sums, sum(self.flops(documents) for documents in groups)

  def _items(
    self,
    groups: list[Documents],
    params: Any,
    on_batch: Callable[[int], None],
  ) -> Iterator[stream.Item]:
    """This process's batches; all processes run equally many."""
    size, own = self.batch_size, groups[self.group]
    # Where hosts share programs they must choose alike, so by all documents.
    most = max(documents.max_segments() for documents in groups)
    shared = most if len(groups) > 1 else 0
    steps = 0
    for chosen, batch in own.batches(size, self.vocab_size):
      steps += 1
      program = self.program(shared or own.max_segments(chosen))
      yield (
        lambda nll, c=chosen: on_batch(own.add(c, nll)),
        [functools.partial(program, params)],
        batch,
      )
    padding = packing.empty_sequences(size, self.scoring.sequence_length)
    longest = max(-(-len(documents.sequences) // size) for documents in groups)
    for _ in range(longest - steps):
      program = functools.partial(self.program(most), params)
      yield lambda nll: None, [program], padding

  def _gathered(self, groups: list[Documents]) -> list[np.ndarray]:
    """The sums of each group's documents, on every process."""
    own = groups[self.group].sums()[0]
    if len(groups) == 1:
      return [own]
    longest = max(documents.size for documents in groups)
    what = 'the NLL of documents'
    segments = [
      distributed.all_gather(what, own[start : start + _SENT].tolist())
      for start in range(0, longest, _SENT)
    ]
    return [
      np.concatenate([np.array(segment[processes[0]]) for segment in segments])
      for processes, _ in self.groups
    ]


def _num_tokens(
  store: TokenStore, shard_index: np.ndarray, doc_index: np.ndarray
) -> np.ndarray:
  """The length of each document, [documents] int64."""
  lengths = np.zeros(len(shard_index), np.int64)
  for shard in np.unique(shard_index).tolist():
    here = shard_index == shard
    lengths[here] = store.shard(shard).column('num_tokens')[doc_index[here]]
  return lengths


def with_kernels(
  model: ModelConfig, scoring: ScoringConfig, mesh: Mesh
) -> ModelConfig:
  """A model as it is scored with on a mesh.

  Raises:
    UserError: a kernel that the config names does not run there, or sequences
      do not spread over the mesh.
  """
  partitioning.check_sequence_length(
    mesh,
    scoring.sequence_length,
    'sequence_length of score and evaluate.scoring',
  )
  return backends.resolve(
    dataclasses.replace(model, dtype=scoring.dtype, remat='none'),
    mesh,
    scoring.per_device_batch_size * partitioning.num_batch_shards(mesh),
    scoring.sequence_length,
  )


@functools.lru_cache(maxsize=4)
def compile_scorer(
  model: ModelConfig, scoring: ScoringConfig, vocab_size: int, mesh: Mesh
) -> Scorer:
  """Chooses kernels, and compiles the program of sequences with few segments.

  Raises:
    UserError: the shapes do not divide over the mesh, a kernel that the config
      names does not run there, or the program does not fit.
  """
  scorer = Scorer(mesh, with_kernels(model, scoring, mesh), scoring, vocab_size)
  with memory.oom_as_user_error(scorer):
    scorer.program(1)
  return scorer


@functools.lru_cache(maxsize=16)
def _compile(
  model: ModelConfig,
  scoring: ScoringConfig,
  vocab_size: int,
  mesh: Mesh,
  max_segments: int,
) -> Any:
  batch_size = scoring.per_device_batch_size * partitioning.num_batch_shards(
    mesh
  )
  batch_sharding = partitioning.batch_sharding(mesh)
  batch = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=batch_sharding),
    packing.empty_sequences(batch_size, scoring.sequence_length),
  )
  params = jax.eval_shape(
    functools.partial(network.cast_params, dtype=model.dtype),
    abstract_params(model, vocab_size, mesh),
  )
  params = jax.tree.map(
    lambda cast, whole: cast.update(sharding=whole.sharding),
    params,
    abstract_params(model, vocab_size, mesh),
  )
  with partitioning.use_mesh(mesh):
    return (
      jax.jit(
        lambda params, batch: network.batch_nll(
          model, params, batch, max_segments
        ),
        out_shardings=batch_sharding,
      )
      .lower(params, batch)
      .compile()
    )


@functools.partial(jax.jit, static_argnums=1)
def _cast(params: Any, dtype: str) -> Any:
  return network.cast_params(params, dtype)


def abstract_params(model: ModelConfig, vocab_size: int, mesh: Mesh) -> Any:
  """Shapes of the parameters, with their shardings on a mesh."""
  shapes = network.param_shapes(model, vocab_size)
  shardings = partitioning.shardings(
    mesh, shapes, network.param_axes(model, vocab_size), 'Parameter'
  )
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    shapes,
    shardings,
  )
