"""Expressions by chance: one finite number per example, or one message.

`FUZZ_EXAMPLES` in the environment raises their number, and draws new ones.
"""

import os
import pathlib
import shutil

import made_expressions
import numpy as np
import pytest

from configs import base
from infoprune_jax.config import experiment as config_lib
from infoprune_jax.config.experiment import Config
from infoprune_jax.config.validation import UserError
from infoprune_jax.selection import expressions, select

COUNT = int(os.environ.get('FUZZ_EXAMPLES', '300'))
SEED = 0 if COUNT == 300 else COUNT
ALL = sorted(set(made_expressions.expressions(COUNT, SEED)))
LINES = 3


@pytest.fixture(scope='module')
def examples(make_examples):
  rng = np.random.default_rng(0)
  return make_examples(
    rng.normal(size=30).tolist(),
    tokens=rng.integers(0, 9, 30).tolist(),
    sources=rng.choice(['web', 'books'], 30).tolist(),
  )


def check_message(error: UserError, expression: str) -> None:
  message = str(error)
  assert len(message.splitlines()) <= LINES, expression
  assert '__position' not in message.replace(repr(expression), ''), expression


def test_each_gives_a_number_an_example_or_one_message(examples):
  """The same numbers again; with `lowest`, minus infinity where there is none."""
  sound = 0
  for expression in ALL:
    try:
      lowest = expressions.score(examples, expression, 'lowest')
    except UserError as error:
      check_message(error, expression)
      with pytest.raises(UserError):
        expressions.score(examples, expression)
      continue
    number = np.isfinite(lowest)
    assert lowest.shape == (30,) and np.isneginf(lowest[~number]).all()
    if number.all():
      sound += 1
      again = expressions.score(examples, expression)
      assert again.tolist() == lowest.tolist(), expression
    else:
      with pytest.raises(UserError, match='no finite number') as caught:
        expressions.score(examples, expression)
      check_message(caught.value, expression)
  assert COUNT / 5 < sound < COUNT / 2


def contents(workdir: str) -> dict[str, bytes]:
  """Every file and folder below a workdir."""
  return {
    str(path): path.read_bytes() if path.is_file() else b''
    for path in pathlib.Path(workdir).rglob('*')
  }


def of_one_arm(experiment, expression: str) -> Config:
  edits = experiment.copy_and_resolve_references()
  edits.select.arms.mine = base.arm('top', expression, fraction=0.5)
  edits.train.update(arms=('random', 'mine'), seeds=(0,))
  return config_lib.from_mapping(edits)


def test_a_refused_one_leaves_the_folder_as_it_was(experiment, workdir):
  """Of the arm itself, and of the arm before it; a sound rule then runs."""
  before = contents(workdir)
  refused = 0
  for expression in filter(str.strip, ALL[:: len(ALL) // 16]):
    try:
      select.run(of_one_arm(experiment, expression), workdir)
    except UserError as error:
      check_message(error, expression)
      assert contents(workdir) == before, expression
      refused += 1
    else:
      shutil.rmtree(f'{workdir}/keep_sets')
  assert 5 < refused < 16
  select.run(of_one_arm(experiment, 'nll_sum / num_tokens'), workdir)
  assert len(contents(workdir)) > len(before)
