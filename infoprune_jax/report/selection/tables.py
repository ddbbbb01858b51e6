"""Tables of what arms keep: by decile, length, source, kind, and the mix."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from infoprune_jax.report.selection.inputs import Summaries

MAX_HEAT = 60  # sources, those with most tokens
UNITS = ('examples', 'tokens', 'bytes')
_SMALL_SHIFT = 0.001  # of the mix: `overview` names no smaller shift


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
  """The fraction that each arm keeps of each group, over all its draws.

  Args:
    summaries: By arm.
    part: The groups, a list in every summary: `sources`, `deciles`, `lengths`.
    unit: One of `UNITS`.
  """
  rows = _first(summaries)[part]
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


def _first(summaries: Summaries) -> dict[str, Any]:
  """A summary of any arm: totals are the same in all of them."""
  return next(iter(summaries.values()))[0]


def heat(
  summaries: Summaries, kind_of: Mapping[str, str]
) -> dict[str, dict[str, list[dict[str, Any]]]]:
  """The fraction of tokens thrown away, by source or kind and NLL decile.

  Args:
    summaries: By arm; draws are averaged.
    kind_of: The kind of each source; {} if there are no kinds.

  Returns:
    By arm, for `kinds` and for the `sources` with most tokens: table rows with
    `name`, `tokens`, `thrown` (a fraction of all its tokens) and `deciles` (the
    fraction of each; None without a token). The largest `thrown` come first.
  """
  first = _first(summaries)
  deciles = [row['decile'] for row in first['deciles']]
  tokens = _by_decile(first, 'tokens_by_decile')[:, deciles]
  names = [row['source'] for row in first['sources']]
  most = np.argsort(-tokens.sum(axis=1), kind='stable')[:MAX_HEAT]
  groups: dict[str, dict[str, list[int]]] = {
    'kinds': {},
    'sources': {names[n]: [n] for n in most},
  }
  for n, name in enumerate(names if kind_of else ()):
    groups['kinds'].setdefault(kind_of[name], []).append(n)
  tables = {}
  for arm, items in summaries.items():
    column = 'unique' if 'repeats' in items[0] else 'kept'
    draws = [_by_decile(item, f'{column}_tokens_by_decile') for item in items]
    kept = np.mean(draws, axis=0)[:, deciles]
    tables[arm] = {
      level: _heat_rows(members, tokens, kept)
      for level, members in groups.items()
    }
  return tables


def _by_decile(summary: Mapping[str, Any], column: str) -> np.ndarray:
  """[sources, deciles] of one column."""
  return np.array([row[column] for row in summary['sources']])


def _heat_rows(
  groups: Mapping[str, Sequence[int]], tokens: np.ndarray, kept: np.ndarray
) -> list[dict[str, Any]]:
  """A row of `heat` for each group of sources."""
  rows = []
  for name, members in groups.items():
    there = tokens[members].sum(axis=0)
    here = kept[members].sum(axis=0)
    rows.append(
      {
        'name': name,
        'tokens': int(there.sum()),
        'thrown': 1.0 - float(here.sum() / max(there.sum(), 1)),
        'deciles': [
          1.0 - float(some / total) if total else None
          for some, total in zip(here, there, strict=True)
        ],
      }
    )
  return sorted(rows, key=lambda row: (-row['thrown'], row['name']))


def mix(summaries: Summaries) -> dict[str, Any]:
  """The fraction of tokens of each source, in the scored split and each arm.

  Args:
    summaries: By arm; draws are added up.

  Returns:
    `sources`, largest change first: `fraction` of the scored split, `arms` (the
    fraction in each arm) and `shift`, the largest change. `total_variation`, by
    arm: half the sum of all changes, averaged over the arm's draws.
  """
  scored = Counter(_by_source(_first(summaries), 'tokens'))
  draws = {
    arm: [_kept_of(i) for i in items] for arm, items in summaries.items()
  }
  sums = {arm: sum(items, Counter()) for arm, items in draws.items()}
  for tokens in sums.values():
    # A source may be only in the reference split.
    scored.update(dict.fromkeys(tokens, 0))
  names = list(scored)
  before = _fractions(scored, names)
  after = {arm: _fractions(tokens, names) for arm, tokens in sums.items()}
  sources = [
    {
      'source': name,
      'fraction': before[name],
      'arms': {arm: fraction[name] for arm, fraction in after.items()},
      'shift': max(abs(f[name] - before[name]) for f in after.values()),
    }
    for name in names
  ]
  return {
    'sources': sorted(sources, key=lambda s: (-s['shift'], s['source'])),
    'total_variation': {
      arm: sum(_total_variation(before, tokens) for tokens in items)
      / len(items)
      for arm, items in draws.items()
    },
  }


def _by_source(summary: Mapping[str, Any], unit: str) -> dict[str, int]:
  return {row['source']: row[unit] for row in summary['sources']}


def _kept_of(summary: Mapping[str, Any]) -> Counter[str]:
  """The tokens of each source that a draw keeps, and those it adds."""
  kept = Counter(_by_source(summary, 'kept_tokens'))
  kept.update(summary.get('added', {}).get('sources', {}))
  return kept


def _fractions(tokens: Counter[str], names: Sequence[str]) -> dict[str, float]:
  total = max(tokens.total(), 1)
  return {name: tokens[name] / total for name in names}


def _total_variation(before: Mapping[str, float], kept: Counter[str]) -> float:
  after = _fractions(kept, list(before))
  return sum(abs(after[name] - before[name]) for name in before) / 2


def by_kind(
  summaries: Summaries,
  mixed: Mapping[str, Any],
  kind_of: Mapping[str, str],
) -> list[dict[str, Any]]:
  """The size of each kind, the fraction kept, and its fraction of the mix.

  Args:
    summaries: By arm; draws are added up.
    mixed: As returned by `mix`.
    kind_of: The kind of each source; {} if there are no kinds.

  Returns:
    A table row for each kind, most tokens first: `kind`; the `sources`,
    `examples`, `tokens` and `bytes` that were scored; `arms`, the fraction of
    its tokens that each keeps; `fraction`, its tokens over all scored tokens;
    and `mix`, the same over the tokens that each arm trains on.
  """
  in_mix = {row['source']: row for row in mixed['sources']}
  members: dict[str, list[str]] = {}
  for source, kind in kind_of.items():
    members.setdefault(kind, []).append(source)
  rows = [
    {
      'kind': kind,
      **_scored_and_kept(summaries, set(sources)),
      'fraction': sum(in_mix[source]['fraction'] for source in sources),
      'mix': {
        arm: sum(in_mix[source]['arms'][arm] for source in sources)
        for arm in summaries
      },
    }
    for kind, sources in members.items()
  ]
  return sorted(rows, key=lambda row: (-row['tokens'], row['kind']))


def _scored_and_kept(summaries: Summaries, sources: set[str]) -> dict[str, Any]:
  """The size of some sources, and the fraction of tokens that arms keep."""
  first = _first(summaries)['sources']
  some = [n for n, row in enumerate(first) if row['source'] in sources]
  sums = {unit: sum(first[n][unit] for n in some) for unit in UNITS}
  return {
    'sources': len(some),
    **sums,
    'arms': {
      arm: sum(i['sources'][n]['kept_tokens'] for i in items for n in some)
      / max(len(items) * sums['tokens'], 1)
      for arm, items in summaries.items()
    },
  }


def overview(report: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
  """One table row for each arm.

  Args:
    report: As in `selections.json`.

  Returns:
    By arm: the fractions of `tokens`, `examples` and `bytes` kept; `halves`,
    the fractions kept of the shorter and of the longer documents;
    `total_variation`; and `loses` and `gains`: the source whose fraction of the
    mix falls or rises most, and the change. These are ('', 0.0) if no change is
    large, and for arms that draw at random.
  """
  rows = {}
  for arm in report['arms']:
    name = arm['name']
    shifts = [
      (source['arms'][name] - source['fraction'], source['source'])
      for source in report['mix']['sources']
    ]
    ends = []
    for shift, source in (min(shifts), max(shifts)):
      named = abs(shift) > _SMALL_SHIFT and not arm['by_chance']
      ends.append((source, shift) if named else ('', 0.0))
    rows[name] = {
      **{u: arm['kept'][u] / max(report['scored'][u], 1) for u in UNITS},
      'halves': by_half(report['lengths'], name),
      'total_variation': report['mix']['total_variation'][name],
      'loses': ends[0],
      'gains': ends[1],
    }
  return rows


def by_half(
  lengths: Sequence[Mapping[str, Any]], arm: str
) -> tuple[float, float] | tuple[None, None]:
  """The fraction of the shorter and of the longer documents that an arm keeps.

  Args:
    lengths: The deciles of the documents by length, the shortest first.
    arm: Its name.

  Returns:
    Two fractions, or None twice if all documents are about as long.
  """
  total = sum(row['examples'] for row in lengths)
  sizes, kept, before = [0, 0], [0.0, 0.0], 0
  for row in lengths:
    longer = 2 * before + row['examples'] > total
    sizes[longer] += row['examples']
    kept[longer] += row['examples'] * row['arms'][arm]
    before += row['examples']
  if not all(sizes):
    return None, None
  return kept[0] / sizes[0], kept[1] / sizes[1]
