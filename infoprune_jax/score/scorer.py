"""The NLL of documents under a model, and the stage that scores a corpus.

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
import pyarrow.parquet as pq

from infoprune_jax import artifacts, config as config_lib, files
from infoprune_jax.config import Config, ModelConfig, ScoringConfig, UserError
from infoprune_jax.data import folds as folds_lib, packing
from infoprune_jax.data.token_store import TokenStore
from infoprune_jax.model import checkpoints, flops, network, partitioning
from infoprune_jax.progress import Progress, logger
from infoprune_jax.score import statistics, table

# What every table of losses takes over from the store.
DOCUMENT_COLUMNS = (
  'example_id',
  'source',
  'num_tokens',
  'num_bytes',
  'content_hash',
)


@dataclasses.dataclass(frozen=True)
class Scorer:
  """A model's NLL program, compiled for a mesh and a batch shape."""

  mesh: Any
  scoring: ScoringConfig
  flops_per_token: float
  _nll: Any  # (params, batch) -> [B, T] float32

  def document_nll(
    self,
    params: Any,
    store: TokenStore,
    shard: np.ndarray,
    row: np.ndarray,
    on_batch: Callable[[int], None] = lambda tokens: None,
  ) -> tuple[np.ndarray, float]:
    """The NLL of whole documents.

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
    num_tokens = _num_tokens(store, shard, row)
    plan = packing.pack(
      num_tokens,
      self.scoring.row_length,
      self.scoring.window_overlap,
      seed=0,
    )
    rows = packing.PackedRows(store, shard, row, plan)
    offsets = np.cumsum(num_tokens) - num_tokens
    # NaN marks a token not scored yet: each must be reached, exactly once.
    flat = np.full(num_tokens.sum(), np.nan, np.float32)
    batches = 0
    for chosen, nll in self._batches(params, rows):
      counted = _scatter(plan, chosen, nll, offsets, flat)
      batches += 1
      on_batch(counted)
    if not np.isfinite(flat).all():
      bad = np.searchsorted(
        offsets, np.flatnonzero(~np.isfinite(flat))[0], side='right'
      )
      raise UserError(
        f'The model gives no finite NLL to document (shard '
        f'{shard[bad - 1]}, row {row[bad - 1]}) of {store.path}: is its '
        'checkpoint sound, and its dtype wide enough?'
      )
    slots = batches * self.scoring.batch_size * self.scoring.row_length
    return (
      statistics.sums_by_document(flat, num_tokens),
      slots * self.flops_per_token,
    )

  def _batches(
    self, params: Any, rows: packing.PackedRows
  ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows and their NLL; the device runs one batch ahead of the host."""
    size = self.scoring.batch_size
    ahead = None
    for first in range(0, len(rows), size):
      chosen = np.arange(first, min(first + size, len(rows)))
      batch = partitioning.global_batch(self.mesh, rows.batch(chosen, size))
      nll = self._nll(params, batch)
      if ahead is not None:
        yield ahead[0], np.asarray(ahead[1])
      ahead = chosen, nll
    if ahead is not None:
      yield ahead[0], np.asarray(ahead[1])


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
  partitioning.check_batch(mesh, scoring.batch_size, 'scoring.batch_size')
  model = dataclasses.replace(model, dtype=scoring.dtype, remat=False)
  batch_sharding = partitioning.batch_sharding(mesh)
  batch = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=batch_sharding),
    packing.empty_rows(scoring.batch_size, scoring.row_length),
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


@dataclasses.dataclass(frozen=True)
class _Reference:
  """The model of one fold, and how it speaks of words."""

  fold: int
  params: Any  # on the mesh
  unigram_nll: np.ndarray  # [V] float64, nats


def open_references(
  config: Config, workdir: str, store: TokenStore
) -> list[dict[str, Any]]:
  """The manifest of each fold's reference model.

  Raises:
    UserError: one is missing, or trained on another token store.
  """
  manifests = []
  for fold in range(config.reference.folds):
    path = artifacts.reference_dir(workdir, fold, config.reference.folds)
    manifest = artifacts.open_finished(path, 'reference model', 'reference')
    artifacts.check_made_from(
      manifest, 'reference model', 'token_store', store.manifest, 'token store'
    )
    manifests.append(manifest)
  return manifests


def run(config: Config, workdir: str) -> None:
  """Writes the score table: of the scored split, or of both halves.

  Raises:
    UserError: an input is missing, or what is there belongs to another.
  """
  path = artifacts.scores_dir(workdir)
  store = TokenStore.open(workdir)
  references = open_references(config, workdir, store)
  scores = artifacts.Artifact(
    path,
    'score table',
    'score',
    score_options(config),
    {
      'token_store': store.fingerprint,
      **{
        artifacts.reference_input(fold, len(references)): manifest[
          'fingerprint'
        ]
        for fold, manifest in enumerate(references)
      },
    },
  )
  with files.lock(path):
    if scores.finished():
      logger.info('score: finished before, skipped')
      return
    _write(config, workdir, store, references, scores)


def score_options(config: Config) -> dict[str, Any]:
  """What of the config decides the scores; the mesh and the batch do not."""
  options = config_lib.to_plain(config.score)
  del options['batch_size']
  return {
    **options,
    'folds': config.reference.folds,
    'param_dtype': 'float32',
    'first_token': 'conditioned on BOS',
    'eos_counted': False,
  }


def _write(
  config: Config,
  workdir: str,
  store: TokenStore,
  manifests: list[dict[str, Any]],
  scores: artifacts.Artifact,
) -> None:
  """Scores the parts that are not done, then writes the manifest."""
  scores.begin()
  markers = {
    part: marker
    for part in range(store.num_parts)
    if (marker := scores.finished_part(part, store.num_parts))
  }
  if markers:
    logger.info(
      'score: %d of %d parts were done before', len(markers), store.num_parts
    )
  mesh = partitioning.make_mesh(config.mesh)
  scorer = compile_scorer(
    config.reference.model, config.score, store.vocab_size, mesh
  )
  references = _load_references(config, workdir, store, mesh, manifests)
  progress = Progress(
    'score',
    'tokens',
    _tokens_to_score(store, len(references)),
    done=sum(marker['num_tokens'] for marker in markers.values()),
  )
  for part in range(store.num_parts):
    if part not in markers:
      markers[part] = _write_part(
        scorer, references, store, part, scores, progress
      )
  ordered = [markers[part] for part in range(store.num_parts)]
  scores.finish(
    {name: file for m in ordered for name, file in m['files'].items()},
    num_parts=store.num_parts,
    **{
      total: sum(marker[total] for marker in ordered)
      for total in ('num_examples', 'num_tokens', 'num_bytes', 'flops')
    },
  )
  progress.finish()


def _load_references(
  config: Config,
  workdir: str,
  store: TokenStore,
  mesh: Any,
  manifests: list[dict[str, Any]],
) -> list[_Reference]:
  folds = len(manifests)
  shapes = abstract_params(config.reference.model, store.vocab_size, mesh)
  return [
    _Reference(
      fold,
      checkpoints.load_params(
        artifacts.reference_dir(workdir, fold, folds), manifest['step'], shapes
      ),
      statistics.unigram_nll(folds_lib.unigram_counts(store, fold, folds)),
    )
    for fold, manifest in enumerate(manifests)
  ]


def _tokens_to_score(store: TokenStore, folds: int) -> int:
  splits = store.manifest['splits']
  scored = ('scored',) if folds == 1 else ('scored', 'reference')
  return sum(splits[name]['tokens'] for name in scored)


def _write_part(
  scorer: Scorer,
  references: list[_Reference],
  store: TokenStore,
  shard: int,
  scores: artifacts.Artifact,
  progress: Progress,
) -> dict[str, Any]:
  """Scores one part of the store, writes it, and returns its marker."""
  part = store.part(shard)
  num_tokens = part.column('num_tokens')
  fold = np.full(len(num_tokens), -1, np.int8)  # -1 is scored by none.
  nll_sum = np.zeros(len(num_tokens))
  unigram_sum = np.zeros(len(num_tokens))
  spent = 0.0
  for reference in references:
    rows = folds_lib.scored_rows(part, reference.fold, len(references))
    nll_sum[rows], flops_spent = scorer.document_nll(
      reference.params,
      store,
      np.full(len(rows), shard),
      rows,
      on_batch=progress.add,
    )
    unigram_sum[rows] = statistics.sums_by_document(
      reference.unigram_nll[part.tokens], num_tokens
    )[rows]
    fold[rows] = reference.fold
    spent += flops_spent
  rows = np.flatnonzero(fold >= 0)
  written = table.part_table(
    table.SCORE_SCHEMA,
    shard,
    rows,
    part.table(*DOCUMENT_COLUMNS, 'compressed_bytes'),
    nll_sum=nll_sum[rows],
    unigram_nll_sum=unigram_sum[rows],
    fold=fold[rows],
  )
  return scores.finish_part(
    shard,
    store.num_parts,
    {'.parquet': lambda file: pq.write_table(written, file)},
    num_examples=len(rows),
    num_tokens=int(num_tokens[rows].sum()),
    num_bytes=int(part.column('num_bytes')[rows].sum()),
    flops=spent,
  )
