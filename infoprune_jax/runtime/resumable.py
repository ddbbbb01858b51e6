"""Artifacts written shard by shard, in parallel, so that a job can resume.

A shard is finished once it has a marker, see `artifacts`. A later job writes
only the missing shards, and makes the manifest from the markers of all shards.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from infoprune_jax.runtime import workers
from infoprune_jax.runtime.artifacts import Artifact
from infoprune_jax.runtime.files import FileFacts
from infoprune_jax.runtime.manifests import Marker
from infoprune_jax.runtime.progress import Progress, logger


@dataclasses.dataclass(frozen=True)
class ShardWork:
  """The work of writing each shard of an artifact."""

  name: str  # in the log, such as 'tokenize'
  write: Callable[[Any], Marker]  # of a task; returns the marker
  tasks: Sequence[Any]  # of each shard; they must pickle
  unit: str  # of the progress, such as 'documents'
  sizes: Sequence[int]  # of each shard, in this unit
  # Of each shard, the number of shards in its name; () if that is their number.
  totals: Sequence[int] = ()


def write_missing_shards(
  artifact: Artifact,
  work: ShardWork,
  num_workers: int,
  force_subprocess: bool = False,
) -> list[Any]:
  """Writes the shards that are not done, in parallel.

  Args:
    artifact: An artifact that has begun.
    work: What to write. `work.write` is a function of a module, because
      processes or Beam call it, see `workers.run_all`.
    num_workers: See `workers.run_all`.
    force_subprocess: See `workers.run_all`.

  Returns:
    The markers of all shards, in order.

  Raises:
    UserError: a shard that was finished before is damaged; or an error of
      `work.write` or `workers.run_all`.
  """
  num_shards = len(work.tasks)
  markers = finished_shards(artifact, num_shards, work.name, work.totals)
  progress = Progress(
    work.name,
    work.unit,
    sum(work.sizes),
    done=sum(work.sizes[shard] for shard in markers),
  )
  missing = [shard for shard in range(num_shards) if shard not in markers]
  written = workers.run_all(
    work.write,
    [work.tasks[shard] for shard in missing],
    num_workers,
    force_subprocess,
  )
  for shard, marker in zip(missing, written, strict=True):
    markers[shard] = marker
    progress.add(work.sizes[shard], f'{len(markers)} of {num_shards} shards')
  progress.finish(f'{num_shards} shards in {artifact.path}')
  return [markers[shard] for shard in range(num_shards)]


def finished_shards(
  artifact: Artifact,
  num_shards: int,
  name: str = '',
  totals: Sequence[int] = (),
) -> dict[int, Any]:
  """The marker of each finished shard, by the shard's number.

  Args:
    artifact: The artifact.
    num_shards: How many shards the artifact gets.
    name: Name of the work, to log how many are finished; '' for no line.
    totals: As in `ShardWork`.

  Raises:
    UserError: a marker is damaged, or a file that it names.
  """
  markers = {
    shard: marker
    for shard, total in enumerate(totals or [num_shards] * num_shards)
    if (marker := artifact.finished_shard(shard, total)) is not None
  }
  if markers and name:
    logger.info(
      '%s: %d of %d shards were finished before',
      name,
      len(markers),
      num_shards,
    )
  return markers


def finish_from_markers(
  artifact: Artifact,
  markers: Sequence[Any],
  sums: Sequence[str] = (),
  more_files: Mapping[str, FileFacts] | None = None,
  **facts: Any,
) -> Any:
  """Writes the manifest of an artifact whose shards are all finished.

  Args:
    artifact: An artifact that has begun.
    markers: The markers of all shards, in order.
    sums: Counts of a marker whose sums over all shards go into the manifest.
    more_files: Checksums of files that belong to no shard, by name.
    **facts: Further entries of the manifest.

  Returns:
    The manifest, see `Artifact.finish`: with 'num_shards', the facts and sums.
  """
  files = {name: f for marker in markers for name, f in marker['files'].items()}
  return artifact.finish(
    {**files, **(more_files or {})},
    num_shards=len(markers),
    **facts,
    **{name: sum(marker[name] for marker in markers) for name in sums},
  )
