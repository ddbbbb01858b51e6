"""The benchmark of a GPU: what it needs, what it records, what it reports."""

import importlib.util
import json
import math
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
# A machine with a GPU may lack them, and has no network.
ABSENT = (
  *('tensorflow', 'tensorflow_datasets', 'seqio', 'grain', 'ml_collections'),
  *('duckdb', 'apache_beam', 'orbax', 'sentencepiece', 'datasketch'),
)


@pytest.fixture(scope='module')
def on_gpu():
  spec = importlib.util.spec_from_file_location(
    'on_gpu', ROOT / 'benchmarks/on_gpu.py'
  )
  module = importlib.util.module_from_spec(spec)
  sys.modules['on_gpu'] = module
  spec.loader.exec_module(module)
  return module


def test_a_bare_machine_is_enough(on_gpu):
  """All parts are imported, and their settings make our configs."""
  given = on_gpu.settings(('train', '17m', 'auto'), tiny=False)
  code = f"""
import sys
sys.modules.update(dict.fromkeys({ABSENT}))
import bench_score_contenders, bench_train_contenders, gpu_parts
from infoprune_jax.model import attention, flops
from infoprune_jax.score import ceiling, scorer
from infoprune_jax.train import state
model, training = bench_train_contenders.configs({given})
made = gpu_parts.packed({given}, '83', 100_000)
print(model.loss_chunk_tokens, training.batch_size, made.plan.fill > 0.99)
"""
  paths = (ROOT, ROOT / 'tools', ROOT / 'benchmarks')
  found = subprocess.run(
    [sys.executable, '-c', code],
    env={**os.environ, 'PYTHONPATH': os.pathsep.join(map(str, paths))},
    capture_output=True,
    text=True,
  )
  assert found.stdout == '16384 128 True\n', found.stderr


@pytest.mark.parametrize(
  'seconds, reason', [(60, 'KeyError'), (0.01, 'stopped after 0 s')]
)
def test_a_part_that_fails_costs_only_itself(on_gpu, tmp_path, seconds, reason):
  path = str(tmp_path / 'results.jsonl')
  on_gpu.run_part(('absent', '', ''), path, True, seconds)
  [line] = on_gpu.read(path).lines
  assert line['part'] == 'absent' and reason in line['failed']


def test_goals_say_what_is_unmeasured(on_gpu, capsys):
  def line(part, kind, rate):
    return dict(
      part=part, kind=kind, tokens_per_second=rate, flops_per_token=1e9
    )

  results = on_gpu.Results(
    [
      dict(part='ceiling', device='A GPU', flops_per_second=1e15),
      dict(part='train 124m auto', seconds=3.0),
      line('train 124m auto', 'dense', 600e3),
      line('train 124m auto', '83', 480e3),
      dict(part='train 124m auto', kind='800', failed='why'),
      json.loads('{"part": "train_transformers 124m", "failed": "slow"}'),
    ]
  )
  assert results.fraction('train 124m auto') == pytest.approx(0.6)
  assert results.packed('train 124m auto', '83') == pytest.approx(0.8)
  assert math.isnan(results.packed('train 124m auto', '800'))
  on_gpu.report(results)
  text = capsys.readouterr().out
  assert '124m trained, of ceiling' in text and '0.60  met' in text
  assert text.count('missed') == 1  # 0.8 of dense
  assert text.count('unmeasured') == len(on_gpu.GOALS) - 2
