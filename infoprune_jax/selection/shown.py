"""Chooses examples that show what an arm keeps and throws away."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NotRequired, TypedDict, cast

import numba
import numpy as np

from infoprune_jax.config.selection import CUT_KINDS, RuleConfig
from infoprune_jax.runtime.hashing import mix
from infoprune_jax.selection import groups, summary
from infoprune_jax.selection.arrays import side_by_side, steps
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
  ranking: np.ndarray  # [examples] float64
  before: np.ndarray  # [examples] bool: what earlier rules kept
  after: np.ndarray  # [examples] bool: what it kept of that


def examples_of(
  examples: Examples,
  kept: np.ndarray,
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
    **_extremes(examples, ranking, num_examples),
    'near': (
      near_thresholds(examples, kept, decision, num_examples)
      if decision
      else []
    ),
    'drawn': drawn(examples, kept, ranking, num_examples),
  }


def _lowest(
  positions: np.ndarray, keys: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
  """The positions with the lowest keys, ascending by key, and their keys.

  Args:
    positions: [n] int64; they order equal keys.
    keys: [n].
    count: How many to return, at most.
  """
  if len(keys) > count:
    few = keys <= np.partition(keys, count - 1)[count - 1]
    positions, keys = positions[few], keys[few]
  order = np.lexsort((positions, keys))[:count]
  return positions[order], keys[order]


def _lowest_of_each(
  choose: Callable[[slice], tuple[np.ndarray, Mapping[Any, np.ndarray]]],
  size: int,
  count: int,
) -> dict[Any, np.ndarray]:
  """The positions with the lowest keys in each class of examples.

  Args:
    choose: For a slice of n examples, returns their keys, [n], and by the name
      of a class which of them are in it, [n] bool.
    size: The number of all examples.
    count: How many of each class to return, at most.
  """

  def lowest_of(some: slice) -> dict[Any, tuple[np.ndarray, np.ndarray]]:
    keys, classes = choose(some)
    here = {name: np.flatnonzero(mask) for name, mask in classes.items()}
    return {
      name: _lowest(some.start + n, keys[n], count) for name, n in here.items()
    }

  by_slice = side_by_side(lowest_of, list(steps(size)) or [slice(0, 0)])
  lowest = {}
  for name in by_slice[0]:
    positions, keys = zip(*(each[name] for each in by_slice), strict=True)
    joined = np.concatenate(positions), np.concatenate(keys)
    lowest[name], _ = _lowest(*joined, count)
  return lowest


def drawn(
  examples: Examples,
  kept: np.ndarray,
  ranking: np.ndarray | None,
  num_examples: int,
) -> dict[str, list[ShownExample]]:
  """Random examples, some that are `kept` and some that are `thrown` away.

  The seed is fixed, so that arms that treat the same examples alike show the
  same ones.
  """
  index = examples.index
  lowest = _lowest_of_each(
    lambda some: (
      mix(index[some], 0),
      {'kept': kept[some], 'thrown': ~kept[some]},
    ),
    len(kept),
    num_examples,
  )
  return {
    name: records(examples, positions, ranking)
    for name, positions in lowest.items()
  }


def near_thresholds(
  examples: Examples, kept: np.ndarray, decision: Decision, num_examples: int
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
    near = {
      name: records(
        examples,
        _without_copies(examples, positions)[:num_examples],
        decision.ranking,
      )
      for name, positions in nearest.items()
    }
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
  names, group = groups.of(examples, rule.per)
  count = len(names)
  ends = np.full((2, count), [[np.inf], [-np.inf]])  # The lowest, the highest.
  _find_ends(values, group, after, ends)
  beyond = np.zeros((2, count), bool)
  for some in steps(len(values)):
    thrown = before[some] & ~after[some]
    _find_beyond(values[some], group[some], thrown, ends, beyond)
  exists = beyond & np.isfinite(ends)
  thresholds = map(_Threshold, ('low', 'high'), ends, exists)
  return [threshold for threshold in thresholds if threshold.exists.any()]


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
  kept: np.ndarray,
  decision: Decision,
  threshold: _Threshold,
  count: int,
) -> dict[str, np.ndarray]:
  """The positions on both sides of a threshold, the nearest first.

  Args:
    examples: The scored split.
    kept: [examples] bool, what all of the arm's rules keep.
    decision: The decision of the rule.
    threshold: A threshold of the rule.
    count: On each side, at most.
  """
  rule, values, before, after = decision
  group = groups.of(examples, rule.per).codes
  sign = 1.0 if threshold.side == 'low' else -1.0

  def choose(some: slice) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    number = group[some]
    with np.errstate(invalid='ignore'):  # Infinity minus infinity.
      inside = sign * (values[some] - threshold.score[number])
    near = np.isfinite(inside) & threshold.exists[number]
    thrown = before[some] & ~after[some] & (inside <= 0.0)
    return np.abs(inside), {
      'kept': near & after[some] & kept[some],
      'thrown': near & thrown,
    }

  return _lowest_of_each(choose, len(values), count)


def _without_copies(examples: Examples, positions: np.ndarray) -> np.ndarray:
  """The positions without those of a text that came before."""
  content = examples.take(positions, ['content_hash'])['content_hash']
  _, first = np.unique(content.to_numpy(), return_index=True)
  return positions[np.sort(first)]


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
  decile, index = summary.nll_deciles(examples), examples.index
  lowest = _lowest_of_each(
    lambda some: (
      mix(index[some], 0),
      {n: decile[some] == n for n in range(summary.NUM_DECILES)},
    ),
    len(decile),
    num_examples,
  )
  return [
    sorted(
      records(examples, positions, None),
      key=lambda record: cast(float, record['score']),
    )
    for positions in lowest.values()
    if len(positions)
  ]


def _extremes(
  examples: Examples, ranking: np.ndarray | None, num_examples: int
) -> dict[str, list[ShownExample]]:
  """The examples with the highest scores (`most`) and the lowest (`least`).

  Equal scores are in store order in `least`, and in reverse order in `most`.
  """
  if ranking is None:
    return {'most': [], 'least': []}
  least = most = np.zeros(0, np.int64)
  for some in steps(len(ranking)):
    here = ranking[some]
    count = min(num_examples, len(here))
    ends = np.partition(here, (count - 1, len(here) - count))
    low = np.flatnonzero(here <= ends[count - 1]) + some.start
    high = np.flatnonzero(here >= ends[len(here) - count]) + some.start
    least = _sorted(np.concatenate([least, low]), ranking)[:num_examples]
    most = _sorted(np.concatenate([most, high]), ranking)[-num_examples:]
  return {
    'most': records(examples, most[::-1], ranking),
    'least': records(examples, least, ranking),
  }


def _sorted(positions: np.ndarray, ranking: np.ndarray) -> np.ndarray:
  """Positions in ascending order of their scores."""
  return positions[np.argsort(ranking[positions], kind='stable')]


def records(
  examples: Examples, positions: np.ndarray, ranking: np.ndarray | None
) -> list[ShownExample]:
  """What is shown of the examples at some positions.

  Args:
    examples: The scored split.
    positions: [n].
    ranking: [examples] float64; None for the mean NLL, in nats per token.
  """
  if ranking is None:
    sums = examples.take(positions, ['nll_sum', 'num_tokens'])
    nll, tokens = (sums[name].to_numpy() for name in sums.column_names)
    scores = nll / np.maximum(tokens, 1)
  else:
    scores = ranking[positions]
  taken = examples.take(positions, _COLUMNS).to_pylist()
  shown = [
    ShownExample(**record, score=None if np.isneginf(score) else float(score))
    for record, score in zip(taken, scores, strict=True)
  ]
  if examples.users:
    added = examples.take(positions, examples.users).to_pylist()
    for example, columns in zip(shown, added, strict=True):
      example['columns'] = {name: str(v) for name, v in columns.items()}
  return shown
