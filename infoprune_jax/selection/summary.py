"""What a rule keeps and throws away, before anyone pays for training."""

from typing import Any

import numpy as np

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
    A JSON value: totals, and shares by source and by decile of the mean NLL.
  """
  return {
    'total': _counts(examples, np.ones(len(examples), bool)),
    'kept': _counts(examples, kept),
    'sources': _by_source(examples, kept),
    'deciles': _by_decile(examples, kept),
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


def _by_decile(examples: Examples, kept: np.ndarray) -> list[dict[str, Any]]:
  """Deciles of the mean NLL that hold equal tokens."""
  tokens = examples.weight('tokens')
  mean = examples.table['nll_sum'].to_numpy() / np.maximum(tokens, 1)
  order = np.argsort(mean, kind='stable')
  middle = np.cumsum(tokens[order]) - tokens[order] / 2
  decile = (middle * NUM_DECILES / max(tokens.sum(), 1)).astype(int)
  decile = np.minimum(decile, NUM_DECILES - 1)
  rows = []
  for number in range(NUM_DECILES):
    inside = order[decile == number]
    if len(inside):
      rows.append(
        {
          'decile': number,
          'low': float(mean[inside].min()),
          'high': float(mean[inside].max()),
          'tokens': int(tokens[inside].sum()),
          'kept_tokens': int(tokens[inside][kept[inside]].sum()),
        }
      )
  return rows


def _extremes(
  examples: Examples, ranking: np.ndarray | None, num_examples: int
) -> dict[str, list[dict[str, Any]]]:
  if ranking is None:
    return {'most': [], 'least': []}
  order = np.argsort(ranking, kind='stable')

  def rows(positions: np.ndarray) -> list[dict[str, Any]]:
    columns = ['shard', 'row', 'example_id', 'source', 'num_tokens']
    taken = examples.table.select(columns).take(positions).to_pylist()
    return [
      {**row, 'score': float(ranking[position])}
      for row, position in zip(taken, positions, strict=True)
    ]

  return {
    'most': rows(order[::-1][:num_examples]),
    'least': rows(order[:num_examples]),
  }
