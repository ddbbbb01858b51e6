"""The NLL of documents under a model, or under several at once.

Packed rows go through the compiled program; per-token NLL comes back in
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
  """Documents laid out in rows, and the NLL of their tokens as it comes."""

  def __init__(
    self,
    store: TokenStore,
    shard: np.ndarray,
    row: np.ndarray,
    scoring: ScoringConfig,
    num_models: int = 1,
  ):
    """Packs documents.

    Args:
      store: Where they are.
      shard: [documents] int, the part of each.
      row: [documents] int, its row in the part.
      scoring: Length and overlap of rows.
      num_models: Which give each token an NLL.
    """
    self._store, self._shard, self._row = store, shard, row
    self._num_tokens = _num_tokens(store, shard, row)
    self._offsets = np.cumsum(self._num_tokens) - self._num_tokens
    plan = packing.pack(
      self._num_tokens, scoring.row_length, scoring.window_overlap, seed=0
    )
    # Rows of a batch with about as many pieces: see `Scorer.program`.
    plan = plan.ordered(np.argsort(plan.pieces_per_row, kind='stable'))
    self.rows = packing.PackedRows(store, shard, row, plan)
    self.size = len(shard)
    # NaN marks a token not scored yet: each must be reached, exactly once.
    shape = (num_models, self._num_tokens.sum())
    self._nll = np.full(shape, np.nan, np.float32)

  def batches(
    self, size: int, vocab_size: int
  ) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Which rows, and the rows themselves, padded to `size`.

    Raises:
      UserError: a token id is beyond the model's vocabulary, whose NLL would
        be that of another token; the document is named.
    """
    for first in range(0, len(self.rows), size):
      chosen = np.arange(first, min(first + size, len(self.rows)))
      batch = self.rows.batch(chosen, size)
      if batch['decoder_target_tokens'].max() >= vocab_size:
        self._refuse_tokens(chosen, batch, vocab_size)
      yield chosen, batch

  def _refuse_tokens(
    self, chosen: np.ndarray, batch: dict[str, np.ndarray], vocab_size: int
  ) -> NoReturn:
    slots = self.rows.plan.slots(chosen)
    ids = batch['decoder_target_tokens'].reshape(-1)[slots.place]
    where = int(np.flatnonzero(ids >= vocab_size)[0])
    document = slots.document[where]
    raise UserError(
      f'Document (shard {self._shard[document]}, row {self._row[document]}) of '
      f'{self._store.path} has token id {ids[where]} at {slots.position[where]}'
      f', the model has a vocabulary of {vocab_size}: score with a model that '
      'was trained on this token store.'
    )

  def add(self, chosen: np.ndarray, nll: Sequence[np.ndarray]) -> int:
    """Takes each model's NLL of rows, [size, T]; returns how many tokens."""
    return packing.scatter(
      self.rows.plan, chosen, nll, self._offsets, self._nll
    )

  def max_pieces(self, chosen: np.ndarray | slice = slice(None)) -> int:
    """The most pieces of any row, or of any of some rows."""
    return int(self.rows.plan.pieces_per_row[chosen].max(initial=0))

  def sums(self) -> np.ndarray:
    """The NLL of each document, [models, documents] float64, in nats.

    Raises:
      UserError: a model gave a token no finite NLL; the document is named.
    """
    finite = np.isfinite(self._nll)
    if not finite.all():
      bad = np.searchsorted(
        self._offsets, np.nonzero(~finite)[1][0], side='right'
      )
      raise UserError(
        f'The model gives no finite NLL to document (shard '
        f'{self._shard[bad - 1]}, row {self._row[bad - 1]}) of '
        f'{self._store.path}: is its checkpoint sound, and its dtype wide '
        'enough?'
      )
    return np.stack(
      [statistics.sums_by_document(x, self._num_tokens) for x in self._nll]
    )


@dataclasses.dataclass(frozen=True)
class Scorer:
  """A model's NLL programs for a mesh and a batch shape."""

  mesh: Any
  model: ModelConfig  # with the kernels of the mesh
  scoring: ScoringConfig
  vocab_size: int

  @property
  def flops_per_token(self) -> float:
    """Of a full row, by our own formula."""
    return flops.forward_flops_per_token(
      self.model, self.vocab_size, self.scoring.row_length
    )

  def prepare(self, params: Any) -> Any:
    """Parameters as the programs take them, cast once and for all batches."""
    return _cast(params, self.scoring.dtype)

  def program(self, max_pieces: int) -> Callable[[Any, Any], jax.Array]:
    """The compiled program for rows of at most so many pieces.

    Only cuDNN's attention wants to know: it is the slower the more there may
    be. There is one program for each of a few limits.

    Returns:
      A function of prepared parameters and a batch on the mesh, to [B, T].
    """
    limit = 0
    if self.model.attention == 'cudnn':
      limit = attention.segment_limit(max_pieces)
    return _compile(self.model, self.scoring, self.vocab_size, self.mesh, limit)

  @functools.cached_property
  def groups(self) -> list[tuple[list[int], list[int]]]:
    """As `partitioning.row_groups`."""
    return partitioning.row_groups(self.mesh)

  @functools.cached_property
  def group(self) -> int:
    """Which of the groups this process is in."""
    return [
      distributed.index() in processes for processes, _ in self.groups
    ].index(True)

  @property
  def batch_size(self) -> int:
    """Rows that this process feeds at once."""
    _, shards = self.groups[self.group]
    return len(shards) * self.scoring.per_device_batch_size

  def flops(self, documents: Documents) -> float:
    """What its rows cost; rows of padding are no part of the work."""
    slots = len(documents.rows) * self.scoring.row_length
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
    with memory.user_errors(self, others_bytes):
      stream.run(self.mesh, items, times)

  def document_nll(
    self,
    params: Any,
    store: TokenStore,
    shard: np.ndarray,
    row: np.ndarray,
    on_batch: Callable[[int], None] = lambda tokens: None,
  ) -> tuple[np.ndarray, float]:
    """The NLL of whole documents, which all processes ask for together.

    Args:
      params: The model's parameters, on the mesh.
      store: Where the documents are.
      shard: [documents] int, the part of each.
      row: [documents] int, its row in the part.
      on_batch: Called with the number of tokens counted in each batch.

    Returns:
      [documents] float64 sums in nats (zero for a document without tokens),
      and the FLOPs spent.

    Raises:
      UserError: the model gave a token no finite NLL; the document is named.
    """
    ways = len(self.groups)  # Documents go round the groups of hosts.
    groups = [
      Documents(store, shard[group::ways], row[group::ways], self.scoring)
      for group in range(ways)
    ]
    params = self.prepare(params)
    self.run(self._items(groups, params, on_batch), stream.Times())
    sums = np.empty(len(shard))
    for group, found in enumerate(self._gathered(groups)):
      sums[group::ways] = found
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
    most = max(documents.max_pieces() for documents in groups)
    shared = most if len(groups) > 1 else 0
    steps = 0
    for chosen, batch in own.batches(size, self.vocab_size):
      steps += 1
      program = self.program(shared or own.max_pieces(chosen))
      yield (
        lambda nll, c=chosen: on_batch(own.add(c, nll)),
        [functools.partial(program, params)],
        batch,
      )
    padding = packing.empty_rows(size, self.scoring.row_length)
    longest = max(-(-len(documents.rows) // size) for documents in groups)
    for _ in range(longest - steps):
      program = functools.partial(self.program(most), params)
      yield lambda nll: None, [program], padding

  def _gathered(self, groups: list[Documents]) -> list[np.ndarray]:
    """The sums of each group's documents, on every process."""
    own = groups[self.group].sums()[0]
    if len(groups) == 1:
      return [own]
    longest = max(documents.size for documents in groups)
    pieces = [
      distributed.all_gather(
        'the NLL of documents', own[start : start + _SENT].tolist()
      )
      for start in range(0, longest, _SENT)
    ]
    return [
      np.concatenate([np.array(piece[processes[0]]) for piece in pieces])
      for processes, _ in self.groups
    ]


def _num_tokens(
  store: TokenStore, shard: np.ndarray, row: np.ndarray
) -> np.ndarray:
  """The length of each document, [documents] int64."""
  lengths = np.zeros(len(shard), np.int64)
  for part in np.unique(shard).tolist():
    here = shard == part
    lengths[here] = store.part(part).column('num_tokens')[row[here]]
  return lengths


def with_kernels(
  model: ModelConfig, scoring: ScoringConfig, mesh: Any
) -> ModelConfig:
  """A model as it is scored with on a mesh.

  Raises:
    UserError: a kernel that the config names does not run there, or rows do
      not spread over the mesh.
  """
  partitioning.check_row_length(
    mesh, scoring.row_length, 'row_length of score and evaluate.scoring'
  )
  return backends.resolve(
    dataclasses.replace(model, dtype=scoring.dtype, remat='none'),
    mesh,
    scoring.per_device_batch_size * partitioning.batch_ways(mesh),
    scoring.row_length,
  )


@functools.lru_cache(maxsize=4)
def compile_scorer(
  model: ModelConfig, scoring: ScoringConfig, vocab_size: int, mesh: Any
) -> Scorer:
  """Chooses kernels, and compiles the program of rows with few pieces.

  Raises:
    UserError: the shapes do not divide over the mesh, a kernel that the config
      names does not run there, or the program does not fit.
  """
  scorer = Scorer(mesh, with_kernels(model, scoring, mesh), scoring, vocab_size)
  with memory.user_errors(scorer):
    scorer.program(1)
  return scorer


@functools.lru_cache(maxsize=16)
def _compile(
  model: ModelConfig,
  scoring: ScoringConfig,
  vocab_size: int,
  mesh: Any,
  max_segments: int,
) -> Any:
  batch_size = scoring.per_device_batch_size * partitioning.batch_ways(mesh)
  batch_sharding = partitioning.batch_sharding(mesh)
  batch = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=batch_sharding),
    packing.empty_rows(batch_size, scoring.row_length),
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


def abstract_params(model: ModelConfig, vocab_size: int, mesh: Any) -> Any:
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
