"""Figures with a line for each source."""

import re
import xml.etree.ElementTree as ElementTree

from infoprune_jax.report import plots as shared_plots
from infoprune_jax.report.results import plots

ARMS = tuple(f'arm{a}' for a in range(7))
COLOURS = shared_plots.arm_colours(ARMS)


def arms() -> list[dict]:
  parts = {'estimate': 0.0, 'low': -0.1, 'high': 0.2}
  return [{'name': a, 'difference': {'bits_per_byte': parts}} for a in ARMS]


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


def test_four_panels_a_figure_the_compared_arm_first():
  figures = plots.forests(arms(), sources(5), 'arm0', 'arm3', COLOURS)
  panels = [re.findall(r'>(arm\d)<', figure) for figure in figures]
  assert panels == [['arm3', 'arm1', 'arm2', 'arm4'], ['arm5', 'arm6']]
  for figure in figures:
    ElementTree.fromstring(figure)
    assert 'all sources' in figure and 'minus those of arm0' in figure
  ids = re.findall(r'\bid="([^"]*)"', ''.join(figures))
  assert len(ids) == len(set(ids))


def test_sources_are_sorted_by_the_compared_arm():
  [figure, _] = plots.forests(arms(), sources(6), 'arm0', 'arm1', COLOURS)
  assert names_in(figure) == [f'source-{k:03d}' for k in (5, 4, 3, 2, 1, 0)]


def test_many_sources_show_both_ends():
  count = plots.MAX_LINES + 10
  figure = plots.forests(arms(), sources(count), 'arm0', 'arm1', COLOURS)[0]
  shown = names_in(figure)
  assert len(shown) == plots.MAX_LINES
  assert {f'source-{count - 1:03d}', 'source-000'} <= set(shown)
  assert f'source-{count // 2:03d}' not in shown


def test_the_baseline_alone_has_no_forest():
  assert not plots.forests(arms()[:1], sources(3), 'arm0', 'arm0', COLOURS)
