"""The tables of a page as CSV, and those that are marked for it as LaTeX.

They are read off the page's HTML, so that a file and the page cannot differ. A
cell has its unrounded number in `data-value`. Its other attributes `data-KEY`,
such as the bounds of an interval, are columns of their own in the CSV. The id
of a table, `table-NAME`, names its files. The LaTeX has the columns whose
header has the attribute `data-latex`.
"""

import csv
import dataclasses
import html.parser
import io
import re
from collections.abc import Sequence

# Within a cell: what is no part of its text.
_NOTES = ('rule', 'tag')
_LATEX = str.maketrans(
  {
    **{character: f'\\{character}' for character in '&%$#_{}'},
    '\\': r'\textbackslash{}',
    '~': r'\textasciitilde{}',
    '^': r'\textasciicircum{}',
    '[': '{[}',
    ']': '{]}',
    '\u2212': '$-$',
    '\u00b1': r'$\pm$',
    '\u2014': '---',
    '\u202f': r'\,',
  }
)


@dataclasses.dataclass
class Cell:
  """A cell of a table."""

  columns: int  # that it spans
  data: dict[str, str]  # its attributes data-KEY, by KEY
  text: str = ''

  @property
  def value(self) -> str:
    """Its unrounded number, or its text."""
    return self.data.get('value', self.text)


@dataclasses.dataclass
class Table:
  """A table of a page: its id, and the cells of each row."""

  name: str
  heads: list[list[Cell]] = dataclasses.field(default_factory=list)
  rows: list[list[Cell]] = dataclasses.field(default_factory=list)

  @property
  def latex_columns(self) -> list[int]:
    """The columns that the LaTeX has; none if there is no LaTeX."""
    return [c for c, cell in enumerate(self.heads[-1]) if 'latex' in cell.data]


class _Reader(html.parser.HTMLParser):
  """Collects the tables of a page."""

  def __init__(self) -> None:
    super().__init__()
    self.tables: list[Table] = []
    self._rows: list[list[Cell]] = []
    self._cell: Cell | None = None
    self._note = ''  # the tag that ends a note

  def handle_starttag(
    self, tag: str, attrs: list[tuple[str, str | None]]
  ) -> None:
    given = {name: value or '' for name, value in attrs}
    if tag == 'table':
      self.tables.append(Table(given['id'].removeprefix('table-')))
    elif tag in ('thead', 'tbody', 'tfoot'):
      table = self.tables[-1]
      self._rows = table.heads if tag == 'thead' else table.rows
    elif tag == 'tr':
      self._rows.append([])
    elif tag in ('td', 'th'):
      data = {
        name.removeprefix('data-'): value
        for name, value in given.items()
        if name.startswith('data-')
      }
      self._cell = Cell(int(given.get('colspan', 1)), data)
      self._rows[-1].append(self._cell)
    elif self._cell and tag == 'br':
      self._cell.text += ' '
    elif self._cell and given.get('class') in _NOTES:
      self._note = tag

  def handle_endtag(self, tag: str) -> None:
    if tag == self._note:
      self._note = ''
    elif self._cell and tag in ('td', 'th'):
      self._cell.text = re.sub(r'[ \n]+', ' ', self._cell.text).strip(' \n')
      self._cell = None

  def handle_data(self, data: str) -> None:
    if self._cell and not self._note:
      self._cell.text += data


def of_page(page: str) -> list[Table]:
  """The tables of a page, in its order."""
  reader = _Reader()
  reader.feed(page)
  return reader.tables


def as_csv(table: Table) -> str:
  """A header, and one record for each row."""
  width = len(table.heads[-1])
  # By column, the keys that any cell of it has.
  keys = [
    dict.fromkeys(
      key
      for row in table.rows
      for key in (row[c].data if c < len(row) else ())
      if key != 'value'
    )
    for c in range(width)
  ]
  buffer = io.StringIO()
  writer = csv.writer(buffer)
  names = _column_names(table)
  writer.writerow(
    [
      text
      for name, more in zip(names, keys, strict=True)
      for text in (name, *(f'{name} {key}' for key in more))
    ]
  )
  for row in table.rows:
    writer.writerow(
      [
        _number(text)
        for cell, more in zip(row, keys, strict=True)
        for text in (cell.value, *(cell.data.get(key, '') for key in more))
      ]
    )
  return buffer.getvalue()


def _column_names(table: Table) -> list[str]:
  """The header of each column, after that of its group if there is one."""
  *groups, last = table.heads
  names = [cell.text for cell in last]
  for group in groups:
    spans = [cell.text for cell in group for _ in range(cell.columns)]
    names = [
      f'{span} {name}'.strip() for span, name in zip(spans, names, strict=True)
    ]
  return names


def _number(text: str) -> str:
  """Without digits that only binary fractions have: 12.3, not 12.300000001."""
  try:
    return f'{float(text):.12g}' if '.' in text else text
  except ValueError:
    return text


def as_latex(table: Table) -> str:
  """A `tabular` of the marked columns, with the page's own rounding."""
  chosen = table.latex_columns
  lines = [
    '% Needs \\usepackage{booktabs}.',
    f'\\begin{{tabular}}{{l{"r" * (len(chosen) - 1)}}}',
    '\\toprule',
    _latex_line([table.heads[-1][c].text for c in chosen]),
    '\\midrule',
    *(_latex_line([row[c].text for c in chosen]) for row in table.rows),
    '\\bottomrule',
    '\\end{tabular}',
  ]
  return '\n'.join(lines) + '\n'


def _latex_line(cells: Sequence[str]) -> str:
  return ' & '.join(cell.translate(_LATEX) for cell in cells) + r' \\'
