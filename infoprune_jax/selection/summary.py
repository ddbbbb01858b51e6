"""What a rule keeps and throws away, before anyone pays for training."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numba
import numpy as np

from infoprune_jax.config import UserError
from infoprune_jax.selection.examples import Examples, scratch, steps

NUM_DECILES = 10
_UNITS = ('examples', 'tokens', 'bytes')
# Of a value: those that differ by one part in 4096 may share a decile.
_BITS = 24
_STRETCH = 1 << 18  # of what begins alike, summed up at a time
# Bits for each example, to find the few whose hashes are worth comparing.
_SLOTS = 8
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
  names, source = examples.sources
  counts = _counts(examples, kept, source, len(names))
  total = {unit: int(count.sum()) for unit, count in counts.items()}
  heat = np.zeros((2, len(names), NUM_DECILES), np.int64)
  _add_up_pairs(source, by_nll.decile, examples.weight('tokens'), kept, heat)
  return {
    'total': {unit: total[unit] for unit in _UNITS},
    'kept': {unit: total[f'kept_{unit}'] for unit in _UNITS},
    'sources': [
      {
        'source': name,
        **_row(counts, number),
        'tokens_by_decile': heat[0, number].tolist(),
        'kept_tokens_by_decile': heat[1, number].tolist(),
      }
      for name, number in sorted(zip(names, range(len(names)), strict=True))
    ],
    'deciles': _by_decile(examples, kept, by_nll),
    'lengths': _by_decile(examples, kept, by_length),
  }


def _counts(
  examples: Examples, kept: np.ndarray, label: np.ndarray, size: int
) -> dict[str, np.ndarray]:
  """What there is and what is kept of each label, [size] int64 each."""
  names = [f'{prefix}{unit}' for unit in _UNITS for prefix in ('', 'kept_')]
  sums = np.zeros((len(names), size), np.int64)
  for place, unit in enumerate(_UNITS):
    _add_up_labels(
      label, examples.weight(unit), kept, sums[2 * place : 2 * place + 2]
    )
  return dict(zip(names, sums, strict=True))


def _row(counts: dict[str, np.ndarray], number: int) -> dict[str, int]:
  return {name: int(count[number]) for name, count in counts.items()}


def copied(examples: Examples) -> np.ndarray:
  """Whether an example's text is another's too, [examples] int8."""
  content = examples.column('content_hash', np.int64)
  bits = 1 << max(20, (_SLOTS * len(content)).bit_length())
  seen, again = scratch(bits // 8, np.uint8), scratch(bits // 8, np.uint8)
  _mark(content, seen, again)
  found = scratch(len(content), np.int8)
  _marked(content, again, found)
  few = np.flatnonzero(found)  # Copies, and what shares a slot by chance.
  order = few[np.argsort(content[few])]
  same = np.flatnonzero(np.diff(content[order]) == 0)
  found[few] = 0
  found[order[same]] = found[order[same + 1]] = 1
  return found


@numba.njit(cache=True)
def _mark(content, seen, again):
  """Sets the bit of each hash in `seen`, and in `again` where it was set."""
  for n in range(len(content)):
    slot = content[n] & (8 * len(seen) - 1)
    bit = np.uint8(1 << (slot & 7))
    again[slot >> 3] |= seen[slot >> 3] & bit
    seen[slot >> 3] |= bit


@numba.njit(cache=True)
def _marked(content, again, found):
  """Whether the bit of each hash is set in `again`."""
  for n in range(len(content)):
    slot = content[n] & (8 * len(again) - 1)
    found[n] = (again[slot >> 3] >> (slot & 7)) & 1


class _Deciles(NamedTuple):
  """Which tenth each example is in, and the bounds of each tenth."""

  decile: np.ndarray  # [examples] int8
  low: np.ndarray  # [NUM_DECILES]
  high: np.ndarray


def _by_decile(
  examples: Examples, kept: np.ndarray, deciles: _Deciles
) -> list[dict[str, Any]]:
  """The bounds of each decile that has examples, and what is kept of it."""
  counts = _counts(examples, kept, deciles.decile, NUM_DECILES)
  return [
    {
      'decile': number,
      'low': deciles.low[number].item(),
      'high': deciles.high[number].item(),
      **_row(counts, number),
    }
    for number in np.flatnonzero(counts['examples']).tolist()
  ]


def mean_nll(examples: Examples) -> np.ndarray:
  """Nats a token, [examples] float64; zero where there is none."""
  found = examples.column('nll_sum', np.float64)
  tokens = examples.weight('tokens')
  for some in steps(len(found)):
    found[some] /= np.maximum(tokens[some], 1)
  return found


def nll_deciles(examples: Examples) -> np.ndarray:
  """Which tenth of the tokens by mean NLL each example is in, [examples]."""
  return _nll_deciles(examples).decile


def _nll_deciles(examples: Examples) -> _Deciles:
  return examples.once(
    'deciles of mean NLL',
    lambda: _deciles(mean_nll(examples), examples.weight('tokens')),
  )


def _deciles(values: np.ndarray, weight: np.ndarray) -> _Deciles:
  """Which tenth of the weight each value is in; equal ones are in one.

  Args:
    values: [examples].
    weight: [examples], whole numbers.
  """
  sums = _weights(values, weight)
  total = max(sums.sum(), 1)
  tenth = np.empty(len(sums), np.int8)
  for some, up_to in _cumulated(sums):
    middle = up_to - sums[some] / 2
    tenth[some] = np.minimum(middle * NUM_DECILES / total, NUM_DECILES - 1)
  found = scratch(len(values), np.int8)
  for some in steps(len(values)):
    _look_up(_bits(values[some]), tenth, found[some])
  low, high = np.zeros((2, NUM_DECILES), values.dtype)
  _bounds(values, found, low, high, np.zeros(NUM_DECILES, bool))
  return _Deciles(found, low, high)


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


@numba.njit(cache=True)
def _add_up(bits, weight, sums):
  for n in range(len(bits)):
    sums[_bin(bits[n])] += weight[n]


@numba.njit(cache=True)
def _look_up(bits, table, found):
  for n in range(len(bits)):
    found[n] = table[_bin(bits[n])]


@numba.njit(cache=True)
def _add_up_labels(label, weight, kept, sums):
  """Adds to [2, labels]: what there is, and what is kept."""
  for n in range(len(label)):
    sums[0, label[n]] += weight[n]
    sums[1, label[n]] += weight[n] * kept[n]  # No branch: chance decides it.


@numba.njit(cache=True)
def _add_up_pairs(first, second, weight, kept, sums):
  """Adds to [2, labels, labels]: what there is, and what is kept."""
  for n in range(len(first)):
    sums[0, first[n], second[n]] += weight[n]
    sums[1, first[n], second[n]] += weight[n] * kept[n]


@numba.njit(cache=True)
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
    `edges` in nats a token, one more than `tokens`. They span 99.8 % of the
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
  found = np.zeros(_NUM_BINS, np.int64)
  for some in steps(len(mean)):
    inside = mean[some].clip(low, high)
    found += np.histogram(inside, edges, weights=tokens[some])[0].astype(int)
  return {'edges': edges.tolist(), 'tokens': found.tolist()}


def _values(bins: np.ndarray) -> np.ndarray:
  """The least value of each bin, float64."""
  key = bins.astype(np.uint64) << np.uint64(64 - _BITS)
  sign = np.uint64(1 << 63)
  return np.where(key & sign, key ^ sign, ~key).view(np.float64)
