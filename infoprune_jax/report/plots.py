"""Helpers of all figures: colours, dashes, markers, SVG and PDF.

Figures are drawn without pyplot: they need no display and leave no state. All
are as wide as a column of a paper, which is also as wide as a phone: on a page
they scale and stand side by side, and nothing is drawn twice. An arm has a
colour, a dash and a marker, everywhere on a page.
"""

import dataclasses
import html
import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

WIDTH = 4.2  # inches
INK, AXIS, GRID = '#333333', '#555555', '#e4e4e4'
BARS, BAND, PAPER = '#b9c0c9', '#f2f2f2', '#ffffff'
# Okabe and Ito's colours, which readers with any colour vision can tell apart,
# without the yellow that is invisible on white; then three more.
_COLOURS = (
  '#0072b2',
  '#d55e00',
  '#009e73',
  '#cc79a7',
  '#56b4e9',
  '#e69f00',
  '#111111',
  '#7a3fa0',
  '#8c6239',
  '#777777',
)
_DASHES = ('-', (0, (4, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
MARKERS = (
  *(('circle', 'o'), ('square', 's'), ('triangle', '^'), ('rhomb', 'D')),
  ('inverted triangle', 'v'),
)
# Colours of the page's theme, by their name in style.css.jinja.
_THEMED = {
  **{INK: 'ink', AXIS: 'axis', GRID: 'grid', BARS: 'bars', BAND: 'band'},
  PAPER: 'paper',
  **{colour: f'arm-{c}' for c, colour in enumerate(_COLOURS)},
}
_MAX_NAME = 26  # characters
_STYLE = {
  'svg.fonttype': 'none',  # text stays text, in the page's own font
  'pdf.fonttype': 42,  # TrueType: text stays text
  'text.parse_math': False,  # an arm's name is no formula
  'text.color': INK,
  'font.family': 'sans-serif',
  'font.sans-serif': ['DejaVu Sans'],
  'font.size': 9.0,
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.linewidth': 0.6,
  'axes.edgecolor': AXIS,
  'axes.labelcolor': INK,
  'xtick.color': AXIS,
  'ytick.color': AXIS,
  'xtick.major.width': 0.6,
  'ytick.major.width': 0.6,
  'axes.grid': True,
  'grid.color': GRID,
  'grid.linewidth': 0.6,
  'axes.axisbelow': True,
  'legend.frameon': False,
  'legend.fontsize': 8.0,
}


class Style(NamedTuple):
  """How an arm is drawn."""

  colour: str
  dash: Any  # matplotlib's linestyle
  marker: str


@dataclasses.dataclass(frozen=True)
class Figure:
  """A figure as files: its name, and what is in them."""

  name: str
  title: str
  svg: str
  pdf: bytes

  @property
  def inline(self) -> str:
    """The SVG for a page, in the colours of the page's theme."""
    svg = self.svg[self.svg.index('<svg') :]
    for colour, name in _THEMED.items():
      svg = svg.replace(f': {colour}', f': var(--{name})')
    return svg


def arm_styles(arms: Sequence[str]) -> dict[str, Style]:
  """The style of each arm, in the config's order; the 21st repeats."""
  return {
    arm: Style(
      _COLOURS[a % len(_COLOURS)],
      _DASHES[a % len(_DASHES)],
      MARKERS[a % len(MARKERS)][1],
    )
    for a, arm in enumerate(arms)
  }


def draw(
  name: str,
  title: str,
  paint: Callable[[Any], None],
  height: float,
) -> Figure:
  """Draws a figure.

  Args:
    name: Of its files; every id in the SVG starts with it.
    title: For readers who do not see the figure.
    paint: Called with a figure of matplotlib.
    height: Inches.
  """
  import matplotlib
  from matplotlib.figure import Figure as Canvas

  style: dict[Any, Any] = {**_STYLE, 'svg.hashsalt': name}
  with matplotlib.rc_context(style), warnings.catch_warnings():
    # A name may have glyphs that this font lacks. A browser has them.
    warnings.filterwarnings('ignore', message='Glyph')
    figure = Canvas(figsize=(WIDTH, height), layout='constrained')
    paint(figure)
    svg = _saved(figure, 'svg', Creator=None, Date=None, Format=None, Type=None)
    pdf = _saved(figure, 'pdf', Title=title, Creator=None, CreationDate=None)
  return Figure(name, title, _titled(name, title, svg.decode()), pdf)


def _saved(figure: Any, kind: str, **metadata: str | None) -> bytes:
  buffer = io.BytesIO()
  figure.savefig(buffer, format=kind, transparent=True, metadata=metadata)
  return buffer.getvalue()


def _titled(name: str, title: str, svg: str) -> str:
  """The SVG with a title, without metadata, with ids of its own."""
  svg = re.sub(r'<metadata>.*?</metadata>', '', svg, flags=re.DOTALL)
  # Figures share a page: ids such as 'axes_1' must differ.
  svg = re.sub(r'(\bid="|url\(#|href="#)', rf'\g<1>{name}-', svg)
  start = svg.index('<svg')
  inside = svg.index('>', start) + 1
  return (
    f'{svg[:start]}<svg role="img" aria-labelledby="{name}-title"'
    f'{svg[start + len("<svg") : inside]}\n'
    f'<title id="{name}-title">{html.escape(title)}</title>{svg[inside:]}'
  )


def legend(
  figure: Any, styles: Mapping[str, Style], lines: bool = True
) -> None:
  """A legend of the arms above the plot, in as many columns as fit.

  Args:
    figure: Of matplotlib.
    styles: By arm.
    lines: Whether arms are lines, and not points alone.
  """
  from matplotlib.lines import Line2D

  names = [short_name(arm) for arm in styles]
  columns = max(1, min(4, int(58 / (7 + max(map(len, names))))))
  handles = [
    Line2D(
      [],
      [],
      color=style.colour,
      linestyle=style.dash if lines else 'none',
      marker=style.marker,
      markersize=4,
      label=name,
    )
    for name, style in zip(names, styles.values(), strict=True)
  ]
  figure.legend(
    handles=handles, loc='outside upper left', ncols=columns, handlelength=3
  )


def zero_line(axes: Any) -> None:
  """A vertical line where an arm equals what it is compared with."""
  axes.axvline(0.0, color=AXIS, linewidth=0.8)


def tokens_formatter() -> Any:
  """A formatter of ticks: 12k, 3M."""
  from matplotlib.ticker import EngFormatter

  return EngFormatter(sep='')


def short_name(name: str) -> str:
  """On one line, and short enough for the margin."""
  name = ' '.join(name.split())
  return name if len(name) <= _MAX_NAME else name[: _MAX_NAME - 1] + '…'
