"""Numbers and tables as text."""

from collections.abc import Mapping, Sequence

_MINUS = '\u2212'


def signed(value: float, digits: int = 4) -> str:
  """A number with its sign, and a true minus.

  >>> signed(0.25, 2)
  '+0.25'
  """
  return f'{value:+.{digits}f}'.replace('-', _MINUS)


def percent(fraction: float) -> str:
  """'12.3 %'; '0 %' and '100 %' mean exactly none and exactly all."""
  return (
    f'{100 * fraction:.1f} %'
    if 0.0 < fraction < 1.0
    else f'{100 * fraction:.0f} %'
  )


def interval(difference: Mapping[str, float]) -> str:
  """An estimate and its bounds: '+0.0120 [+0.0090, +0.0150]'."""
  low, high = signed(difference['low']), signed(difference['high'])
  return f'{signed(difference["estimate"])} [{low}, {high}]'


def aligned(rows: Sequence[Sequence[str]]) -> str:
  """Columns of text: the first to the left, the others to the right."""
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return '\n'.join(
    '  '.join(
      cell.rjust(width) if i else cell.ljust(width)
      for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    )
    for row in rows
  )
