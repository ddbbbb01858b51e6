"""The figures of selections."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from infoprune_jax.report import plots

MAX_SHIFTS = 25  # sources whose fraction of tokens changes most
_LINE = 0.206  # inches


def scores(
  histogram: Mapping[str, Any],
  deciles: Sequence[Mapping[str, Any]],
  styles: Mapping[str, plots.Style],
) -> plots.Figure:
  """The scored split by mean NLL, and how much of each decile an arm keeps.

  Args:
    histogram: `edges` in nats per token, and `tokens` between them.
    deciles: `{'low', 'high', 'arms': {arm: fraction kept}}` of each.
    styles: By arm.
  """
  edges = np.asarray(histogram['edges'])
  inside = np.clip([d['low'] for d in deciles[1:]], edges[0], edges[-1])
  bounds = np.concatenate([edges[:1], inside, edges[-1:]])

  def paint(figure: Any) -> None:
    heights = [2.2, 0.32 * len(styles)]
    top, bottom = figure.subplots(
      2, 1, sharex=True, gridspec_kw={'height_ratios': heights}
    )
    top.stairs(histogram['tokens'], edges, fill=True, color=plots.BARS)
    for bound in inside:
      top.axvline(bound, color=plots.PAPER, linewidth=0.8)
    top.set_ylabel('tokens')
    top.yaxis.set_major_formatter(plots.tokens_formatter())
    for y, (arm, style) in enumerate(styles.items()):
      kept = [decile['arms'][arm] for decile in deciles]
      _draw_kept(bottom, y, kept, bounds, style.colour)
    bottom.set_yticks(range(len(styles)), map(plots.short_name, styles))
    bottom.set_ylim(len(styles) - 0.4, -0.5)
    bottom.tick_params(axis='y', length=0)
    bottom.grid(axis='y', visible=False)
    bottom.locator_params(axis='x', nbins=5)
    bottom.set_xlabel('mean NLL of a document, nats per token')
    bottom.set_xlim(edges[0], edges[-1])

  return plots.draw(
    'scores',
    'Tokens by the mean NLL of their document, and how much of each decile '
    'each arm keeps',
    paint,
    2.2 + 0.26 * len(styles),
  )


def _draw_kept(
  axes: Any, y: int, kept: Sequence[float], bounds: np.ndarray, colour: str
) -> None:
  """The arm in line `y`: a bar per decile, of full height if all is kept.

  If an arm repeats examples, the highest bar is of full height.
  """
  most = max(1.0, *kept)
  axes.bar(
    bounds[:-1],
    [-0.8 * fraction / most for fraction in kept],
    width=np.diff(bounds),
    bottom=y + 0.4,
    align='edge',
    color=colour,
    edgecolor=plots.PAPER,
    linewidth=0.5,
  )
  axes.axhline(y + 0.4, color=plots.AXIS, linewidth=0.5)


def shifts(
  sources: Sequence[Mapping[str, Any]], styles: Mapping[str, plots.Style]
) -> plots.Figure:
  """How each arm changes the fraction of tokens of a source, in points.

  Args:
    sources: As `tables.mix` gives them, the largest changes first.
    styles: By arm.
  """
  shown = sources[:MAX_SHIFTS]
  lines = np.arange(len(shown))

  def paint(figure: Any) -> None:
    axes = figure.subplots()
    plots.zero_line(axes)
    # A small offset for each arm, so that no point hides another.
    spread = np.linspace(-0.26, 0.26, len(styles)) if len(styles) > 1 else [0]
    for offset, (arm, style) in zip(spread, styles.items(), strict=True):
      changes = [100 * (s['arms'][arm] - s['fraction']) for s in shown]
      axes.plot(
        *(changes, lines + offset, style.marker),
        color=style.colour,
        markersize=3.6,
      )
    axes.set_yticks(lines, [plots.short_name(s['source']) for s in shown])
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.tick_params(axis='both', labelsize=8)
    axes.tick_params(axis='y', length=0)
    axes.locator_params(axis='x', nbins=5)
    axes.set_xlabel('change of the fraction of tokens, points')
    plots.legend(figure, styles, lines=False)

  height = 1.2 + _LINE * max(len(shown), 2) + 0.08 * len(styles)
  return plots.draw(
    'shifts',
    'Change of the fraction of tokens of each source, by arm',
    paint,
    height,
  )
