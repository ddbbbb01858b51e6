"""Whether a token store can get the shards of a corpus that has grown."""

import posixpath
import re
from collections.abc import Sequence
from typing import cast

from infoprune_jax.config.experiment import Config
from infoprune_jax.config.validation import UserError
from infoprune_jax.corpus import generations, sources
from infoprune_jax.corpus.corpus_index import CorpusIndex
from infoprune_jax.corpus.generations import Generation
from infoprune_jax.runtime import files, manifests
from infoprune_jax.runtime.artifacts import Artifact
from infoprune_jax.runtime.manifests import Begun, Manifest
from infoprune_jax.runtime.options import ABSENT, Change, changes
from infoprune_jax.runtime.progress import logger
from infoprune_jax.tokens.token_store import StoreManifest

_SOURCE = re.compile(r'options\.corpus\.sources\.[^.]+')
_PATHS = re.compile(rf'{_SOURCE.pattern}\.paths(\[\d+\])?')


def is_addition(change: Change) -> bool:
  """Whether an option of a store may change so when the corpus grows.

  A source may be added, and the paths of one may be others, as long as they
  match the files of before.
  """
  if _SOURCE.fullmatch(change.name):
    return change.old is ABSENT
  return bool(_PATHS.fullmatch(change.name))


def recorded(path: str, record: Begun | None) -> list[Generation]:
  """The generations of a token store, see `generations.read`.

  Args:
    path: The token store.
    record: Its manifest, or `begun.json`; None if there is neither.
  """
  count = len(record.get('generations', [])) + 1 if record else 0
  return generations.read(path, count)


def pending(config: Config, store: Artifact, manifest: Manifest) -> str:
  """What the corpus has that a finished token store has not, for the user.

  Args:
    config: The experiment.
    store: The token store as the config asks for it, with the inputs that are
      known.
    manifest: Of the store that is there.

  Returns:
    Such as 'the corpus grows by 1 file (2.3 kB): web/b.jsonl'; '' if there is
    nothing to add.

  Raises:
    UserError: files of before have changed or are gone, or the store cannot
      grow so.
  """
  changed = manifests.causes(
    manifest, store.options, store.inputs, store.sections, is_addition
  )
  if changed:
    raise UserError(
      f'The token store in {store.path} cannot grow: {"; ".join(changed)}. Set '
      'this back as it was, or use another --workdir.'
    )
  old = recorded(store.path, manifest)
  has_other_sources = any(
    changes(manifest['options'], store.options, 'options')
  )
  if not old and has_other_sources:
    raise UserError(
      f'The token store in {store.path} cannot grow: the version that wrote it '
      'did not record its files. To record them, delete '
      f'{posixpath.join(store.path, manifests.MANIFEST)} and run --job=tokenize '
      'again, with the files and the config of before; its shards are kept.'
    )
  if not old:
    logger.info(
      'tokenize: the version that wrote the token store did not record its '
      'files, so files that were added are not looked for'
    )
    return ''
  kept = cast(StoreManifest, manifest).get('kept_columns', [])
  if kept != list(config.corpus.kept_columns):
    raise UserError(
      f'The sources keep the columns {list(config.corpus.kept_columns)}, but the '
      f'token store in {store.path} has {kept}: a corpus that grows keeps its '
      'columns. Change keep_columns of the new source, or use another --workdir.'
    )
  listed = sources.list_files(config.corpus.sources)
  generations.check(generations.listed_records(listed), old)
  _, new = generations.grouped(listed, old)
  return generations.summary(new) if new else ''


def check_files(index: CorpusIndex, old: Sequence[Generation]) -> None:
  """Raises `UserError` unless the files of these generations are as they were."""
  read_now = [file for one in index.generations for file in one.files]
  generations.check(read_now, old)


def check_same(manifest: Manifest, index: CorpusIndex, words: str) -> None:
  """Raises `UserError` unless a store is of this corpus and this vocabulary.

  Args:
    manifest: Of the store.
    index: Of the files that it was made from.
    words: The hash of the vocabulary.
  """
  expected = manifest['inputs']
  if words != expected['vocabulary']:
    raise UserError(
      f'The token store has the vocabulary {expected["vocabulary"]}, but the one '
      f'here is {words}: a corpus that grows keeps its vocabulary. Put it back, '
      'or use another --workdir.'
    )
  corpus = index.fingerprint()
  if corpus != expected['corpus']:
    raise UserError(
      f'The files of the corpus are as they were, but their documents are '
      f'{corpus}, expected {expected["corpus"]}: another version of '
      'infoprune_jax reads them otherwise. Use that version, or another '
      '--workdir.'
    )


def record(taken: Artifact, index: CorpusIndex, count: int) -> None:
  """Records the generations of a corpus after the first ones.

  Args:
    taken: The token store, of this attempt.
    index: The corpus.
    count: How many generations are recorded.
  """
  for number, generation in enumerate(index.generations[count:], count):
    files.write_record(
      posixpath.join(taken.path, generations.record_name(number)),
      generations.as_record(generation),
      taken.write_file,
    )
