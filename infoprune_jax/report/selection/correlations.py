"""Rank correlations of scores with each other and with length."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from infoprune_jax.config.experiment import Config
from infoprune_jax.runtime.hashing import uniform
from infoprune_jax.selection import ranks, rules
from infoprune_jax.selection.arrays import steps
from infoprune_jax.selection.examples import Examples, ExampleTable

# With more examples a sample is ranked; its correlations err by about 0.001.
MAX_RANKED = 1_000_000
_SEED = 0  # Fixed, so that a page written again is the same.
# Scores that every arm's score is compared with.
LENGTH = 'length in tokens'
NATURAL_SCORES = {
  'mean NLL': 'nll_sum / num_tokens',
  'mean unigram NLL': 'unigram_nll_sum / num_tokens',
  'their sum': 'nll_sum / num_tokens + unigram_nll_sum / num_tokens',
  'bits per byte': 'nll_sum / ln(2) / num_bytes',
  'compression ratio': 'compressed_bytes / num_bytes',
  LENGTH: 'num_tokens',
}


def correlations(config: Config, examples: Examples) -> dict[str, Any]:
  """Spearman's rank correlation of each pair of scores, over examples.

  Args:
    config: The scores of its arms are compared with each other, with
      `NATURAL_SCORES`, and with the numbers in the user's tables.
    examples: The scored split. Examples without a token are left out. If there
      are more than `MAX_RANKED`, about that many are drawn, and functions of
      all examples, such as `rank(x)`, are over the drawn ones.

  Returns:
    `correlations`: `scores`, each with its `label`, `expression`, and the
    `arms` that rank by it; `spearman`, [scores, scores], None if a score is
    constant; `ranked` and `out_of`, numbers of examples. `length_bias`: the
    correlation `rho` of every other score (`label`) with length.
  """
  by_expression, lowest = _scores(config, _numbers(examples))
  positions, out_of = _drawn(examples)
  sample = _table(examples, positions)
  scores = list(by_expression.values())
  values = [
    rules.ranking(
      sample, score['expression'], 'lowest' if key in lowest else 'refuse'
    )
    for key, score in by_expression.items()
  ]
  spearman = [
    [None if np.isnan(value) else float(value) for value in row]
    for row in ranks.spearman(np.stack(values))
  ]
  length = list(NATURAL_SCORES).index(LENGTH)
  return {
    'correlations': {
      'scores': scores,
      'spearman': spearman,
      'ranked': len(positions),
      'out_of': out_of,
    },
    'length_bias': [
      {'label': score['label'], 'rho': row[length]}
      for n, (score, row) in enumerate(zip(scores, spearman, strict=True))
      if n != length
    ],
  }


def _numbers(examples: Examples) -> list[str]:
  """The columns of the user that are numbers."""
  return [
    name
    for name in examples.users
    if pa.types.is_integer(examples.schema.field(name).type)
    or pa.types.is_floating(examples.schema.field(name).type)
  ]


def _scores(
  config: Config, users: Sequence[str]
) -> tuple[dict[str, dict[str, Any]], set[str]]:
  """The scores to compare, and those that may be missing in some arm.

  Args:
    config: Of the arms.
    users: Columns of the user.
  """
  scores = {
    _normalised(expression): {
      'label': label,
      'expression': expression,
      'arms': [],
    }
    for label, expression in [*NATURAL_SCORES.items(), *((n, n) for n in users)]
  }
  lowest = {*map(_normalised, users)}
  for arm, of_arm in config.select.arms.items():
    # The scores by its own checkpoint are not among the columns.
    for rule in () if config.select.scores_itself(arm) else of_arm:
      if rule.needs_score:
        text = rule.score.strip()
        score = scores.setdefault(
          _normalised(text), {'label': text, 'expression': text, 'arms': []}
        )
        score['arms'] += [arm] if arm not in score['arms'] else []
        if rule.missing == 'lowest':
          lowest.add(_normalised(text))
  return scores, lowest


def _normalised(expression: str) -> str:
  """Makes expressions equal that differ only in case and white space.

  >>> _normalised("Nll_sum * (source = 'A b')")
  "nll_sum*(source='A b')"
  """
  parts = re.split("('[^']*')", expression)  # Every second part is a string.
  parts[::2] = [''.join(part.lower().split()) for part in parts[::2]]
  return ''.join(parts)


def _drawn(examples: Examples) -> tuple[np.ndarray, int]:
  """The positions to rank, and the number of all examples with a token."""
  tokens, size = examples.weight('tokens'), examples.weight('bytes')
  batches = list(steps(len(examples)))

  def with_token(batch: slice) -> np.ndarray:
    return (tokens[batch] > 0) & (size[batch] > 0)

  out_of = sum(int(np.count_nonzero(with_token(batch))) for batch in batches)
  fraction = MAX_RANKED / max(out_of, MAX_RANKED)
  positions = [
    batch.start
    + np.flatnonzero(
      with_token(batch) & (uniform(examples.index[batch], _SEED) < fraction)
    )
    for batch in batches
  ]
  return np.concatenate([np.zeros(0, np.int64), *positions]), out_of


def _table(examples: Examples, positions: np.ndarray) -> ExampleTable:
  """Some examples, in memory."""
  taken = examples.take(positions, examples.schema.names)
  return ExampleTable(
    taken.unify_dictionaries().combine_chunks(), examples.index[positions]
  )
