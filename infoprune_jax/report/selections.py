"""What arms keep, compared: overlap, scores, lengths, sources, examples.

All of it is about the scored split; nothing here needs a trained model.
"""

import collections
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from infoprune_jax.config import Config
from infoprune_jax.data.keep_set import KeepSet
from infoprune_jax.data.token_store import TokenStore
from infoprune_jax.report import inputs
from infoprune_jax.selection import ranks, rules, summary
from infoprune_jax.selection.examples import ExampleTable, scored_examples

EXAMPLES_PER_DECILE = 3
# What any score is worth comparing with; `length` is also the one whose bias
# the page tells.
LENGTH = 'length in tokens'
NATURAL_SCORES = {
  'mean NLL': 'nll_sum / num_tokens',
  'mean unigram NLL': 'unigram_nll_sum / num_tokens',
  'their sum': 'nll_sum / num_tokens + unigram_nll_sum / num_tokens',
  'bits a byte': 'nll_sum / ln(2) / num_bytes',
  'compression ratio': 'compressed_bytes / num_bytes',
  LENGTH: 'num_tokens',
}

Summaries = Mapping[str, list[dict[str, Any]]]  # by arm; one, or one a seed


def gather(
  config: Config, workdir: str, upstream: inputs.Upstream, summaries: Summaries
) -> dict[str, Any]:
  """What the page says of selections, as JSON values.

  Raises:
    UserError: a keep set is missing or damaged.
  """
  store = TokenStore.open(workdir)
  examples = scored_examples(workdir, store)
  kept = {
    name: KeepSet.open(workdir, name, store).holds(examples.index)
    for name in upstream.keep_sets
  }
  by_seed = [
    np.stack([kept[upstream.selections[arm, seed]] for arm in config.arms])
    for seed in config.train.seeds
  ]
  return {
    'folds': len(np.unique(examples.table['fold'].to_numpy())),
    'kept': _kept(summaries),
    'overlaps': overlaps(by_seed, examples.weight('tokens')),
    **correlations(config, examples),
    'lengths': _shares(summaries, 'lengths', 'examples'),
    'mix': mix(summaries),
    'examples': _extremes(config, workdir, summaries),
    'decile_examples': _decile_examples(config, workdir, examples),
  }


def overlaps(
  by_seed: Sequence[np.ndarray], tokens: np.ndarray
) -> dict[str, list[list[float]]]:
  """What two arms both keep, over what either keeps (Jaccard).

  Arms are compared seed by seed, then averaged. On the diagonal are draws of
  one arm for different seeds, so 1 for an arm that draws nothing.

  Args:
    by_seed: For each of S seeds, [A, examples] bool.
    tokens: [examples].

  Returns:
    By 'tokens' and by 'examples', [A, A].
  """
  found = {}
  for unit, weight in (('tokens', tokens), ('examples', np.ones(len(tokens)))):
    pairs = [_jaccard(kept, kept, weight) for kept in by_seed]
    draws = [
      np.diag(_jaccard(a, b, weight))
      for a, b in itertools.combinations(by_seed, 2)
    ]
    mean = np.mean(pairs, axis=0)
    if draws:
      np.fill_diagonal(mean, np.mean(draws, axis=0))
    found[unit] = mean.tolist()
  return found


def _jaccard(a: np.ndarray, b: np.ndarray, weight: np.ndarray) -> np.ndarray:
  """[A, B]: the weight of both over that of either, for rows of masks."""
  both = (a * weight) @ b.T.astype(float)
  either = (a @ weight)[:, None] + (b @ weight)[None] - both
  return np.divide(both, either, out=np.zeros_like(both), where=either > 0.0)


def correlations(config: Config, examples: ExampleTable) -> dict[str, Any]:
  """Spearman's rank correlation of each pair of scores, over examples.

  Args:
    config: Whose arms' scores are compared with each other and the natural ones.
    examples: The scored split; those without a token are left out.

  Returns:
    `correlations`: `scores`, each with its `label`, `expression`, and the `arms`
    that rank by it, and `spearman`, [scores, scores], None where a score is
    constant; and `length_bias`, what every other score has with length.
  """
  scores = {
    _normalised(expression): {
      'label': label,
      'expression': expression,
      'arms': [],
    }
    for label, expression in NATURAL_SCORES.items()
  }
  for arm in config.arms:
    for rule in config.select.arms[arm]:
      if rule.needs_score:
        text = rule.score.strip()
        score = scores.setdefault(
          _normalised(text), {'label': text, 'expression': text, 'arms': []}
        )
        score['arms'] += [arm] if arm not in score['arms'] else []
  some = np.minimum(examples.weight('tokens'), examples.weight('bytes')) > 0
  filled = ExampleTable(examples.table.filter(some), examples.index[some])
  values = np.stack(
    [rules.ranking(filled, score['expression']) for score in scores.values()]
  )
  table = [
    [None if np.isnan(value) else float(value) for value in row]
    for row in ranks.spearman(values)
  ]
  length = list(NATURAL_SCORES).index(LENGTH)
  found = list(scores.values())
  return {
    'correlations': {'scores': found, 'spearman': table},
    'length_bias': [
      {'label': score['label'], 'rho': row[length]}
      for n, (score, row) in enumerate(zip(found, table, strict=True))
      if n != length
    ],
  }


def _normalised(expression: str) -> str:
  """Equal for expressions that differ in case and white space only."""
  return ''.join(expression.lower().split())


def mix(summaries: Summaries) -> dict[str, Any]:
  """The share of tokens of each source, in all that was scored and in each arm.

  Args:
    summaries: By arm; draws are added up.

  Returns:
    `sources`, those whose share moves most first: `share` of what was scored,
    `arms`, and `shift`, the largest move. `moved`, by arm: the share of tokens
    that would have to change source (half the sum of all moves).
  """
  base = collections.Counter(
    _by_source(next(iter(summaries.values()))[0], 'tokens')
  )
  total = max(base.total(), 1)
  shares = {}
  for arm, items in summaries.items():
    kept: collections.Counter[str] = collections.Counter()
    for item in items:
      kept.update(_by_source(item, 'kept_tokens'))
      kept.update(item.get('added', {}).get('sources', {}))
    # A source may be in the reference split alone.
    base.update(dict.fromkeys(kept, 0))
    of_arm = max(kept.total(), 1)
    shares[arm] = collections.Counter(
      {source: tokens / of_arm for source, tokens in kept.items()}
    )
  sources = [
    {
      'source': source,
      'share': tokens / total,
      'arms': {arm: shares[arm][source] for arm in shares},
      'shift': max(abs(s[source] - tokens / total) for s in shares.values()),
    }
    for source, tokens in base.items()
  ]
  return {
    'sources': sorted(sources, key=lambda s: (-s['shift'], s['source'])),
    'moved': {
      arm: sum(abs(s['arms'][arm] - s['share']) for s in sources) / 2
      for arm in shares
    },
  }


def _by_source(item: Mapping[str, Any], unit: str) -> dict[str, int]:
  return {row['source']: row[unit] for row in item['sources']}


def _kept(summaries: Summaries) -> dict[str, Any]:
  """Shares of tokens kept, by score decile and by source, for each arm."""
  sources = _shares(summaries, 'sources', 'tokens')
  return {
    'deciles': _shares(summaries, 'deciles', 'tokens'),
    'sources': sorted(sources, key=lambda row: row['source']),
  }


def _shares(summaries: Summaries, part: str, unit: str) -> list[dict[str, Any]]:
  """The share of each part that each arm keeps, over the draws of an arm."""
  rows = next(iter(summaries.values()))[0][part]
  return [
    {
      **{key: row[key] for key in row if not key.startswith('kept_')},
      'arms': {
        arm: sum(item[part][n][f'kept_{unit}'] for item in items)
        / max(sum(item[part][n][unit] for item in items), 1)
        for arm, items in summaries.items()
      },
    }
    for n, row in enumerate(rows)
  ]


def _extremes(
  config: Config, workdir: str, summaries: Summaries
) -> list[dict[str, Any]]:
  """The beginnings of the examples at both ends of each score.

  Arms that rank alike, such as top and bottom by one score, are listed once.
  """
  shown: list[dict[str, Any]] = []
  for arm, items in summaries.items():
    # Where an arm has a keep set a seed, the first speaks for all.
    ends = {
      end: items[0].get(end, [])[: config.report.num_examples]
      for end in ('most', 'least')
    }
    if not (ends['most'] or ends['least']):
      continue
    read = [rule.score for rule in config.select.arms[arm] if rule.needs_score]
    alike = [s for s in shown if s['score'] == read[-1] and s['ends'] == ends]
    if alike:
      alike[0]['arms'].append(arm)
    else:
      shown.append({'arms': [arm], 'score': read[-1], 'ends': ends})
  return [
    {
      'arms': item['arms'],
      'score': item['score'],
      **{
        end: _with_texts(workdir, examples)
        for end, examples in item['ends'].items()
      },
    }
    for item in shown
  ]


def _decile_examples(
  config: Config, workdir: str, examples: ExampleTable
) -> list[list[dict[str, Any]]]:
  """A few examples of each decile of the mean NLL, with their beginnings."""
  count = min(EXAMPLES_PER_DECILE, config.report.num_examples)
  deciles = summary.examples_by_decile(examples, count)
  texts = iter(_with_texts(workdir, list(itertools.chain(*deciles))))
  return [list(itertools.islice(texts, len(decile))) for decile in deciles]


def _with_texts(
  workdir: str, examples: list[dict[str, Any]]
) -> list[dict[str, Any]]:
  """Adds the beginning of each example's text, and whether it goes on."""
  texts = inputs.texts_of(
    workdir, [(example['shard'], example['row']) for example in examples]
  )
  most = inputs.MAX_TEXT_CHARS
  return [
    {**example, 'text': text[:most], 'cut': len(text) > most}
    for example, text in zip(examples, texts, strict=True)
  ]
