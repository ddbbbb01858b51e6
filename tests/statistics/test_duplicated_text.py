"""Text that several examples have in common, beside a plain implementation."""

import collections
import dataclasses
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings as examples_of, strategies as st
from made_stores import write

from configs import base
from infoprune_jax import checks
from infoprune_jax.config import experiment as config_lib
from infoprune_jax.config.experiment import Config
from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime.workdir import duplicated_text_dir
from infoprune_jax.statistics import duplicated_text, text_windows
from infoprune_jax.tokens import tables

BEAM = ('--runner=DirectRunner',)
ROOT = pathlib.Path(__file__).parents[2]


def settings(window: int = 4, **corpus) -> Config:
  edits = base.get_config()
  edits.select.duplicated_text.window = window
  edits.corpus.sources.mine = base.text('*.txt')
  edits.corpus.update({'num_workers': 1, **corpus})
  return config_lib.from_mapping(edits)


def plain(
  documents: list[list[int]], window: int
) -> dict[int, tuple[int, int]]:
  """Duplicated and repeated tokens of each scored document, by its number."""
  scored = {n: ids for n, ids in enumerate(documents) if n % 3 != 2}
  windows = [
    (number, start, tuple(ids[start : start + window]))
    for number, ids in scored.items()
    for start in range(len(ids) - window + 1)
  ]
  counts = collections.Counter(ids for _, _, ids in windows)
  seen, duplicated, repeated = set(), set(), set()
  for number, start, ids in windows:
    tokens = {(number, start + place) for place in range(window)}
    if counts[ids] > 1:
      duplicated |= tokens
    if ids in seen:
      repeated |= tokens
    seen.add(ids)
  of = [
    collections.Counter(n for n, _ in some) for some in (duplicated, repeated)
  ]
  return {number: (of[0][number], of[1][number]) for number in scored}


def result(workdir: pathlib.Path) -> dict[int, tuple[int, int]]:
  """The same of a table, whose documents are in shards of equal sizes."""
  table = tables.read_table(duplicated_text_dir(str(workdir)))
  counts = collections.Counter()
  for number, path in enumerate(
    sorted((workdir / 'token_store/data').iterdir())
  ):
    counts[number] = tables.parquet.read_table(str(path)).num_rows
  first = np.cumsum([0, *(counts[n] for n in sorted(counts))])
  return {
    int(first[row['shard']]) + row['doc_index']: (
      row['duplicated_tokens'],
      row['repeated_tokens'],
    )
    for row in table.to_pylist()
  }


@st.composite
def corpora(draw) -> list[list[int]]:
  """Few ids, so that much is repeated; also empty and short documents."""
  ids = st.integers(0, draw(st.integers(0, 3)))
  documents = draw(st.lists(st.lists(ids, max_size=12), min_size=1, max_size=9))
  if draw(st.booleans()):
    documents += documents[: draw(st.integers(1, 3))]
  return documents


@examples_of(deadline=None, max_examples=150)
@given(
  documents=corpora(),
  window=st.integers(1, 7),
  num_shards=st.integers(1, 3),
  block=st.integers(1, 40),
)
def test_counts_are_those_of_a_plain_implementation(
  tmp_path_factory, documents, window, num_shards, block
):
  """Also if blocks and shards cut documents and windows anywhere."""
  workdir = tmp_path_factory.mktemp('made')
  write(workdir, documents, num_shards)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(duplicated_text, '_BLOCK', block)
    duplicated_text.run(settings(window), str(workdir))
  assert result(workdir) == plain(documents, window)
  shutil.rmtree(workdir)


@pytest.mark.parametrize('width', [1, 2, 3, 13, 50, 64, 100])
def test_hashes_are_equal_where_windows_are(width):
  """Over pieces of hashed tokens, too."""
  rng = np.random.default_rng(width)
  tokens = rng.integers(0, 2, text_windows._PIECE + 3 * width).astype(np.uint16)
  tokens[-width:] = tokens[5 : 5 + width]
  made = text_windows.hashes(tokens, width)
  assert len(made) == len(tokens) - width + 1 and made[-1] == made[5]
  windows = np.lib.stride_tricks.sliding_window_view(tokens, width)
  packed = np.packbits(windows.astype(bool), axis=1)
  different = len(np.unique(packed, axis=0))
  assert len(np.unique(made)) == different
  # A window and the hash of its text alone.
  assert text_windows.hashes(tokens[70 : 70 + width], width) == made[70]
  assert len(text_windows.hashes(tokens[: width - 1], width)) == 0


def test_hashes_stay_the_same():
  """They are in the files of a killed job that goes on with another version."""
  made = text_windows.hashes(np.arange(51), 50)
  assert made.tolist() == [8207335180857784333, 6399261145175588163]


@pytest.fixture(scope='module')
def documents() -> list[list[int]]:
  """With quotes of each other, and a document that repeats itself."""
  rng = random.Random(0)
  made = [[rng.randrange(900) for _ in range(80)] for _ in range(60)]
  for number in range(0, 60, 4):
    quoted = made[rng.randrange(60)]
    made[number][20:40] = quoted[:20]
  made[7] = [1, 2, 3] * 20
  made[9], made[10] = [], [5]
  return made


def content(workdir: pathlib.Path) -> dict[str, bytes]:
  folder = pathlib.Path(duplicated_text_dir(str(workdir)))
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for path in folder.rglob('*')
    if path.is_file() and path.name != '.lock'
  }


def test_processes_beam_and_blocks_do_not_matter(
  documents, tmp_path, monkeypatch
):
  def run(name: str, **corpus) -> dict[str, bytes]:
    write(tmp_path / name, documents, 3)
    duplicated_text.run(settings(10, **corpus), str(tmp_path / name))
    assert result(tmp_path / name) == plain(documents, 10)
    return content(tmp_path / name)

  expected = run('one')
  assert not [name for name in expected if name.endswith('.bin')]
  monkeypatch.setattr(duplicated_text, '_BLOCK', 700)
  assert run('two', num_workers=2) == expected
  assert run('beam', beam_options=BEAM) == expected


KILLED = """
import os, signal, sys
import test_duplicated_text as tests
from infoprune_jax.statistics import duplicated_text
write, at, left = getattr(duplicated_text, sys.argv[1]), sys.argv[1], [2]

def until_the_second(task):
  left[0] -= 1
  if not left[0]:
    os.kill(os.getpid(), signal.SIGKILL)
  return write(task)

setattr(duplicated_text, at, until_the_second)
duplicated_text._BLOCK = 700
duplicated_text.run(tests.settings(10), sys.argv[2])
"""


@pytest.mark.parametrize(
  'at', ['_write_hashes', '_write_marks', '_write_shard']
)
def test_a_killed_job_goes_on_to_the_same_table(
  documents, tmp_path, monkeypatch, at
):
  write(tmp_path / 'whole', documents, 3)
  duplicated_text.run(settings(10), str(tmp_path / 'whole'))
  write(tmp_path / 'killed', documents, 3)
  done = subprocess.run(
    [sys.executable, '-c', KILLED, at, str(tmp_path / 'killed')],
    cwd=ROOT,
    env=os.environ
    | {'PYTHONPATH': f'{ROOT}:{ROOT}/tests:{ROOT}/tests/statistics'},
    capture_output=True,
    text=True,
  )
  assert done.returncode == -signal.SIGKILL, done.stderr
  folder = pathlib.Path(duplicated_text_dir(str(tmp_path / 'killed')))
  assert list(folder.rglob('*.done'))
  monkeypatch.setattr(duplicated_text, '_BLOCK', 700)
  duplicated_text.run(settings(10), str(tmp_path / 'killed'))
  assert content(tmp_path / 'killed') == content(tmp_path / 'whole')
  assert not (folder / 'hashes').exists() and not (folder / 'marks').exists()


def test_another_window_is_refused(documents, tmp_path):
  write(tmp_path, documents, 1)
  duplicated_text.run(settings(10), str(tmp_path))
  duplicated_text.run(settings(10), str(tmp_path))  # It is finished.
  with pytest.raises(
    UserError, match='duplicated_text.window: 10 -> 11|window'
  ):
    duplicated_text.run(settings(11), str(tmp_path))
  with pytest.raises(UserError, match='select.duplicated_text.window'):
    settings(0)


def test_the_stage_runs_only_if_a_rule_reads_it():
  made = settings()
  assert duplicated_text.JOB in checks.not_needed(made)
  edits = base.get_config()
  edits.corpus.sources.mine = base.text('*.txt')
  edits.select.arms.own = base.arm(
    'threshold', 'Repeated_tokens / num_tokens', high=0.2
  )
  select = dataclasses.replace(
    made.select, arms=config_lib.from_mapping(edits).select.arms
  )
  made = dataclasses.replace(made, select=select)
  assert duplicated_text.JOB not in checks.not_needed(made)
