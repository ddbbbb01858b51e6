"""Finds the file and record of each document of a token store in the corpus.

The token store has a hash of each text, but not the other fields of its record.
"""

import posixpath
import re

import numpy as np

from infoprune_jax.config.experiment import Config
from infoprune_jax.config.validation import UserError
from infoprune_jax.corpus import split_groups
from infoprune_jax.corpus.corpus_index import CorpusIndex
from infoprune_jax.runtime.hashing import text_hash
from infoprune_jax.runtime.progress import logger
from infoprune_jax.tokens import growth, tokenize
from infoprune_jax.tokens.token_store import TokenStore


def read_again(config: Config, store: TokenStore, job: str) -> CorpusIndex:
  """The index that the store was tokenized from; reads the corpus once.

  Args:
    config: The experiment.
    store: Its token store.
    job: The stage that reads it, for the log.

  Raises:
    UserError: the config asks for another corpus, or a file changed.
  """
  inputs = store.manifest['inputs']
  tokenize.store_artifact(
    config, posixpath.dirname(store.path), inputs
  ).finished()
  logger.info('%s: reads the corpus, to find each document', job)
  index = split_groups.build(
    config.corpus,
    config.split_groups,
    job,
    growth.recorded(store.path, store.manifest),
  )
  if index.fingerprint() != store.manifest['inputs']['corpus']:
    raise UserError(_difference(index, store))
  return index


def _difference(index: CorpusIndex, store: TokenStore) -> str:
  """A message with the first difference from the corpus that was tokenized."""
  shards = [store.shard(number) for number in range(store.num_shards)]
  same = np.ones(min(len(index.line), sum(store.documents_per_shard)), bool)
  for name in ('num_bytes', 'content_hash'):
    stored = np.concatenate([shard.column(name) for shard in shards])
    same &= stored[: len(same)] == getattr(index, name)[: len(same)]
  ids = [
    text_hash(example_id)
    for shard in shards
    for example_id in shard.table('example_id')['example_id'].to_pylist()
  ]
  same &= np.array(ids, np.int64)[: len(same)] == index.id_hash[: len(same)]
  first = min(
    int(np.argmin(same)) if not same.all() else len(same), len(index.line) - 1
  )
  return (
    f'The corpus is not the one that the token store in {store.path} was made '
    f'from: it has {len(index.line)} documents, the store '
    f'{sum(store.documents_per_shard)}, and they first differ at '
    f'{index.files[index.file[first]].path}:{index.line[first]}. Put the files '
    'back as they were, or tokenize them in another --workdir.'
  )


def source_names(index: CorpusIndex) -> dict[str, str]:
  """A name for the files of each source, by the source's name.

  Raises:
    UserError: two sources would have the same name.
  """
  names: dict[str, str] = {}
  for source in dict.fromkeys(file.source for file in index.files):
    name = re.sub(r'[^\w-]', '_', source)
    if name in names.values():
      other = next(key for key, value in names.items() if value == name)
      raise UserError(
        f'The sources {other!r} and {source!r} would both be called {name!r} '
        'in names of files: rename one of them.'
      )
    names[source] = name
  return names
