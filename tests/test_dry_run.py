"""What the dry run prints: sizes, states, costs and arms, in few lines."""

import json

import pytest
from ml_collections import ConfigDict
from small_corpus import small_config

from configs import base, baselines
from infoprune_jax import dry_run, main, stages
from infoprune_jax.config import experiment as config_lib
from infoprune_jax.runtime.lineage import StageState
from infoprune_jax.train import timing


@pytest.fixture
def config(tmp_path):
  """14 sources of two formats, and 8 arms, one of them with a long rule."""
  config = small_config('unused')
  del config.corpus.sources.made_up
  for n in range(14):
    path = tmp_path / (f'{n}.txt' if n < 9 else f'{n}.jsonl')
    path.write_text(json.dumps({'text': 'x' * 988}))
    source = base.text if n < 9 else base.jsonl
    config.corpus.sources[f'source-{n}'] = source(str(path))
  arms = baselines.arms(fraction=0.5)
  arms.full = base.arm('all')
  del arms.length, arms.deduplicated
  config.select = ConfigDict({'arms': arms}, sort_keys=False)
  config.report.baseline = 'full'
  assert len(config.select.arms) == 8
  return config


def lines(config, workdir, capsys, **options) -> list[str]:
  dry_run.run(config_lib.from_mapping(config), str(workdir), **options)
  return capsys.readouterr().out.splitlines()


def test_eight_arms_take_twenty_lines(config, tmp_path, capsys):
  printed = lines(config, tmp_path / 'run', capsys)
  assert len(printed) == 20
  assert max(map(len, printed[1:])) < 150  # The first line names the workdir.
  text = '\n'.join(printed)
  assert '9 text sources: 9 files, 9 kB; 5 jsonl sources: 5 files, 5 kB' in text
  assert 'source-3' not in text
  assert 'near_deduplicated' in text
  assert 'Times are unknown' in text
  assert not (tmp_path / 'run').exists()


def test_full_has_everything_and_ends_with_the_short_form(
  config, tmp_path, capsys
):
  short = lines(config, tmp_path / 'run', capsys)
  full = lines(config, tmp_path / 'run', capsys, full=True)
  assert full[-19:] == short[1:]
  assert '"seeds"' in '\n'.join(full)
  assert len(full) > 100


def test_times_are_those_of_the_last_run(config, tmp_path, capsys):
  for arm, moment, rate in (('full', 20.0, 5e6), ('random', 10.0, 7e6)):
    folder = tmp_path / 'run' / 'train' / arm / 'seed-0'
    folder.mkdir(parents=True)
    line = {'step': 5, 'time': moment, 'productive': 3.0}
    line |= {'seconds': 3.0, 'flops_per_second': rate}
    (folder / 'timing.jsonl').write_text(json.dumps(line) + '\n')
  printed = lines(config, tmp_path / 'run', capsys)
  assert len(printed) == 20
  assert printed[-1] == (
    'Times are for 5 MFLOP/s, the rate of the last training here, '
    'train/full/seed-0.'
  )
  (of_train,) = [line for line in printed if line.startswith('  train ')]
  number, prefix = of_train.split(' runs')[1].split(', ')[1].split()
  hours, minutes, seconds = map(int, of_train.split(', ')[-1].split(':'))
  expected = float(number) * {'GFLOP': 1e9, 'TFLOP': 1e12}[prefix] / 5e6
  assert 3600 * hours + 60 * minutes + seconds == pytest.approx(
    expected, rel=0.01
  )


@pytest.mark.parametrize(
  'state, shown, has_time',
  [
    (StageState('finished'), '  train            finished  31', False),
    (StageState('to do'), '  train            to do     31', True),
    (
      StageState('resumes', 'at step 5'),
      '  train            resumes   at step 5; 31',
      True,
    ),
    (
      StageState('stale', 'select.arms.x: fraction 0.8 -> 0.7'),
      '  train            stale     because select.arms.x: fraction 0.8 -> 0.7; ',
      True,
    ),
    (
      StageState('refused', 'it is damaged'),
      '  train            refused   because it is damaged; ',
      True,
    ),
  ],
)
def test_a_stage_has_state_reason_and_cost(
  config, tmp_path, capsys, monkeypatch, state, shown, has_time
):
  monkeypatch.setattr(stages, 'state', lambda *_, **__: state)
  rate = timing.SeenRate(f'{tmp_path}/run/train/full/seed-0', 1e6)
  monkeypatch.setattr(timing, 'last_rate', lambda _: rate)
  printed = lines(config, tmp_path / 'run', capsys, job='train')[1]
  assert printed.startswith(shown)
  assert ('FLOP, ' in printed) == has_time


def test_arms_that_are_not_trained_are_marked(config, tmp_path, capsys):
  config.train.arms = ('full', 'random')
  printed = '\n'.join(lines(config, tmp_path / 'run', capsys))
  assert printed.count('(not trained)') == 6
  assert '4 runs of 12 steps' in printed


def test_one_stage_has_one_line(config, tmp_path, capsys):
  printed = lines(config, tmp_path / 'run', capsys, job='tokenize')
  assert len(printed) == 2


@pytest.mark.parametrize(
  'argument, value',
  [
    ('--dry_run', 'short'),
    ('--dry_run=true', 'short'),
    ('--dry_run=full', 'full'),
    ('--nodry_run', ''),
    ('--dry_run=false', ''),
  ],
)
def test_flag(argument, value, monkeypatch):
  main._parse(['main', '--config=configs/tiny.py', argument])
  assert main._DRY_RUN.value == value
  main._parse(['main', '--config=configs/tiny.py', '--nodry_run'])


def test_a_wrong_value_of_the_flag_is_refused(capsys):
  with pytest.raises(SystemExit):
    main._parse(['main', '--config=configs/tiny.py', '--dry_run=fulll'])
  assert 'expected --dry_run or --dry_run=full' in capsys.readouterr().err
