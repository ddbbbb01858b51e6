"""Scratch files, and stretches of arrays."""

import errno
import subprocess
import sys
import tempfile

import numpy as np
import pytest
from hypothesis import given, strategies as st

from infoprune_jax.selection import arrays


def test_scratch_files_leave_no_name(tmp_path, monkeypatch):
  monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
  monkeypatch.setattr(arrays, '_IN_MEMORY', 8)
  found = arrays.scratch(1000, np.float64)
  found[:] = np.arange(1000)
  assert found.sum() == 499_500 and not list(tmp_path.iterdir())


def test_a_full_disk_is_an_error_and_no_crash(tmp_path):
  """Pages of a file without room would end the process with SIGBUS."""
  limit = 1 << 16
  program = (
    'import resource, signal, tempfile\n'
    'from infoprune_jax.selection import arrays\n'
    f'tempfile.tempdir = {str(tmp_path)!r}\n'
    'signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n'
    f'resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n'
    'try:\n'
    '  arrays.scratch(1 << 25, "int8")\n'
    'except OSError as error:\n'
    '  print("refused", error.errno)\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', program], capture_output=True, text=True
  )
  assert done.stdout == f'refused {errno.EFBIG}\n', done


@given(
  size=st.integers(0, 200), threads=st.integers(1, 9), table=st.integers(1, 50)
)
def test_stretches_cover_an_array_once(size, threads, table):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(arrays, 'STEP', 7)
    patch.setattr(arrays, '_THREADS', threads)
    patch.setattr(arrays, '_TABLES', 100)
    found = arrays.slices(size, table)
    for stretches in (found, list(arrays.steps(size))):
      covered = [np.arange(size)[some] for some in stretches]
      assert np.concatenate([*covered, []]).tolist() == list(range(size))
    assert len(found) == max(1, min(threads, size // 7, 100 // table))


def test_results_are_in_order_and_errors_are_raised():
  assert arrays.side_by_side(str, range(50)) == [str(n) for n in range(50)]
  with pytest.raises(ZeroDivisionError):
    arrays.side_by_side(lambda n: 1 // (n - 40), range(50))
