"""The checks of every artifact: records, checksums, options and inputs."""

import dataclasses
import posixpath
from collections.abc import Iterator, Mapping
from typing import Any, cast

from infoprune_jax.config.classifier import PREFIX
from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime import files, filesystems, manifests
from infoprune_jax.runtime.files import FileFacts
from infoprune_jax.runtime.manifests import Manifest
from infoprune_jax.runtime.options import first_difference
from infoprune_jax.runtime.workdir import (
  classifier_dir,
  contamination_dir,
  duplicated_text_dir,
  keep_set_dir,
  near_duplicates_dir,
  own_scores_dir,
  reference_dir,
  reference_input,
  run_dir,
  scores_dir,
  statistics_dir,
  token_store_dir,
  user_table_dir,
  user_table_input,
)
from infoprune_jax.selection import keep_set

_COUNTS = ('num_documents', 'num_examples', 'num_tokens', 'step', 'tokens')


@dataclasses.dataclass(frozen=True)
class ArtifactStatus:
  """An artifact, and its manifest if it is finished and sound."""

  path: str
  kind: str
  job: str
  manifest: Manifest | None
  num_files: int  # those that the manifest and the markers name
  note: str = ''

  @property
  def finished(self) -> Manifest:
    """The manifest of a finished artifact."""
    assert self.manifest is not None, self.path
    return self.manifest

  def summary(self) -> str:
    """The artifact in a few words."""
    if self.manifest is None:
      files_checked = f'{self.num_files} files checked'
      return f'{self.kind}, not finished, {files_checked}{self.note}'
    facts = cast(Mapping[str, Any], self.manifest)
    counts = ''.join(
      f', {name.removeprefix("num_")} {facts[name]:,}'
      for name in _COUNTS
      if name in facts
    )
    fingerprint = self.manifest['fingerprint']
    size = f', {self.num_files} files' if self.num_files else ''
    return f'{self.kind} {fingerprint}{size}{counts}{self.note}'

  def repair_hint(self, name: str = manifests.MANIFEST) -> str:
    """What to do about a file with the wrong content."""
    return manifests.how_to_repair(self.path, name, self.job)

  def remake(self) -> str:
    """What to do if the whole artifact is wrong."""
    return f'Delete {self.path} and run --job={self.job} again.'


def open_artifact(
  path: str, kind: str, job: str
) -> tuple[ArtifactStatus, list[str]]:
  """Reads the manifest, and compares every file with its checksum.

  Returns:
    The artifact, and its problems.
  """
  problems: list[str] = []
  manifest = None
  try:
    manifest = manifests.read_manifest(path, job)
    # Two stages write keep sets.
    job = manifest['job'] if manifest else job
  except UserError as error:
    problems.append(str(error))
  status = ArtifactStatus(path, kind, job, manifest, 0)
  try:
    if manifest is not None:
      # `extend` keeps the problems before an error.
      problems.extend(_record_problems(status, manifest))
    elif not problems:
      manifests.read_begun(path, job)
  except UserError as error:
    problems.append(str(error))
  expected = _expected_files(status, problems)
  for name, facts in expected.items():
    try:
      manifests.verify(path, name, facts, status.repair_hint(name))
    except UserError as error:
      problems.append(str(error))
  return dataclasses.replace(status, num_files=len(expected)), problems


def _record_problems(
  status: ArtifactStatus, manifest: Manifest
) -> Iterator[str]:
  """Checks the fingerprint, and that `begun.json` and the manifest agree."""
  expected = manifests.content_fingerprint(manifest)
  if manifest['fingerprint'] != expected:
    yield (
      f'{status.path}/{manifests.MANIFEST} has the fingerprint '
      f'{manifest["fingerprint"]}, but its content gives {expected}. '
      f'{status.repair_hint()}'
    )
  begun = manifests.read_begun(status.path, status.job)
  if begun and begun.get('generations') != manifest.get('generations'):
    begun = None  # It was killed just when it began to grow.
  for section in ('options', 'inputs'):
    if begun and (
      difference := first_difference(manifest[section], begun[section], section)
    ):
      yield (
        f'{status.path}: its manifest differs from {manifests.BEGUN}: '
        f'{difference}. '
        f'{status.remake()}'
      )


def _expected_files(
  status: ArtifactStatus, problems: list[str]
) -> dict[str, FileFacts]:
  """The files that the manifest and the markers of shards name."""
  # The manifest of a run also has a hash of parameters, which are not a file.
  expected = {
    name: facts
    for name, facts in (status.manifest or {}).get('files', {}).items()
    if 'bytes' in facts
  }
  pattern = f'part-*-of-*{manifests.DONE}'
  markers = filesystems.matching(status.path, pattern)
  for marker in markers:
    name = posixpath.basename(marker)
    try:
      record = files.read_record(marker, status.repair_hint(name))
    except UserError as error:
      problems.append(str(error))
      continue
    for file, facts in record['files'].items() if record else ():
      if expected.setdefault(file, facts) != facts:
        problems.append(
          f'{marker} and the manifest differ about {file}: '
          f'{facts["sha256"][:16]} and {expected[file]["sha256"][:16]}. '
          f'{status.repair_hint(name)}'
        )
  shards = (status.manifest or {}).get('num_shards')
  if markers and shards is not None and len(markers) != shards:
    problems.append(
      f'{status.path} has {len(markers)} markers of shards, but its manifest '
      f'says {shards} shards. {status.repair_hint()}'
    )
  return expected


def input_problems(status: ArtifactStatus, workdir: str) -> Iterator[str]:
  """Yields a problem for each input that is not the one in the workdir."""
  inputs = status.finished['inputs']
  for name, path in _input_paths(status, workdir).items():
    if name not in inputs:
      continue
    try:
      source = manifests.read_manifest(path, status.job)
    except UserError:  # The line of that input reports it.
      continue
    if source is None:
      continue
    expected = source['fingerprint']
    if status.job == 'reference':  # Of a corpus that has grown, its beginning.
      expected = [*source.get('generations', []), source][0]['fingerprint']
    if inputs[name] != expected:
      yield (
        f'{status.path} was made from {name} {inputs[name]}, but {path} has '
        f'{expected}. {status.remake()}'
      )


def _input_paths(status: ArtifactStatus, workdir: str) -> dict[str, str]:
  """The paths of the inputs that are in the same workdir."""
  if status.job in ('report', 'selection_report'):
    return {}  # Reports are made anew each time.
  paths = {
    'token_store': token_store_dir(workdir),
    'scores': scores_dir(workdir),
    'statistics': statistics_dir(workdir),
    'near_duplicates': near_duplicates_dir(workdir),
    'contamination': contamination_dir(workdir),
    'duplicated_text': duplicated_text_dir(workdir),
    'reference': reference_dir(workdir),
    **{
      reference_input(fold, 2): reference_dir(workdir, fold, 2)
      for fold in range(2)
    },
  }
  for name in status.finished['inputs']:
    table = name.partition('/')[2]
    if name == user_table_input(table):
      paths[name] = user_table_dir(workdir, table)
    if name.startswith(PREFIX):
      paths[name] = classifier_dir(workdir, name.removeprefix(PREFIX))
  # Of an arm and a seed: its own folder, or a name that ends with the seed.
  own_arm, _, number = posixpath.basename(status.path).rpartition('-seed-')
  if 'own_scores' in status.finished['inputs']:
    paths['own_scores'] = own_scores_dir(workdir, own_arm, int(number))
  arm, seed = status.path.split('/')[-2:]
  if 'branch_of' in status.finished['options'] and status.job == 'own_scores':
    other = status.finished['options']['branch_of']
    paths['run'] = run_dir(workdir, other, int(seed.removeprefix('seed-')))
  if status.job == 'train':
    for name in status.finished['inputs']:
      folder, _, other = name.partition('/')  # The arm of an earlier phase.
      if folder == 'keep_set':
        paths[name] = selection_dir(workdir, other or arm, seed)
  if status.job == 'evaluate':
    paths['run'] = run_dir(workdir, arm, int(seed.removeprefix('seed-')))
  if status.job == 'export':
    for name in status.finished['inputs']:
      folder, _, selection = name.partition('/')
      if folder == 'keep_set':
        paths[name] = keep_set_dir(workdir, selection)
  return paths


def selection_dir(workdir: str, arm: str, seed: str) -> str:
  """The keep set of a run: that of its seed, or the only one of the arm."""
  drawn = keep_set_dir(workdir, f'{arm}-{seed}')
  filesystem, name = filesystems.filesystem_of(drawn)
  if any(filesystem.exists(f'{name}/{file}') for file in keep_set.FILES):
    return drawn
  return keep_set_dir(workdir, arm)
