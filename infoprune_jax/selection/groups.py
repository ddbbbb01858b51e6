"""The groups of examples that have budgets of their own.

The examples of a group have the same values of the expressions in `per`.
"""

import functools
import itertools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import compute

from infoprune_jax.config.selection import OTHER_GROUPS, RuleConfig
from infoprune_jax.config.validation import UserError, did_you_mean
from infoprune_jax.selection import expressions, parser
from infoprune_jax.selection.arrays import scratch, side_by_side, steps
from infoprune_jax.selection.computed import HERE
from infoprune_jax.selection.examples import Examples

MAX_GROUPS = 100_000  # Each has a table of its own while budgets are spent.
_MAX_PAIRS = 1 << 26  # of the values of two expressions
_NAMED = 20  # groups that a message lists
NULL = 'null'  # the group of examples without a value


class Groups(NamedTuple):
  """Groups, and the group of each example."""

  names: list[str]  # such as 'web', or 'web, en'
  codes: np.ndarray  # [examples] int32, into `names`


def of(examples: Examples, per: str) -> Groups:
  """The groups of examples that have the same values.

  Args:
    examples: The examples, whose columns the expressions may name.
    per: Expressions with commas between them; '' for one group.

  Raises:
    UserError: an expression cannot be evaluated, or there are too many groups.
  """
  per = per.strip()
  return examples.once(('groups', per), lambda: _groups(examples, per))


def names(examples: Examples, per: str) -> list[str]:
  """The names of all groups, in the order of their first examples."""
  if not per.strip():
    return ['']

  def compute() -> list[str]:
    of_parts = examples.map(_own_names, HERE, per)
    return list(dict.fromkeys(itertools.chain.from_iterable(of_parts)))

  return examples.once(('names of groups', per), compute)


def _own_names(examples: Examples, per: str) -> list[str]:
  return of(examples, per).names


def codes(examples: Examples, per: str, names: list[str]) -> np.ndarray:
  """The group of each example of a part, [examples] int32, into `names`."""
  own = of(examples, per)
  if own.names == names:
    return own.codes
  number = {name: n for n, name in enumerate(names)}
  return np.array([number[n] for n in own.names], np.int32)[own.codes]


def fractions(rule: RuleConfig, names: list[str]) -> np.ndarray:
  """The fraction of each group, [groups] float64.

  Args:
    rule: With a fraction for all groups, or a table of them.
    names: Of the groups.

  Raises:
    UserError: the table names a group that is not there, or lacks one.
  """
  given = rule.fractions
  where = f'select.fraction with per={rule.per!r}'
  listed = ', '.join(map(repr, names[:_NAMED]))
  if len(names) > _NAMED:
    listed += f' and {len(names) - _NAMED} more'
  known = set(names)
  for name in given:
    if name != OTHER_GROUPS and name not in known:
      raise UserError(
        f'{where}: there is no group {name!r}.{did_you_mean(name, names)} '
        f'Groups are {listed}.'
      )
  rest = given.get(OTHER_GROUPS)
  lacking = [name for name in names if name not in given]
  if rest is None and lacking:
    raise UserError(
      f'{where}: the group {lacking[0]!r} has no fraction: name it, or give '
      f'{OTHER_GROUPS!r} for all groups that are not named. Groups are '
      f'{listed}.'
    )
  return np.array([given.get(name, rest) for name in names], np.float64)


def _groups(examples: Examples, per: str) -> Groups:
  if not per:
    return Groups([''], np.broadcast_to(np.int32(0), len(examples)))
  if per == 'source':
    return Groups(*examples.sources)
  of_each = [
    Groups(*examples.sources)
    if _column(expression) == 'source'
    else _encoded(per, _values(examples, expression), len(examples))
    for expression in parser.parse_groups(per, examples.schema)
  ]
  return functools.reduce(functools.partial(_combined, per), of_each)


def _column(expression: parser.Expression) -> str:
  """The column that an expression is; '' if it is more than that."""
  name = expression.sql.strip().strip('"')
  return name if expression.columns == (name,) else ''


def _values(
  examples: Examples, expression: parser.Expression
) -> Iterator[tuple[slice, Any, pa.ChunkedArray]]:
  """The values of an expression, as `expressions.evaluated` gives them."""
  name = _column(expression)
  if not name:
    yield from expressions.evaluated(examples, expression, 'lowest')
    return
  for here, shard in examples.shards([name]):  # A column needs no DuckDB.
    yield here, slice(None), shard[name]


def _encoded(
  per: str,
  values: Iterable[tuple[slice, Any, pa.ChunkedArray]],
  num_examples: int,
) -> Groups:
  """The groups of examples with the same value of one expression."""
  names: dict[str, int] = {}
  codes = scratch(num_examples, np.int32)
  seen, code_of_seen = None, np.zeros(0, np.int32)
  for here, order, column in values:
    if pa.types.is_dictionary(column.type):  # It may have nulls of its own.
      column = column.cast(column.type.value_type)
    encoded = column.dictionary_encode('encode')
    if not encoded.num_chunks:
      continue
    values_here = encoded.chunk(0).dictionary
    seen = values_here.slice(0, 0) if seen is None else seen
    # Each value is named once, not once a shard.
    new = values_here.filter(_position(values_here, seen).is_null())
    of_new = [
      names.setdefault(_name(value), len(names)) for value in new.to_pylist()
    ]
    _check_count(per, len(names))
    seen = pa.concat_arrays([seen, new])
    code_of_seen = np.append(code_of_seen, np.array(of_new, np.int32))
    known = code_of_seen[_position(values_here, seen).to_numpy()]
    indices = [chunk.indices.to_numpy() for chunk in encoded.chunks]
    codes[here][order] = known[np.concatenate(indices)]
  return Groups(list(names), codes)


def _position(values: pa.Array, among: pa.Array) -> pa.Array:
  """Where each value is in another array; null if it is not there."""
  options = compute.SetLookupOptions(among)
  return compute.call_function('index_in', [values], options)


def _name(value: Any) -> str:
  """What a group is called: 3, 3.0 and '3' are '3'."""
  if value is None:
    return NULL
  if isinstance(value, bool):
    return str(value).lower()
  try:
    return str(int(value)) if value == int(value) else str(value)
  except (TypeError, ValueError, OverflowError):  # A text, a date, infinity.
    return str(value)


def _check_count(per: str, count: int) -> None:
  if count > MAX_GROUPS:
    raise UserError(
      f'per={per!r} makes more than {MAX_GROUPS} groups: use a column with '
      'fewer values, or fewer of them, as in ntile(100, x).'
    )


def _combined(per: str, first: Groups, second: Groups) -> Groups:
  """The groups of examples that are in the same group of both."""
  width = len(second.names)
  if len(first.names) * width > _MAX_PAIRS:
    _check_count(per, len(first.names) * width)
  there = np.zeros(len(first.names) * width, bool)
  codes = scratch(len(first.codes), np.int32)

  def pair(some: slice) -> None:
    codes[some] = first.codes[some] * width + second.codes[some]
    there[codes[some]] = True

  side_by_side(pair, steps(len(codes)))
  pairs = np.flatnonzero(there)
  _check_count(per, len(pairs))
  number = (np.cumsum(there) - 1).astype(np.int32)

  def renumber(some: slice) -> None:
    codes[some] = number[codes[some]]

  side_by_side(renumber, steps(len(codes)))
  names = [
    f'{first.names[n // width]}, {second.names[n % width]}'
    for n in pairs.tolist()
  ]
  return Groups(names, codes)
