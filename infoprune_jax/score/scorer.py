"""The NLL of documents under a model, and other statistics of their tokens.

A compiled program computes the statistics of each token of packed sequences in
float32. The host sums them in float64. The first token of a document is
conditioned on BOS. EOS is not counted.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from typing import Any

import jax
import numpy as np

from infoprune_jax.batches import packing
from infoprune_jax.config.model import ModelConfig
from infoprune_jax.config.scoring import ScoringConfig
from infoprune_jax.model import (
  backends,
  flops,
  memory as device_memory,
  network,
  partitioning,
)
from infoprune_jax.model.kernels import gpu_attention
from infoprune_jax.model.mesh import Mesh
from infoprune_jax.runtime import distributed
from infoprune_jax.runtime.progress import logger
from infoprune_jax.score import memory, stream
from infoprune_jax.score.documents import Documents
from infoprune_jax.tokens.token_store import TokenStore

# The columns that every table of losses copies from the token store.
DOCUMENT_COLUMNS = (
  'example_id',
  'source',
  'num_tokens',
  'num_bytes',
  'content_hash',
)
_SENT = 10_000  # numbers in one message to the other hosts


@dataclasses.dataclass(frozen=True)
class Scorer:
  """The scoring programs of a model for a mesh and a shape of batch."""

  mesh: Mesh
  model: ModelConfig  # with kernels for the mesh
  scoring: ScoringConfig
  vocab_size: int

  @property
  def flops_per_token(self) -> float:
    """FLOPs of a forward pass per token of a full sequence."""
    return flops.forward_flops_per_token(
      self.model, self.vocab_size, self.scoring.sequence_length
    )

  def prepare(self, params: Any) -> Any:
    """The parameters as the programs take them, cast once for all batches."""
    return _cast(params, self.scoring.dtype)

  def program(
    self, max_segments: int
  ) -> Callable[[Any, Any], dict[str, jax.Array]]:
    """The compiled program for sequences of at most `max_segments` segments.

    Only cuDNN's attention depends on the limit: it is slower the larger it is.
    A few limits have a program each.

    Returns:
      A function of prepared parameters and a batch on the mesh. It gives the
      statistics in `ScoringConfig.token_statistics` by name, [B, T] float32.
    """
    return self._compiled(self._limit(max_segments))

  def _limit(self, max_segments: int) -> int:
    """The limit that a program is compiled for; 0 if it needs none."""
    if self.model.attention != 'cudnn':
      return 0
    return gpu_attention.segment_limit(max_segments + 1)  # and padding

  def _compiled(self, limit: int) -> Any:
    return _compile(self.model, self.scoring, self.vocab_size, self.mesh, limit)

  def compile(self, max_segments: Iterable[int]) -> None:
    """Compiles the programs for some numbers of segments, all at once.

    Several processes compile them in the same order, one after another.
    """
    limits = sorted({self._limit(number) for number in max_segments})
    alone = distributed.count() == 1
    with futures.ThreadPoolExecutor(
      max(len(limits), 1) if alone else 1
    ) as pool:
      list(pool.map(self._compiled, limits))

  @functools.cached_property
  def groups(self) -> list[tuple[list[int], list[int]]]:
    """The groups of hosts, from `partitioning.process_groups`."""
    return partitioning.process_groups(self.mesh)

  @functools.cached_property
  def group(self) -> int:
    """The index of this process's group."""
    return [
      distributed.index() in processes for processes, _ in self.groups
    ].index(True)

  @property
  def batch_size(self) -> int:
    """The sequences of a batch that this process feeds."""
    _, shards = self.groups[self.group]
    return len(shards) * self.scoring.per_device_batch_size

  def flops(self, documents: Documents) -> float:
    """The FLOPs of these documents' sequences, without sequences of padding."""
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
      times: The times of these batches are added to it.
      others_bytes: Bytes of the other arrays on a device.
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
    """The NLL of whole documents. All processes call this for the same ones.

    Args:
      params: The model's parameters, on the mesh.
      store: The token store that holds the documents.
      shard_index: [documents] int, the shard of each.
      doc_index: [documents] int, its index in the shard.
      on_batch: Called after each batch with its number of tokens.

    Returns:
      [documents] float64 sums in nats (zero for a document without tokens),
      and the FLOPs spent.

    Raises:
      UserError: an NLL is not finite. The message names the document.
    """
    groups = self._scored(params, store, shard_index, doc_index, on_batch)
    sums = np.empty(len(shard_index))
    own = groups[self.group].sums()[0]['nll']
    for turn, of_group in enumerate(self._gathered('the NLL', own)):
      sums[turn :: len(groups)] = of_group
    return sums, sum(self.flops(documents) for documents in groups)

  def token_statistics(
    self,
    params: Any,
    store: TokenStore,
    shard_index: np.ndarray,
    doc_index: np.ndarray,
    names: Sequence[str],
  ) -> dict[str, np.ndarray]:
    """The statistics of each token of whole documents, on every process.

    All processes call this for the same documents.

    Args:
      params: The model's parameters, on the mesh.
      store: The token store that holds the documents.
      shard_index: [documents] int, the shard of each.
      doc_index: [documents] int, its index in the shard.
      names: Some of `scoring.token_statistics`, such as 'nll' and 'greedy'.

    Returns:
      By name [tokens] float32: the tokens of the first document, then those of
      the second, and so on.

    Raises:
      UserError: a value is not finite. The message names the document.
      ValueError: the scorer was compiled without one of `names`.
    """
    missing = set(names) - set(self.scoring.token_statistics)
    if missing:
      raise ValueError(
        f'The scorer computes {self.scoring.token_statistics}, not '
        f'{sorted(missing)}: name them in scoring.statistics.'
      )
    groups = self._scored(params, store, shard_index, doc_index)
    own = groups[self.group].values()[0]
    # The document of each token.
    lengths = np.empty(len(shard_index), np.int64)
    for turn, documents in enumerate(groups):
      lengths[turn :: len(groups)] = documents.num_tokens
    document = np.repeat(np.arange(len(lengths)), lengths)
    statistics = {}
    for name in names:
      statistics[name] = np.empty(len(document), np.float32)
      for turn, values in enumerate(self._gathered(name, own[name])):
        statistics[name][document % len(groups) == turn] = values
    return statistics

  def _scored(
    self,
    params: Any,
    store: TokenStore,
    shard_index: np.ndarray,
    doc_index: np.ndarray,
    on_batch: Callable[[int], None] = lambda tokens: None,
  ) -> list[Documents]:
    """The documents of each group of hosts, of which this group's are scored.

    Group i has the documents [i :: number of groups].
    """
    turns = [slice(i, None, len(self.groups)) for i in range(len(self.groups))]
    groups = [
      Documents(store, shard_index[turn], doc_index[turn], self.scoring)
      for turn in turns
    ]
    params = self.prepare(params)
    self.run(self._items(groups, params, on_batch), stream.Times())
    return groups

  def _items(
    self,
    groups: list[Documents],
    params: Any,
    on_batch: Callable[[int], None],
  ) -> Iterator[stream.Item]:
    """The batches of this process. All processes run equally many."""
    size, own = self.batch_size, groups[self.group]
    # Hosts that run a program together must choose the same one. So the limit
    # is that of all documents.
    most = max(documents.max_segments() for documents in groups)
    shared = most if len(groups) > 1 else 0
    steps = 0
    for chosen, batch in own.batches(size, self.vocab_size):
      steps += 1
      program = self.program(shared or own.max_segments(chosen))
      yield stream.Item(
        lambda results, c=chosen: on_batch(own.add(c, results)),
        [functools.partial(program, params)],
        batch,
      )
    padding = packing.empty_sequences(size, self.scoring.sequence_length)
    longest = max(-(-len(documents.sequences) // size) for documents in groups)
    for _ in range(longest - steps):
      program = functools.partial(self.program(most), params)
      yield stream.Item(stream.ignore, [program], padding)

  def _gathered(self, name: str, own: np.ndarray) -> list[np.ndarray]:
    """The numbers of each group of hosts, in order, on every process.

    Args:
      name: The name of the numbers, for messages.
      own: [n] float, the numbers of this group. Groups may differ in n.
    """
    if len(self.groups) == 1:
      return [own]
    what = f'{name} of documents'
    sizes = distributed.all_gather(f'the number of {what}', len(own))
    segments = [
      distributed.all_gather(what, own[start : start + _SENT].tolist())
      for start in range(0, max(sizes), _SENT)
    ]
    return [
      np.concatenate(
        [np.zeros(0), *(segment[processes[0]] for segment in segments)]
      )
      for processes, _ in self.groups
    ]


def with_kernels(
  model: ModelConfig, scoring: ScoringConfig, mesh: Mesh
) -> ModelConfig:
  """The model with the kernels and the dtype that score it on a mesh.

  Raises:
    UserError: a kernel that the config names does not run there, or sequences
      cannot be sharded over the mesh.
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
    scoring.token_statistics,
  )


@functools.lru_cache(maxsize=16)
def compile_scorer(
  model: ModelConfig, scoring: ScoringConfig, vocab_size: int, mesh: Mesh
) -> Scorer:
  """Chooses kernels, and compiles the program for sequences of one segment.

  All processes call this together.

  Raises:
    UserError: shapes are no multiples of the mesh's axes, a kernel that the
      config names does not run there, or the program does not fit into memory.
  """
  scorer = choose(model, scoring, vocab_size, mesh)
  with memory.oom_as_user_error(scorer):
    scorer.program(1)
  return scorer


def choose(
  model: ModelConfig, scoring: ScoringConfig, vocab_size: int, mesh: Mesh
) -> Scorer:
  """The scorer of `compile_scorer`, with kernels, before it is compiled."""
  model = with_kernels(model, scoring, mesh)
  model = dataclasses.replace(
    model, scan_unroll=device_memory.scan_unroll(model, mesh)
  )
  if model.loss_kernel == 'xla' and not model.loss_chunk_tokens:
    model = device_memory.with_loss_chunk(model, vocab_size, mesh)
    chunk = model.loss_chunk_tokens or network.LOSS_CHUNK_TOKENS
    logger.info('scoring: model.loss_chunk_tokens=%d', chunk)
  return Scorer(mesh, model, scoring, vocab_size)


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
  params = prepared_shapes(model, vocab_size, mesh)
  with partitioning.use_mesh(mesh):
    return (
      jax.jit(
        lambda params, batch: network.batch_statistics(
          model, params, batch, max_segments, scoring.token_statistics
        ),
        out_shardings=batch_sharding,
      )
      .lower(params, batch)
      .compile()
    )


@functools.partial(jax.jit, static_argnums=1)
def _cast(params: Any, dtype: str) -> Any:
  return network.cast_params(params, dtype)


def prepared_shapes(model: ModelConfig, vocab_size: int, mesh: Mesh) -> Any:
  """Shapes of prepared parameters, with their shardings on a mesh."""
  whole = abstract_params(model, vocab_size, mesh)
  cast = jax.eval_shape(
    functools.partial(network.cast_params, dtype=model.dtype), whole
  )
  return jax.tree.map(lambda c, w: c.update(sharding=w.sharding), cast, whole)


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
