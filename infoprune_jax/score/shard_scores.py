"""The records of one shard of a score table, and what they are scored by."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from infoprune_jax.config.scoring import statistic_column
from infoprune_jax.runtime import artifacts
from infoprune_jax.runtime.manifests import Marker
from infoprune_jax.score import losses, scorer as scorer_lib
from infoprune_jax.score.documents import Documents
from infoprune_jax.tokens import tables, token_excess
from infoprune_jax.tokens.token_store import TokenStore


@dataclasses.dataclass(frozen=True)
class Model:
  """A model with its compiled programs and its loaded parameters."""

  column: str  # of the table
  scorer: scorer_lib.Scorer
  params: Any  # on the mesh, from `Scorer.prepare`


@dataclasses.dataclass(frozen=True)
class Fold:
  """A fold, and the models that score its documents."""

  number: int
  models: tuple[Model, ...]


@dataclasses.dataclass(frozen=True)
class PackedShard:
  """The documents of one shard that belong to one fold."""

  fold: Fold
  number: int  # of the shard
  doc_indices: np.ndarray  # [documents] int, their indices in the shard
  documents: Documents


class ShardScores:
  """The columns of one shard, filled fold by fold."""

  def __init__(self, store: TokenStore, number: int, columns: Sequence[str]):
    self._store, self._number = store, number
    self._part = store.shard(number)
    self._num_tokens = self._part.column('num_tokens')
    size = len(self._num_tokens)
    self._fold = np.full(size, -1, np.int8)  # -1 for a document not scored
    self._sums = {column: np.zeros(size) for column in columns}
    self._losses: dict[str, losses.Sums] = {}
    self._excess = np.zeros(0, np.uint8)  # [tokens] levels, if asked for
    self._excess_counts: list[list[int]] = []  # by fold and level
    self._flops = 0.0

  def add(self, packed: PackedShard) -> None:
    """Takes the sums of statistics by the models of a fold.

    Raises:
      UserError: a value is not finite.
    """
    by_model = packed.documents.sums()
    for model, sums in zip(packed.fold.models, by_model, strict=True):
      for name, values in sums.items():
        column = statistic_column(name, model.column)
        self._sums[column][packed.doc_indices] = values
      self._flops += model.scorer.flops(packed.documents)
    self._fold[packed.doc_indices] = packed.fold.number
    self._losses = losses.total([self._losses, self._losses_of(packed)])
    if packed.fold.models[0].scorer.scoring.token_excess:
      self._add_excess(packed)

  def _add_excess(self, packed: PackedShard) -> None:
    """Takes the excess of each token of the documents of one fold."""
    models = packed.fold.models
    nll = {
      model.column: values['nll']
      for model, values in zip(models, packed.documents.values(), strict=True)
    }
    name = models[0].scorer.scoring.token_excess
    levels = token_excess.levels(nll[f'nll_sum_{name}'] - nll['nll_sum'])
    scored = np.zeros(len(self._num_tokens), bool)
    scored[packed.doc_indices] = True
    if not len(self._excess):
      self._excess = np.full(
        self._num_tokens.sum(), token_excess.NOT_SCORED, np.uint8
      )
    self._excess[np.repeat(scored, self._num_tokens)] = levels
    self._excess_counts.append(token_excess.count(levels).tolist())

  def _losses_of(self, packed: PackedShard) -> dict[str, losses.Sums]:
    """The losses of the documents of one fold, by source."""
    nll = np.stack([values['nll'] for values in packed.documents.values()])
    counts, nll = losses.by_position(packed.documents.num_tokens, nll)
    columns = [model.column for model in packed.fold.models]
    # Of the tokens that are scored, in proportion.
    num_bytes = self._part.column('num_bytes')[packed.doc_indices]
    num_bytes = num_bytes / packed.documents.represented
    return losses.by_source(
      np.asarray(self._part.table('source')['source'])[packed.doc_indices],
      np.rint(num_bytes).astype(np.int64),
      counts,
      dict(zip(columns, nll, strict=True)),
    )

  def write(self, scores: artifacts.Artifact) -> Marker:
    """Writes the shard, and returns its marker."""
    doc_indices = np.flatnonzero(self._fold >= 0)
    written = tables.shard_table(
      tables.score_schema(list(self._sums)),
      self._number,
      doc_indices,
      self._part.table(*scorer_lib.DOCUMENT_COLUMNS),
      fold=self._fold[doc_indices],
      **{column: sums[doc_indices] for column, sums in self._sums.items()},
    )
    total = self._store.totals[self._number]
    files = tables.shard_file(written, self._number, total)
    counts: dict[str, Any] = {}
    if self._excess_counts:
      name = token_excess.file(self._number, total)
      files[name] = lambda file: np.save(file, self._excess)
      counts['excess_counts'] = self._excess_counts
    return scores.finish_shard(
      self._number,
      total,
      files,
      num_examples=len(doc_indices),
      num_tokens=int(self._num_tokens[doc_indices].sum()),
      num_bytes=int(self._part.column('num_bytes')[doc_indices].sum()),
      flops=self._flops,
      losses=self._losses,
      **counts,
    )
