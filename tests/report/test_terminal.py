"""The reports as text for a terminal."""

import pytest

from infoprune_jax.report.results import findings, wording
from infoprune_jax.report.selection import page as selection_page


@pytest.fixture(scope='module')
def report(make_workdir):
  return findings.gather(*make_workdir(everything=True))


def test_says_what_the_page_says(report):
  lines = report['terminal']
  assert len(lines) <= wording.MAX_TERMINAL_LINES
  assert lines[: len(report['found'])] == report['found']


def test_selections_are_aligned(report):
  text = selection_page.text(report)
  first, heading, rest = text.partition('Overlap of two arms, % of tokens:\n')
  count = len(report['arms'])
  assert heading
  for table in (first.splitlines(), rest.splitlines()[: 1 + count]):
    assert len(table) == 1 + count
    assert len({len(line) for line in table}) == 1
  for arm in report['arms']:
    for warning in arm['warnings']:
      assert f'{arm["name"]}: {warning}' in rest


def test_one_arm_overlaps_with_none(make_workdir):
  report = findings.gather(
    *make_workdir(arms=('random',), seeds=(0,), num_sources=1)
  )
  assert 'Only one arm' in report['terminal'][0]
  assert 'Overlap' not in selection_page.text(report)
