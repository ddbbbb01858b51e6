"""Figures as inline SVG."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from infoprune_jax.report import plots
from infoprune_jax.report.results import plots as results_plots
from infoprune_jax.report.selection import plots as selection_plots

ARMS = ('full', 'random', '_top')


def figures(seeds=(0, 1)) -> dict[str, str]:
  colours = plots.arm_colours(ARMS)
  arms = [
    {
      'name': arm,
      'difference': {
        'bits_per_byte': {'estimate': 0.0, 'low': -0.1, 'high': 0.2}
      },
      'difference_by_seed': {'values': [0.1 * seed for seed in seeds]},
    }
    for arm in ARMS
  ]
  runs = [
    {'arm': arm, 'seed': s, 'tokens': [0, 5, 10], 'bits_per_byte': [4, 3, 2]}
    for arm in ARMS
    for s in seeds
  ]
  histogram = {'edges': [1.0, 2.0, 3.0], 'tokens': [5, 7]}
  deciles = [
    {'low': 0.3 * d, 'high': 0.3 * d + 0.3, 'arms': dict.fromkeys(ARMS, 0.5)}
    for d in range(10)
  ]
  return {
    'differences': results_plots.differences(arms, 'random', colours),
    'curves': results_plots.curves(runs, seeds, colours),
    'scores': selection_plots.scores(histogram, deciles, colours),
  }


@pytest.fixture(scope='module')
def drawn():
  return figures()


def test_is_bare_svg(drawn):
  for svg in drawn.values():
    assert svg.startswith('<svg')
    assert '<metadata' not in svg
    assert ElementTree.fromstring(svg).tag.endswith('svg')


def test_ids_are_unique_on_the_page_and_references_resolve(drawn):
  page = ''.join(drawn.values())
  ids = re.findall(r'\bid="([^"]*)"', page)
  assert len(ids) == len(set(ids))
  references = re.findall(r'(?:url\(|href=")#([^)"]*)', page)
  assert references and set(references) <= set(ids)


def test_is_the_same_again(drawn):
  assert figures() == drawn


def test_every_arm_and_seed_is_drawn(drawn):
  colours = plots.arm_colours(ARMS)
  for arm, colour in colours.items():
    # Two panels, two seeds.
    lines = re.findall(rf'fill: none; stroke[^"]*{colour}', drawn['curves'])
    assert len(lines) == 4
    assert (colour in drawn['differences']) == (arm != 'random')
    assert colour in drawn['scores']
  assert '>_top<' in drawn['differences']
  assert '>random<' not in drawn['differences']
  marks = plots.seed_marks((0, 1))
  assert len({mark['dash'] for mark in marks}) == 2


def test_names_are_no_formulas_and_escaped():
  colours = plots.arm_colours(('a$b', '$a$', '<b>&'))
  deciles = [{'low': 0.0, 'high': 1.0, 'arms': dict.fromkeys(colours, 1.0)}]
  histogram = {'edges': [0.0, 1.0], 'tokens': [1]}
  svg = selection_plots.scores(histogram, deciles, colours)
  assert '>a$b<' in svg and '>$a$<' in svg
  assert '&lt;b&gt;&amp;' in svg


def test_a_curve_may_be_empty():
  runs = [{'arm': 'full', 'seed': 0, 'tokens': [], 'bits_per_byte': []}]
  assert results_plots.curves(runs, (0,), {'full': '#000000'}).startswith(
    '<svg'
  )
