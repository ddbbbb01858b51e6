r"""Cheaper ways to score a corpus: what each costs, and what `top` then keeps.

  python benchmarks/cheaper_scoring.py --workdir=runs/mine \
      [--small=runs/small/reference] [--score='nll_sum / num_bytes'] \
      [--num_documents=1000] [--sequence_length=256]

The workdir has a reference model and statistics. Of the documents to score, as
many as asked for are drawn. `--small` is a smaller model with the same vocabulary, as in `reference.checkpoint.path`. The
program compares with full scoring: the frequencies of tokens, which need no
model; the first tokens of each document, whose NLL per token then stands for
all of it; the smaller model; and the reference model with rounded weights. Then
it looks for the least that two stages cost. The first stage ranks all
documents, and the reference model scores those that are near the threshold.

Rounded weights compute in float32, so their ranks are real and their speed is
not. Costs are FLOPs by the formula of `model/flops.py`, as fractions of those
of full scoring.
"""

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import scipy.stats

from infoprune_jax.config.experiment import CheckpointConfig, MeshConfig
from infoprune_jax.config.model import RUNTIME_ONLY_FIELDS, ModelConfig
from infoprune_jax.config.scoring import ScoringConfig
from infoprune_jax.config.validation import UserError, default_of
from infoprune_jax.model import mesh as mesh_lib, network
from infoprune_jax.model.mesh import Mesh
from infoprune_jax.runtime.workdir import reference_dir, statistics_dir
from infoprune_jax.score import references, scorer as scorer_lib, sequences
from infoprune_jax.score.documents import Documents
from infoprune_jax.selection import budget, ranks, rules
from infoprune_jax.selection.computed import Computed
from infoprune_jax.selection.examples import ExampleTable
from infoprune_jax.tokens import tables
from infoprune_jax.tokens.token_store import TokenStore

LENGTHS = (64, 128, 256)  # tokens of a document that are scored
FRACTIONS = (0.3, 0.5, 0.7)  # of the tokens that `top` keeps
KEPT = 0.95  # of the documents, and of their tokens
BANDS = np.arange(0.0, 2.005, 0.01)  # of all tokens, around the threshold


class Scored(NamedTuple):
  """The result of one way to score."""

  name: str
  nll: np.ndarray  # [documents] float64, an estimate of `nll_sum`
  flops: float
  seconds: float  # 0.0 if the time says nothing


@dataclasses.dataclass(frozen=True)
class Model:
  """A model on its mesh."""

  scorer: scorer_lib.Scorer
  params: Any

  def score(self, name: str, documents: list[np.ndarray]) -> Scored:
    """Scores token ids, BOS first, and counts FLOPs of whole sequences."""
    start = time.perf_counter()
    statistics = sequences.token_statistics(self.scorer, self.params, documents)
    seconds = time.perf_counter() - start
    nll = [values['nll'].sum(dtype=np.float64) for values in statistics]
    zeros = np.zeros(len(documents), np.int64)
    packed = Documents(
      sequences.SequenceStore(documents),  # pyright: ignore[reportArgumentType]
      zeros,
      np.arange(len(documents)),
      self.scorer.scoring,
    )
    return Scored(name, np.array(nll), self.scorer.flops(packed), seconds)

  def rounded(self, round_to: Callable[[jax.Array, Any], jax.Array]) -> 'Model':
    """The same model with other matrices; norms and biases stay."""
    model = self.scorer.model

    def replace(path: Any, leaf: jax.Array, names: tuple[str, ...]) -> Any:
      if path[-1].key in ('scale', 'bias'):
        return leaf
      return jax.device_put(round_to(leaf, _summed(names)), leaf.sharding)

    axes = network.param_axes(model, self.scorer.vocab_size)
    return dataclasses.replace(
      self,
      params=jax.tree_util.tree_map_with_path(replace, self.params, axes),
    )


def _summed(names: tuple[str, ...]) -> tuple[int, ...]:
  """The axes of a matrix that a product sums over: its inputs."""
  is_input = lambda name: name == 'embed'  # noqa: E731
  if names[-1] == 'embed' and 'vocab' not in names:
    is_input = lambda name: name not in ('layers', 'embed')  # noqa: E731
  return tuple(axis for axis, name in enumerate(names) if is_input(name))


def int8(weights: jax.Array, axes: tuple[int, ...]) -> jax.Array:
  """Rounds to 255 steps for each output channel."""
  scale = jnp.abs(weights).max(axis=axes, keepdims=True) / 127.0
  return jnp.round(weights / scale) * scale


def float8(weights: jax.Array, axes: tuple[int, ...]) -> jax.Array:
  """Rounds to float8_e4m3, whose largest number is 448, for each channel."""
  scale = jnp.abs(weights).max(axis=axes, keepdims=True) / 448.0
  return (weights / scale).astype(jnp.float8_e4m3fn).astype(jnp.float32) * scale


def load(path: str, scoring: ScoringConfig, mesh: Mesh) -> Model:
  """A model, and its program for these sequences."""
  how = {
    field.name: default_of(field)
    for field in dataclasses.fields(ModelConfig)
    if field.name in RUNTIME_ONLY_FIELDS
  }
  given = references.open_given('nll_sum', CheckpointConfig(path=path), how)
  scorer = scorer_lib.compile_scorer(
    given.model, scoring, given.vocab_size, mesh
  )
  model = Model(scorer, references.load(given, mesh))
  model.score('', [np.ones(3, np.int32)])  # Compiles what packs and casts.
  return model


class Ranking:
  """What a rule keeps of some documents, by one score or another."""

  def __init__(self, table: pa.Table, expression: str):
    """Takes the columns of documents, and the expression that ranks."""
    self._table, self._index = table, np.arange(table.num_rows)
    self._expression = expression
    self.weight = table['num_tokens'].to_numpy().astype(np.int32)
    self.total = int(self.weight.sum())

  def values(self, nll: np.ndarray) -> np.ndarray:
    """The values to rank by, if these were the column `nll_sum`."""
    place = self._table.schema.get_field_index('nll_sum')
    table = self._table.set_column(place, 'nll_sum', pa.array(nll))
    examples = ExampleTable(table, self._index)
    return examples.value(rules.ranking(examples, self._expression))

  def top(
    self, values: np.ndarray, tokens: float, candidates: np.ndarray
  ) -> np.ndarray:
    """The candidates of the highest values that this many tokens hold."""
    examples = ExampleTable(self._table, self._index)
    ranking = Computed(
      budget.Ranking,
      ~budget.ordered_bits(values),
      self._index,
      self.weight,
      np.zeros(len(values), np.int32),
      0,
    )
    kept = budget.lowest(examples, ranking, candidates, np.array([int(tokens)]))
    return examples.value(kept)

  def kept(self, values: np.ndarray, fraction: float) -> np.ndarray:
    """What `top` keeps: [documents] bool."""
    all_ = np.ones(len(values), bool)
    return self.top(values, fraction * self.total, all_)

  def two_stages(
    self, first: np.ndarray, full: np.ndarray, fraction: float, band: float
  ) -> np.ndarray:
    """What is kept if full scores decide near the threshold of the first.

    Args:
      first: [documents] the values of the first stage.
      full: [documents] those of full scoring.
      fraction: Of the tokens that are kept.
      band: Of the tokens that the second stage scores, half of them on each
        side of the threshold.
    """
    order = np.argsort(-first, kind='stable')
    end = np.empty(len(order))
    end[order] = np.cumsum(self.weight[order]) / self.total
    middle = end - self.weight / 2 / self.total
    near = np.abs(middle - fraction) <= band / 2
    sure = (end <= fraction) & ~near
    left = fraction * self.total - self.weight[sure].sum()
    return sure | self.top(full, left, near)

  def overlap(self, kept: np.ndarray, full: np.ndarray) -> tuple[float, float]:
    """The fractions of what full scoring keeps: of documents, of tokens."""
    both = kept & full
    tokens = self.weight[both].sum() / self.weight[full].sum()
    return both.sum() / full.sum(), tokens


def read_table(workdir: str, store: TokenStore, num_documents: int) -> pa.Table:
  """The columns of scores and statistics, without scores: zeros.

  Args:
    workdir: With statistics.
    store: Its token store.
    num_documents: How many to draw; 0 for all.
  """
  table = tables.read_table(statistics_dir(workdir))
  if num_documents:
    order = np.random.default_rng(0).permutation(table.num_rows)
    table = table.take(np.sort(order[:num_documents]))
  shard_index = table['shard'].to_numpy()
  columns = pa.concat_tables(
    store.shard(number)
    .table(*scorer_lib.DOCUMENT_COLUMNS)
    .take(table['doc_index'].to_numpy()[shard_index == number])
    for number in np.unique(shard_index).tolist()
  )
  for name in columns.column_names:
    table = table.append_column(name, columns[name])
  for name, kind in (('nll_sum', np.float64), ('fold', np.int8)):
    table = table.append_column(name, pa.array(np.zeros(len(table), kind)))
  return table.unify_dictionaries().combine_chunks()


def ways(
  models: dict[str, Model], table: pa.Table, store: TokenStore
) -> list[Scored]:
  """Scores the documents of a table in every way; full scoring is the first.

  Args:
    models: The reference model as '', and other models by name.
    table: From `read_table`.
    store: The token store.
  """
  model = models['']
  places = [table[name].to_pylist() for name in ('shard', 'doc_index')]
  documents = [
    np.append(store.bos_id, store.document(*place)).astype(np.int32)
    for place in zip(*places, strict=True)
  ]
  lengths = np.array([len(ids) - 1 for ids in documents])
  unigram = table['unigram_nll_sum'].to_numpy()
  results = [
    model.score('full', documents),
    Scored('token frequencies', unigram, 0.0, 0.0),
  ]
  for name, one in models.items():
    if name:
      results.append(one.score(name, documents))
    for most in LENGTHS:
      part = one.score(
        f'{name}, first {most} tokens'.removeprefix(', '),
        [ids[: most + 1] for ids in documents],
      )
      of_all = lengths / np.clip(lengths, 1, most)
      results.append(part._replace(nll=part.nll * of_all))
  for name, round_to in (('int8', int8), ('float8_e4m3', float8)):
    rounded = model.rounded(round_to).score(f'{name} weights', documents)
    results.append(rounded._replace(seconds=0.0))
  return results


def print_ways(ranking: Ranking, results: list[Scored]) -> None:
  """A Markdown table: cost, agreement of ranks, overlap of what is kept."""
  full = results[0]
  expected = ranking.values(full.nll)
  columns = ' | '.join(f'kept at {fraction}' for fraction in FRACTIONS)
  print(f'| | FLOPs | time | Spearman | Kendall | {columns} |')
  print('| --- |' + ' --- |' * (4 + len(FRACTIONS)))
  for one in results[1:]:
    values = ranking.values(one.nll)
    spearman = ranks.spearman(np.stack([values, expected]))[0, 1]
    kendall = scipy.stats.kendalltau(values, expected).statistic
    overlaps = [
      ranking.overlap(
        ranking.kept(values, fraction), ranking.kept(expected, fraction)
      )
      for fraction in FRACTIONS
    ]
    kept = ' | '.join(f'{d:.1%}, {t:.1%}' for d, t in overlaps)
    seconds = f'{one.seconds / full.seconds:.3f}' if one.seconds else '-'
    print(
      f'| {one.name} | {one.flops / full.flops:.3f} | {seconds} | '
      f'{spearman:.3f} | {kendall:.3f} | {kept} |'
    )


def print_two_stages(ranking: Ranking, results: list[Scored]) -> None:
  """A Markdown table: the least cost of two stages that keeps enough."""
  full = results[0]
  expected = ranking.values(full.nll)
  columns = ' | '.join(f'to keep {fraction}' for fraction in FRACTIONS)
  print(f'| first stage | FLOPs of it | {columns} |')
  print('| --- |' + ' --- |' * (1 + len(FRACTIONS)))
  for one in results[1:]:
    cost, values = one.flops / full.flops, ranking.values(one.nll)
    totals = []
    for fraction in FRACTIONS:
      goal = ranking.kept(expected, fraction)
      band = next(
        band
        for band in BANDS
        if min(
          ranking.overlap(
            ranking.two_stages(values, expected, fraction, band), goal
          )
        )
        >= KEPT
      )
      # There are no tokens beyond the ends of the ranking.
      near = sum(min(band / 2, side) for side in (fraction, 1 - fraction))
      totals.append(f'{cost + near:.2f}')
    print(f'| {one.name} | {cost:.3f} | {" | ".join(totals)} |')


def main() -> None:
  """Prints the size of the corpus and both tables."""
  parser = argparse.ArgumentParser()
  parser.add_argument('--workdir', required=True)
  parser.add_argument('--small', default='')
  parser.add_argument('--score', default='nll_sum / num_bytes')
  parser.add_argument('--num_documents', type=int, default=0)
  parser.add_argument('--sequence_length', type=int, default=256)
  flags = parser.parse_args()
  store = TokenStore.open(flags.workdir)
  table = read_table(flags.workdir, store, flags.num_documents)
  scoring = ScoringConfig(
    sequence_length=flags.sequence_length,
    window_overlap=flags.sequence_length // 16,
    dtype='float32',
  )
  mesh = mesh_lib.make_mesh(MeshConfig())
  models = {'': load(reference_dir(flags.workdir), scoring, mesh)}
  if flags.small:
    models['smaller model'] = load(flags.small, scoring, mesh)
  results = ways(models, table, store)
  full, ranking = results[0], Ranking(table, flags.score)
  print(
    f'{table.num_rows} documents, {ranking.total} tokens; full scoring took '
    f'{full.seconds:.1f} s and {full.flops:.3g} FLOPs, '
    f'{full.nll.sum() / ranking.total:.4f} nats per token\n'
  )
  print_ways(ranking, results)
  print(f'\nTwo stages that keep {KEPT:.0%} of documents and of tokens:\n')
  print_two_stages(ranking, results)


if __name__ == '__main__':
  try:
    main()
  except UserError as error:
    sys.exit(str(error))
