"""Writing an artifact: its shards, their markers, and the manifest.

A file is written to a temporary name, synced and renamed. A marker is written
when all files of its shard are there, and the manifest comes last.

Only the newest attempt to write an artifact may write. Older attempts may still
be alive: a process that was stopped and continues, a host that was taken for
lost, a worker of Beam whose job was killed. So an attempt puts a token of its
own into the folder when it begins. Each file that is written for an attempt has
the token in its temporary name. The token is compared with that of the folder
right before a file gets its final name.

On a local file system, no file of an older attempt can appear after that. When
an attempt has put its token there, it deletes the temporary files of all
others, and a deleted file cannot be renamed. On an object store such a file can
still appear, for as long as its upload takes.
"""

import dataclasses
import posixpath
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime import files, filesystems, hub
from infoprune_jax.runtime.files import (
  ContentHash,
  FileFacts,
  read_record,
  write_record,
)
from infoprune_jax.runtime.manifests import (
  BEGUN,
  DONE,
  FORMAT_VERSION,
  MANIFEST,
  Begun,
  Grown,
  Manifest,
  Marker,
  causes,
  content_fingerprint,
  fingerprint,
  how_to_repair,
  read_begun,
  read_manifest,
  verify,
)
from infoprune_jax.runtime.options import first_difference, recorded
from infoprune_jax.runtime.workdir import shard_name

ATTEMPT = '.attempt'  # the file with the token of the newest attempt
_TEMPORARY = re.compile(r'\.[0-9a-f]{16}\.tmp$')


def _identities(begun: Begun | None) -> list[str]:
  """What markers may name: fingerprints of a record, and of those before it."""
  if begun is None:
    return []
  own = fingerprint([begun['options'], begun['inputs']])
  return [*begun.get('earlier', []), own]


@dataclasses.dataclass(frozen=True)
class Artifact:
  """A folder being written by one stage or read by the next."""

  path: str
  kind: str  # for the user: 'token store', 'score table'
  job: str  # the stage that writes it
  # The options that decide its bytes: sections of the config, or `options_of`
  # them, by name. Records leave out defaults.
  options: Any
  inputs: Mapping[str, str]  # the fingerprints of what it is made from
  # Where options come from, for messages: the section of the config by the
  # first part of an option's name, '' for all others. With {'': 'score',
  # 'folds': 'reference.folds'} the option 'dtype' is score.dtype.
  sections: Mapping[str, str] = dataclasses.field(
    default_factory=dict, compare=False
  )
  # Fingerprints that the input 'token_store' had before it has grown. What was
  # made from these is continued: its shards stay.
  earlier_stores: Sequence[str] = dataclasses.field(default=(), compare=False)
  # The token of the attempt that writes it; '' if there is only one writer.
  attempt: str = dataclasses.field(default='', compare=False)
  # The fingerprints of what `begun.json` records, the last of which new markers
  # name; those before it are of what it was before it has grown. A marker of other
  # options counts for nothing: an object store may show one that an older attempt
  # writes late, or that a listing hid from `delete`.
  begun: tuple[str, ...] = dataclasses.field(default=(), compare=False)

  def finished(self) -> Manifest | None:
    """The manifest, or None if the artifact is not finished.

    Raises:
      UserError: it was made under other options or from other inputs.
    """
    manifest = read_manifest(self.path, self.job)
    if manifest is not None:
      self._refuse_mismatch(manifest)
      if self._lacks_shards(manifest):
        return None
    return manifest

  def _lacks_shards(self, record: Begun) -> bool:
    """Whether the token store has grown since."""
    return record['inputs'].get('token_store') in self.earlier_stores

  def _refuse_mismatch(self, record: Begun) -> None:
    inputs = dict(self.inputs)
    if self._lacks_shards(record):
      inputs['token_store'] = record['inputs']['token_store']
    changed = causes(record, self.options, inputs, self.sections)
    changed += [
      f'it was made from {name}, too'
      for name in sorted(record['inputs'].keys() - self.inputs.keys())
    ]
    if changed:
      raise UserError(
        f'The {self.kind} in {self.path} does not belong to this config: '
        f'{"; ".join(changed)}. Use another --workdir, or delete {self.path} and '
        f'run --job={self.job} again.'
      )

  def take_over(self) -> 'Artifact':
    """The artifact for a new attempt: all others may write no more."""
    token = secrets.token_hex(8)
    files.write_text(posixpath.join(self.path, ATTEMPT), token)
    files.sweep(self.path, _TEMPORARY)
    return dataclasses.replace(self, attempt=token)

  def temporary(self, name: str) -> str:
    """The name of a file or folder while this attempt writes it."""
    return f'{name}.{self.attempt}.tmp'

  def write_file(self, path: str, write: Callable[[Any], None]) -> FileFacts:
    """As `files.write_file`, unless another attempt has taken over.

    Raises:
      UserError: another attempt has; the file is unchanged.
    """
    return self._write(path, write, self._check_newest)

  def _write(
    self,
    path: str,
    write: Callable[[Any], None],
    check: Callable[[], None],
  ) -> FileFacts:
    suffix = self.temporary('') if self.attempt else '.tmp'
    # Check also before a temporary file is made: if an older attempt is killed
    # while it writes, nobody deletes that file from a finished folder.
    self._check_newest()
    try:
      return files.write_file(path, write, suffix, check)
    except FileNotFoundError:
      check()  # The next attempt deletes temporary files.
      raise

  def _check_newest(self) -> None:
    if not self.attempt:
      return
    try:
      current = files.read_bytes(posixpath.join(self.path, ATTEMPT))
    except FileNotFoundError:
      current = b''
    if current != self.attempt.encode():
      raise UserError(
        f'{self.path} was deleted, or another job that began later writes it. '
        'This job stops, and changes nothing more there. If no other job runs, '
        'run it again: finished shards are kept.'
      )

  def begin(self, grown: Manifest | None = None) -> 'Artifact':
    """Records the options and inputs of the artifact, before any of its files.

    Args:
      grown: Its manifest, if it is finished and gets further shards. The options
        and inputs may then be others.

    Returns:
      The artifact as `take_over` gives it.

    Raises:
      UserError: it was begun under other options or from other inputs.
    """
    begun = read_begun(self.path, self.job)
    if begun is not None and not grown:
      self._refuse_mismatch(begun)
    taken = self.take_over()
    if begun is None or grown or self._lacks_shards(begun):
      name = posixpath.join(self.path, BEGUN)
      made = Begun(
        job=self.job,
        format_version=FORMAT_VERSION,
        options=recorded(self.options),
        inputs=dict(self.inputs),
      )
      own = _identities(made)
      # A growth that was killed here has written its record already.
      earlier = [i for i in _identities(begun or grown) if i not in own]
      if earlier:
        made['earlier'] = earlier
      if grown:
        made['generations'] = [
          *grown.get('generations', []),
          Grown(
            fingerprint=grown['fingerprint'],
            num_shards=cast(Any, grown)['num_shards'],
          ),
        ]
      write_record(name, made, taken.write_file)
      begun = made
    # Last: until then a growth that is killed starts again from the manifest.
    if grown or self.earlier_stores:
      files.remove(posixpath.join(self.path, MANIFEST))
    return dataclasses.replace(taken, begun=tuple(_identities(begun)))

  def delete(self) -> None:
    """Deletes the artifact, so that a killed deletion leaves no wrong one.

    The manifest goes first, and `begun.json` last: until then the shards that
    are left have their old options beside them. Other attempts may write no
    more.

    Raises:
      UserError: another process writes it.
    """
    with files.lock(self.path):
      files.remove(posixpath.join(self.path, MANIFEST))
      files.remove(posixpath.join(self.path, ATTEMPT))
      for name in filesystems.names_in(self.path):
        if name not in (BEGUN, files.LOCK):
          filesystems.delete_folder(posixpath.join(self.path, name))
      files.remove(posixpath.join(self.path, BEGUN))
    filesystems.delete_folder(self.path)

  def _recorded_options(self, begun: Begun | None) -> Any:
    """The recorded options, so that the fingerprint does not change.

    The config may spell a path in another way now.
    """
    if begun and not first_difference(
      begun['options'], self.options, 'options'
    ):
      return begun['options']
    return recorded(self.options)

  def finished_shard(self, shard: int, num_shards: int) -> Marker | None:
    """The marker of a finished shard, or None.

    Raises:
      UserError: the marker or a file of the shard is damaged.
    """
    name = shard_name(shard, num_shards) + DONE
    repair_hint = how_to_repair(self.path, name, self.job)
    record = read_record(posixpath.join(self.path, name), repair_hint)
    if record is None:
      return None
    # Versions before this key wrote none.
    if self.begun and record.get('begun', self.begun[-1]) not in self.begun:
      return None
    marker = cast(Marker, record)
    for file, facts in marker['files'].items():
      verify(self.path, file, facts, repair_hint)
    return marker

  def finish_shard(
    self,
    shard: int,
    num_shards: int,
    files: Mapping[str, Callable[[Any], None]],
    **counts: Any,
  ) -> Marker:
    """Writes the files of a shard, and then its marker.

    Args:
      shard: Index of the shard.
      num_shards: Number of shards.
      files: The function that writes each file, by the path of the file in the
        artifact, see `data_file`.
      **counts: Further entries of the marker.

    Returns:
      The marker.
    """
    written = {
      name: self.write_file(posixpath.join(self.path, name), write)
      for name, write in files.items()
    }
    identity = {'begun': self.begun[-1]} if self.begun else {}
    marker = cast(Marker, {'files': written, **identity, **counts})
    done = shard_name(shard, num_shards) + DONE
    write_record(posixpath.join(self.path, done), marker, self.write_file)
    return marker

  def finish(self, files: Mapping[str, ContentHash], **facts: Any) -> Manifest:
    """Writes the manifest, last, and returns it.

    Args:
      files: Checksums by path in the artifact, as `write_file` returns them.
      **facts: Further entries of the manifest: counts, versions.
    """
    begun = read_begun(self.path, self.job)
    generations = begun.get('generations') if begun else None
    manifest = cast(
      Manifest,
      {
        'kind': self.kind,
        'format_version': FORMAT_VERSION,
        'options': self._recorded_options(begun),
        'inputs': dict(self.inputs),
        'files': {name: dict(files[name]) for name in sorted(files)},
        'job': self.job,
        'fingerprint': '',
        **hub.facts(),
        **({'generations': generations} if generations else {}),
        **facts,
      },
    )
    manifest['fingerprint'] = content_fingerprint(manifest)
    name = posixpath.join(self.path, MANIFEST)
    write_record(name, manifest, self._write_last)
    return manifest

  def _write_last(self, path: str, write: Callable[[Any], None]) -> FileFacts:
    """As `write_file`, and ends the attempt, so that nobody may write after."""

    def end() -> None:
      self._check_newest()
      files.remove(posixpath.join(self.path, ATTEMPT))

    return self._write(path, write, end)
