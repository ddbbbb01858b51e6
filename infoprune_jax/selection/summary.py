"""What a rule keeps and throws away, before anyone pays for training."""

import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numba
import numpy as np

from infoprune_jax.config.validation import UserError
from infoprune_jax.selection import copies
from infoprune_jax.selection.arrays import scratch, side_by_side, slices, steps
from infoprune_jax.selection.examples import Examples

NUM_DECILES = 10
_UNITS = ('examples', 'tokens', 'bytes')
_TOKENS = _UNITS.index('tokens')
# Of a value: those that differ by one part in 4096 may share a decile.
_BITS = 24
_STRETCH = 1 << 18  # of what begins alike, summed up at a time
_NUM_BINS = 60  # of the histogram
_BEYOND = 0.001  # of the tokens, at each end of it


def summarize(examples: Examples, kept: np.ndarray) -> dict[str, Any]:
  """The selection report of one keep set.

  Args:
    examples: The scored split.
    kept: [examples] bool.

  Returns:
    A JSON value: what there is and what is kept, in all; of each source, and of
    its tokens in each decile of the mean NLL; of these deciles; of deciles of
    length.
  """
  by_nll = _nll_deciles(examples)
  by_length = examples.once(
    'deciles of length',
    lambda: _deciles(examples.weight('tokens'), examples.weight('examples')),
  )
  counts = _counts(examples, kept, by_nll)
  of_sources = counts.sum(axis=-1)
  total = _row(of_sources.sum(axis=-1))
  names, _ = examples.sources
  return {
    'total': {unit: total[unit] for unit in _UNITS},
    'kept': {unit: total[f'kept_{unit}'] for unit in _UNITS},
    'sources': [
      {
        'source': name,
        **_row(of_sources[..., number]),
        'tokens_by_decile': counts[0, _TOKENS, number].tolist(),
        'kept_tokens_by_decile': counts[1, _TOKENS, number].tolist(),
      }
      for name, number in sorted(zip(names, range(len(names)), strict=True))
    ],
    'deciles': _by_decile(by_nll, counts),
    'lengths': _by_decile(by_length, _counts(examples, kept, by_length)),
  }


def _counts(
  examples: Examples, kept: np.ndarray, deciles: '_Deciles'
) -> np.ndarray:
  """What there is, and what is kept, [2, units, sources, deciles] int64."""
  names, source = examples.sources
  tokens, num_bytes = examples.weight('tokens'), examples.weight('bytes')
  shape = 2, len(_UNITS), len(names), NUM_DECILES

  def add(some: slice) -> np.ndarray:
    sums = np.zeros(shape, np.int64)
    labels = source[some], deciles.decile[some]
    _add_up_labels(*labels, tokens[some], num_bytes[some], kept[some], sums)
    return sums

  return functools.reduce(
    np.add, side_by_side(add, slices(len(kept), math.prod(shape)))
  )


def _row(counts: np.ndarray) -> dict[str, int]:
  """Counts [2, units] by name."""
  names = [f'{prefix}{unit}' for prefix in ('', 'kept_') for unit in _UNITS]
  return dict(zip(names, counts.ravel().tolist(), strict=True))


def copied(examples: Examples) -> np.ndarray:
  """Whether an example's text is another's too, [examples] bool."""
  content = examples.column('content_hash', np.int64).view(np.uint64)
  everything = np.broadcast_to(np.True_, len(content))
  is_copy = scratch(len(content), np.bool_)
  for same, starts in copies.groups(content, everything):
    size = np.diff(starts, append=len(same))
    is_copy[same] = np.repeat(size > 1, size)
  return is_copy


class _Deciles(NamedTuple):
  """Which decile each example is in, and the bounds of each decile."""

  decile: np.ndarray  # [examples] int8
  low: np.ndarray  # [NUM_DECILES]
  high: np.ndarray


def _by_decile(deciles: _Deciles, counts: np.ndarray) -> list[dict[str, Any]]:
  """The bounds of each decile that has examples, and what is kept of it.

  Args:
    deciles: Of the examples.
    counts: As `_counts` gives them.
  """
  of_deciles = counts.sum(axis=2)
  return [
    {
      'decile': number,
      'low': deciles.low[number].item(),
      'high': deciles.high[number].item(),
      **_row(of_deciles[..., number]),
    }
    for number in np.flatnonzero(of_deciles[0, 0]).tolist()
  ]


def mean_nll(examples: Examples) -> np.ndarray:
  """Nats per token, [examples] float64; zero where there is none."""
  nll = examples.column('nll_sum', np.float64)
  tokens = examples.weight('tokens')

  def divide(some: slice) -> None:
    nll[some] /= np.maximum(tokens[some], 1)

  side_by_side(divide, steps(len(nll)))
  return nll


def nll_deciles(examples: Examples) -> np.ndarray:
  """Which decile of the tokens by mean NLL each example is in, [examples]."""
  return _nll_deciles(examples).decile


def _nll_deciles(examples: Examples) -> _Deciles:
  return examples.once(
    'deciles of mean NLL',
    lambda: _deciles(mean_nll(examples), examples.weight('tokens')),
  )


def _deciles(values: np.ndarray, weight: np.ndarray) -> _Deciles:
  """Which decile of the weight each value is in; equal ones are in one.

  Args:
    values: [examples].
    weight: [examples], whole numbers.
  """
  sums = _weights(values, weight)
  total = max(sums.sum(), 1)
  decile = np.empty(len(sums), np.int8)
  for some, up_to in _cumulated(sums):
    middle = up_to - sums[some] / 2
    decile[some] = np.minimum(middle * NUM_DECILES / total, NUM_DECILES - 1)
  decile_of = scratch(len(values), np.int8)
  side_by_side(
    lambda some: _look_up(_bits(values[some]), decile, decile_of[some]),
    steps(len(values)),
  )
  low, high = np.zeros((2, NUM_DECILES), values.dtype)
  _bounds(values, decile_of, low, high, np.zeros(NUM_DECILES, bool))
  return _Deciles(decile_of, low, high)


def _weights(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
  """The weight of the values that begin alike, in their order, [2**_BITS]."""
  sums = np.zeros(1 << _BITS, np.int64)
  for some in steps(len(values)):
    _add_up(_bits(values[some]), weight[some], sums)
  return sums


def _cumulated(sums: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
  """Stretches of an array, and in each the sums of all up to there."""
  before = 0
  for first in range(0, len(sums), _STRETCH):
    some = slice(first, first + _STRETCH)
    up_to = np.cumsum(sums[some])
    up_to += before
    before = up_to[-1]
    yield some, up_to


def _bits(values: np.ndarray) -> np.ndarray:
  """Of float64, as uint64; both zeros are one."""
  return (values.astype(np.float64, copy=False) + 0.0).view(np.uint64)


@numba.njit(inline='always')
def _bin(bits):
  """The first bits of a value, in the order of values; see `budget.ordered_bits`."""
  sign = np.uint64(1 << 63)
  key = ~bits if bits & sign else bits | sign
  return key >> np.uint64(64 - _BITS)


@numba.njit(cache=True, nogil=True)
def _add_up(bits, weight, sums):
  for n in range(len(bits)):
    sums[_bin(bits[n])] += weight[n]


@numba.njit(cache=True, nogil=True)
def _look_up(bits, table, out):
  for n in range(len(bits)):
    out[n] = table[_bin(bits[n])]


@numba.njit(cache=True, nogil=True)
def _add_up_labels(first, second, tokens, num_bytes, kept, sums):
  """Adds to [2, units, labels, labels]: what there is, and what is kept."""
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


def nll_histogram(examples: Examples) -> dict[str, Any]:
  """Tokens of the scored split by their example's mean NLL.

  Returns:
    `edges` in nats per token, one more than `tokens`. They span 99.8 % of the
    tokens; examples beyond count into the first and the last bin.

  Raises:
    UserError: there is no token.
  """
  mean, tokens = mean_nll(examples), examples.weight('tokens')
  sums = _weights(mean, tokens)
  total = sums.sum()
  if not total:
    raise UserError('The scored split has no token: nothing was scored.')
  beyond = total * np.array([_BEYOND, 1.0 - _BEYOND])
  below = [np.searchsorted(up_to, beyond) for _, up_to in _cumulated(sums)]
  low, high = _values(np.sum(below, axis=0))
  if low == high:
    low, high = low - 0.5, high + 0.5
  edges = np.linspace(low, high, _NUM_BINS + 1)
  tokens_of = np.zeros(_NUM_BINS, np.int64)
  for some in steps(len(mean)):
    inside = mean[some].clip(low, high)
    tokens_of += np.histogram(inside, edges, weights=tokens[some])[0].astype(
      int
    )
  return {'edges': edges.tolist(), 'tokens': tokens_of.tolist()}


def _values(bins: np.ndarray) -> np.ndarray:
  """The least value of each bin, float64."""
  key = bins.astype(np.uint64) << np.uint64(64 - _BITS)
  sign = np.uint64(1 << 63)
  return np.where(key & sign, key ^ sign, ~key).view(np.float64)
