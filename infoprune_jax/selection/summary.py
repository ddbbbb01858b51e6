"""What a rule keeps and throws away, before anyone pays for training."""

from typing import Any, NamedTuple

import numba
import numpy as np

from infoprune_jax.data.hashing import mix
from infoprune_jax.selection.examples import Examples, scratch, steps

NUM_DECILES = 10
_UNITS = ('examples', 'tokens', 'bytes')
_SHOWN = ('shard', 'row', 'example_id', 'source', 'num_tokens')
# Of a value: those that differ by one part in 4096 may share a decile.
_BITS = 24


def summarize(
  examples: Examples,
  kept: np.ndarray,
  ranking: np.ndarray | None,
  num_examples: int,
) -> dict[str, Any]:
  """The selection report of one keep set.

  Args:
    examples: The scored split.
    kept: [examples] bool.
    ranking: [examples] float64, the score that the arm ranks by; None for an
      arm that reads none.
    num_examples: Shown at each end of the ranking.

  Returns:
    A JSON value: totals; shares by source, by decile of the mean NLL and by
    decile of length; examples at both ends of the ranking.
  """
  by_nll = _nll_deciles(examples)
  by_length = examples.once(
    'deciles of length',
    lambda: _deciles(examples.weight('tokens'), examples.weight('examples')),
  )
  names, source = examples.sources
  counts = _counts(examples, kept, source, len(names))
  total = {unit: int(count.sum()) for unit, count in counts.items()}
  return {
    'total': {unit: total[unit] for unit in _UNITS},
    'kept': {unit: total[f'kept_{unit}'] for unit in _UNITS},
    'sources': [
      {'source': name, **_row(counts, number)}
      for name, number in sorted(zip(names, range(len(names)), strict=True))
    ],
    'deciles': _by_decile(examples, kept, by_nll),
    'lengths': _by_decile(examples, kept, by_length),
    **_extremes(examples, ranking, num_examples),
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
  sums = np.zeros(1 << _BITS, np.int64)
  for some in steps(len(values)):
    _add_up(_bits(values[some]), weight[some], sums)
  middle = np.cumsum(sums) - sums / 2
  tenth = np.minimum(middle * NUM_DECILES / max(sums.sum(), 1), NUM_DECILES - 1)
  tenth = tenth.astype(np.int8)
  found = scratch(len(values), np.int8)
  for some in steps(len(values)):
    _look_up(_bits(values[some]), tenth, found[some])
  low, high = np.zeros((2, NUM_DECILES), values.dtype)
  _bounds(values, found, low, high, np.zeros(NUM_DECILES, bool))
  return _Deciles(found, low, high)


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
def _bounds(values, label, low, high, seen):
  """The least and the greatest value of each label."""
  for n in range(len(values)):
    here, value = label[n], values[n]
    if not seen[here]:
      low[here] = high[here] = value
      seen[here] = True
    low[here] = min(low[here], value)
    high[here] = max(high[here], value)


def examples_by_decile(
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
  mean, decile = mean_nll(examples), nll_deciles(examples)
  chance = mix(examples.index, 0)
  found = []
  for number in np.unique(decile):
    inside = np.flatnonzero(decile == number)
    drawn = inside[np.argsort(chance[inside])[:num_examples]]
    ordered = drawn[np.argsort(mean[drawn], kind='stable')]
    found.append(_rows(examples, ordered, mean))
  return found


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
    'most': _rows(examples, most[::-1], ranking),
    'least': _rows(examples, least, ranking),
  }


def _sorted(positions: np.ndarray, ranking: np.ndarray) -> np.ndarray:
  return positions[np.argsort(ranking[positions], kind='stable')]


def _rows(
  examples: Examples, positions: np.ndarray, scores: np.ndarray
) -> list[dict[str, Any]]:
  """Which examples they are, each with its score."""
  taken = examples.take(positions, _SHOWN).to_pylist()
  return [
    {**row, 'score': float(scores[position])}
    for row, position in zip(taken, positions, strict=True)
  ]
