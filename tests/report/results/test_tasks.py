"""The table of tasks: means over seeds, errors over items."""

import json
import pathlib

import pytest

from infoprune_jax.config.validation import UserError
from infoprune_jax.report.results import tasks
from infoprune_jax.runtime import artifacts
from infoprune_jax.runtime.workdir import TASK_RESULTS, task_results_dir

VALUES = {('a', 0): 0.25, ('a', 1): 0.35, ('b', 0): 0.5, ('b', 1): None}


class Config:
  """What is read of a config."""

  arms = ('a', 'b')

  class train:
    seeds = (0, 1)


@pytest.fixture
def opened(tmp_path) -> dict:
  """Manifests of results that are written."""
  manifests = {}
  for (arm, seed), value in VALUES.items():
    path = task_results_dir(str(tmp_path), arm, seed)
    artifact = artifacts.Artifact(path, 'results', 'evaluate', {}, {}).begin()
    results = [
      {
        'group': 'words',
        'task': 'last',
        'metric': 'accuracy',
        'value': value,
        'stderr': None if value is None else value / 10,
        'num_items': 40,
      }
    ]
    written = artifact.write_file(
      f'{path}/{TASK_RESULTS}',
      lambda file, found=results: file.write(
        json.dumps({'results': found}).encode()
      ),
    )
    manifests[arm, seed] = artifact.finish({TASK_RESULTS: written})
  return manifests


def test_means_are_over_seeds_and_errors_are_not(opened, tmp_path):
  (row,) = tasks.gather(Config, str(tmp_path), opened)
  first, second = row['arms']
  assert first['mean'] == pytest.approx(0.3)
  assert first['values'] == [0.25, 0.35]
  assert first['stderr'] == pytest.approx(0.03)
  assert second['mean'] is None and second['values'] == [0.5, None]
  lines = tasks.text([row], ['a', 'b']).splitlines()
  assert lines[1].split() == [
    *('words', 'last', 'accuracy', '40', '0.3000', '+-', '0.0300', '-')
  ]
  assert tasks.gather(Config, str(tmp_path), {}) == []


def test_a_damaged_file_is_named(opened, tmp_path):
  path = pathlib.Path(task_results_dir(str(tmp_path), 'b', 1)) / TASK_RESULTS
  path.write_text(path.read_text().replace('null', '0.75', 1))
  with pytest.raises(UserError, match=r'tasks/b/seed-1'):
    tasks.gather(Config, str(tmp_path), opened)
