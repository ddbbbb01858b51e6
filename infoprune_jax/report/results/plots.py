"""The figures of trained arms."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from infoprune_jax.report import plots

MAX_LINES = 80  # sources of a forest: the lowest and the highest differences
_LINE = 0.165  # inches


def differences(
  arms: Sequence[dict[str, Any]],
  baseline: str,
  styles: Mapping[str, plots.Style],
) -> plots.Figure:
  """Arm minus baseline in bits per byte: interval, mean, and each seed.

  Args:
    arms: As in `findings.gather`.
    baseline: The arm at zero.
    styles: By arm.
  """
  shown = [arm for arm in arms if arm['name'] != baseline]

  def paint(figure: Any) -> None:
    axes = figure.subplots()
    plots.zero_line(axes)
    for y, arm in enumerate(shown):
      _draw_difference(axes, y, arm, styles[arm['name']].colour)
    names = [plots.short_name(arm['name']) for arm in shown]
    axes.set_yticks(range(len(shown)), names)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.grid(axis='y', visible=False)
    axes.tick_params(axis='y', length=0)
    axes.locator_params(axis='x', nbins=5)
    axes.set_xlabel(_label(baseline))

  return plots.draw(
    'differences',
    f'Bits per byte of each arm, minus those of {baseline}',
    paint,
    0.9 + 0.42 * len(shown),
  )


def _label(baseline: str) -> str:
  """Of an axis of differences."""
  name = plots.short_name(baseline)
  return f'bits per byte minus those of {name}\n(left of zero: better)'


def _draw_difference(
  axes: Any, y: int, arm: dict[str, Any], colour: str
) -> None:
  """One arm: its interval and mean, and below them each seed."""
  over_all = arm['decisive']
  axes.plot(
    [over_all['low'], over_all['high']],
    [y, y],
    color=colour,
    linewidth=2.0,
    solid_capstyle='butt',
  )
  axes.plot(over_all['estimate'], y, 'o', color=colour, markersize=6)
  for s, value in enumerate(arm['difference_by_seed']['values']):
    axes.plot(
      value,
      y + 0.25,
      plots.MARKERS[s % len(plots.MARKERS)][1],
      markerfacecolor=plots.PAPER,
      markeredgecolor=colour,
      markersize=4.5,
    )


def sweeps(
  arms: Sequence[Mapping[str, Any]],
  sweeps: Sequence[Mapping[str, Any]],
  measure: str,
  styles: Mapping[str, plots.Style],
) -> plots.Figure:
  """The loss by the fraction of tokens kept, a line for each sweep.

  Args:
    arms: As in `findings.gather`.
    sweeps: As in `findings.gather`; at least one.
    measure: Of the loss, one of `statistics.MEASURES`.
    styles: By arm.
  """
  by_name = {arm['name']: arm for arm in arms}
  shown = [arm['name'] for sweep in sweeps for arm in sweep['arms']]

  def paint(figure: Any) -> None:
    axes = figure.subplots()
    for sweep in sweeps:
      line = [by_name[arm['name']] for arm in sweep['arms']]
      kept = [100 * arm['kept_tokens'] for arm in line]
      axes.plot(
        kept,
        [arm[measure]['mean'] for arm in line],
        color=plots.AXIS,
        linestyle=styles[line[0]['name']].dash,
        linewidth=1.0,
      )
      for x, arm in zip(kept, line, strict=True):
        _draw_losses(axes, x, arm[measure], styles[arm['name']])
    for arm in arms:
      if arm['keeps_everything'] and arm['added_tokens'] is None:
        axes.axhline(
          arm[measure]['mean'], color=plots.INK, linestyle=':', linewidth=0.9
        )
    axes.set_xlabel('fraction of tokens kept, %')
    unit = measure.removeprefix('macro_').replace('_', ' ')
    axes.set_ylabel(f'held-out {unit}')
    axes.locator_params(axis='both', nbins=6)
    plots.legend(figure, {name: styles[name] for name in shown}, lines=False)

  title = 'Held-out loss by the fraction of tokens kept'
  return plots.draw('sweeps', title, paint, 2.6 + 0.08 * len(shown))


def _draw_losses(
  axes: Any, x: float, losses: Mapping[str, Any], style: plots.Style
) -> None:
  """One arm: each seed, and their mean."""
  values = losses['values']
  axes.plot(
    [x] * len(values),
    values,
    style.marker,
    markerfacecolor='none',
    markeredgecolor=style.colour,
    markersize=3.6,
  )
  axes.plot(x, losses['mean'], style.marker, color=style.colour, markersize=5)


def curves(
  runs: Sequence[dict[str, Any]], styles: Mapping[str, plots.Style]
) -> list[plots.Figure]:
  """Held-out bits per byte by training tokens: the whole run, and its end.

  Args:
    runs: `{'arm', 'seed', 'tokens', 'bits_per_byte'}` of each run.
    styles: By arm.
  """
  # One arm may train for longer: the shortest run sets where the end starts.
  last = min((run['tokens'][-1] for run in runs if run['tokens']), default=0)
  title = 'Held-out bits per byte by training tokens'
  return [
    _curves('curves', title, runs, styles, 0),
    _curves('curves_end', f'{title}: second half', runs, styles, last / 2),
  ]


def _curves(
  name: str,
  title: str,
  runs: Sequence[dict[str, Any]],
  styles: Mapping[str, plots.Style],
  start: float,
) -> plots.Figure:
  """One line for each run, from `start` tokens on."""

  def paint(figure: Any) -> None:
    axes = figure.subplots()
    for run in runs:
      tokens = np.asarray(run['tokens'], float)
      style = styles[run['arm']]
      axes.plot(
        tokens[tokens >= start],
        np.asarray(run['bits_per_byte'], float)[tokens >= start],
        color=style.colour,
        linestyle=style.dash,
        marker=style.marker,
        markersize=3,
        markevery=max(1, int((tokens >= start).sum()) // 8),
        linewidth=1.0,
      )
    axes.set_xlabel('training tokens')
    axes.set_ylabel('held-out bits per byte')
    axes.xaxis.set_major_formatter(plots.tokens_formatter())
    axes.locator_params(axis='x', nbins=5)
    plots.legend(figure, styles)

  return plots.draw(name, title, paint, 2.9 + 0.08 * len(styles))


def forests(
  arms: Sequence[dict[str, Any]],
  sources: Sequence[dict[str, Any]],
  baseline: str,
  compared: str,
  styles: Mapping[str, plots.Style],
) -> list[plots.Figure]:
  """Arm minus baseline in bits per byte, for each source and for all together.

  All figures list the sources in the order of the compared arm's differences.

  Args:
    arms: As in `findings.gather`.
    sources: As in `findings.gather`.
    baseline: The arm at zero, which has no figure.
    compared: The arm whose figure comes first.
    styles: By arm.

  Returns:
    A figure for each arm, on the same scale.
  """
  shown = [a for a, arm in enumerate(arms) if arm['name'] != baseline]
  shown.sort(key=lambda a: arms[a]['name'] != compared)
  if not shown:
    return []
  order = sorted(
    sources, key=lambda s: s['arms'][shown[0]]['difference']['estimate']
  )
  if len(order) > MAX_LINES:
    order = order[: MAX_LINES // 2] + order[-MAX_LINES // 2 :]
  limits = _limits(
    [
      difference
      for a in shown
      for difference in (
        arms[a]['decisive'],
        *(source['arms'][a]['difference'] for source in order),
      )
    ]
  )
  return [
    _forest(
      arms[a],
      [source['source'] for source in order],
      [source['arms'][a]['difference'] for source in order],
      baseline,
      styles[arms[a]['name']].colour,
      limits,
    )
    for a in shown
  ]


def _limits(
  differences: Sequence[dict[str, float | None]],
) -> tuple[float, float]:
  """The ends of an axis that shows all estimates and intervals, and zero."""
  values = [0.0, *(v for d in differences for v in d.values() if v is not None)]
  margin = 0.05 * (max(values) - min(values)) or 1.0
  return min(values) - margin, max(values) + margin


def _forest(
  arm: dict[str, Any],
  sources: Sequence[str],
  differences: Sequence[dict[str, float | None]],
  baseline: str,
  colour: str,
  limits: tuple[float, float],
) -> plots.Figure:
  """One arm: a line for each source, from the top, and all texts at the end."""
  lines = len(sources)

  def paint(figure: Any) -> None:
    axes = figure.subplots()
    plots.zero_line(axes)
    _draw_sources(axes, differences, colour)
    over_all, end = arm['decisive'], lines + 0.5
    axes.axhspan(end - 0.6, end + 0.6, color=plots.BAND, zorder=0)
    axes.hlines(
      end, over_all['low'], over_all['high'], color=colour, linewidth=2.6
    )
    axes.plot(over_all['estimate'], end, 'D', color=colour, markersize=5)
    axes.set_title(plots.short_name(arm['name']), loc='left', fontsize=9)
    names = [*map(plots.short_name, sources), 'together']
    axes.set_yticks([*range(lines), end], names)
    axes.set_ylim(lines + 1.3, -0.8)
    axes.set_xlim(limits)
    axes.locator_params(axis='x', nbins=5)
    axes.tick_params(axis='both', labelsize=7.5)
    axes.tick_params(axis='y', length=0)
    axes.set_xlabel(_label(baseline))

  return plots.draw(
    f'forest_{arm["name"]}',
    f'Bits per byte of {arm["name"]} minus those of {baseline}, by source',
    paint,
    1.1 + _LINE * (lines + 2),
  )


def _draw_sources(
  axes: Any, differences: Sequence[dict[str, float | None]], colour: str
) -> None:
  """The estimate of each source, and its interval if it has one."""
  known = [y for y, d in enumerate(differences) if d['low'] is not None]
  low, high = ([differences[y][k] for y in known] for k in ('low', 'high'))
  axes.hlines(known, low, high, color=colour, linewidth=1.1)
  estimates = [difference['estimate'] for difference in differences]
  axes.plot(estimates, range(len(estimates)), '.', color=colour, markersize=5)
