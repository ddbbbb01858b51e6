"""What all figures fraction: inline SVG, colours, dashes and markers.

Figures are drawn without pyplot: they need no display and leave no state.
Colours stand for arms, everywhere on a page; dashes and markers stand for
seeds.
"""

import io
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

# Okabe and Ito's colours, which readers with any colour vision can tell apart,
# without the yellow that is invisible on white; then three more.
_COLOURS = (
  '#0072b2',
  '#d55e00',
  '#009e73',
  '#cc79a7',
  '#56b4e9',
  '#e69f00',
  '#000000',
  '#7a3fa0',
  '#8c6239',
  '#777777',
)
DASHES = (
  ('solid', '-'),
  ('dashed', (0, (4, 2))),
  ('dotted', (0, (1, 1.5))),
  ('dash-dotted', (0, (6, 2, 1, 2))),
)
MARKERS = (('circle', 'o'), ('square', 's'), ('triangle', '^'), ('rhomb', 'D'))
_MAX_NAME = 26  # characters
_STYLE = {
  'svg.fonttype': 'none',  # text stays text, in the page's own font
  'text.parse_math': False,  # an arm's name is no formula
  'font.family': 'sans-serif',
  'font.sans-serif': ['DejaVu Sans'],
  'font.size': 9.0,
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.linewidth': 0.6,
  'axes.edgecolor': '#555555',
  'axes.labelcolor': '#333333',
  'xtick.color': '#555555',
  'ytick.color': '#555555',
  'xtick.major.width': 0.6,
  'ytick.major.width': 0.6,
  'axes.grid': True,
  'grid.color': '#e4e4e4',
  'grid.linewidth': 0.6,
  'axes.axisbelow': True,
}


def arm_colours(arms: Sequence[str]) -> dict[str, str]:
  """A colour for each arm, in the config's order; the eleventh repeats."""
  return {arm: _COLOURS[a % len(_COLOURS)] for a, arm in enumerate(arms)}


def seed_marks(seeds: Sequence[int]) -> list[dict[str, Any]]:
  """The name of each seed's marker and dash; the fifth seed repeats."""
  return [
    {
      'seed': seed,
      'marker': MARKERS[s % len(MARKERS)][0],
      'dash': DASHES[s % len(DASHES)][0],
    }
    for s, seed in enumerate(seeds)
  ]


def svg(
  name: str, draw: Callable[[Any], None], size: tuple[float, float]
) -> str:
  """A figure of `size` inches; every id in it starts with `name`."""
  import matplotlib
  from matplotlib.figure import Figure

  style: dict[Any, Any] = {**_STYLE, 'svg.hashsalt': name}
  with matplotlib.rc_context(style):
    figure = Figure(figsize=size, layout='constrained')
    draw(figure)
    buffer = io.StringIO()
    with warnings.catch_warnings():
      # Only the layout reads this font; the browser has the glyphs.
      warnings.filterwarnings('ignore', message='Glyph')
      figure.savefig(
        buffer,
        format='svg',
        transparent=True,
        metadata={key: None for key in ('Creator', 'Date', 'Format', 'Type')},
      )
  text = buffer.getvalue()
  text = text[text.index('<svg') :]
  text = re.sub(r'<metadata>.*?</metadata>', '', text, flags=re.DOTALL)
  # Figures share a page: ids such as 'axes_1' must differ.
  return re.sub(r'(\bid="|url\(#|href="#)', rf'\g<1>{name}-', text)


def zero_line(axes: Any) -> None:
  """A vertical line where an arm equals what it is compared with."""
  axes.axvline(0.0, color='#555555', linewidth=0.8)


def tokens_formatter() -> Any:
  """A formatter of ticks: 12k, 3M."""
  from matplotlib.ticker import EngFormatter

  return EngFormatter(sep='')


def short_name(name: str) -> str:
  """On one line, and short enough for the margin."""
  name = ' '.join(name.split())
  return name if len(name) <= _MAX_NAME else name[: _MAX_NAME - 1] + '…'
