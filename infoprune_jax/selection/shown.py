"""Chooses examples that show what an arm keeps and throws away."""

import functools
import operator
from typing import Any, NamedTuple, NotRequired, TypedDict, cast

import numba
import numpy as np

from infoprune_jax.config.selection import CUT_KINDS, RuleConfig
from infoprune_jax.runtime.hashing import mix
from infoprune_jax.selection import extremes, groups, summary
from infoprune_jax.selection.arrays import steps
from infoprune_jax.selection.computed import HERE, Column, Computed
from infoprune_jax.selection.examples import Examples

_COLUMNS = ('shard', 'doc_index', 'example_id', 'source', 'num_tokens')
# Near a threshold this many times more examples are read than shown, because
# copies, which are shown once, have equal scores.
_COPIES = 8


class ShownExample(TypedDict):
  """An example that a report shows."""

  shard: int
  doc_index: int
  example_id: str
  source: str
  num_tokens: int
  score: float | None  # None if the rule's expression gives no number
  # The columns that the user added, as texts; left out if there are none.
  columns: NotRequired[dict[str, str]]


class Edge(TypedDict):
  """The examples on both sides of a threshold, the nearest first."""

  side: str  # 'low' or 'high'
  score: float | None  # the threshold; None if each group has its own
  kept: list[ShownExample]
  thrown: list[ShownExample]


class Decision(NamedTuple):
  """The last ranking rule of an arm: its values, its input and its output."""

  rule: RuleConfig
  ranking: Column  # [examples] float64
  before: Column  # [examples] bool: what earlier rules kept
  after: Column  # [examples] bool: what it kept of that


def examples_of(
  examples: Examples,
  kept: Column,
  decision: Decision | None,
  num_examples: int,
) -> dict[str, Any]:
  """Examples of what an arm keeps and throws away, as JSON values.

  Args:
    examples: The scored split.
    kept: [examples] bool, what all of the arm's rules keep.
    decision: None for an arm that ranks by nothing.
    num_examples: Of each sort, at most.

  Returns:
    `most` and `least`, both ends of the ranking; `near`, as `near_thresholds`
    gives it; `drawn`, `kept` and `thrown` by chance. Each example has a
    `score`: the arm's, or where it ranks by nothing the mean NLL.
  """
  ranking = decision.ranking if decision else None
  return {
    **_ends(examples, ranking, num_examples),
    'near': (
      near_thresholds(examples, kept, decision, num_examples)
      if decision
      else []
    ),
    'drawn': drawn(examples, kept, ranking, num_examples),
  }


def drawn(
  examples: Examples, kept: Column, ranking: Column | None, num_examples: int
) -> dict[str, list[ShownExample]]:
  """Random examples, some that are `kept` and some that are `thrown` away.

  The seed is fixed, so that arms that treat the same examples alike show the
  same ones.
  """
  columns = (_index(), kept)
  lowest = extremes.lowest_of_each(
    examples, _by_chance, columns, num_examples, ranking
  )
  return {
    name: records(
      examples, few.positions, None if ranking is None else few.scores
    )
    for name, few in lowest.items()
  }


def _index() -> Computed:
  return Computed(operator.attrgetter('index'), HERE)


def _by_chance(
  index: np.ndarray, kept: np.ndarray
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
  return mix(index, 0), {'kept': kept, 'thrown': ~kept}


def near_thresholds(
  examples: Examples, kept: Column, decision: Decision, num_examples: int
) -> list[Edge]:
  """Examples on both sides of each threshold of a rule, the nearest first.

  A threshold is the lowest or the highest score that the rule keeps, where it
  throws something away beyond. A rule that draws has none, and neither has one
  that keeps some of the examples without a number.

  Args:
    examples: The scored split.
    kept: [examples] bool, what all of the arm's rules keep.
    decision: Of the rule.
    num_examples: On each side, at most; copies of one text count once.
  """
  # Who is kept near the threshold of a rule with a floor is drawn.
  if decision.rule.keep not in CUT_KINDS or decision.rule.draws:
    return []
  edges = []
  for threshold in _thresholds(examples, decision):
    nearest = _nearest(
      examples, kept, decision, threshold, _COPIES * num_examples
    )
    near = {}
    for name, few in nearest.items():
      chosen = _without_copies(examples, few.positions)[:num_examples]
      near[name] = records(examples, few.positions[chosen], few.scores[chosen])
    score = threshold.score
    edges.append(
      Edge(
        side=threshold.side,
        score=float(score[0]) if len(score) == 1 else None,
        kept=near['kept'],
        thrown=near['thrown'],
      )
    )
  return edges


class _Threshold(NamedTuple):
  """The lowest ('low') or highest ('high') score that a rule keeps."""

  side: str
  score: np.ndarray  # [groups] float64; a group has a budget of its own
  exists: np.ndarray  # [groups] bool: something is thrown away beyond it


def _thresholds(examples: Examples, decision: Decision) -> list[_Threshold]:
  """The thresholds of a rule, without those that exist in no group."""
  rule, values, before, after = decision
  names = groups.names(examples, rule.per)
  group = Computed(groups.codes, HERE, rule.per, names)
  of_parts = examples.map(_own_ends, values, group, after, len(names))
  lows, highs = zip(*of_parts, strict=True)
  ends = np.stack([np.min(lows, axis=0), np.max(highs, axis=0)])
  beyond = np.any(
    list(examples.map(_own_beyond, values, group, before, after, ends)), axis=0
  )
  exists = beyond & np.isfinite(ends)
  thresholds = map(_Threshold, ('low', 'high'), ends, exists)
  return [threshold for threshold in thresholds if threshold.exists.any()]


def _own_ends(
  values: np.ndarray, group: np.ndarray, kept: np.ndarray, count: int
) -> np.ndarray:
  """The lowest and the highest kept value of each group, [2, groups]."""
  ends = np.full((2, count), [[np.inf], [-np.inf]])
  _find_ends(values, group, kept, ends)
  return ends


def _own_beyond(
  values: np.ndarray,
  group: np.ndarray,
  before: np.ndarray,
  after: np.ndarray,
  ends: np.ndarray,
) -> np.ndarray:
  """Whether a group throws values away beyond its ends, [2, groups] bool."""
  beyond = np.zeros(ends.shape, bool)
  for some in steps(len(values)):
    thrown = before[some] & ~after[some]
    _find_beyond(values[some], group[some], thrown, ends, beyond)
  return beyond


@numba.njit(cache=True, nogil=True)
def _find_ends(values, group, kept, ends):
  """Lowers ends[0] and raises ends[1] to the kept values of each group."""
  for n in range(len(values)):
    if kept[n]:
      g = group[n]
      ends[0, g] = min(ends[0, g], values[n])
      ends[1, g] = max(ends[1, g], values[n])


@numba.njit(cache=True, nogil=True)
def _find_beyond(values, group, thrown, ends, beyond):
  """Sets beyond[0] or [1] if a thrown value is not inside its group's ends."""
  for n in range(len(values)):
    if thrown[n]:
      g = group[n]
      beyond[0, g] |= values[n] <= ends[0, g]
      beyond[1, g] |= values[n] >= ends[1, g]


def _nearest(
  examples: Examples,
  kept: Column,
  decision: Decision,
  threshold: _Threshold,
  count: int,
) -> dict[str, extremes.Few]:
  """The examples on both sides of a threshold, the nearest first.

  Args:
    examples: The scored split.
    kept: [examples] bool, what all of the arm's rules keep.
    decision: The decision of the rule.
    threshold: A threshold of the rule.
    count: On each side, at most.
  """
  rule, values, before, after = decision
  names = groups.names(examples, rule.per)
  group = Computed(groups.codes, HERE, rule.per, names)
  columns = (values, before, after, kept, group)
  choose = functools.partial(_near, threshold)
  return extremes.lowest_of_each(examples, choose, columns, count, values)


def _near(
  threshold: _Threshold,
  values: np.ndarray,
  before: np.ndarray,
  after: np.ndarray,
  kept: np.ndarray,
  number: np.ndarray,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
  """The distance of examples, and which are on which side of a threshold."""
  sign = 1.0 if threshold.side == 'low' else -1.0
  with np.errstate(invalid='ignore'):  # Infinity minus infinity.
    inside = sign * (values - threshold.score[number])
  near = np.isfinite(inside) & threshold.exists[number]
  thrown = before & ~after & (inside <= 0.0)
  return np.abs(inside), {'kept': near & after & kept, 'thrown': near & thrown}


def _without_copies(examples: Examples, positions: np.ndarray) -> np.ndarray:
  """Which positions are not of a text that came before, ascending indices."""
  content = examples.take(positions, ['content_hash'])['content_hash']
  _, first = np.unique(content.to_numpy(), return_index=True)
  return np.sort(first)


def by_decile(
  examples: Examples, num_examples: int
) -> list[list[ShownExample]]:
  """Random examples of each decile of the mean NLL; the seed is fixed.

  Args:
    examples: The scored split.
    num_examples: Of each decile, at most.

  Returns:
    For each decile that has examples, some of them as `records` gives them,
    ascending by their score, the mean NLL.
  """
  columns = summary.nll_deciles(examples), _index()
  lowest = extremes.lowest_of_each(examples, _in_deciles, columns, num_examples)
  return [
    sorted(
      records(examples, few.positions, None),
      key=lambda record: cast(float, record['score']),
    )
    for few in lowest.values()
    if len(few.positions)
  ]


def _in_deciles(
  decile: np.ndarray, index: np.ndarray
) -> tuple[np.ndarray, dict[int, np.ndarray]]:
  return mix(index, 0), {n: decile == n for n in range(summary.NUM_DECILES)}


def _ends(
  examples: Examples, ranking: Column | None, num_examples: int
) -> dict[str, list[ShownExample]]:
  """The examples with the highest scores (`most`) and the lowest (`least`)."""
  if ranking is None:
    return {'most': [], 'least': []}
  least, most = extremes.ends(examples, ranking, num_examples)
  return {
    'most': records(examples, most.positions[::-1], most.scores[::-1]),
    'least': records(examples, least.positions, least.scores),
  }


def records(
  examples: Examples, positions: np.ndarray, scores: np.ndarray | None
) -> list[ShownExample]:
  """What is shown of the examples at some positions.

  Args:
    examples: The scored split.
    positions: [n].
    scores: [n] float64; None for the mean NLL, in nats per token.
  """
  values = scores
  if values is None:
    sums = examples.take(positions, ['nll_sum', 'num_tokens'])
    nll, tokens = (sums[name].to_numpy() for name in sums.column_names)
    values = nll / np.maximum(tokens, 1)
  taken = examples.take(positions, _COLUMNS).to_pylist()
  shown = [
    ShownExample(**record, score=None if np.isneginf(score) else float(score))
    for record, score in zip(taken, values, strict=True)
  ]
  if examples.users:
    added = examples.take(positions, examples.users).to_pylist()
    for example, columns in zip(shown, added, strict=True):
      example['columns'] = {name: str(v) for name, v in columns.items()}
  return shown
