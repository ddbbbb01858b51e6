"""The NLL of documents under a model.

Packed rows go through the compiled program; per-token NLL comes back in
float32, is put in token order on the host, and is summed there in float64. BOS
conditions a document's first token; EOS is not counted.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from infoprune_jax import hosts
from infoprune_jax.config import ModelConfig, ScoringConfig, UserError
from infoprune_jax.data import packing
from infoprune_jax.data.token_store import TokenStore
from infoprune_jax.model import checkpoints, flops, network, partitioning
from infoprune_jax.score import statistics, stream

# What every table of losses takes over from the store.
DOCUMENT_COLUMNS = (
  'example_id',
  'source',
  'num_tokens',
  'num_bytes',
  'content_hash',
)


class Documents:
  """Documents laid out in rows, and the NLL of their tokens as it comes."""

  def __init__(
    self,
    store: TokenStore,
    shard: np.ndarray,
    row: np.ndarray,
    scoring: ScoringConfig,
  ):
    """Packs documents.

    Args:
      store: Where they are.
      shard: [documents] int, the part of each.
      row: [documents] int, its row in the part.
      scoring: Length and overlap of rows.
    """
    self._store, self._shard, self._row = store, shard, row
    self._num_tokens = _num_tokens(store, shard, row)
    self._offsets = np.cumsum(self._num_tokens) - self._num_tokens
    plan = packing.pack(
      self._num_tokens, scoring.row_length, scoring.window_overlap, seed=0
    )
    self.rows = packing.PackedRows(store, shard, row, plan)
    # NaN marks a token not scored yet: each must be reached, exactly once.
    self._nll = np.full(self._num_tokens.sum(), np.nan, np.float32)

  def batches(
    self, size: int
  ) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Which rows, and the rows themselves, padded to `size`."""
    for first in range(0, len(self.rows), size):
      chosen = np.arange(first, min(first + size, len(self.rows)))
      yield chosen, self.rows.batch(chosen, size)

  def add(self, chosen: np.ndarray, nll: np.ndarray) -> int:
    """Takes the NLL of rows, [size, T] float32; returns how many tokens."""
    return _scatter(self.rows.plan, chosen, nll, self._offsets, self._nll)

  def sums(self) -> np.ndarray:
    """The NLL of each document, [documents] float64, in nats.

    Raises:
      UserError: the model gave a token no finite NLL; the document is named.
    """
    finite = np.isfinite(self._nll)
    if not finite.all():
      bad = np.searchsorted(
        self._offsets, np.flatnonzero(~finite)[0], side='right'
      )
      raise UserError(
        f'The model gives no finite NLL to document (shard '
        f'{self._shard[bad - 1]}, row {self._row[bad - 1]}) of '
        f'{self._store.path}: is its checkpoint sound, and its dtype wide '
        'enough?'
      )
    return statistics.sums_by_document(self._nll, self._num_tokens)


@dataclasses.dataclass(frozen=True)
class Scorer:
  """A model's NLL program, compiled for a mesh and a batch shape."""

  mesh: Any
  scoring: ScoringConfig
  flops_per_token: float
  _nll: Any  # (params, batch) -> [B, T] float32

  @functools.cached_property
  def groups(self) -> list[tuple[list[int], list[int]]]:
    """As `partitioning.row_groups`."""
    return partitioning.row_groups(self.mesh)

  @functools.cached_property
  def group(self) -> int:
    """Which of the groups this process is in."""
    return [hosts.index() in processes for processes, _ in self.groups].index(
      True
    )

  @property
  def batch_size(self) -> int:
    """Rows that this process feeds at once."""
    _, shards = self.groups[self.group]
    return len(shards) * self.scoring.per_device_batch_size

  def flops(self, documents: Documents) -> float:
    """What its rows cost; rows of padding are no part of the work."""
    slots = len(documents.rows) * self.scoring.row_length
    return slots * self.flops_per_token

  def run(self, items: Iterator[stream.Item], times: stream.Times) -> None:
    """Runs batches through the program, see `stream.run`."""
    stream.run(self.mesh, self._nll, items, times)

  def document_nll(
    self,
    params: Any,
    store: TokenStore,
    shard: np.ndarray,
    row: np.ndarray,
    on_batch: Callable[[int], None] = lambda tokens: None,
  ) -> tuple[np.ndarray, float]:
    """The NLL of whole documents, on the devices of one process.

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
    documents = Documents(store, shard, row, self.scoring)

    def items() -> Iterator[stream.Item]:
      for chosen, batch in documents.batches(self.batch_size):
        yield (
          lambda nll, c=chosen: on_batch(documents.add(c, nll)),
          params,
          batch,
        )

    self.run(items(), stream.Times())
    return documents.sums(), self.flops(documents)


def _num_tokens(
  store: TokenStore, shard: np.ndarray, row: np.ndarray
) -> np.ndarray:
  """The length of each document, [documents] int64."""
  lengths = np.zeros(len(shard), np.int64)
  for part in np.unique(shard).tolist():
    here = shard == part
    lengths[here] = store.part(part).column('num_tokens')[row[here]]
  return lengths


def _scatter(
  plan: packing.Plan,
  rows: np.ndarray,
  nll: np.ndarray,
  offsets: np.ndarray,
  flat: np.ndarray,
) -> int:
  """Puts the NLL of packed rows in token order, and counts the tokens."""
  counted = 0
  for position, row in enumerate(rows):
    left = 0
    for piece in range(plan.row_offsets[row], plan.row_offsets[row + 1]):
      length, context = int(plan.length[piece]), int(plan.context[piece])
      start = offsets[plan.document[piece]] + plan.start[piece]
      target = flat[start + context : start + length]
      if not np.isnan(target).all():
        raise AssertionError('A token was scored twice.')
      target[:] = nll[position, left + context : left + length]
      counted += length - context
      left += length
  return counted


@functools.lru_cache(maxsize=4)
def compile_scorer(
  model: ModelConfig, scoring: ScoringConfig, vocab_size: int, mesh: Any
) -> Scorer:
  """Compiles the NLL program of a model.

  Raises:
    UserError: the shapes do not divide over the mesh.
  """
  batch_size = scoring.per_device_batch_size * partitioning.batch_ways(mesh)
  model = dataclasses.replace(model, dtype=scoring.dtype, remat=False)
  batch_sharding = partitioning.batch_sharding(mesh)
  batch = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=batch_sharding),
    packing.empty_rows(batch_size, scoring.row_length),
  )
  with partitioning.use_mesh(mesh):
    compiled = (
      jax.jit(
        lambda params, batch: network.batch_nll(model, params, batch),
        out_shardings=batch_sharding,
      )
      .lower(abstract_params(model, vocab_size, mesh), batch)
      .compile()
    )
  return Scorer(
    mesh,
    scoring,
    flops.forward_flops_per_token(model, vocab_size, scoring.row_length),
    compiled,
  )


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


def load_params(
  model: ModelConfig, run: str, step: int, vocab_size: int, mesh: Any
) -> Any:
  """The parameters of a finished run, spread over a mesh.

  Raises:
    UserError: as `checkpoints.load_params`.
  """
  target = abstract_params(model, vocab_size, mesh)
  shardings = [leaf.sharding for leaf in jax.tree.leaves(target)]
  if all(s.is_fully_addressable or s.is_fully_replicated for s in shardings):
    return checkpoints.load_params(run, step, target)
  # What is spread over hosts none can compare with its checksum: each reads the
  # whole, over its own devices, and keeps its share.
  own = abstract_params(model, vocab_size, partitioning.own_mesh(mesh))
  return jax.tree.map(
    lambda x, s: partitioning.spread(np.asarray(x), s.sharding),
    checkpoints.load_params(run, step, own),
    target,
  )
