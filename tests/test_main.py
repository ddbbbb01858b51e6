"""The command line, as a user meets it: what is wrong is said in one message."""

import errno
import json
import os
import pathlib
import subprocess
import sys

import pytest
from host_job import command_line
from small_corpus import small_config

from infoprune_jax import main, stages
from infoprune_jax.config import experiment as config_lib, validation
from infoprune_jax.runtime import files
from infoprune_jax.runtime.workdir import token_store_dir

ROOT = pathlib.Path(__file__).parent.parent
JSONL = 'configs/jsonl.py'


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
  """`python -m infoprune_jax.main` with these arguments."""
  return subprocess.run(
    [sys.executable, '-m', 'infoprune_jax.main', *arguments],
    cwd=ROOT,
    env={**os.environ, 'XLA_FLAGS': '', **environment},
    capture_output=True,
    text=True,
    timeout=120,
  )


@pytest.mark.parametrize(
  ('arguments', 'expected'),
  [
    (
      [f'--config={JSONL}', '--topology=v5e:4x4'],
      '--topology is for --compile_only: add it.',
    ),
    (
      [f'--config={JSONL}', '--compile_only', '--job=select'],
      '--compile_only needs --job, one of score, train, reference, evaluate, '
      'and --topology, such as v5e:16x16, got --job=select and --topology=None.',
    ),
    ([], 'Give --config'),
    (['--config=configs/demoo.py'], "no config file 'configs/demoo.py'"),
    ([f'--config={JSONL}', '--jobb=score'], 'Did you mean: job'),
    ([f'--config={JSONL}', 'score'], "Unexpected arguments: ['score']"),
    (
      [f'--config={JSONL}', '--config.train.trainin.num_steps=3'],
      "config.train has no option 'trainin'; it has arms, budgets, init_from, "
      "seeds, token_weights, training. Did you mean 'training'?",
    ),
    (
      [f'--config={JSONL}', '--config.corpus.sources.min.paths=x.jsonl'],
      "config.corpus.sources has no option 'min'; it has mine.",
    ),
    (
      [f'--config={JSONL}', '--config.model.num_layers.x=1'],
      'config.model.num_layers is a value, and has no options in it',
    ),
    (
      [f'--config={JSONL}', '--config.train.training.num_steps=many'],
      "invalid literal for int() with base 10: 'many'",
    ),
    (
      [
        f'--config={JSONL}',
        '--config.train.training.num_steps=0',
        '--config.train.training.num_tokens=99',
      ],
      'train.training.num_tokens=99 is less than one step, which has 2,048',
    ),
    (
      [f'--config={JSONL}', '--config.select.arms.top_nll.keep=topp'],
      "In config.select.arms.top_nll: select.keep must be one of 'top', "
      "'bottom', 'middle', 'band', 'threshold', 'sample', 'repeat', 'random', "
      "'distinct', 'all', 'all_plus_reference', got 'topp'. Did you mean 'top'?",
    ),
    (
      [f'--config={JSONL}', '--job=scroe'],
      "--job must be one of 'tokenize', 'statistics', 'near_duplicates', "
      "'duplicated_text', 'decontaminate', 'join', 'classify', 'reference', "
      "'score', 'select', 'own_scores', 'selection_report', 'train', "
      "'evaluate', 'report', 'sweep', 'export', 'labels', 'loss', 'verify', got 'scroe'. Did you mean 'score'?",
    ),
    (
      [f'--config={JSONL}', '--config.model.attention=cudnn'],
      "model.attention='cudnn' does not run here: it runs on a GPU, the mesh "
      'is of cpu devices',
    ),
    (
      [f'--config={JSONL}', '--config.mesh.data=3'],
      'must multiply to the 1 devices',
    ),
    (
      [
        f'--config={JSONL}',
        '--config.corpus.sources.mine.paths=nowhere/*.jsonl',
      ],
      "corpus.sources.mine.paths: no file matches 'nowhere/*.jsonl'",
    ),
    (
      [
        f'--config={JSONL}',
        '--job=select',
        '--config.select.arms.top_nll.score=nll_sums',
      ],
      'nll_sums',
    ),
    ([f'--config={JSONL}', '--job=score'], 'Run --job=tokenize first'),
    (
      [f'--config={JSONL}', '--process_count=2', '--process_index=0'],
      '--coordinator_address must be given together',
    ),
    (
      [
        f'--config={JSONL}',
        '--coordinator_address=localhost:1',
        '--process_count=2',
        '--process_index=2',
      ],
      '--process_index must be from 0 to 1, with --process_count=2, got 2',
    ),
    (
      [
        f'--config={JSONL}',
        '--coordinator_address=localhost',
        '--process_count=2',
        '--process_index=1',
      ],
      "--coordinator_address must be HOST:PORT, got 'localhost'",
    ),
    ([f'--config={JSONL}', '--multiprocess'], '--multiprocess finds no'),
    (
      [f'--config={JSONL}', '--process_timeout=0'],
      '--process_timeout must be from 1 to 86400 seconds, got 0',
    ),
    (
      [f'--config={JSONL}', '--process_timeout=nan'],
      '--process_timeout must be from 1 to 86400 seconds, got nan',
    ),
  ],
)
def test_a_mistake_is_one_message(arguments, expected, tmp_path):
  code, output = command_line(*arguments, f'--workdir={tmp_path / "run"}')
  assert code == main.USER_ERROR, output
  assert 'Traceback' not in output
  assert expected in output
  left = [p for p in tmp_path.rglob('*') if p.is_file() and p.name != '.lock']
  assert not left


def test_refuses_an_empty_workdir():
  result = run(f'--config={JSONL}', '--workdir=')
  assert result.returncode == main.USER_ERROR
  assert '--workdir is empty' in result.stderr


def test_dry_run_prints_and_writes_nothing(tmp_path, corpus_path):
  workdir = tmp_path / 'run'
  result = run(
    f'--config={JSONL}',
    f'--workdir={workdir}',
    '--dry_run',
    f'--config.corpus.sources.mine.paths={corpus_path}',
  )
  assert result.returncode == 0, result.stderr
  for word in ('260 steps', 'FLOP', 'to do', '--dry_run=full'):
    assert word in result.stdout
  assert result.stdout.count('\n') <= 20
  assert '"num_steps"' not in result.stdout
  assert not workdir.exists()


@pytest.mark.parametrize(
  ('line', 'expected'),
  [
    (b'{"id": "x", "text": "abc", "source"', 'broken JSON'),
    (b'{"id": "x", "text": 7, "source": "s"}', 'text is not a string'),
    (b'{"id": "x", "text": " ", "source": "s"}', 'empty text'),
    (b'{"id": "x", "text": "\xff", "source": "s"}', 'not UTF-8'),
    (b'{"id": "doc-5", "text": "abc", "source": "copies"}', 'has the id of'),
  ],
)
def test_a_bad_row_is_refused_or_counted(
  line, expected, corpus_path, tmp_path, caplog
):
  path = tmp_path / 'corpus.jsonl'
  good = pathlib.Path(corpus_path).read_bytes()
  number = good.count(b'\n') + 1
  path.write_bytes(good + line + b'\n')
  config = small_config(str(path))
  config.corpus.on_bad_record = 'refuse'
  workdir = str(tmp_path / 'run')
  with pytest.raises(validation.UserError) as error:
    stages.run(config_lib.from_mapping(config), workdir, 'tokenize')
  assert f'{path}:{number}' in str(error.value)
  assert expected in str(error.value)
  assert "on_bad_record='drop'" in str(error.value)
  config.corpus.on_bad_record = 'drop'
  stages.run(config_lib.from_mapping(config), workdir, 'tokenize')
  store = token_store_dir(workdir)
  counted = files.read_json(f'{store}/manifest.json')['bad_records']
  assert sum(counted.values()) == 1


def test_a_full_disk_is_one_message(monkeypatch, capsys, tmp_path):
  """The writer's own clean-up is tested with files.write_file."""

  def fail(*_, **__):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(stages, 'run', fail)
  monkeypatch.chdir(ROOT)
  main._parse(['main', f'--config={JSONL}', f'--workdir={tmp_path}'])
  left = []
  monkeypatch.setattr(main, '_leave_when_told', lambda: None)
  # It would stay as it is for the tests that follow.
  monkeypatch.setattr(main.progress, 'log_to_stderr', lambda: None)
  monkeypatch.setattr(main, '_leave_at_once', left.append)
  main.main([])
  assert left == [main.USER_ERROR]
  assert 'No space left on device. Free some space' in capsys.readouterr().err


def test_every_config_does_a_dry_run(corpus_path, tmp_path):
  without = ('__init__', 'baselines', 'models', 'natural_texts')
  names = sorted(
    path.name
    for path in (ROOT / 'configs').glob('*.py')
    # `score` needs a model, see tests/score/test_score_only.py, and `experiment`
    # a corpus, see tests/test_experiment_cells.py.
    if path.stem not in (*without, 'base', 'score', 'experiment')
  )
  assert 'demo.py' in names and 'jsonl.py' in names
  for name in names:
    edits = (
      [f'--config.corpus.sources.mine.paths={corpus_path}']
      if name == 'jsonl.py'
      else []
    )
    result = run(
      f'--config=configs/{name}',
      f'--workdir={tmp_path}',
      '--dry_run=full',
      *edits,
    )
    assert result.returncode == 0, (name, result.stderr)
    assert json.loads(result.stdout.split('\n\nMesh')[0])['train']['seeds']
    for word in ('embedding', 'vocab embed', 'Dry run of'):
      assert word in result.stdout
