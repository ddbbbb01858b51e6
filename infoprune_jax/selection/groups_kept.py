"""What an arm keeps of each group of its rules, and of what is in benchmarks."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from infoprune_jax.config.selection import RuleConfig
from infoprune_jax.selection import groups
from infoprune_jax.selection.arrays import steps
from infoprune_jax.selection.computed import HERE, Column, Computed
from infoprune_jax.selection.examples import Examples

MAX_GROUPS = 100  # of a summary, those with most tokens
CLEAN = ''  # what `contaminated_by` is without n-grams of benchmarks
_UNITS = ('examples', 'tokens')


class _Sizes(NamedTuple):
  """The names of groups, and their sizes."""

  names: list[str]
  counts: np.ndarray  # [all or kept, units, groups] int64


def expressions(rules: Sequence[RuleConfig]) -> list[str]:
  """The `per` of rules that have one, each once."""
  return list(dict.fromkeys(filter(None, (rule.per.strip() for rule in rules))))


def by_groups(
  examples: Examples, kept: Column, rules: Sequence[RuleConfig]
) -> list[dict[str, Any]]:
  """The size of each group, and of what is kept of it.

  Args:
    examples: The scored split.
    kept: [examples] bool; or uint8, how often an epoch uses each.
    rules: Those of the arm.

  Returns:
    For each `per`: `per`; `num_groups`; and `rows` for the `MAX_GROUPS` groups
    with most tokens: `group`, `examples`, `tokens`, `kept_examples` and
    `kept_tokens`, where every copy counts.
  """
  tables = []
  for per in expressions(rules):
    names, counts = _sizes(examples, kept, per)
    most = np.lexsort((names, -counts[0, 1]))[:MAX_GROUPS].tolist()
    rows = [{'group': names[n], **_named(counts[..., n])} for n in most]
    tables.append({'per': per, 'num_groups': len(names), 'rows': rows})
  return tables


def by_benchmarks(examples: Examples, kept: Column) -> list[dict[str, Any]]:
  """What is kept of examples with n-grams of benchmarks.

  Args:
    examples: The scored split, with the column `contaminated_by`.
    kept: As for `by_groups`.

  Returns:
    A row as in `by_groups` for each benchmark that is found, with `benchmark`;
    first one for all of them, called '', where an example counts once.
  """
  names, counts = _sizes(examples, kept, 'contaminated_by')
  sums: dict[str, np.ndarray] = {'': np.zeros_like(counts[..., 0])}
  for number, joined in enumerate(names):
    if joined == CLEAN:
      continue
    for name in ('', *joined.split(', ')):
      sums[name] = sums.get(name, 0) + counts[..., number]
  return [{'benchmark': name, **_named(sums[name])} for name in sorted(sums)]


def _sizes(examples: Examples, kept: Column, per: str) -> _Sizes:
  names = groups.names(examples, per)
  codes = Computed(groups.codes, HERE, per, names)
  return _Sizes(names, examples.sum(_add_up, HERE, kept, codes, len(names)))


def _add_up(
  examples: Examples, kept: np.ndarray, codes: np.ndarray, count: int
) -> np.ndarray:
  """As `_Sizes.counts`, of the examples of a part."""
  tokens = examples.weight('tokens')
  counts = np.zeros((2, len(_UNITS), count), np.int64)
  for some in steps(len(kept)):
    of_each = np.ones_like(tokens[some]), tokens[some]
    for unit, weight in enumerate(of_each):
      for side, weights in enumerate((weight, weight * kept[some])):
        # Sums of so few are exact.
        sums = np.bincount(codes[some], weights, count)
        counts[side, unit] += sums.astype(np.int64)
  return counts


def _named(counts: np.ndarray) -> dict[str, int]:
  """Counts, [2, units], by name."""
  names = [f'{side}{unit}' for side in ('', 'kept_') for unit in _UNITS]
  return dict(zip(names, counts.ravel().tolist(), strict=True))
