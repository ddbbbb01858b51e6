"""Arms that differ in their fraction alone: in the report, and as a plot."""

import json
import posixpath
import re

import pytest

from configs import base
from infoprune_jax import checks
from infoprune_jax.config import experiment as config_lib, validation
from infoprune_jax.config.arms import SelectConfig, expand
from infoprune_jax.config.validation import UserError
from infoprune_jax.report.results import page as results_page
from infoprune_jax.report.selection import sweeps
from infoprune_jax.runtime import files
from infoprune_jax.runtime.workdir import report_dir, selection_report_dir


def select_of(**arms) -> SelectConfig:
  return validation.build(SelectConfig, expand({'arms': arms}), 'select')


def test_a_sweep_has_an_arm_for_each_fraction():
  made = base.sweep('top', 'top', 'num_tokens', fractions=(0.3, 0.125, 1))
  made = {name: rule.fraction for name, rule in made.items()}
  assert made == {'top_30': 0.3, 'top_12_5': 0.125, 'top_100': 1}


def test_arms_of_a_sweep_differ_in_one_fraction_alone():
  found = sweeps.of_arms(
    select_of(
      full=base.arm('all'),
      late=base.branch(
        'full', 0.5, base.arm('top', 'num_tokens', fraction=0.4)
      ),
      **base.sweep('top', 'top', 'num_tokens', fractions=(0.5, 0.3)),
      other=base.arm('top', 'num_bytes', fraction=0.4),
      unit=base.arm('top', 'num_tokens', fraction=0.4, unit='bytes'),
      **base.sweep('random', 'random', fractions=(0.3, 0.5)),
      small=(base.arm('distinct'), base.arm('random', fraction=0.1)),
      large=(base.arm('distinct'), base.arm('random', fraction=0.2)),
    )
  )
  assert [list(sweep.items()) for sweep in found] == [
    [('top_30', 0.3), ('top_50', 0.5)],
    [('random_30', 0.3), ('random_50', 0.5)],
    [('small', 0.1), ('large', 0.2)],
  ]


def test_the_job_needs_a_sweep():
  edits = base.get_config()
  edits.corpus.sources.web = base.text('web/*.txt')
  with pytest.raises(UserError, match=r'\(full, random\) has no two such arms'):
    checks.check_stages(config_lib.from_mapping(edits), {'sweep'})
  edits.select.arms.update(base.sweep('r', 'random', fractions=(0.2,)))
  checks.check_stages(config_lib.from_mapping(edits), {'sweep'})


@pytest.fixture(scope='module')
def swept(make_workdir):
  config, workdir = make_workdir(num_documents=10, sweep=True)
  results_page.run(config, workdir)
  return workdir


def page_of(folder: str) -> str:
  return files.read_bytes(posixpath.join(folder, 'index.html')).decode()


def test_a_sweep_is_compared_before_training(swept):
  folder = selection_report_dir(swept)
  report = files.read_json(posixpath.join(folder, 'selections.json'))
  random, top = report['sweeps'][0]['arms'], report['sweeps'][-1]['arms']
  assert [arm['name'] for arm in top] == ['top_nll_25', 'top_nll']
  assert random == top  # There is one sweep.
  first, last = top
  assert first['overlap'] is None
  kept = {arm['name']: arm['kept']['tokens'] for arm in report['arms']}
  # The smaller arm is a part of the larger one.
  expected = kept['top_nll_25'] / kept['top_nll']
  assert last['overlap'] == pytest.approx(expected) and expected < 0.8
  assert first['thresholds'].keys() == {'low'}
  assert first['thresholds']['low'] > last['thresholds']['low']
  page = page_of(folder)
  assert 'table-sweep_1' in page and 'table-sweep_2' not in page


def test_the_loss_is_plotted_by_fraction(swept):
  folder = report_dir(swept)
  svg = files.read_bytes(posixpath.join(folder, 'figures/sweeps.svg')).decode()
  assert 'fraction of tokens kept' in svg
  assert {'top_nll', 'top_nll_25'} <= set(re.findall(r'>(\w+)<', svg))
  assert 'bottom_nll' not in svg
  assert 'id="sweeps-title"' in page_of(folder)


def test_arms_that_were_not_trained_are_left_out(swept):
  folder = selection_report_dir(swept)
  report = json.loads(
    files.read_bytes(posixpath.join(folder, 'selections.json'))
  )
  both = ['top_nll_25', 'top_nll']
  assert sweeps.only(report['sweeps'], both) == report['sweeps']
  assert sweeps.only(report['sweeps'], both[:1]) == []
