"""The tools start, with nothing installed beside the package."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
TOOLS = sorted(ROOT.glob('tools/bench_*.py'))
MODULES = ('bench_contenders', 'bench_seqio_task')  # Of tools, not tools.


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


def test_every_tool_is_python():
  for path in ROOT.glob('tools/*.py'):
    compile(path.read_text(), str(path), 'exec')
