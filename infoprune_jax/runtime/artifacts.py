"""Artifacts: folders of shards with completion markers and a manifest.

Stages meet only here. A shard is written to a temporary name, synced and
renamed, then marked done with the checksums of its files; `manifest.json`
comes last. A manifest says what decided the artifact's bytes (`options`, and
`inputs` by fingerprint), and carries the fingerprint that the next stage
names.

Nothing is believed unseen: markers and manifests carry a checksum of their own
content, and a file is compared with its checksum before a process first uses
it (`checksums.py`).
"""

import dataclasses
import functools
import hashlib
import json
import posixpath
from collections.abc import Callable, Mapping
from typing import Any

from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime import attempts
from infoprune_jax.runtime.checksums import (
  DONE,
  MANIFEST,
  how_to_repair,
  verify,
)
from infoprune_jax.runtime.files import read_record, write_record
from infoprune_jax.runtime.filesystems import matching
from infoprune_jax.runtime.options import first_difference, recorded

BEGUN = 'begun.json'
DATA = 'data'  # the folder with the data files of an artifact
# 1 had statistics among the scores; 2 had data files beside the manifest.
FORMAT_VERSION = 3


# Paths below a workdir.


def vocabulary_dir(workdir: str) -> str:
  """The vocabulary: a SentencePiece model or a tokenizer.json."""
  return posixpath.join(workdir, 'vocabulary')


def token_store_dir(workdir: str) -> str:
  """Token ids and documents."""
  return posixpath.join(workdir, 'token_store')


def reference_dir(workdir: str, fold: int = 0, folds: int = 1) -> str:
  """The training run of the reference model, or of a fold's."""
  path = posixpath.join(workdir, 'reference')
  return path if folds == 1 else posixpath.join(path, f'fold-{fold}')


def reference_input(fold: int, folds: int) -> str:
  """What a score table calls the reference model of a fold, in its inputs."""
  return 'reference' if folds == 1 else f'reference_fold_{fold}'


def statistics_dir(workdir: str) -> str:
  """What is known of the examples to score without a model."""
  return posixpath.join(workdir, 'statistics')


def near_duplicates_dir(workdir: str) -> str:
  """Which group of near-duplicates each example is in."""
  return posixpath.join(workdir, 'near_duplicates')


def scores_dir(workdir: str) -> str:
  """The score table."""
  return posixpath.join(workdir, 'scores')


def keep_set_dir(workdir: str, selection: str) -> str:
  """What one arm keeps; `selection` is `keep_set.selection_name(...)`."""
  return posixpath.join(workdir, 'keep_sets', selection)


def run_dir(workdir: str, arm: str, seed: int) -> str:
  """The training run of one arm and seed."""
  return posixpath.join(workdir, 'train', arm, f'seed-{seed}')


def evaluation_dir(workdir: str, arm: str, seed: int) -> str:
  """The held-out losses of one arm and seed."""
  return posixpath.join(workdir, 'evaluate', arm, f'seed-{seed}')


def labels_dir(workdir: str, digest: str) -> str:
  """A workdir for pages that people judged, as one set of models scores them."""
  return posixpath.join(workdir, 'labels', digest)


def selection_report_dir(workdir: str) -> str:
  """`index.html` and `selections.json`."""
  return posixpath.join(workdir, 'selection_report')


def report_dir(workdir: str) -> str:
  """`index.html` and `report.json`."""
  return posixpath.join(workdir, 'report')


def export_dir(workdir: str) -> str:
  """What other programs read: a folder of each keep set, one of a format."""
  return posixpath.join(workdir, 'export')


def beam_dir(workdir: str, job: str) -> str:
  """What workers of Apache Beam are given to do, while they do it."""
  return posixpath.join(workdir, 'beam', job)


# Fingerprints, shards and manifests.


def fingerprint(value: Any) -> str:
  """A digest of a JSON value that does not depend on the order of keys."""
  text = json.dumps(value, sort_keys=True, separators=(',', ':'))
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def shard_name(shard: int, num_shards: int) -> str:
  """'part-00003-of-00008'."""
  return f'part-{shard:05d}-of-{num_shards:05d}'


def data_file(
  shard: int, num_shards: int, extension: str = '.parquet', folder: str = DATA
) -> str:
  """Where a file of a shard lies in its artifact.

  >>> data_file(3, 8)
  'data/part-00003-of-00008.parquet'
  """
  return posixpath.join(folder, shard_name(shard, num_shards) + extension)


@dataclasses.dataclass(frozen=True)
class Artifact:
  """A folder being written by one stage or read by the next."""

  path: str
  kind: str  # as a user would call it: 'token store', 'score table'
  job: str  # the stage that writes it
  # What decides its bytes: sections of the config, or `options_of` them, by
  # name. Records leave out what is at its default.
  options: Any
  inputs: Mapping[str, str]  # the fingerprints of what it is made from
  # Of who writes it, see `attempts`; '' where nobody else can.
  attempt: str = dataclasses.field(default='', compare=False)

  def finished(self) -> dict[str, Any] | None:
    """The manifest, or None where the artifact is not finished.

    Raises:
      UserError: what is there was made from something else.
    """
    manifest = read_manifest(self.path, self.job)
    if manifest is not None:
      self._refuse_mismatch(manifest)
    return manifest

  def _refuse_mismatch(self, found: Mapping[str, Any]) -> None:
    for section in ('options', 'inputs'):
      difference = first_difference(
        found[section], getattr(self, section), section
      )
      if difference:
        raise UserError(
          f'The {self.kind} in {self.path} does not belong to this config: '
          f'{difference}. Use another --workdir, or delete {self.path} and '
          f'run --job={self.job} again.'
        )

  def take_over(self) -> 'Artifact':
    """The artifact for its newest writer: all others may write no more."""
    return dataclasses.replace(self, attempt=attempts.begin(self.path))

  def write_file(
    self, path: str, write: Callable[[Any], None]
  ) -> dict[str, Any]:
    """As `files.write_file`, unless another has taken over.

    Raises:
      UserError: another has; the file is as it was.
    """
    return attempts.write_file(self.path, self.attempt, path, write)

  def begin(self) -> 'Artifact':
    """Notes what the artifact is made from, before any of it is there.

    Returns:
      The artifact as `take_over` gives it.

    Raises:
      UserError: it was begun under other options or from other inputs.
    """
    begun = read_begun(self.path, self.job)
    if begun is not None:
      self._refuse_mismatch(begun)
    taken = self.take_over()
    if begun is None:
      name = posixpath.join(self.path, BEGUN)
      made = {
        'job': self.job,
        'format_version': FORMAT_VERSION,
        'options': recorded(self.options),
        'inputs': dict(self.inputs),
      }
      write_record(name, made, taken.write_file)
    return taken

  def _recorded_options(self) -> Any:
    """The options as they were begun, so that the fingerprint stays.

    An older version may have begun, and have written defaults too.
    """
    begun = read_begun(self.path, self.job)
    if begun and not first_difference(
      begun['options'], self.options, 'options'
    ):
      return begun['options']
    return recorded(self.options)

  def finished_shard(
    self, shard: int, num_shards: int
  ) -> dict[str, Any] | None:
    """The marker of a shard that is done, or None.

    Raises:
      UserError: the marker or a file of the shard is damaged.
    """
    name = shard_name(shard, num_shards) + DONE
    repair_hint = how_to_repair(self.path, name, self.job)
    marker = read_record(posixpath.join(self.path, name), repair_hint)
    for file, facts in (marker or {}).get('files', {}).items():
      verify(self.path, file, facts, repair_hint)
    return marker

  def finish_shard(
    self,
    shard: int,
    num_shards: int,
    files: Mapping[str, Callable[[Any], None]],
    **counts: Any,
  ) -> dict[str, Any]:
    """Writes the files of a shard, and then its marker.

    Args:
      shard: Which shard.
      num_shards: Of how many.
      files: What writes each file, by its path in the artifact, see
        `data_file`.
      **counts: What else the marker holds.

    Returns:
      The marker.
    """
    written = {
      name: self.write_file(posixpath.join(self.path, name), write)
      for name, write in files.items()
    }
    marker = {'files': written, **counts}
    done = shard_name(shard, num_shards) + DONE
    write_record(posixpath.join(self.path, done), marker, self.write_file)
    return marker

  def finish(
    self, files: Mapping[str, Mapping[str, Any]], **facts: Any
  ) -> dict[str, Any]:
    """Writes the manifest, last, and returns it.

    Args:
      files: Checksums by file name, as `write_file` returns them.
      **facts: Whatever else a reader should know: counts, versions.
    """
    decisive = {
      'kind': self.kind,
      'format_version': FORMAT_VERSION,
      'options': self._recorded_options(),
      'inputs': dict(self.inputs),
      'files': {name: files[name]['sha256'] for name in sorted(files)},
    }
    manifest = {
      **decisive,
      'job': self.job,
      'files': {name: dict(files[name]) for name in sorted(files)},
      'fingerprint': fingerprint(decisive),
      **facts,
    }
    name = posixpath.join(self.path, MANIFEST)
    end = functools.partial(attempts.write_last, self.path, self.attempt)
    write_record(name, manifest, end)
    return manifest


def read_manifest(path: str, job: str) -> dict[str, Any] | None:
  """The manifest of the artifact in `path`, or None where it is not finished.

  Raises:
    UserError: it is damaged.
  """
  manifest = read_record(
    posixpath.join(path, MANIFEST), how_to_repair(path, MANIFEST, job)
  )
  if manifest is not None:
    _check_format(path, manifest, job)
  return manifest


def read_begun(path: str, job: str) -> dict[str, Any] | None:
  """What the artifact in `path` was begun as, or None where nothing says so.

  Raises:
    UserError: the note is damaged, or of another format.
  """
  begun = read_record(posixpath.join(path, BEGUN), _begun_hint(path, job))
  if begun is not None:
    _check_format(path, begun, job)
  return begun


def _check_format(path: str, record: Mapping[str, Any], job: str) -> None:
  # The notes of formats 1 and 2 do not say which they are of.
  version = record.get('format_version', '2 or older')
  if version != FORMAT_VERSION:
    raise UserError(
      f'{path} has format {version}, but this version of infoprune_jax reads '
      f'format {FORMAT_VERSION}: run --job={job} in a new --workdir.'
    )


def open_finished(path: str, kind: str, job: str) -> dict[str, Any]:
  """The manifest of an artifact that an earlier stage must have finished.

  Raises:
    UserError: it is not there, or only some of its shards are.
  """
  manifest = read_manifest(path, job)
  if manifest is not None:
    return manifest
  shards = matching(path, f'part-*-of-*{DONE}')
  state = (
    f'has {len(shards)} finished shards but no manifest'
    if shards
    else ('is not there')
  )
  raise UserError(
    f'The {kind} in {path} {state}. Run --job={job} first'
    + (': finished shards are kept.' if shards else '.')
  )


def check_made_from(
  manifest: Mapping[str, Any],
  kind: str,
  name: str,
  source: Mapping[str, Any],
  source_kind: str,
) -> None:
  """Compares what an artifact was made from with what is there.

  Args:
    manifest: Of the artifact.
    kind: What it is, for the message.
    name: The input to compare, a key of its `inputs`.
    source: The manifest of that input, as it is now.
    source_kind: What the input is.

  Raises:
    UserError: they differ; both fingerprints are named.
  """
  if manifest['inputs'][name] != source['fingerprint']:
    raise UserError(
      f'The {kind} was made from {source_kind} {manifest["inputs"][name]}, but '
      f'the one here is {source["fingerprint"]}. Delete the {kind} and run '
      f'its job again, or use another --workdir.'
    )


def _begun_hint(path: str, job: str) -> str:
  """What to do about a damaged note of what an artifact is made from.

  Args:
    path: The artifact.
    job: The stage that writes it.
  """
  if matching(path, MANIFEST):
    return (
      f'Delete {posixpath.join(path, BEGUN)} and run --job={job} again: '
      f'{MANIFEST} says the same.'
    )
  return (
    f'Delete {path} and run --job={job} again: nothing else says what the shards '
    'there are made from.'
  )
