"""The figures of what arms keep."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from infoprune_jax.report import plots

MAX_SHIFTS = 25  # sources whose fraction of tokens changes most
_LINE = 0.206  # inches


def scores(
  histogram: Mapping[str, Any],
  deciles: Sequence[Mapping[str, Any]],
  colours: Mapping[str, str],
) -> str:
  """The scored split by mean NLL, and how much of each decile an arm keeps.

  Args:
    histogram: `edges` in nats per token, and `tokens` between them.
    deciles: `{'low', 'high', 'arms': {arm: fraction kept}}` of each.
    colours: By arm.
  """
  edges = np.asarray(histogram['edges'])
  inside = np.clip([d['low'] for d in deciles[1:]], edges[0], edges[-1])
  bounds = np.concatenate([edges[:1], inside, edges[-1:]])

  def draw(figure: Any) -> None:
    heights = [2.2, 0.32 * len(colours)]
    top, bottom = figure.subplots(
      2, 1, sharex=True, gridspec_kw={'height_ratios': heights}
    )
    top.stairs(histogram['tokens'], edges, fill=True, color='#b9c0c9')
    for bound in inside:
      top.axvline(bound, color='white', linewidth=0.8)
    top.set_ylabel('tokens')
    top.yaxis.set_major_formatter(plots.tokens_formatter())
    for y, arm in enumerate(colours):
      _draw_kept(bottom, y, [d['arms'][arm] for d in deciles], bounds, colours)
    bottom.set_yticks(range(len(colours)), list(colours))
    bottom.set_ylim(len(colours) - 0.4, -0.5)
    bottom.tick_params(axis='y', length=0)
    bottom.grid(axis='y', visible=False)
    bottom.set_xlabel(
      'mean NLL of an example under the reference model, nats per token'
    )
    bottom.set_xlim(edges[0], edges[-1])

  return plots.svg('scores', draw, (8.6, 2.6 + 0.34 * len(colours)))


def _draw_kept(
  axes: Any,
  y: int,
  kept: Sequence[float],
  bounds: np.ndarray,
  colours: Mapping[str, str],
) -> None:
  """The arm in line `y`: a bar per decile, of full height if all is kept."""
  axes.bar(
    bounds[:-1],
    [-0.8 * fraction for fraction in kept],
    width=np.diff(bounds),
    bottom=y + 0.4,
    align='edge',
    color=list(colours.values())[y],
    edgecolor='white',
    linewidth=0.5,
  )
  axes.axhline(y + 0.4, color='#999999', linewidth=0.5)


def shifts(
  sources: Sequence[Mapping[str, Any]], colours: Mapping[str, str]
) -> str:
  """How each arm changes the fraction of tokens of a source, in points.

  Args:
    sources: As `tables.mix` gives them, the largest changes first.
    colours: By arm.
  """
  shown = sources[:MAX_SHIFTS]
  lines = np.arange(len(shown))

  def draw(figure: Any) -> None:
    axes = figure.subplots()
    plots.zero_line(axes)
    # A small offset for each arm, so that no point hides another.
    spread = np.linspace(-0.26, 0.26, len(colours)) if len(colours) > 1 else [0]
    for offset, (arm, colour) in zip(spread, colours.items(), strict=True):
      changes = [100 * (s['arms'][arm] - s['fraction']) for s in shown]
      axes.plot(changes, lines + offset, 'o', color=colour, markersize=3.6)
    axes.set_yticks(lines, [plots.short_name(s['source']) for s in shown])
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.tick_params(axis='both', labelsize=8)
    axes.tick_params(axis='y', length=0)
    axes.set_xlabel(
      'fraction of the tokens kept, minus fraction of all tokens scored, in points'
    )

  height = 0.8 + _LINE * max(len(shown), 2)
  return plots.svg('shifts', draw, (8.6, height))
