"""Programs compiled for TPU pods by their own compiler, in a process of its own.

It needs libtpu (`pip install libtpu==0.0.52`): the compiler alone, no TPU.
"""

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from typing import Any

import pytest

LIBTPU = '0.0.52'  # Collectives differ between versions of the compiler.
HBM = {'v5e': 16e9, 'v5p': 95e9, 'v6e': 32e9}  # bytes of a chip


def _has_libtpu() -> bool:
  return (
    importlib.util.find_spec('libtpu') is not None
    and importlib.metadata.version('libtpu') == LIBTPU
  )


needs_libtpu = pytest.mark.skipif(
  not _has_libtpu(), reason=f'needs libtpu=={LIBTPU}, the compiler of TPUs'
)


def run(program: str, given: dict[str, Any]) -> dict[str, Any]:
  """What a program prints behind 'RESULT', a JSON object.

  Args:
    program: Python, which finds `given` in `sys.argv[1]`.
    given: A JSON object.
  """
  done = subprocess.run(
    [sys.executable, '-c', program, json.dumps(given)],
    env={
      **os.environ,
      'JAX_PLATFORMS': 'cpu',
      'TPU_SKIP_MDS_QUERY': '1',
      'XLA_FLAGS': '',
      'PYTHONPATH': os.pathsep.join([os.getcwd(), *sys.path]),
    },
    capture_output=True,
    text=True,
  )
  lines = [x for x in done.stdout.splitlines() if x.startswith('RESULT')]
  assert lines, done.stderr[-3000:]
  return json.loads(lines[0].removeprefix('RESULT'))
