"""The figures of the report, as inline SVG.

Figures are drawn without pyplot, so without a display or state that outlives
them. Colours stand for arms, everywhere on the page; dashes and markers stand
for seeds.
"""

import io
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

# Okabe and Ito's colours, told apart with any colour vision, without the
# yellow that vanishes on white; then three for comparisons of many arms.
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
_DASHES = (
  ('solid', '-'),
  ('dashed', (0, (4, 2))),
  ('dotted', (0, (1, 1.5))),
  ('dash-dotted', (0, (6, 2, 1, 2))),
)
_MARKERS = (('circle', 'o'), ('square', 's'), ('triangle', '^'), ('rhomb', 'D'))
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
  """How the figures mark each seed, in words; the fifth repeats."""
  return [
    {
      'seed': seed,
      'marker': _MARKERS[s % len(_MARKERS)][0],
      'dash': _DASHES[s % len(_DASHES)][0],
    }
    for s, seed in enumerate(seeds)
  ]


def svg(name: str, draw: Callable[[Any], None], size: tuple[float, float]):
  """Draws a figure of `size` inches; every id in it starts with `name`."""
  import matplotlib
  from matplotlib.figure import Figure

  with matplotlib.rc_context({**_STYLE, 'svg.hashsalt': name}):
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
  # Figures share a page: 'axes_1' must not be there twice.
  return re.sub(r'(\bid="|url\(#|href="#)', rf'\g<1>{name}-', text)


def differences(
  arms: Sequence[dict[str, Any]], baseline: str, colours: dict[str, str]
) -> str:
  """Arm minus baseline in bits per byte: interval, mean, and each seed.

  Args:
    arms: As in `findings.gather`.
    baseline: The arm at zero.
    colours: By arm.
  """
  shown = [arm for arm in arms if arm['name'] != baseline]

  def draw(figure: Any) -> None:
    axes = figure.subplots()
    axes.axvline(0.0, color='#555555', linewidth=0.8)
    for y, arm in enumerate(shown):
      colour = colours[arm['name']]
      parts = arm['difference']['bits_per_byte']
      axes.plot(
        [parts['low'], parts['high']],
        [y, y],
        color=colour,
        linewidth=2.0,
        solid_capstyle='butt',
      )
      axes.plot(parts['estimate'], y, 'o', color=colour, markersize=6)
      for s, value in enumerate(arm['difference_by_seed']['values']):
        axes.plot(
          value,
          y + 0.25,
          _MARKERS[s % len(_MARKERS)][1],
          markerfacecolor='white',
          markeredgecolor=colour,
          markersize=4.5,
        )
    axes.set_yticks(range(len(shown)), [arm['name'] for arm in shown])
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.grid(axis='y', visible=False)
    axes.tick_params(axis='y', length=0)
    axes.set_xlabel(
      f'bits per byte, minus those of {baseline}   '
      '(left of zero: better than the baseline)'
    )

  return svg('differences', draw, (8.6, 0.8 + 0.42 * len(shown)))


def curves(
  runs: Sequence[dict[str, Any]],
  seeds: Sequence[int],
  colours: dict[str, str],
) -> str:
  """Held-out bits per byte against training tokens: all of it, and the end.

  Args:
    runs: `{'arm', 'seed', 'tokens', 'bits_per_byte'}` of each run.
    seeds: In the config's order, which gives each its dash.
    colours: By arm.
  """
  # An arm may go on for longer than the others: all of them are in both halves.
  last = min((run['tokens'][-1] for run in runs if run['tokens']), default=0)

  def draw(figure: Any) -> None:
    whole, end = figure.subplots(1, 2)
    ending = []
    for run in runs:
      tokens = np.asarray(run['tokens'], float)
      bits = np.asarray(run['bits_per_byte'], float)
      late = tokens >= last / 2
      ending.append(bits[late])
      for axes, part in ((whole, slice(None)), (end, late)):
        axes.plot(
          tokens[part],
          bits[part],
          color=colours[run['arm']],
          linestyle=_DASHES[seeds.index(run['seed']) % len(_DASHES)][1],
          linewidth=1.2,
          marker='.',
          markersize=3,
        )
    whole.set_title('the whole run', loc='left', fontsize=9)
    end.set_title('from the middle on, enlarged', loc='left', fontsize=9)
    for axes in (whole, end):
      axes.set_xlabel('training tokens')
      axes.xaxis.set_major_formatter(_tokens_formatter())
    whole.set_ylabel('held-out bits per byte')

  return svg('curves', draw, (8.6, 3.3))


def _tokens_formatter() -> Any:
  from matplotlib.ticker import EngFormatter

  return EngFormatter(sep='')


def scores(
  histogram: dict[str, Any],
  deciles: Sequence[dict[str, Any]],
  colours: dict[str, str],
) -> str:
  """The scored split by mean NLL, and what each arm keeps of each decile.

  Args:
    histogram: `edges` in nats per token, and `tokens` between them.
    deciles: `{'low', 'high', 'arms': {arm: fraction kept}}` of each.
    colours: By arm.
  """
  edges = np.asarray(histogram['edges'])
  bounds = [d['low'] for d in deciles[1:]]
  inside = np.clip(bounds, edges[0], edges[-1])
  strips = np.concatenate([edges[:1], inside, edges[-1:]])

  def draw(figure: Any) -> None:
    top, bottom = figure.subplots(
      2,
      1,
      sharex=True,
      gridspec_kw={'height_ratios': [2.2, 0.32 * len(colours)]},
    )
    top.stairs(histogram['tokens'], edges, fill=True, color='#b9c0c9')
    for bound in inside:
      top.axvline(bound, color='white', linewidth=0.8)
    top.set_ylabel('tokens')
    top.yaxis.set_major_formatter(_tokens_formatter())
    for y, (arm, colour) in enumerate(colours.items()):
      for d, decile in enumerate(deciles):
        # The height of a bar is the fraction kept, from nothing to all.
        bottom.bar(
          strips[d],
          -0.8 * decile['arms'][arm],
          width=strips[d + 1] - strips[d],
          bottom=y + 0.4,
          align='edge',
          color=colour,
          edgecolor='white',
          linewidth=0.5,
        )
      bottom.axhline(y + 0.4, color='#999999', linewidth=0.5)
    bottom.set_yticks(range(len(colours)), list(colours))
    bottom.set_ylim(len(colours) - 0.4, -0.5)
    bottom.tick_params(axis='y', length=0)
    bottom.grid(axis='y', visible=False)
    bottom.set_xlabel(
      'mean NLL of an example under the reference model, nats per token'
    )
    bottom.set_xlim(edges[0], edges[-1])

  return svg('scores', draw, (8.6, 2.6 + 0.34 * len(colours)))
