"""Checks training runs: the metrics, and every file of every checkpoint."""

import posixpath
from collections.abc import Iterator
from typing import cast

from infoprune_jax.config.validation import UserError
from infoprune_jax.model import checkpoints
from infoprune_jax.runtime import files, manifests
from infoprune_jax.train import metrics
from infoprune_jax.verify.artifacts import ArtifactStatus


def problems(status: ArtifactStatus, workdir: str) -> Iterator[str]:
  """Yields the problems with a run."""
  del workdir
  manifest = cast(checkpoints.RunManifest, status.finished)
  try:
    metrics.read(status.path, manifest['metrics'], status.job)
  except UserError as error:
    yield str(error)
  folder = posixpath.join(status.path, 'checkpoints')
  steps = checkpoints.steps(status.path)
  if manifest['step'] not in steps:
    yield (
      f'{folder} has no checkpoint of step {manifest["step"]}, which the '
      f'manifest names (there are: {steps}). {status.remake()}'
    )
  for step in steps:
    repair_hint = (
      f'Delete {folder}/{step} and {status.path}/{manifests.MANIFEST} and run '
      f'--job={status.job} again: it continues from the checkpoint before, or '
      'from the start.'
      if step == manifest['step']
      else f'Delete {folder}/{step} and run --job=verify again: the run is '
      'finished without it.'
    )
    yield from _checkpoint_problems(
      posixpath.join(folder, str(step)), repair_hint
    )


def note(path: str) -> str:
  """A note on files that a killed process left in a run; '' if none."""
  left = len(checkpoints.leftovers(path))
  if not left:
    return ''
  return f', leftovers: {left} incomplete, deleted at the next start'


def _checkpoint_problems(folder: str, repair_hint: str) -> Iterator[str]:
  name = posixpath.join(folder, checkpoints.RECORD)
  try:
    record = files.read_record(name, repair_hint)
  except UserError as error:
    yield str(error)
    return
  if record is None:
    yield f'{name} is missing. {repair_hint}'
    return
  for file, facts in record['files'].items():
    try:
      manifests.verify(folder, file, facts, repair_hint)
    except UserError as error:
      yield str(error)
