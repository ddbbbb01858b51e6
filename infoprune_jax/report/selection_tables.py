"""What arms keep as tables: by decile, length, source, kind, and the mix."""

import collections
from collections.abc import Mapping
from typing import Any

import numpy as np

from infoprune_jax.report.selection_inputs import Summaries

MAX_HEAT = 60  # sources, those with most tokens
UNITS = ('examples', 'tokens', 'bytes')


def kept(summaries: Summaries) -> dict[str, Any]:
  """Fractions of tokens kept, by score decile and by source, for each arm."""
  sources = fractions(summaries, 'sources', 'tokens')
  return {
    'deciles': fractions(summaries, 'deciles', 'tokens'),
    'sources': sorted(sources, key=lambda row: row['source']),
  }


def fractions(
  summaries: Summaries, part: str, unit: str
) -> list[dict[str, Any]]:
  """The fraction of each part that each arm keeps, over the draws of an arm."""
  rows = next(iter(summaries.values()))[0][part]
  named = ('source', 'decile', 'low', 'high', *UNITS)
  return [
    {
      **{key: row[key] for key in named if key in row},
      'arms': {
        arm: sum(item[part][n][f'kept_{unit}'] for item in items)
        / max(sum(item[part][n][unit] for item in items), 1)
        for arm, items in summaries.items()
      },
    }
    for n, row in enumerate(rows)
  ]


def heat(
  summaries: Summaries, kind_of: Mapping[str, str]
) -> dict[str, dict[str, list[dict[str, Any]]]]:
  """The fraction of tokens thrown away, by source or kind and decile of the NLL.

  Args:
    summaries: By arm; draws are averaged.
    kind_of: The kind of each source; nothing where there are no kinds.

  Returns:
    By arm, for `kinds`, and for `sources`, those that have most tokens: a row
    with its `name`, `tokens`, `thrown` in all, and `deciles`, None where it has
    no token; what most is thrown away of comes first.
  """
  first = next(iter(summaries.values()))[0]
  names = [row['source'] for row in first['sources']]
  deciles = [row['decile'] for row in first['deciles']]
  rows = first['sources']
  there = np.array([row['tokens_by_decile'] for row in rows])[:, deciles]
  most = np.argsort(-there.sum(axis=1), kind='stable')[:MAX_HEAT]
  groups = {'kinds': {}, 'sources': {names[n]: [n] for n in most}}
  for n, name in enumerate(names if kind_of else ()):
    groups['kinds'].setdefault(kind_of[name], []).append(n)
  found = {}
  for arm, items in summaries.items():
    kept = np.mean(
      [[r['kept_tokens_by_decile'] for r in i['sources']] for i in items],
      axis=0,
    )[:, deciles]
    found[arm] = {
      what: sorted(
        (
          _heat_row(name, there[some].sum(axis=0), kept[some].sum(axis=0))
          for name, some in members.items()
        ),
        key=lambda row: (-row['thrown'], row['name']),
      )
      for what, members in groups.items()
    }
  return found


def _heat_row(name: str, there: np.ndarray, kept: np.ndarray) -> dict[str, Any]:
  """A row of `heat`, of tokens by decile."""
  return {
    'name': name,
    'tokens': int(there.sum()),
    'thrown': 1.0 - float(kept.sum() / max(there.sum(), 1)),
    'deciles': [
      1.0 - float(some / all_) if all_ else None
      for some, all_ in zip(kept, there, strict=True)
    ],
  }


def mix(summaries: Summaries) -> dict[str, Any]:
  """The fraction of tokens of each source, in all that was scored and in each arm.

  Args:
    summaries: By arm; draws are added up.

  Returns:
    `sources`, those whose fraction moves most first: `fraction` of what was
      scored,
    `arms`, and `shift`, the largest move. `total_variation`, by arm: the
    fraction of tokens that would have to change source (half the sum of all
    moves), on average over its draws.
  """
  base = collections.Counter(
    _by_source(next(iter(summaries.values()))[0], 'tokens')
  )
  draws = {arm: [_kept_of(item) for item in s] for arm, s in summaries.items()}
  in_all = {
    arm: sum(items, collections.Counter()) for arm, items in draws.items()
  }
  for tokens_of in in_all.values():
    # A source may be in the reference split alone.
    base.update(dict.fromkeys(tokens_of, 0))
  total = max(base.total(), 1)
  fractions = {
    arm: {s: n[s] / max(n.total(), 1) for s in base}
    for arm, n in in_all.items()
  }
  sources = [
    {
      'source': source,
      'fraction': tokens / total,
      'arms': {arm: fraction[source] for arm, fraction in fractions.items()},
      'shift': max(abs(s[source] - tokens / total) for s in fractions.values()),
    }
    for source, tokens in base.items()
  ]
  return {
    'sources': sorted(sources, key=lambda s: (-s['shift'], s['source'])),
    'total_variation': {
      arm: sum(_total_variation(base, tokens_of) for tokens_of in items)
      / len(items)
      for arm, items in draws.items()
    },
  }


def _kept_of(item: Mapping[str, Any]) -> collections.Counter[str]:
  """The tokens of each source that a draw keeps, and those it adds."""
  kept = collections.Counter(_by_source(item, 'kept_tokens'))
  kept.update(item.get('added', {}).get('sources', {}))
  return kept


def _total_variation(
  base: collections.Counter[str], kept: collections.Counter[str]
) -> float:
  """The fraction of tokens that would have to change source."""
  there, here = max(base.total(), 1), max(kept.total(), 1)
  return sum(abs(kept[s] / here - base[s] / there) for s in base) / 2


def _by_source(item: Mapping[str, Any], unit: str) -> dict[str, int]:
  return {row['source']: row[unit] for row in item['sources']}


def by_kind(
  summaries: Summaries,
  mixed: Mapping[str, Any],
  kind_of: Mapping[str, str],
) -> list[dict[str, Any]]:
  """What there is of each kind, what arms keep of it, and its fraction of the mix.

  Args:
    summaries: By arm; draws are added up.
    mixed: What `mix` made of them.
    kind_of: The kind of each source; nothing where there are no kinds.

  Returns:
    A row a kind, those with most tokens first: `kind`, how many `sources`,
    `examples`, `tokens` and `bytes` were scored; `arms`, the fraction of tokens
    kept; `fraction` of what was scored and `mix`, of what arms train on.
  """
  its_mix = {row['source']: row for row in mixed['sources']}
  first = next(iter(summaries.values()))[0]['sources']
  found = []
  for kind in dict.fromkeys(kind_of.values()):
    members = [source for source, its in kind_of.items() if its == kind]
    rows = [n for n, row in enumerate(first) if kind_of[row['source']] == kind]
    tokens = sum(first[n]['tokens'] for n in rows)
    found.append(
      {
        'kind': kind,
        'sources': len(rows),
        **{unit: sum(first[n][unit] for n in rows) for unit in UNITS},
        'arms': {
          arm: sum(i['sources'][n]['kept_tokens'] for i in items for n in rows)
          / max(len(items) * tokens, 1)
          for arm, items in summaries.items()
        },
        'fraction': sum(its_mix[source]['fraction'] for source in members),
        'mix': {
          arm: sum(its_mix[source]['arms'][arm] for source in members)
          for arm in summaries
        },
      }
    )
  return sorted(found, key=lambda row: (-row['tokens'], row['kind']))
