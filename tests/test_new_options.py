"""Results outlive a new option: an older version's workdir, every stage."""

import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from small_corpus import only_arms, small_config

from infoprune_jax import stages
from infoprune_jax.config import experiment as config_lib
from infoprune_jax.config.experiment import CheckpointConfig, Config
from infoprune_jax.config.model import RUNTIME_ONLY_FIELDS
from infoprune_jax.config.validation import UserError
from infoprune_jax.model import parameter_file
from infoprune_jax.runtime import artifacts, manifests
from infoprune_jax.runtime.options import Defaulted, options_of, recorded
from infoprune_jax.score import references
from infoprune_jax.verify import workdir as verify

JOBS = (*stages.IN_ORDER, 'export', 'labels')
# Those that an option decides: where it is, and the stage that then refuses.
DECISIVE = [
  ('corpus', 'tokenize'),
  ('corpus.sources.made_up', 'tokenize'),
  ('corpus', 'export'),
  ('vocabulary', 'tokenize'),
  ('near_duplicates', 'near_duplicates'),
  ('reference.model', 'reference'),
  ('reference.training', 'reference'),
  ('score', 'score'),
  ('select.arms.top_nll.0', 'select'),
  ('model', 'train'),
  ('train.training', 'train'),
  ('evaluate.scoring', 'evaluate'),
]
SECTIONS = (*dict.fromkeys(one[0] for one in DECISIVE), 'labels', 'export')


def spelled(value: Any) -> Any:
  """What versions wrote that left no default out."""
  options = options_of(value)
  if isinstance(options, Defaulted):
    return spelled(options.value)
  if isinstance(options, dict):
    return {key: spelled(item) for key, item in options.items()}
  if isinstance(options, list):
    return [spelled(item) for item in options]
  return options


@dataclasses.dataclass(frozen=True)
class Nested:
  value: float = 0.5


def grown(section: Any, value: Nested) -> Any:
  """A section with one option more, as a later version has it."""
  if isinstance(getattr(section, 'new', None), Nested):
    return dataclasses.replace(section, new=value)
  kind = dataclasses.make_dataclass(
    'Grown',
    [('new', Nested, Nested())],
    bases=(type(section),),
    frozen=True,
    kw_only=True,
  )
  fields = {
    field.name: getattr(section, field.name)
    for field in dataclasses.fields(section)
  }
  return kind(**fields, new=value)


def changed(
  value: Any, path: Sequence[str], change: Callable[[Any], Any]
) -> Any:
  """A frozen config with what is at `path` changed."""
  if not path:
    return change(value)
  key, *rest = path
  if isinstance(value, Mapping):
    return {**value, key: changed(value[key], rest, change)}
  if isinstance(value, tuple):
    items = list(value)
    items[int(key)] = changed(items[int(key)], rest, change)
    return tuple(items)
  inner = changed(getattr(value, key), rest, change)
  return dataclasses.replace(value, **{key: inner})


def with_new(config: Config, path: str, value: Nested) -> Config:
  return changed(config, path.split('.'), lambda one: grown(one, value))


@pytest.fixture(scope='module')
def config(corpus_path, tmp_path_factory) -> Config:
  pages = tmp_path_factory.mktemp('pages') / 'pages.jsonl'
  pages.write_text(
    ''.join(
      json.dumps({'text': f'page {n} ' * (n + 3), 'label': n % 2}) + '\n'
      for n in range(8)
    )
  )
  edits = small_config(corpus_path)
  edits.train.seeds = (0,)
  only_arms(edits, 'top_nll')
  edits.report.baseline = 'top_nll'
  edits.labels.path = str(pages)
  for training in (edits.train.training, edits.reference.training):
    training.num_steps = 4
  return config_lib.from_mapping(edits)


@pytest.fixture(scope='module')
def later(config) -> Config:
  """The same config in a version with an option more in each section."""
  for path in reversed(SECTIONS):
    config = with_new(config, path, Nested())
  return config


@pytest.fixture(scope='module')
def finished(config, tmp_path_factory) -> pathlib.Path:
  """A workdir by a version that writes defaults, and has no new option."""
  workdir = tmp_path_factory.mktemp('finished')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(artifacts, 'recorded', spelled)
    for job in JOBS:
      run(config, workdir, job)
  store = manifests.read_manifest(str(workdir / 'token_store'), 'tokenize')
  assert store['options']['vocabulary']['bos_id'] == -1
  return workdir


def run(config: Config, workdir: pathlib.Path, job: str) -> None:
  stages.STAGES[job].run(config, str(workdir))


def times(workdir: pathlib.Path) -> dict[str, int]:
  """When each file was written that no stage makes anew each time."""
  found = {
    os.path.relpath(path, workdir): path.stat().st_mtime_ns
    for path in workdir.rglob('*')
    if path.is_file() and path.name != '.lock'
  }
  anew = {'report', 'selection_report', 'auc'}
  return {
    name: time
    for name, time in found.items()
    if anew.isdisjoint(name.split('/'))
  }


def check(workdir: pathlib.Path) -> None:
  problems = [line for _, lines in verify.check(str(workdir)) for line in lines]
  assert not problems


@pytest.mark.parametrize('job', JOBS)
def test_nothing_is_made_again(job, finished, config, later):
  before = times(finished)
  for version in (config, later):
    run(version, finished, job)
    assert times(finished) == before


def test_it_is_right(finished):
  check(finished)


@pytest.mark.parametrize('path, job', DECISIVE)
def test_another_value_is_refused(path, job, finished, later, tmp_path):
  other = with_new(later, path, Nested(0.75))
  if job == 'export':  # Where something is left to export.
    other = dataclasses.replace(
      other,
      export=dataclasses.replace(other.export, folder=str(tmp_path)),
    )
  with pytest.raises(UserError) as caught:
    run(other, finished, job)
  name = f'{path.removesuffix(".0")}.new: value'
  assert f'{name} 0.5 -> 0.75' in str(caught.value)


@pytest.mark.parametrize(
  'name, stage', [('token_store', 'tokenize'), ('scores', 'score')]
)
def test_a_shard_made_again_fits_the_rest(
  name, stage, finished, later, tmp_path
):
  workdir = shutil.copytree(finished, tmp_path / 'work')
  folder = workdir / name
  manifest = (folder / manifests.MANIFEST).read_bytes()
  (folder / manifests.MANIFEST).unlink()
  for path in folder.rglob('part-00001-*'):
    path.unlink()
  run(later, workdir, stage)
  assert (folder / manifests.MANIFEST).read_bytes() == manifest
  before = times(workdir)
  for job in JOBS:
    run(later, workdir, job)
  assert times(workdir) == before
  check(workdir)


def how_of(config: Config) -> dict[str, Any]:
  model = config.reference.model
  return {name: getattr(model, name) for name in RUNTIME_ONLY_FIELDS}


def test_a_model_is_read_from_an_older_run(finished, config):
  checkpoint = CheckpointConfig(path=str(finished / 'reference'))
  given = references.open_given('nll_sum', checkpoint, how_of(config))
  assert given.model == config.reference.model


@pytest.mark.parametrize('written', [spelled, recorded])
def test_a_model_is_read_from_a_file_of_any_version(written, config, tmp_path):
  path = str(tmp_path / 'model.safetensors')
  options = options_of(config.reference.model)
  for name in RUNTIME_ONLY_FIELDS:
    del options[name]
  facts = {'step': 4, 'model': written(options)}
  parameter_file.write(path, {'a': np.zeros(1, np.float32)}, facts)
  checkpoint = CheckpointConfig(path=path)
  given = references.open_given('nll_sum', checkpoint, how_of(config))
  assert given.model == config.reference.model
