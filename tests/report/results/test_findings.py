"""The report as numbers."""

import dataclasses
import json
import pathlib
import re
import shutil
import tomllib

import pytest

from infoprune_jax.config.validation import UserError
from infoprune_jax.report.results import findings, inputs, statistics
from infoprune_jax.report.selection import page as selection_page


@pytest.fixture(scope='module')
def small(make_workdir):
  return make_workdir()


@pytest.fixture
def content(small):
  return findings.gather(*small)


def test_is_json_without_nan_and_the_same_again(small, content):
  text = json.dumps(content, allow_nan=False)
  assert json.loads(text) == content
  assert json.dumps(findings.gather(*small)) == text


def test_chooses_on_one_half_and_reports_on_the_other(small, content):
  halves = statistics.halves(inputs.heldout_losses(*small))
  choose, report = (
    statistics.losses_by_seed(half)['bits_per_byte'].mean(axis=1)
    for half in halves
  )
  for a, arm in enumerate(content['arms']):
    assert arm['choose_bits_per_byte'] == pytest.approx(choose[a], abs=1e-12)
    assert arm['bits_per_byte']['mean'] == pytest.approx(report[a], abs=1e-12)
  chosen = min(content['arms'], key=lambda arm: arm['choose_bits_per_byte'])
  assert content['chosen'] == content['compared'] == chosen['name'] == 'top_sum'
  halves = content['halves']
  assert (
    sum(s['tokens'] for s in content['sources']) == (halves['report']['tokens'])
  )
  assert halves['choose']['documents'] + halves['report']['documents'] < 120
  difference = chosen['difference']['bits_per_byte']
  assert difference['low'] < difference['estimate'] < difference['high'] < 0.0


def test_the_baseline_differs_by_zero(content):
  baseline = next(
    a for a in content['arms'] if a['name'] == content['baseline']
  )
  for measure in statistics.MEASURES:
    assert set(baseline['difference'][measure].values()) == {0.0}
  assert baseline['difference_by_seed']['values'] == [0.0, 0.0]


def test_tables_agree_with_each_other(content):
  for a, arm in enumerate(content['arms']):
    difference = arm['difference']['bits_per_byte']['estimate']
    by_seed = arm['difference_by_seed']['values']
    assert sum(by_seed) / 2 == pytest.approx(difference)
    micro = sum(
      s['arms'][a]['bits_per_byte'] * s['bytes'] for s in content['sources']
    ) / sum(s['bytes'] for s in content['sources'])
    assert micro == pytest.approx(arm['bits_per_byte']['mean'])
    macro = [s['arms'][a]['bits_per_byte'] for s in content['sources']]
    assert sum(macro) / len(macro) == pytest.approx(
      arm['macro_bits_per_byte']['mean']
    )


def test_arms_that_read_a_score_pay_for_it(content):
  flops = {arm['name']: arm['flops'] for arm in content['arms']}
  assert flops['random']['total'] == flops['full']['total'] == 2e13
  assert flops['top_nll']['total'] == 2e13 + 2e13 + 4e12
  assert flops['top_nll']['ratio'] == pytest.approx(2.2)


def test_kept_shares(content):
  kept = {arm['name']: arm['kept_tokens'] for arm in content['arms']}
  assert kept['full'] == 1.0
  assert 0.4 < kept['random'] < 0.6
  deciles = content['kept']['deciles']
  assert [d['arms']['top_nll'] for d in deciles] == [0.0] * 5 + [1.0] * 5
  total = sum(s['tokens'] for s in content['kept']['sources'])
  assert sum(
    s['arms']['top_sum'] * s['tokens'] for s in content['kept']['sources']
  ) == pytest.approx(kept['top_sum'] * total)


def test_arms_that_rank_alike_show_their_examples_once(content):
  assert [sorted(item['arms']) for item in content['examples']] == [
    ['bottom_nll', 'top_nll'],
    ['top_sum'],
  ]
  for item in content['examples']:
    assert all(len(one['text']) == 400 and one['cut'] for one in item['most'])


@pytest.mark.parametrize('seeds', [(0,), (0, 1), (0, 1, 2)])
def test_interval_over_seeds_needs_three(make_workdir, seeds):
  content = findings.gather(*make_workdir(seeds=seeds, num_documents=10))
  for arm in content['arms']:
    for spread in (arm['difference_by_seed'], arm['bits_per_byte']):
      assert len(spread['values']) == len(seeds)
      assert (spread['interval'] is None) == (len(seeds) < 3)
  assert any('difference by seed' in c for c in content['cautions']) == (
    len(seeds) < 3
  )


def test_the_baseline_must_be_among_the_arms(small):
  config, workdir = small
  config = dataclasses.replace(
    config, train=dataclasses.replace(config.train, arms=('top_nll',))
  )
  with pytest.raises(UserError, match=r'report\.baseline'):
    findings.gather(config, workdir)


def test_the_baseline_alone(small, tmp_path):
  config, workdir = small
  config = dataclasses.replace(
    config, train=dataclasses.replace(config.train, arms=('random',))
  )
  workdir = shutil.copytree(workdir, str(tmp_path / 'demo'))
  selection_page.run(config, workdir)
  content = findings.gather(config, workdir)
  assert content['chosen'] == content['compared'] == 'random'


def test_one_arm_one_seed_one_source(make_workdir):
  content = findings.gather(
    *make_workdir(num_sources=1, seeds=(3,), arms=('random',))
  )
  assert content['equal_flops'] is None
  assert content['overlaps']['tokens'] == [[1.0]]
  assert len(content['sources']) == len(content['mix']['sources']) == 1
  assert content['arms'][0]['wins']['better'] == 0
  assert json.dumps(content, allow_nan=False)


@pytest.fixture(scope='module')
def longer(make_workdir):
  return findings.gather(*make_workdir(everything=True))


def test_everything_pays_for_no_score(longer):
  arms = {arm['name']: arm for arm in longer['arms']}
  flops = arms['everything']['flops']
  assert flops['reference'] == flops['scoring'] == 0.0
  assert flops['total'] == arms['top_nll']['flops']['total'] == 4.4e13
  assert arms['everything']['step'] == 1100
  assert arms['everything']['added_tokens'] == 60_000
  assert arms['full']['added_tokens'] is None


def test_the_compared_arm_meets_its_equal_in_flops(longer):
  assert longer['compared'] == 'top_sum'
  arms = {arm['name']: arm for arm in longer['arms']}
  difference = longer['equal_flops']['difference']
  assert difference['estimate'] == pytest.approx(
    arms['top_sum']['bits_per_byte']['mean']
    - arms['everything']['bits_per_byte']['mean']
  )
  assert longer['equal_flops']['arm'] == 'everything'
  assert difference['low'] < difference['estimate'] < difference['high']


def test_wins_count_sources(content):
  for a, arm in enumerate(content['arms']):
    told = [source['arms'][a]['difference'] for source in content['sources']]
    wins = arm['wins']
    assert wins['sources'] == len(told) == 3
    assert wins['better'] == sum(d['estimate'] < 0 for d in told)
    assert wins['surely_better'] == sum(d['high'] < 0 for d in told)
    assert wins['worse'] == sum(d['estimate'] > 0 for d in told)
    assert wins['surely_worse'] == sum(d['low'] > 0 for d in told)
  assert content['arms'][4]['wins']['surely_worse'] == 3  # bottom_nll.


def test_differences_of_sources_are_those_of_their_losses(content):
  baseline = [arm['name'] for arm in content['arms']].index(content['baseline'])
  for source in content['sources']:
    for arm in source['arms']:
      assert arm['difference']['estimate'] == pytest.approx(
        arm['bits_per_byte'] - source['arms'][baseline]['bits_per_byte'],
        abs=1e-12,
      )


def test_versions_of_all_that_is_needed(content):
  path = pathlib.Path(__file__).parents[3] / 'pyproject.toml'
  project = tomllib.loads(path.read_text())['project']
  for line in project['dependencies']:
    assert re.match(r'[\w-]+', line)[0] in content['versions'], line
