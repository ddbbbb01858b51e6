"""The tools start, with nothing installed beside the package."""

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
TOOLS = sorted(ROOT.glob('tools/bench_*.py'))
# Of tools, not tools.
MODULES = (
  'bench_contenders',
  'bench_llama',
  'bench_score_contenders',
  'bench_seqio_task',
  'bench_train_contenders',
)


@pytest.mark.parametrize(
  'path',
  [path for path in TOOLS if path.stem not in MODULES],
  ids=lambda path: path.stem,
)
def test_help(path):
  result = subprocess.run(
    [sys.executable, str(path), '--help'],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert not result.stderr
  flag = '--files' if path.stem == 'bench_input' else '--'
  assert flag in result.stdout


def test_the_bench_of_the_input_runs(corpus_path, store_workdir):
  command = [
    *(sys.executable, 'tools/bench_input.py', f'--files={corpus_path}'),
    f'--tokenizer={store_workdir}/vocabulary/sentencepiece.model',
    '--peers=',
  ]
  result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert re.search(r'^ours .* 1\.00x as fast$', result.stdout, re.M), result
  assert result.stdout.count('tokens/s per core') == 2


def test_the_bench_of_selection_runs():
  command = [sys.executable, 'tools/bench_select.py', '--rules=top']
  result = subprocess.run(
    [*command, '--millions=1'], cwd=ROOT, capture_output=True, text=True
  )
  assert re.search(
    r'^   1M top .* keep set of 0\.1 MB opens in', result.stdout, re.M
  ), result


def test_the_bench_of_selection_by_shards_runs():
  command = [sys.executable, 'tools/bench_select_shards.py', '--millions=1']
  result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert re.search(
    r'^    1M in 1 shards, .* keeps \d+ examples; 0\.1 MB of bits$',
    result.stdout,
    re.M,
  ), result


def test_the_bench_of_near_duplicates_runs(corpus_path):
  command = [
    *(sys.executable, 'tools/bench_near_duplicates.py'),
    *(f'--corpus={corpus_path}', '--pairs=20', '--min_words=20'),
  ]
  result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  lines = re.findall(
    r'^(ours|datasketch), .* precision (\S+)  recall', result.stdout, re.M
  )
  assert [name for name, _ in lines] == ['ours'] * 2 + ['datasketch'] * 2
  assert [float(value) for _, value in lines[:2]] == [1.0, 1.0], result


def test_the_bench_of_duplicated_text_runs(corpus_path):
  command = [
    *(sys.executable, 'tools/bench_duplicated_text.py', '--workers=1'),
    *(f'--corpus={corpus_path}', '--vocabulary_size=400', '--window=8'),
  ]
  result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert 'plain Python counts the same: ' in result.stdout, result
