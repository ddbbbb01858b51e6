"""What an arm keeps in sentences, so that one can decide without the tables."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from infoprune_jax.config.experiment import Config
from infoprune_jax.config.selection import BUDGET_KINDS
from infoprune_jax.report.wording import signed

_NAMED = 3  # sources or kinds on each side
_NAMED_AT_MOST = 8  # of those that are nearly gone
_POINT = 0.001  # of the mix: what moves less is not named
# Of a source, as a fraction of what the arm keeps in all.
WIPED_OUT = 0.1
# Times as large a fraction of one decile of the documents by length as of
# another.
LENGTH_BIAS = 2.0
_NOISE = 5.0  # standard errors that chance may make of it
_ALMOST = 0.95  # of the tokens of either
_SHORT = 0.01  # of what there is

Found = Mapping[str, Any]  # as `selections.gather` makes it


def said(arm: str, found: Found) -> list[str]:
  """What moves most, in a few sentences; of chance, only how much it is."""
  it = _arm(arm, found)
  if not it['thrown']['examples']:
    return ['Keeps everything that was scored.']
  if it['same_as']:
    return [f'Keeps of what was scored the same as {it["same_as"]}.']
  total = found['scored']
  fractions = [
    f'{percent(it["kept"][unit], total[unit])} of the {name}'
    for unit, name in (
      ('tokens', 'tokens'),
      ('examples', 'documents'),
      ('bytes', 'bytes'),
    )
  ]
  lines = [
    f'Keeps {fractions[0]}, {fractions[1]} and {fractions[2]}. A document that it keeps '
    f'has {_length(it["kept"])} tokens on average, one that it throws away '
    f'{_length(it["thrown"])}.'
  ]
  if not it['by_chance']:
    lines += _moves('kind', found['kinds'], arm)
    if len(found['mix']['sources']) > 1:
      lines += _moves('source', _sources(arm, found), arm)
  return [
    *lines,
    *_total_variation(arm, found),
    *_lengths(arm, found),
    *_copies(it),
  ]


def _arm(name: str, found: Found) -> Mapping[str, Any]:
  [it] = [item for item in found['arms'] if item['name'] == name]
  return it


def _sources(arm: str, found: Found) -> list[dict[str, Any]]:
  """Sources in the form of kinds."""
  kept = {row['source']: row['arms'] for row in found['kept']['sources']}
  return [
    {
      'source': row['source'],
      'arms': kept[row['source']],
      'mix': row['arms'],
      'fraction': row['fraction'],
    }
    for row in found['mix']['sources']
    if row['source'] in kept  # Not of the reference split alone.
  ]


def _moves(
  what: str, rows: Sequence[Mapping[str, Any]], arm: str
) -> Iterator[str]:
  """Which lose and which gain most of the mix."""
  moves = [
    (
      row['mix'][arm] - row['fraction'],
      ' '.join(row[what].split()),
      row['arms'],
    )
    for row in rows
  ]
  ranked = sorted(moves, key=lambda move: move[:2])
  losers = [move for move in ranked if move[0] < -_POINT][:_NAMED]
  winners = [move for move in reversed(ranked) if move[0] > _POINT][:_NAMED]
  for verb, some in (('Loses', losers), ('Gains', winners)):
    if some:
      named = ', '.join(
        f'{name} {signed(100 * points, 1)} points ({_round(kept[arm])} kept)'
        for points, name, kept in some
      )
      yield f'{verb} most, by {what}: {named}.'


def _total_variation(arm: str, found: Found) -> Iterator[str]:
  """How much of the mix changes, and how much it does by chance."""
  if len(found['mix']['sources']) < 2:
    return
  words = f'{_round(found["mix"]["total_variation"][arm])} of the tokens change source'
  for other in found['arms']:
    if other['by_chance'] and other['name'] != arm:
      chance = _round(found['mix']['total_variation'][other['name']])
      words += f' ({chance} by chance, as {other["name"]})'
      break
  yield words + '.'


def _lengths(arm: str, found: Found) -> Iterator[str]:
  halves, deciles = by_half(found['lengths'], arm), found['lengths']
  if halves:
    fractions = [deciles[0]['arms'][arm], *halves, deciles[-1]['arms'][arm]]
    yield (
      'By length it keeps {} of the shortest decile of the documents, {} of the '
      'shorter half, {} of the longer half and {} of the longest decile.'
    ).format(*map(_round, fractions))


def _copies(it: Mapping[str, Any]) -> Iterator[str]:
  kept, thrown = it['kept_copies'], it['thrown_copies']
  if kept + thrown:
    yield (
      f'{percent(kept, it["kept"]["examples"])} of the documents that it keeps '
      f'and {percent(thrown, it["thrown"]["examples"])} of the others have a '
      'copy in what was scored.'
    )


def by_half(
  lengths: Sequence[Mapping[str, Any]], arm: str
) -> tuple[float, float] | None:
  """The fraction of the shorter and of the longer documents that an arm keeps.

  None where all are about as long.
  """
  total = sum(row['examples'] for row in lengths)
  sizes, kept, before = [0, 0], [0.0, 0.0], 0
  for row in lengths:
    longer = 2 * before + row['examples'] > total
    sizes[longer] += row['examples']
    kept[longer] += row['examples'] * row['arms'][arm]
    before += row['examples']
  if not all(sizes):
    return None
  return kept[0] / sizes[0], kept[1] / sizes[1]


def warnings(config: Config, arm: str, found: Found) -> list[str]:
  """What somebody must know before an arm is trained."""
  it = _arm(arm, found)
  if it['same_as']:
    return [
      f'Keeps the same as {it["same_as"]}: to train both tells nothing of '
      'their rules.'
    ]
  return [
    *_gone(it, found),
    *_short_of_budget(config, it, found),
    *_length_bias(it, found),
    *_almost(it, found),
  ]


def _length_bias(it: Mapping[str, Any], found: Found) -> Iterator[str]:
  """The deciles of length that are kept most and least, where that is far."""
  rows = sorted(found['lengths'], key=lambda row: row['arms'][it['name']])
  least, most = (row['arms'][it['name']] for row in (rows[0], rows[-1]))
  fraction = it['kept']['examples'] / max(found['scored']['examples'], 1)
  count = min(row['examples'] for row in rows)
  noise = _NOISE * math.sqrt(fraction * (1.0 - fraction) / count)
  if most >= LENGTH_BIAS * least and most - least > noise:
    ends = [
      f'{_round(row["arms"][it["name"]])} of those with {row["low"]} to '
      f'{row["high"]} tokens'
      for row in (rows[-1], rows[0])
    ]
    yield (
      f'Strong bias for length: of the deciles of documents by length it keeps '
      f'{ends[0]}, and {ends[1]}.'
    )


def _gone(it: Mapping[str, Any], found: Found) -> Iterator[str]:
  """Sources of which an arm keeps next to nothing."""
  bound = WIPED_OUT * it['kept_tokens']
  gone = [
    row
    for row in found['kept']['sources']
    if row['tokens'] and row['arms'][it['name']] < bound
  ]
  gone.sort(key=lambda row: -row['tokens'])
  if not gone:
    return
  named = ', '.join(
    f'{" ".join(row["source"].split())} ({_round(row["arms"][it["name"]])})'
    for row in gone[:_NAMED_AT_MOST]
  )
  if len(gone) > _NAMED_AT_MOST:
    named += f' and {len(gone) - _NAMED_AT_MOST} more'
  tokens = percent(sum(r['tokens'] for r in gone), found['scored']['tokens'])
  yield (
    f'{len(gone)} source{"s are" if len(gone) > 1 else " is"} nearly wiped out '
    f'({tokens} of all tokens), kept to less than {_round(bound)}, a tenth of '
    f'what it keeps in all: {named}.'
  )


def _short_of_budget(
  config: Config, it: Mapping[str, Any], found: Found
) -> Iterator[str]:
  rule = config.select.arms[it['name']][-1]
  if rule.keep not in BUDGET_KINDS:
    return
  fraction = it['kept'][rule.unit] / max(found['scored'][rule.unit], 1)
  if fraction < rule.fraction - _SHORT:
    yield (
      f'Its budget is {100 * rule.fraction:g} % of {rule.unit}, yet it keeps '
      f'{_round(fraction)}: earlier rules left no more, or the next document was '
      f'too long for what was left{" of a source" if rule.per else ""}. An '
      'arm that spends its budget has more text to train on.'
    )


def _almost(it: Mapping[str, Any], found: Found) -> Iterator[str]:
  """Arms before this one that keep almost the same."""
  names = [item['name'] for item in found['arms']]
  here = names.index(it['name'])
  for there, name in enumerate(names[:here]):
    fraction = found['overlaps']['tokens'][here][there]
    if fraction >= _ALMOST and not found['arms'][there]['same_as']:
      yield f'Keeps almost the same as {name}: they have {_round(fraction)} in common.'


def cautions(found: Found) -> list[str]:
  """What holds for all arms."""
  words = []
  if found['folds'] > 1:
    words.append(
      f'{found["folds"]} reference models scored a fold each, and their scales '
      'differ: rules that read the NLL rank within each fold. Tables by NLL and '
      'examples with one go by the NLL itself.'
    )
  scored = found['scored']
  if scored['mean_nll'] >= scored['mean_unigram_nll']:
    words.append(
      f'The reference model tells no more than token frequencies do: '
      f'{scored["mean_nll"]:.2f} nats per token against '
      f'{scored["mean_unigram_nll"]:.2f}. Train it for longer before you rely '
      'on rules that read its NLL.'
    )
  return words


def percent(part: float, whole: float) -> str:
  """'12.3 %'."""
  return _round(part / max(whole, 1))


def _round(fraction: float) -> str:
  """With a digit after the point, but for nothing and for all."""
  return (
    f'{100 * fraction:.1f} %'
    if 0.0 < fraction < 1.0
    else f'{100 * fraction:.0f} %'
  )


def _length(size: Mapping[str, int]) -> str:
  return f'{size["tokens"] / max(size["examples"], 1):,.0f}'
