"""Figures with a line for each source."""

import re
import xml.etree.ElementTree as ElementTree

from infoprune_jax.report import plots as shared_plots
from infoprune_jax.report.results import plots

ARMS = tuple(f'arm{a}' for a in range(7))
STYLES = shared_plots.arm_styles(ARMS)


def arms() -> list[dict]:
  parts = {'estimate': 0.0, 'low': -0.1, 'high': 0.2}
  return [{'name': a, 'decisive': parts} for a in ARMS]


def sources(count: int) -> list[dict]:
  few = {'low': None, 'high': None}
  return [
    {
      'source': f'source-{k:03d}',
      'arms': [
        {
          'difference': {
            'estimate': -0.01 * k * a,
            **(few if k % 3 else {'low': -1.0, 'high': 1.0}),
          }
        }
        for a in range(len(ARMS))
      ],
    }
    for k in range(count)
  ]


def names_in(svg: str) -> list[str]:
  return re.findall(r'>(source-\d+)<', svg)


def test_a_figure_for_each_arm_the_compared_arm_first():
  figures = plots.forests(arms(), sources(5), 'arm0', 'arm3', STYLES)
  names = ['arm3', 'arm1', 'arm2', 'arm4', 'arm5', 'arm6']
  assert [figure.name for figure in figures] == [f'forest_{n}' for n in names]
  for figure, name in zip(figures, names, strict=True):
    ElementTree.fromstring(figure.svg)
    assert f'>{name}<' in figure.svg
    assert 'together' in figure.svg and 'minus those of arm0' in figure.svg
  ids = re.findall(r'\bid="([^"]*)"', ''.join(f.svg for f in figures))
  assert len(ids) == len(set(ids))


def test_figures_of_arms_have_one_scale():
  figures = plots.forests(arms(), sources(5), 'arm0', 'arm3', STYLES)
  ticks = [re.findall(r'>(\u2212?[0-9.]+)<', f.svg) for f in figures]
  assert ticks[0] and all(other == ticks[0] for other in ticks)


def test_sources_are_sorted_by_the_compared_arm():
  figure, *_ = plots.forests(arms(), sources(6), 'arm0', 'arm1', STYLES)
  assert names_in(figure.svg) == [f'source-{k:03d}' for k in (5, 4, 3, 2, 1, 0)]


def test_many_sources_show_both_ends():
  count = plots.MAX_LINES + 10
  figure = plots.forests(arms(), sources(count), 'arm0', 'arm1', STYLES)[0]
  shown = names_in(figure.svg)
  assert len(shown) == plots.MAX_LINES
  assert {f'source-{count - 1:03d}', 'source-000'} <= set(shown)
  assert f'source-{count // 2:03d}' not in shown


def test_the_baseline_alone_has_no_forest():
  assert not plots.forests(arms()[:1], sources(3), 'arm0', 'arm0', STYLES)
