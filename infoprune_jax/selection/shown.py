"""Which examples show what an arm decides: at its ends, its thresholds, anywhere."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numba
import numpy as np

from infoprune_jax.config.selection import RuleConfig
from infoprune_jax.runtime.hashing import mix
from infoprune_jax.selection import summary
from infoprune_jax.selection.arrays import side_by_side, steps
from infoprune_jax.selection.examples import Examples

_COLUMNS = ('shard', 'doc_index', 'example_id', 'source', 'num_tokens')
_COPIES = 8  # times as many are looked at near a threshold: copies are close


class Decision(NamedTuple):
  """What the last of an arm's rules that ranks was given, and made of it."""

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
    'near': near_thresholds(examples, kept, decision, num_examples)
    if decision
    else [],
    'drawn': drawn(examples, kept, ranking, num_examples),
  }


# Positions, [n] int64, and a key of each, [n].
_Keyed = tuple[np.ndarray, np.ndarray]


def _lowest(keyed: _Keyed, count: int) -> _Keyed:
  """Those of the lowest keys; of equal keys the first."""
  positions, keys = keyed
  if len(keys) > count:
    few = keys <= np.partition(keys, count - 1)[count - 1]
    positions, keys = positions[few], keys[few]
  order = np.lexsort((positions, keys))[:count]
  return positions[order], keys[order]


def _lowest_of_each(
  sort: Callable[[slice], Mapping[Any, _Keyed]], size: int, count: int
) -> dict[Any, np.ndarray]:
  """The positions of the lowest keys of each sort of examples.

  Args:
    sort: Gives those of a stretch of examples, by their sort, with their keys.
    size: Of all examples.
    count: How many of each sort, at most.
  """
  by_slice = side_by_side(
    lambda some: {
      name: _lowest(keyed, count) for name, keyed in sort(some).items()
    },
    list(steps(size)) or [slice(0, 0)],
  )
  lowest = {}
  for name in by_slice[0]:
    positions, keys = zip(*(each[name] for each in by_slice), strict=True)
    both = np.concatenate(positions), np.concatenate(keys)
    lowest[name], _ = _lowest(both, count)
  return lowest


def drawn(
  examples: Examples,
  kept: np.ndarray,
  ranking: np.ndarray | None,
  num_examples: int,
) -> dict[str, list[dict[str, Any]]]:
  """Examples by chance, of what is `kept` and of what is `thrown` away.

  Always the same, and those of one arm are those of another that treats them
  alike.
  """
  index = examples.index

  def sort(some: slice) -> dict[str, _Keyed]:
    return _keyed(
      some,
      mix(index[some], 0),
      {'kept': kept[some], 'thrown': ~kept[some]},
    )

  return {
    name: rows(examples, positions, ranking)
    for name, positions in _lowest_of_each(
      sort, len(kept), num_examples
    ).items()
  }


def _keyed(
  some: slice, keys: np.ndarray, chosen: Mapping[Any, np.ndarray]
) -> dict[Any, _Keyed]:
  """Those chosen of a stretch of examples, with their keys.

  Args:
    some: The stretch, of n examples.
    keys: [n].
    chosen: [n] bool, by sort.
  """
  here = {name: np.flatnonzero(chosen[name]) for name in chosen}
  return {name: (some.start + n, keys[n]) for name, n in here.items()}


def near_thresholds(
  examples: Examples, kept: np.ndarray, decision: Decision, num_examples: int
) -> list[dict[str, Any]]:
  """Examples on both sides of each threshold of a rule, the nearest first.

  A threshold is the lowest or the highest score that the rule keeps, where it
  throws something away beyond. A rule that draws has none, and neither has one
  that keeps some of the examples without a number.

  Args:
    examples: The scored split.
    kept: [examples] bool, what all of the arm's rules keep.
    decision: Of the rule.
    num_examples: On each side, at most; copies of one text count once.

  Returns:
    For each threshold its `side`, 'low' or 'high'; its `score`, None where each
    source has its own; and examples, `kept` and `thrown` away.
  """
  rule, values, before, after = decision
  if rule.keep == 'sample':
    return []
  count, group = examples.groups(rule.per)
  low, high = np.full(count, np.inf), np.full(count, -np.inf)
  below, above = np.zeros((2, count), bool)
  _bounds(values, group, after, low, high)
  _beyond(values, group, before, after, low, high, below, above)
  below &= np.isfinite(low)
  above &= np.isfinite(high)
  edges = []
  for side, sign, bound, real in (
    ('low', 1.0, low, below),
    ('high', -1.0, high, above),
  ):
    if not real.any():
      continue
    nearest = _nearest(
      examples, kept, decision, sign, bound, real, _COPIES * num_examples
    )
    edges.append(
      {
        'side': side,
        'score': float(bound[0]) if count == 1 else None,
        **{
          name: rows(
            examples,
            _texts(examples, positions)[:num_examples],
            values,
          )
          for name, positions in nearest.items()
        },
      }
    )
  return edges


def _nearest(
  examples: Examples,
  kept: np.ndarray,
  decision: Decision,
  sign: float,
  bound: np.ndarray,
  real: np.ndarray,
  count: int,
) -> dict[str, np.ndarray]:
  """The positions on both sides of a threshold, the nearest first.

  Args:
    examples: The scored split.
    kept: [examples] bool, what all of the arm's rules keep.
    decision: Of the rule.
    sign: 1 where more than the threshold is kept, -1 where less is.
    bound: [groups], the threshold of each.
    real: [groups] bool, whether it is one.
    count: On each side, at most.
  """
  _, values, before, after = decision
  _, group = examples.groups(decision.rule.per)

  def sort(some: slice) -> dict[str, _Keyed]:
    number = group[some]
    with np.errstate(invalid='ignore'):  # Infinity less itself.
      inside = sign * (values[some] - bound[number])
    near = np.isfinite(inside) & real[number]
    thrown = before[some] & ~after[some] & (inside <= 0.0)
    chosen = {'kept': near & after[some] & kept[some], 'thrown': near & thrown}
    return _keyed(some, np.abs(inside), chosen)

  return _lowest_of_each(sort, len(values), count)


@numba.njit(cache=True, nogil=True)
def _bounds(values, group, after, low, high):
  """The lowest and the highest value of each group that is kept."""
  for n in range(len(values)):
    if after[n]:
      g = group[n]
      low[g] = min(low[g], values[n])
      high[g] = max(high[g], values[n])


@numba.njit(cache=True, nogil=True)
def _beyond(values, group, before, after, low, high, below, above):
  """Whether something of each group is thrown away below, and above."""
  for n in range(len(values)):
    if before[n] and not after[n]:
      g = group[n]
      below[g] |= values[n] <= low[g] < np.inf
      above[g] |= values[n] >= high[g] > -np.inf


def _texts(examples: Examples, positions: np.ndarray) -> np.ndarray:
  """The first position of each text."""
  content = examples.take(positions, ['content_hash'])['content_hash']
  _, first = np.unique(content.to_numpy(), return_index=True)
  return positions[np.sort(first)]


def by_decile(
  examples: Examples, num_examples: int
) -> list[list[dict[str, Any]]]:
  """Some examples of each decile of the mean NLL, by chance but always the same.

  Args:
    examples: The scored split.
    num_examples: Of each decile, at most.

  Returns:
    For each decile that has examples, rows as at the ends of a ranking, whose
    score is the mean NLL, ascending.
  """
  decile = summary.nll_deciles(examples)
  index = examples.index

  def sort(some: slice) -> dict[int, _Keyed]:
    of_each = {
      number: decile[some] == number for number in range(summary.NUM_DECILES)
    }
    return _keyed(some, mix(index[some], 0), of_each)

  lowest = _lowest_of_each(sort, len(decile), num_examples)
  return [
    sorted(rows(examples, positions, None), key=lambda row: row['score'])
    for positions in lowest.values()
    if len(positions)
  ]


def _extremes(
  examples: Examples, ranking: np.ndarray | None, num_examples: int
) -> dict[str, list[dict[str, Any]]]:
  """Examples at both ends of a ranking; equal ones in store order, or against."""
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
    'most': rows(examples, most[::-1], ranking),
    'least': rows(examples, least, ranking),
  }


def _sorted(positions: np.ndarray, ranking: np.ndarray) -> np.ndarray:
  return positions[np.argsort(ranking[positions], kind='stable')]


def rows(
  examples: Examples, positions: np.ndarray, ranking: np.ndarray | None
) -> list[dict[str, Any]]:
  """Which examples they are, each with its score, None where it has no number.

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
  return [
    {**row, 'score': None if np.isneginf(score) else float(score)}
    for row, score in zip(taken, scores, strict=True)
  ]
