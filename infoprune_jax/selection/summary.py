"""What a rule keeps and throws away, before anyone pays for training."""

from typing import Any

import numpy as np

from infoprune_jax.data.hashing import mix
from infoprune_jax.selection.ranks import mid_ranks
from infoprune_jax.selection.rules import Examples

NUM_DECILES = 10
UNITS = {'tokens': 'num_tokens', 'bytes': 'num_bytes'}


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
  return {
    'total': _counts(examples, np.ones(len(examples), bool)),
    'kept': _counts(examples, kept),
    'sources': _by_source(examples, kept),
    'deciles': _by_decile(examples, kept),
    'lengths': _by_length(examples, kept),
    **_extremes(examples, ranking, num_examples),
  }


def _counts(examples: Examples, mask: np.ndarray) -> dict[str, int]:
  return {
    'examples': int(mask.sum()),
    **{unit: int(examples.weight(unit)[mask].sum()) for unit in UNITS},
  }


def _by_source(examples: Examples, kept: np.ndarray) -> list[dict[str, Any]]:
  rows = []
  for group in examples.groups('source'):
    inside = np.zeros(len(examples), bool)
    inside[group] = True
    of_kept = _counts(examples, inside & kept)
    rows.append(
      {
        'source': examples.table['source'][int(group[0])].as_py(),
        **_counts(examples, inside),
        **{f'kept_{unit}': count for unit, count in of_kept.items()},
      }
    )
  return sorted(rows, key=lambda row: row['source'])


def mean_nll(examples: Examples) -> np.ndarray:
  """Nats a token, [examples]; zero where there is none."""
  tokens = np.maximum(examples.weight('tokens'), 1)
  return examples.table['nll_sum'].to_numpy() / tokens


def nll_deciles(examples: Examples) -> np.ndarray:
  """Which tenth of the tokens by mean NLL each example is in, [examples]."""
  tokens = examples.weight('tokens')
  order = np.argsort(mean_nll(examples), kind='stable')
  middle = np.cumsum(tokens[order]) - tokens[order] / 2
  decile = np.empty(len(examples), int)
  decile[order] = middle * NUM_DECILES / max(tokens.sum(), 1)
  return np.minimum(decile, NUM_DECILES - 1)


def _by_decile(examples: Examples, kept: np.ndarray) -> list[dict[str, Any]]:
  """Deciles of the mean NLL that hold equal tokens."""
  mean, decile = mean_nll(examples), nll_deciles(examples)
  return [
    {'decile': number, **_part(examples, mean, decile == number, kept)}
    for number in np.unique(decile).tolist()
  ]


def _by_length(examples: Examples, kept: np.ndarray) -> list[dict[str, Any]]:
  """Deciles of documents by tokens; equal lengths are in one decile."""
  tokens = examples.weight('tokens')
  decile = (mid_ranks(tokens) * NUM_DECILES).astype(int)
  return [
    {'decile': number, **_part(examples, tokens, decile == number, kept)}
    for number in np.unique(decile).tolist()
  ]


def _part(
  examples: Examples, values: np.ndarray, inside: np.ndarray, kept: np.ndarray
) -> dict[str, Any]:
  """The bounds of a part of the examples, and what is kept of it."""
  of_all, of_kept = _counts(examples, inside), _counts(examples, inside & kept)
  return {
    'low': values[inside].min().item(),
    'high': values[inside].max().item(),
    **of_all,
    **{f'kept_{unit}': count for unit, count in of_kept.items()},
  }


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
  if ranking is None:
    return {'most': [], 'least': []}
  order = np.argsort(ranking, kind='stable')
  return {
    'most': _rows(examples, order[::-1][:num_examples], ranking),
    'least': _rows(examples, order[:num_examples], ranking),
  }


def _rows(
  examples: Examples, positions: np.ndarray, scores: np.ndarray
) -> list[dict[str, Any]]:
  """Which examples they are, each with its score."""
  columns = ['shard', 'row', 'example_id', 'source', 'num_tokens']
  taken = examples.table.select(columns).take(positions).to_pylist()
  return [
    {**row, 'score': float(scores[position])}
    for row, position in zip(taken, positions, strict=True)
  ]
