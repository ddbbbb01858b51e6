"""Stores that a stage cannot use are refused before it starts, in one message."""

import dataclasses
import pathlib
import sys

import fsspec
import pytest

from infoprune_jax import dry_run, stages
from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime import files, filesystems


class Missing(fsspec.AbstractFileSystem):
  def __init__(self, *arguments, **options):
    raise ImportError('Install s3fs') from ModuleNotFoundError(name='s3fs')


@pytest.fixture(autouse=True)
def without_drivers(monkeypatch):
  # `fsspec.registry` is what that module holds.
  known = sys.modules['fsspec.registry']._registry
  monkeypatch.setitem(known, 's3', Missing)
  monkeypatch.setitem(known, 'gs', Missing)


def with_checkpoint(small, path):
  checkpoint = dataclasses.replace(small.reference.checkpoint, path=path)
  reference = dataclasses.replace(small.reference, checkpoint=checkpoint)
  return dataclasses.replace(small, reference=reference)


@pytest.mark.parametrize(
  'job', [None, 'reference', 'score', 'train', 'evaluate', 'labels']
)
def test_checkpoints_need_a_disk_or_gs(small, job):
  with pytest.raises(UserError, match='not s3://') as caught:
    stages.run(small, 's3://bucket/run', job)
  message = str(caught.value)
  assert '--workdir=s3://bucket/run' in message and 'Mount' in message
  assert f'--job={job}' in message or 'The whole job' in message


@pytest.mark.parametrize('job', ['tokenize', 'select', 'export', 'verify'])
def test_stages_without_checkpoints_need_the_driver_alone(small, job):
  with pytest.raises(UserError, match='pip install s3fs'):
    stages.run(small, 's3://bucket/run', job)


def test_a_given_model_is_asked_for_where_it_is(small, tmp_path):
  given = with_checkpoint(small, 's3://bucket/run')
  with pytest.raises(UserError, match='checkpoint path for nll_sum=s3://buc'):
    stages.run(given, str(tmp_path), 'score')
  assert not list(pathlib.Path(tmp_path).iterdir())
  file = with_checkpoint(small, 's3://bucket/model.safetensors')
  with pytest.raises(UserError, match='pip install s3fs'):
    stages.run(file, 's3://bucket/run', 'score')


@pytest.mark.parametrize(
  'workdir, message',
  [
    ('foo://bucket/run', 'Protocol not known: foo'),
    ('foo://bucket/a::b', 'Protocol not known: foo'),
    ('gs://bucket/run', 'needs a driver that is not installed.* pip install'),
    ('memory://run', 'would be lost when this process ends'),
  ],
)
def test_stores_that_cannot_be_written(small, workdir, message):
  for job in ('tokenize', 'verify'):
    with pytest.raises(UserError, match=message) as caught:
      stages.run(small, workdir, job)
    assert workdir in str(caught.value)
  with pytest.raises(UserError, match=workdir):
    dry_run.run(small, workdir)


def test_any_path_is_told_of_a_missing_driver():
  with pytest.raises(UserError, match=r"'s3://b/x' needs a driver"):
    files.read_bytes('s3://b/x')


def test_a_store_is_tried(monkeypatch, tmp_path):
  path = f'memory://{tmp_path}/work'
  files.check_writable(path)
  assert filesystems.names_in(path) == []

  def refuse(*arguments, **options):
    raise PermissionError('Forbidden: no credentials\nlong trace')

  monkeypatch.setattr(type(fsspec.filesystem('memory')), 'put_file', refuse)
  with pytest.raises(UserError, match=r'work cannot be written: Forb.*ials\. '):
    files.check_writable(path)
