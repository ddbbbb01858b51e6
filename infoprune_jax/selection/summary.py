"""Summaries of what an arm keeps and throws away, written before training."""

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

import numba
import numpy as np

from infoprune_jax.config.validation import UserError
from infoprune_jax.selection import copies, groups
from infoprune_jax.selection.arrays import scratch, side_by_side, slices, steps
from infoprune_jax.selection.computed import HERE, Column, Computed
from infoprune_jax.selection.examples import Call, Examples, each, sum_of

NUM_DECILES = 10
_UNITS = ('examples', 'tokens', 'bytes')
_TOKENS = _UNITS.index('tokens')
# Values are sorted by their first bits alone, so those that differ by less than
# one part in 4096 may share a decile.
_BITS = 24
_STEP = 1 << 18  # prefixes that are summed up at a time
_NUM_BINS = 60  # of the histogram
_BEYOND = 0.001  # the fraction of tokens beyond each end of the histogram


def summarize(examples: Examples, kept: Column) -> dict[str, Any]:
  """The selection report of one keep set.

  Args:
    examples: The scored split.
    kept: [examples] bool; or uint8, how often an epoch uses each.

  Returns:
    A JSON value: the counts of all examples and of the kept ones: in all, by
    source, by source and decile of the mean NLL, by that decile, and by decile
    of length. If examples are repeated, what is kept counts each copy, and
    there are `repeats`, see `_by_repeats`, and for each source
    `unique_tokens_by_decile`, where an example counts once.
  """
  by_nll, by_length = _both_deciles(examples)
  calls = [_count(examples, kept, by_nll), _count(examples, kept, by_length)]
  # Counts are always here, see `by_shard.why_not`.
  repeats = None
  if isinstance(kept, np.ndarray) and kept.dtype != bool:
    repeats = kept
    calls.append(_count(examples, repeats.astype(bool), by_nll))
  counts, of_lengths, *once = examples.run(calls)
  of_sources = counts.sum(axis=-1)
  total = _named(of_sources.sum(axis=-1))
  names = groups.names(examples, 'source')
  summary = {
    'total': {unit: total[unit] for unit in _UNITS},
    'kept': {unit: total[f'kept_{unit}'] for unit in _UNITS},
    'sources': [
      {
        'source': name,
        **_named(of_sources[..., number]),
        'tokens_by_decile': counts[0, _TOKENS, number].tolist(),
        'kept_tokens_by_decile': counts[1, _TOKENS, number].tolist(),
      }
      for name, number in sorted(zip(names, range(len(names)), strict=True))
    ],
    'deciles': _by_decile(by_nll, counts),
    'lengths': _by_decile(by_length, of_lengths),
  }
  if repeats is not None:
    summary['repeats'] = _by_repeats(examples, repeats)
    [of_once] = once
    for row in summary['sources']:
      tokens = of_once[1, _TOKENS, names.index(row['source'])].tolist()
      row['unique_tokens_by_decile'] = tokens
  return summary


def _by_repeats(
  examples: Examples, repeats: np.ndarray
) -> list[dict[str, int]]:
  """The size of the examples that an epoch uses 0, 1, 2 ... times."""
  weights = [examples.weight(unit) for unit in _UNITS]
  counts = np.zeros((len(_UNITS), 256), np.int64)
  for some in steps(len(repeats)):
    for unit, weight in zip(counts, weights, strict=True):
      # Sums of so few are exact.
      unit += np.bincount(repeats[some], weight[some], 256).astype(np.int64)
  return [
    {'repeats': n, **dict(zip(_UNITS, counts[:, n].tolist(), strict=True))}
    for n in np.flatnonzero(counts[0]).tolist()
  ]


def unique(summary: Mapping[str, Any]) -> dict[str, int]:
  """The size of what a summary's arm keeps, where each example counts once."""
  if 'repeats' not in summary:
    return summary['kept']
  used = [row for row in summary['repeats'] if row['repeats']]
  return {unit: sum(row[unit] for row in used) for unit in _UNITS}


def _weight(examples: Examples, unit: str) -> np.ndarray:
  return examples.weight(unit)


def _count(examples: Examples, kept: Column, deciles: '_Deciles') -> Call:
  """Counts of all and of the kept examples, by unit, source and decile.

  Returns:
    What gives [2, units, sources, NUM_DECILES] int64; the first axis is all,
    kept.
  """
  names = groups.names(examples, 'source')
  source = Computed(groups.codes, HERE, 'source', names)
  shape = 2, len(_UNITS), len(names), NUM_DECILES
  sizes = (Computed(_weight, HERE, unit) for unit in ('tokens', 'bytes'))
  return sum_of(_add_up_all, shape, source, deciles.decile, *sizes, kept)


def _add_up_all(shape: tuple[int, ...], *arrays: np.ndarray) -> np.ndarray:
  """As `_count`, of the examples of a part."""

  def add(some: slice) -> np.ndarray:
    sums = np.zeros(shape, np.int64)
    arguments = [*(array[some] for array in arrays), sums]
    _add_up_labels(*arguments)
    return sums

  size = len(arrays[0])
  return functools.reduce(
    np.add, side_by_side(add, slices(size, math.prod(shape)))
  )


def _named(counts: np.ndarray) -> dict[str, int]:
  """Counts, [2, units], by name: those of kept examples begin with kept_."""
  names = [f'{prefix}{unit}' for prefix in ('', 'kept_') for unit in _UNITS]
  return dict(zip(names, counts.ravel().tolist(), strict=True))


def copied(examples: Examples) -> np.ndarray:
  """Whether another example has the same text, [examples] bool."""
  content = examples.column('content_hash', np.int64).view(np.uint64)
  everything = np.broadcast_to(np.True_, len(content))
  is_copy = scratch(len(content), np.bool_)
  for same, starts in copies.groups(content, everything):
    size = np.diff(starts, append=len(same))
    is_copy[same] = np.repeat(size > 1, size)
  return is_copy


class _Deciles(NamedTuple):
  """The decile of each example, and the bounds of each decile."""

  decile: Computed  # [examples] int8
  low: np.ndarray  # [NUM_DECILES], the least value in each
  high: np.ndarray  # [NUM_DECILES], the greatest value in each


def _by_decile(deciles: _Deciles, counts: np.ndarray) -> list[dict[str, Any]]:
  """The bounds and the counts of each decile that has examples.

  Args:
    deciles: The deciles of the examples.
    counts: See `_count`.
  """
  of_deciles = counts.sum(axis=2)
  return [
    {
      'decile': number,
      'low': deciles.low[number].item(),
      'high': deciles.high[number].item(),
      **_named(of_deciles[..., number]),
    }
    for number in np.flatnonzero(of_deciles[0, 0]).tolist()
  ]


def mean_nll(examples: Examples) -> np.ndarray:
  """The mean NLL in nats per token, [examples] float64; 0 without tokens."""
  nll = examples.column('nll_sum', np.float64)
  tokens = examples.weight('tokens')

  def divide(some: slice) -> None:
    nll[some] /= np.maximum(tokens[some], 1)

  side_by_side(divide, steps(len(nll)))
  return nll


def nll_deciles(examples: Examples) -> Column:
  """The decile of each example by mean NLL, [examples] int8.

  Each decile has a tenth of the tokens.
  """
  by_nll, _ = _both_deciles(examples)
  return examples.value(by_nll.decile)


def _both_deciles(examples: Examples) -> list[_Deciles]:
  """The deciles by mean NLL, and those by length."""
  mean, tokens, ones = (
    Computed(function, HERE, *unit)
    for function, *unit in (
      (mean_nll,),
      (_weight, 'tokens'),
      (_weight, 'examples'),
    )
  )
  return examples.once(
    'deciles', lambda: _deciles(examples, [(mean, tokens), (tokens, ones)])
  )


def _deciles(
  examples: Examples, pairs: Sequence[tuple[Computed, Computed]]
) -> list[_Deciles]:
  """Cuts values into deciles of equal weight; equal values share a decile.

  Args:
    examples: The examples.
    pairs: Values, [examples] numbers, and their weight, [examples] int.
  """
  sums = examples.run([sum_of(_weights, *pair) for pair in pairs])
  columns = [
    (values, Computed(_look_up_all, values, _prefixes(of_prefixes)))
    for (values, _), of_prefixes in zip(pairs, sums, strict=True)
  ]
  bounds = examples.run([each(_own_bounds, *pair) for pair in columns])
  return [
    _Deciles(decile, *_merged(of_parts))
    for (_, decile), of_parts in zip(columns, bounds, strict=True)
  ]


def _prefixes(sums: np.ndarray) -> np.ndarray:
  """How many prefixes each decile has, by the weights of prefixes."""
  all_weight = max(sums.sum(), 1)
  decile = np.empty(len(sums), np.int8)
  for some, up_to in _cumulated(sums):
    middle = up_to - sums[some] / 2
    decile[some] = np.minimum(
      middle * NUM_DECILES / all_weight, NUM_DECILES - 1
    )
  # Deciles ascend with prefixes.
  return np.bincount(decile, minlength=NUM_DECILES)


def _look_up_all(values: np.ndarray, sizes: np.ndarray) -> np.ndarray:
  """The decile of each value, int8.

  Args:
    values: [n] numbers.
    sizes: How many prefixes each decile has.
  """
  decile = np.repeat(np.arange(NUM_DECILES, dtype=np.int8), sizes)
  decile_of = scratch(len(values), np.int8)
  side_by_side(
    lambda some: _look_up(_bits(values[some]), decile, decile_of[some]),
    steps(len(values)),
  )
  return decile_of


def _own_bounds(values: np.ndarray, decile: np.ndarray) -> list[np.ndarray]:
  """The least and the greatest value of each decile, and whether it has any."""
  low, high = np.zeros((2, NUM_DECILES), values.dtype)
  is_there = np.zeros(NUM_DECILES, bool)
  _bounds(values, decile, low, high, is_there)
  return [low, high, is_there]


def _merged(bounds: list[list[np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
  """The bounds of deciles by those of parts; 0 for a decile without examples."""
  low, high, is_there = map(np.stack, zip(*bounds, strict=True))
  nothing = ~is_there.any(axis=0)
  lows = np.where(is_there, low, high.max(axis=0)).min(axis=0)
  highs = np.where(is_there, high, lows).max(axis=0)
  lows[nothing] = highs[nothing] = 0
  return lows, highs


def _weights(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
  """The weight of each prefix, [2**_BITS] int64, in the order of values.

  A prefix is the first bits of a value, see `_prefix`.
  """
  sums = np.zeros(1 << _BITS, np.int64)
  for some in steps(len(values)):
    _add_up(_bits(values[some]), weight[some], sums)
  return sums


def _cumulated(sums: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
  """The cumulative sum of an array, slice by slice."""
  before = 0
  for first in range(0, len(sums), _STEP):
    some = slice(first, first + _STEP)
    up_to = np.cumsum(sums[some])
    up_to += before
    before = up_to[-1]
    yield some, up_to


def _bits(values: np.ndarray) -> np.ndarray:
  """The bits of values as float64, [n] uint64; -0.0 counts as 0.0."""
  return (values.astype(np.float64, copy=False) + 0.0).view(np.uint64)


@numba.njit(inline='always')
def _prefix(bits):
  """The first `_BITS` bits of a value, in the order of `budget.ordered_bits`."""
  sign = np.uint64(1 << 63)
  key = ~bits if bits & sign else bits | sign
  return key >> np.uint64(64 - _BITS)


@numba.njit(cache=True, nogil=True)
def _add_up(bits, weight, sums):
  for n in range(len(bits)):
    sums[_prefix(bits[n])] += weight[n]


@numba.njit(cache=True, nogil=True)
def _look_up(bits, table, out):
  for n in range(len(bits)):
    out[n] = table[_prefix(bits[n])]


@numba.njit(cache=True, nogil=True)
def _add_up_labels(first, second, tokens, num_bytes, kept, sums):
  """Adds examples to `sums`, [2, units, first labels, second labels].

  The first axis is all examples, and those that are kept.
  """
  for n in range(len(first)):
    a, b = first[n], second[n]
    sums[0, 0, a, b] += 1
    sums[0, 1, a, b] += tokens[n]
    sums[0, 2, a, b] += num_bytes[n]
    sums[1, 0, a, b] += kept[n]  # No branch: chance decides it.
    sums[1, 1, a, b] += tokens[n] * kept[n]
    sums[1, 2, a, b] += num_bytes[n] * kept[n]


@numba.njit(cache=True, nogil=True)
def _bounds(values, label, low, high, seen):
  """The least and the greatest value of each label."""
  for n in range(len(values)):
    here, value = label[n], values[n]
    if not seen[here]:
      low[here] = high[here] = value
      seen[here] = True
    low[here] = min(low[here], value)
    high[here] = max(high[here], value)


class NllHistogram(TypedDict):
  """Tokens of the scored split by their example's mean NLL.

  The bins span 99.8 % of the tokens. The first and the last bin also count the
  examples beyond.
  """

  edges: list[float]  # nats per token, one more than `tokens`
  tokens: list[int]


def nll_histogram(examples: Examples) -> NllHistogram:
  """Counts the tokens of the scored split by their example's mean NLL.

  Raises:
    UserError: there is no token.
  """
  mean, tokens = mean_nll(examples), examples.weight('tokens')
  sums = _weights(mean, tokens)
  total = sums.sum()
  if not total:
    raise UserError('The scored split has no token: no example was scored.')
  beyond = total * np.array([_BEYOND, 1.0 - _BEYOND])
  below = [np.searchsorted(up_to, beyond) for _, up_to in _cumulated(sums)]
  low, high = _least_values(np.sum(below, axis=0))
  if low == high:
    low, high = low - 0.5, high + 0.5
  edges = np.linspace(low, high, _NUM_BINS + 1)
  tokens_of = np.zeros(_NUM_BINS, np.int64)
  for some in steps(len(mean)):
    inside = mean[some].clip(low, high)
    tokens_of += np.histogram(inside, edges, weights=tokens[some])[0].astype(
      int
    )
  return NllHistogram(edges=edges.tolist(), tokens=tokens_of.tolist())


def _least_values(prefixes: np.ndarray) -> np.ndarray:
  """The least value with each prefix, float64."""
  key = prefixes.astype(np.uint64) << np.uint64(64 - _BITS)
  sign = np.uint64(1 << 63)
  return np.where(key & sign, key ^ sign, ~key).view(np.float64)
