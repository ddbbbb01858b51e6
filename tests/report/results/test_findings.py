"""The report as numbers."""

import dataclasses
import json
import pathlib
import re
import shutil
import tomllib

import pytest

from infoprune_jax.config.validation import UserError
from infoprune_jax.report.results import (
  comparisons,
  findings,
  inputs,
  page as results_page,
  statistics,
)
from infoprune_jax.report.selection import page as selection_page
from infoprune_jax.runtime import files

NAMES = ('arm', 'reference')


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


def with_report(made, **fields):
  """The config and workdir, with other options of the report."""
  config, workdir = made
  report = dataclasses.replace(config.report, **fields)
  return dataclasses.replace(config, report=report), workdir


def test_the_best_of_several_is_chosen_on_one_half(small, content):
  halves = statistics.halves(inputs.heldout_losses(*small))
  choose, judged = (
    statistics.losses_by_seed(half)['macro_bits_per_byte'].mean(axis=1)
    for half in halves
  )
  names = [arm['name'] for arm in content['arms']]
  for a, arm in enumerate(content['arms']):
    mean = arm['macro_bits_per_byte']['mean']
    assert mean == pytest.approx(judged[a], abs=1e-12)
  ruled = ['top_nll', 'top_sum', 'bottom_nll']
  chosen = min(ruled, key=lambda name: choose[names.index(name)])
  assert content['chosen'] == content['compared'] == chosen == 'top_sum'
  assert content['headline'] == ['top_sum']
  sizes = content['heldout']
  assert (
    sum(s['tokens'] for s in content['sources']) == sizes['judged']['tokens']
  )
  assert sizes['choose']['documents'] + sizes['judged']['documents'] < 120
  assert sizes['judged'] == sizes['target']


def test_an_arm_named_in_advance_is_judged_on_all_texts(small, content):
  named = findings.gather(*with_report(small, hypothesis=('bottom_nll',)))
  assert named['chosen'] is None and named['heldout']['choose'] is None
  assert named['headline'] == ['bottom_nll']
  sizes = content['heldout']
  assert named['heldout']['judged']['texts'] == (
    sizes['judged']['texts'] + sizes['choose']['texts']
  )
  bottom = named['arms'][4]
  assert bottom['name'] == 'bottom_nll' and bottom['verdict'] == 'worse'
  assert any(line.startswith('bottom_nll is worse') for line in named['found'])
  assert not any('half' in line for line in named['found'])


def test_the_only_rule_is_judged_on_all_texts(make_workdir):
  made = make_workdir(arms=('random', 'top_nll'), num_documents=10)
  content = findings.gather(*made)
  assert content['chosen'] is None and content['headline'] == ['top_nll']


def test_the_target_decides_and_the_rest_is_the_price(make_workdir):
  made = make_workdir(kinds=True, seeds=(0, 1, 2), num_documents=20)
  content = findings.gather(
    *with_report(made, target=('numbered',), hypothesis=('bottom_nll',))
  )
  assert content['target'] == ['source-01', 'source-02']
  by_name = {source['source']: source for source in content['sources']}
  assert [s['is_target'] for s in content['sources']] == [False, True, True]
  assert {s['kind'] for s in content['sources']} == {'hostile', 'numbered'}
  bottom = content['arms'][4]
  decides = [by_name[name]['arms'][4] for name in content['target']]
  mean = sum(source['bits_per_byte'] for source in decides) / 2
  assert bottom['macro_bits_per_byte']['mean'] == pytest.approx(mean)
  mean = sum(source['difference']['estimate'] for source in decides) / 2
  assert bottom['decisive']['estimate'] == pytest.approx(mean)
  assert bottom['wins']['sources'] == 2
  # Over all bytes the other source counts too.
  sizes = [source['bytes'] for source in content['sources']]
  over_all = sum(
    source['arms'][4]['difference']['estimate'] * source['bytes']
    for source in content['sources']
  ) / sum(sizes)
  assert bottom['over_all_bytes']['estimate'] == pytest.approx(over_all)
  names = {item['name'] for item in content['comparisons'][0]['price']}
  assert 'hostile' in names  # The kind, outside of the target.


def test_a_kind_may_have_no_held_out_text(make_workdir, monkeypatch):
  read = findings.inputs.heldout_losses

  def without_the_first(*arguments):
    losses = read(*arguments)
    return losses.where(losses.source > 0)

  monkeypatch.setattr(findings.inputs, 'heldout_losses', without_the_first)
  content = findings.gather(*make_workdir(kinds=True, num_documents=10))
  assert {source['kind'] for source in content['sources']} == {'numbered'}


@pytest.fixture(scope='module')
def branched(make_workdir):
  arms = ('full', 'random', 'late')
  return make_workdir(arms=arms, late=True, num_documents=10)


def test_shared_steps_are_charged_to_both_arms_and_spent_once(branched):
  """Runs cost 20 TFLOP, the reference model 20 and scoring 4."""
  content = findings.gather(*branched)
  arms = {arm['name']: arm for arm in content['arms']}
  late, full = arms['late'], arms['full']
  # It ranks by the NLL; the steps before 200 of 500 are those of `full`.
  assert late['flops']['training'] == full['flops']['training'] == 2e13
  assert late['flops']['total'] == 2e13 + 2e13 + 4e12
  assert late['shared'] == {'arm': 'full', 'step': 200, 'flops': 0.4 * 2e13}
  assert full['shared'] is None
  # Two seeds of two runs, and of three fifths of a third one.
  spent = {'training': 5.2 * 2e13, 'reference': 2e13, 'scoring': 4e12}
  assert content['spent'] == {**spent, 'total': sum(spent.values())}
  [caution] = [line for line in content['cautions'] if 'starts from' in line]
  assert 'the run of full at step 200' in caution and '8 TFLOP' in caution
  assert 'up to 40 % of the steps: everything scored; from' in late['rules']
  assert comparisons.role(late) == 'rule'


def test_the_keep_set_of_each_phase_is_that_of_the_run(branched, tmp_path):
  config, workdir = branched
  workdir = shutil.copytree(workdir, str(tmp_path / 'copy'))
  path = f'{workdir}/train/late/seed-0/manifest.json'
  manifest = files.read_record(path, '')
  manifest['inputs']['keep_set/full'] = 'other'
  files.write_record(path, manifest)
  with pytest.raises(UserError, match='late, seed 0 .* keep set full other'):
    findings.gather(config, workdir)


def test_the_gain_needs_the_baseline_at_other_budgets(make_workdir, content):
  assert {arm['gain'] for arm in content['arms']} == {None}
  assert not any('gain' in line for line in content['found'])
  arms = ('random', 'top_nll')
  made = make_workdir(arms=arms, budgets=(0.7, 1.0, 1.4), num_documents=30)
  told = findings.gather(*made)
  assert [arm['name'] for arm in told['arms']] == [*arms]
  gain = told['arms'][1]['gain']
  # The loss of top_nll is 0.03 lower, that of 1.4 times the budget 0.04.
  assert 1.0 < gain['budget']['low'] < gain['budget']['high'] <= 1.4 + 1e-9
  assert gain['training'] == pytest.approx(gain['budget'])
  assert gain['total']['high'] == pytest.approx(gain['budget']['high'] / 2.2)
  [line] = [line for line in told['found'] if 'gain' in line]
  assert 'for the loss of top_nll, random would train with' in line
  assert {curve['arm'] for curve in told['curves']} == {*arms}
  # Two seeds: 2 x 500 steps, and 350 - 280 and 700 - 280 of their own.
  steps = 2 * (1000 + 70 + 420)
  assert told['spent']['training'] == pytest.approx(steps / 500 * 2e13)
  html = results_page._render(told, results_page._figures(told))
  assert 'Compute-equivalent gain: the FLOPs' in html


def test_pooled_bytes_may_decide(small):
  content = findings.gather(*with_report(small, measure='bytes'))
  for arm in content['arms']:
    assert arm['decisive'] == arm['difference']['bits_per_byte']
  assert 'over all bytes of 3 sources' in content['found'][0]


def test_an_unknown_target_or_hypothesis_is_refused(small):
  with pytest.raises(UserError, match=r"report\.target: 'nubered' is no kind"):
    findings.gather(*with_report(small, target=('nubered',)))
  config, workdir = with_report(small, hypothesis=('top_sum',))
  train = dataclasses.replace(config.train, arms=('random', 'top_nll'))
  config = dataclasses.replace(config, train=train)
  with pytest.raises(UserError, match=r"hypothesis names 'top_sum', which is"):
    comparisons.ask(config.report, {}, inputs.heldout_losses(config, workdir))


def test_the_baseline_differs_by_zero(content):
  baseline = next(
    a for a in content['arms'] if a['name'] == content['baseline']
  )
  for measure in statistics.MEASURES:
    assert set(baseline['difference'][measure].values()) == {0.0}
  assert baseline['difference_by_seed']['values'] == [0.0, 0.0]


def test_tables_agree_with_each_other(content):
  for a, arm in enumerate(content['arms']):
    difference = arm['decisive']['estimate']
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
  few = len(seeds) < 3
  assert ('fewer than 3' in content['found'][0]) == few
  assert ('but not other seeds' in content['found'][-1]) == few


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
  assert content['chosen'] is None and content['compared'] == 'random'


def test_one_arm_one_seed_one_source(make_workdir):
  content = findings.gather(
    *make_workdir(num_sources=1, seeds=(3,), arms=('random',))
  )
  assert content['comparisons'] == [] and len(content['found']) == 1
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


def test_each_rule_meets_each_reference(longer):
  told = [(c['arm'], c['role'], c['reference']) for c in longer['comparisons']]
  roles = [('full', 'full'), ('random', 'random'), ('longer', 'everything')]
  assert told == [
    (arm, *one) for arm in ('top_sum', 'top_nll', 'bottom_nll') for one in roles
  ]
  arms = {arm['name']: arm for arm in longer['arms']}
  for one in longer['comparisons']:
    mean = [arms[one[key]][longer['measure']]['mean'] for key in NAMES]
    difference = one['decisive']
    assert difference['estimate'] == pytest.approx(mean[0] - mean[1])
    assert difference['low'] < difference['estimate'] < difference['high']
    ratio = 1.0 if one['role'] == 'longer' else 2.2
    assert one['flops_ratio'] == pytest.approx(ratio)
    assert bool(one['reached']) == (one['role'] == 'full')
  assert 'everything at equal total FLOPs' in ' '.join(longer['found'])
  assert longer['terminal'][-2].startswith('top_nll against full ')
  assert longer['terminal'][-1].startswith('bottom_nll against full ')


def test_full_s_final_loss_is_reached_by_some_arms(longer):
  reached = {c['arm']: c['reached'] for c in longer['comparisons'][::3]}
  assert reached['bottom_nll'] == {'step': None, 'of': 500}
  assert reached['top_sum']['step'] in (300, 400, 500)


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
