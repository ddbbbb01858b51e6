"""What the report found, in short, as text for a terminal."""

from collections.abc import Iterator, Sequence
from typing import Any

from infoprune_jax.report.selection_wording import by_half, percent
from infoprune_jax.report.wording import signed
from infoprune_jax.runtime.progress import quantity

_MOVED = 3  # sources named whose fraction moves most


def text(found: dict[str, Any]) -> str:
  """Losses, wins by source, overlaps, shifts of the mix, and the sentences.

  Args:
    found: As returned by `findings.gather`.
  """
  blocks = [losses(found), *_wins(found)]
  if len(found['arms']) > 1:
    blocks += ['What two arms share, % of tokens:', overlaps(found)]
  blocks += [*_shifts(found), *found['found'], *found['cautions']]
  if found['equal_flops']:
    blocks.append(found['equal_flops']['found'])
  return '\n'.join(blocks)


def selections_text(found: dict[str, Any]) -> str:
  """What each arm keeps, and what to know before it is trained.

  Args:
    found: As returned by `selections.gather`.
  """
  total = found['scored']
  rows = [
    (
      'arm',
      'tokens',
      'documents',
      'shorter half',
      'longer half',
      'total_variation',
    )
  ]
  for arm in found['arms']:
    halves = by_half(found['lengths'], arm['name'])
    rows.append(
      (
        arm['name'],
        *(
          percent(arm['kept'][unit], total[unit])
          for unit in ('tokens', 'examples')
        ),
        *(percent(half, 1) if halves else '' for half in halves or ('', '')),
        percent(found['mix']['total_variation'][arm['name']], 1),
      )
    )
  lines = [*found['selection_cautions']]
  for arm in found['arms']:
    lines += [f'{arm["name"]}: {words}' for words in arm['warnings']]
  return '\n'.join([_aligned(rows), *lines])


def losses(found: dict[str, Any]) -> str:
  """The final table as aligned text."""
  rows = [
    (
      'arm',
      'kept',
      'epochs',
      'nats/token',
      'perplexity',
      'bits/byte',
      f'minus {found["baseline"]}',
      '95 % interval',
      'by seed',
      'FLOPs',
    )
  ]
  for arm in found['arms']:
    difference = arm['difference']['bits_per_byte']
    rows.append(
      (
        arm['name'] + (' *' if arm['name'] == found['chosen'] else ''),
        f'{100 * arm["kept_tokens"]:.1f} %',
        f'{arm["epochs"]:.2f}',
        f'{arm["nats_per_token"]["mean"]:.4f}',
        f'{arm["perplexity"]:.2f}',
        f'{arm["bits_per_byte"]["mean"]:.4f}',
        signed(difference['estimate']),
        f'{signed(difference["low"])} to {signed(difference["high"])}',
        ' '.join(f'{value:.4f}' for value in arm['bits_per_byte']['values']),
        f'{quantity(arm["flops"]["total"])} (x{arm["flops"]["ratio"]:.2f})',
      )
    )
  return _aligned(rows) + '\n* chosen on the other half of the held-out texts'


def overlaps(found: dict[str, Any]) -> str:
  """Jaccard of what each pair of arms keeps, by tokens, as aligned text."""
  names = [arm['name'] for arm in found['arms']]
  rows = [('', *names)]
  for name, row in zip(names, found['overlaps']['tokens'], strict=True):
    rows.append((name, *(f'{100 * value:.0f}' for value in row)))
  return _aligned(rows)


def _wins(found: dict[str, Any]) -> Iterator[str]:
  for arm in found['arms']:
    if arm['name'] != found['baseline']:
      wins = arm['wins']
      yield (
        f'{arm["name"]} is better than {found["baseline"]} on {wins["better"]} '
        f'of {wins["sources"]} source{"s" if wins["sources"] > 1 else ""} '
        f'({wins["surely_better"]} with an interval '
        f'below zero) and worse on {wins["worse"]} ({wins["surely_worse"]} above)'
      )


def _shifts(found: dict[str, Any]) -> Iterator[str]:
  mix = found['mix']
  if len(mix['sources']) < 2:
    return
  for arm, total_variation in mix['total_variation'].items():
    largest = sorted(
      mix['sources'],
      key=lambda s, arm=arm: -abs(s['arms'][arm] - s['fraction']),
    )[:_MOVED]
    if total_variation:
      named = ', '.join(
        f'{" ".join(s["source"].split())} '
        f'{signed(100 * (s["arms"][arm] - s["fraction"]), 2)}'
        for s in largest
      )
      yield (
        f'{arm} moves {100 * total_variation:.1f} % of tokens between sources; in points: '
        f'{named}'
      )


def _aligned(rows: Sequence[Sequence[str]]) -> str:
  """Columns of text: the first to the left, the others to the right."""
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return '\n'.join(
    '  '.join(
      cell.rjust(width) if i else cell.ljust(width)
      for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    )
    for row in rows
  )
