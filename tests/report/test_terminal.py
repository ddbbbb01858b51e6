"""What was found, on a terminal."""

import pytest

from infoprune_jax.report import findings, terminal


@pytest.fixture(scope='module')
def found(make_workdir):
  return findings.gather(*make_workdir(everything=True))


def test_tables_are_aligned(found):
  for text, rows in (
    (terminal.losses(found).rpartition('\n')[0], len(found['arms'])),
    (terminal.overlaps(found), len(found['arms'])),
  ):
    lines = text.splitlines()
    assert len(lines) == 1 + rows
    assert len({len(line) for line in lines}) == 1


def test_says_what_the_page_says(found):
  text = terminal.text(found)
  for sentence in (*found['found'], *found['cautions']):
    assert sentence in text
  assert found['equal_flops']['found'] in text
  assert f'{found["chosen"]} *' in text
  wins = found['arms'][4]['wins']
  assert (
    f'bottom_nll is better than random on {wins["better"]} of 3 sources'
  ) in text
  assert 'top_nll moves' in text and 'full moves' not in text
  assert 'random is better' not in text


def test_one_arm_has_nothing_to_share(make_workdir):
  found = findings.gather(
    *make_workdir(arms=('random',), seeds=(0,), num_sources=1)
  )
  text = terminal.text(found)
  assert 'Only one arm' in text
  for absent in ('What two arms share', 'is better than', 'moves'):
    assert absent not in text
