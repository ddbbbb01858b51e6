"""Which scores rank alike, and which go by length."""

import re
from typing import Any

import numpy as np

from infoprune_jax.config.experiment import Config
from infoprune_jax.runtime.hashing import uniform
from infoprune_jax.selection import ranks, rules
from infoprune_jax.selection.arrays import steps
from infoprune_jax.selection.examples import Examples, ExampleTable

# Of more examples a draw is ranked: it misses a correlation by a thousandth.
MAX_RANKED = 1_000_000
_SEED = 0  # any: fixed, so that a page written again is the same
# What any score is worth comparing with; `length` is also the one whose bias
# the page tells.
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
    config: Whose arms' scores are compared with each other and the natural
      ones.
    examples: The scored split; those without a token are left out. Of more than
      `MAX_RANKED` about as many are drawn; what an expression says of all
      examples, such as `rank(x)`, it then says of these.

  Returns:
    `correlations`: `scores`, each with its `label`, `expression`, and the
      `arms`
    that rank by it; `spearman`, [scores, scores], None where a score is
    constant; `ranked` and `out_of`, how many examples; and `length_bias`, what
    every other score has with length.
  """
  scores, lowest = _scores(config)
  positions, out_of = _drawn(examples)
  some = _table(examples, positions)
  values = np.stack(
    [
      rules.ranking(
        some, score['expression'], 'lowest' if key in lowest else 'refuse'
      )
      for key, score in scores.items()
    ]
  )
  table = [
    [None if np.isnan(value) else float(value) for value in row]
    for row in ranks.spearman(values)
  ]
  length = list(NATURAL_SCORES).index(LENGTH)
  found = list(scores.values())
  return {
    'correlations': {
      'scores': found,
      'spearman': table,
      'ranked': len(positions),
      'out_of': out_of,
    },
    'length_bias': [
      {'label': score['label'], 'rho': row[length]}
      for n, (score, row) in enumerate(zip(found, table, strict=True))
      if n != length
    ],
  }


def _scores(config: Config) -> tuple[dict[str, dict[str, Any]], set[str]]:
  """The scores to compare, and which of them some arm lets be missing."""
  scores = {
    _normalised(expression): {
      'label': label,
      'expression': expression,
      'arms': [],
    }
    for label, expression in NATURAL_SCORES.items()
  }
  lowest = set()
  for arm in config.arms:
    for rule in config.select.arms[arm]:
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
  """Equal for expressions that differ in case and white space only.

  >>> _normalised("Nll_sum * (source = 'A b')")
  "nll_sum*(source='A b')"
  """
  parts = re.split("('[^']*')", expression)  # The odd ones are texts.
  parts[::2] = [''.join(part.lower().split()) for part in parts[::2]]
  return ''.join(parts)


def _drawn(examples: Examples) -> tuple[np.ndarray, int]:
  """The positions to rank, and out of how many that have a token."""
  tokens, size = examples.weight('tokens'), examples.weight('bytes')
  out_of = sum(
    int(np.count_nonzero((tokens[some] > 0) & (size[some] > 0)))
    for some in steps(len(examples))
  )
  fraction = MAX_RANKED / max(out_of, MAX_RANKED)
  found = [
    some.start
    + np.flatnonzero(
      (tokens[some] > 0)
      & (size[some] > 0)
      & (uniform(examples.index[some], _SEED) < fraction)
    )
    for some in steps(len(examples))
  ]
  return np.concatenate([np.zeros(0, np.int64), *found]), out_of


def _table(examples: Examples, positions: np.ndarray) -> ExampleTable:
  """Some examples, in memory."""
  taken = examples.take(positions, examples.schema.names)
  return ExampleTable(
    taken.unify_dictionaries().combine_chunks(), examples.index[positions]
  )
