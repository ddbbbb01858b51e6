"""tools/show_experiment.py: its words, and the tables that are in docs/."""

import json
import pathlib
import sys
from xml.etree import ElementTree

import pytest

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / 'tools'))

import experiment_tables
import show_experiment

FOLDER = ROOT / 'docs/experiment'
SCALES = sorted(path.stem for path in FOLDER.glob('results/*.jsonl'))


@pytest.fixture(scope='module', params=SCALES)
def results(request):
  """A scale, and its lines by cell."""
  return request.param, show_experiment.read(request.param)


def test_the_tables_are_those_of_the_results(results):
  scale, lines = results
  written = (FOLDER / f'{scale}.md').read_text()
  assert written == experiment_tables.page(scale, lines), (
    f'python tools/show_experiment.py --scale={scale}'
  )


def test_a_row_has_the_numbers_of_its_line(results):
  _, lines = results
  line = next(iter(lines.values()))
  row = experiment_tables.arm_row(line, 'top_nll')
  assert len(row) == len(experiment_tables.HEADER)
  arm = next(arm for arm in line['arms'] if arm['name'] == 'top_nll')
  difference = arm[line['measure']]['mean']
  full = next(arm for arm in line['arms'] if arm['name'] == 'full')
  difference -= full[line['measure']]['mean']
  assert row[1].startswith(f'{difference:+.3f} [')


def test_every_level_of_the_map_is_drawn(results):
  scale, lines = results
  figure = show_experiment.draw_map(scale, lines)
  root = ElementTree.fromstring(figure.svg)
  text = [*root.itertext()]
  for factor, cells in experiment_tables.FACTORS.items():
    if sum(cell in lines for cell in cells.values()) > 1:
      assert factor in text


def arm(verdict, low=0.9, budget=1.0):
  total = {'estimate': 1.2, 'low': low, 'high': 1.4}
  return {
    'verdict': verdict,
    'gain': {'total': total, 'budget': {'estimate': budget}},
  }


@pytest.mark.parametrize(
  'given, result',
  [
    (arm('better', low=1.1), 'better; pays in total'),
    (arm('better', low=0.9), 'better'),
    (arm('worse', low=1.1), 'worse'),
    ({'verdict': 'better', 'gain': None}, 'better'),
  ],
)
def test_what_pays(given, result):
  assert experiment_tables.pays(given) == result


@pytest.mark.parametrize(
  'budget, shown', [(0.7, '≤ 1.20'), (1.4, '≥ 1.20'), (1.0, '1.20')]
)
def test_a_gain_at_the_end_of_the_budgets_is_a_bound(budget, shown):
  given = arm('better', budget=budget)
  text = experiment_tables.gain_shown(given, [0.7, 1.0, 1.4])
  assert text.startswith(f'{shown} [')


def gains(*estimates):
  return [
    {'estimate': one, 'low': one - 0.1, 'high': one + 0.1} for one in estimates
  ]


@pytest.mark.parametrize(
  'levels, given, shown',
  [
    (
      ['0', '25', '50'],
      gains(0.8, 0.95, 1.15),
      'above 1 from 31.3 on [16.7, 43.8]',
    ),
    (['0', '50'], gains(0.5, 0.8), 'below 1 at all levels'),
    (['1/10', '1'], gains(1.5, 1.3), 'above 1 at all levels'),
    (['1/2', '1'], gains(1.25, 0.95), 'below 1 from 0.917 on [0.75, > 1]'),
    (['0', '50'], gains(0.5, 1.05), 'above 1 from 45.5 on [36.4, > 50]'),
  ],
)
def test_break_even(levels, given, shown):
  assert experiment_tables.break_even(levels, given) == shown


def test_lines_are_in_the_order_of_the_cells(tmp_path, monkeypatch):
  (tmp_path / 'results').mkdir()
  lines = [json.dumps({'cell': name}) for name in ('copies_30', 'center')]
  (tmp_path / 'results/0.5m.jsonl').write_text('\n'.join(lines))
  monkeypatch.setattr(show_experiment, 'FOLDER', tmp_path)
  assert [*show_experiment.read('0.5m')] == ['center', 'copies_30']


def test_a_scale_without_results_is_one_message(monkeypatch, tmp_path, capsys):
  monkeypatch.setattr(show_experiment, 'FOLDER', tmp_path)
  monkeypatch.setattr(sys, 'argv', ['show_experiment.py', '--scale=3m'])
  with pytest.raises(SystemExit):
    show_experiment.main()
  assert 'run tools/run_experiment.py first' in capsys.readouterr().err
