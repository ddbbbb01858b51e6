"""The index of a corpus whose split may go by groups of near-duplicates.

Texts whose MinHash signatures agree in a band are joined, as are copies, and all
that are joined to them. A group is in one split. Shingles are n-grams of words,
as there is no vocabulary before there is a split: it may be trained on the
reference split.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from infoprune_jax.config.corpus import CorpusConfig
from infoprune_jax.config.selection import NearDuplicatesConfig
from infoprune_jax.corpus import corpus_index, draw, minhash, sources
from infoprune_jax.corpus.corpus_index import CorpusIndex
from infoprune_jax.corpus.generations import Generation
from infoprune_jax.runtime import workers
from infoprune_jax.runtime.hashing import content_hash, text_hash
from infoprune_jax.runtime.progress import Progress, logger


def build(
  config: CorpusConfig,
  groups: NearDuplicatesConfig | None,
  job: str = 'tokenize',
  recorded: Sequence[Generation] = (),
  grow: bool = False,
) -> CorpusIndex:
  """As `corpus_index.build`, and splits by groups if there are any.

  Args:
    config: The corpus.
    groups: `Config.split_groups`. With them, the texts that the corpus takes are
      read once more.
    job: The stage that the progress lines name.
    recorded: As for `corpus_index.build`.
    grow: As for `corpus_index.build`.

  Raises:
    UserError: as `corpus_index.build`.
  """
  index = corpus_index.build(config, job, recorded, grow)
  if groups is None:
    return index
  keys = _band_keys(config, groups, job, index)
  group = group_keys(index.content_hash, keys)
  _, sizes = np.unique(group, return_counts=True)
  logger.info(
    '%s: the split keeps %d groups of near-duplicates or copies together; the '
    'largest has %d of %d documents',
    *(job, np.count_nonzero(sizes > 1), sizes.max(), len(group)),
  )
  columns = {
    'num_bytes': index.num_bytes,
    'file': index.file,
    'generation': index.generation,
  }
  split = draw.split_all(
    config,
    index.files,
    columns,
    lambda count: group_keys(index.content_hash[:count], keys[:count]),
  )
  index = dataclasses.replace(index, split=split)
  left_out = split == draw.LEFT_OUT
  return index.without(left_out, 'near-copy of a training text')


def group_keys(content: np.ndarray, band_keys: np.ndarray) -> np.ndarray:
  """The smallest content hash of each document's group.

  It depends on the texts of the group alone, and not on their order.

  Args:
    content: The content hashes, [documents] int64.
    band_keys: [documents, bands] uint64.

  Returns:
    [documents] int64.
  """
  pairs = []
  for keys in (content, *band_keys.T):
    order = np.argsort(keys, kind='stable')
    same = np.flatnonzero(keys[order[1:]] == keys[order[:-1]])
    pairs.append(np.stack([order[same], order[same + 1]]))
  group = minhash.joined(np.concatenate(pairs, axis=1), len(content))
  smallest = np.full(len(content), np.iinfo(np.int64).max)
  np.minimum.at(smallest, group, content)
  return smallest[group]


@dataclasses.dataclass(frozen=True)
class _ShardTask:
  """What a worker needs to sign the texts of one shard."""

  index: CorpusIndex  # of this shard alone
  groups: NearDuplicatesConfig


def _sign(task: _ShardTask) -> np.ndarray:
  """The keys of the bands of each text of a shard, [documents, bands] uint64."""
  signer = minhash.Signer(task.groups)
  every = np.ones(len(task.index.split), bool)
  keys = [
    signer.keys(shingles(document.text, task.groups.ngram))
    for document in task.index.documents(every)
  ]
  return np.array(keys, np.uint64).reshape(-1, task.groups.bands)


def shingles(text: str, ngram: int) -> np.ndarray:
  """Hashes of the n-grams of words of a text, [shingles] uint32.

  A text with fewer words has one: that of its words, or of its content if it
  has no words.
  """
  from infoprune_jax.corpus import words  # Numba takes half a second.

  hashes = words.hashes(text.encode(), ngram)
  if not len(hashes):
    short = text_hash(words.plain(text) or f'{content_hash(text)}')
    hashes = np.array([short], np.int64).view(np.uint64)
  return (hashes >> np.uint64(32)).astype(np.uint32)


def _band_keys(
  config: CorpusConfig,
  groups: NearDuplicatesConfig,
  job: str,
  index: CorpusIndex,
) -> np.ndarray:
  """The keys of the bands of all texts, [documents, bands] uint64."""
  tasks = [
    _ShardTask(index.restricted_to(shard), groups)
    for shard in range(index.generations[-1].num_shards)
  ]
  name = f'{job}: near-duplicates of the split'
  progress = Progress(name, 'B', int(index.num_bytes.sum()))
  signed = workers.run_all(
    _sign,
    tasks,
    config.num_workers,
    sources.needs_worker(*(file.config for file in index.files)),
  )
  keys = []
  for task, of_shard in zip(tasks, signed, strict=True):
    keys.append(of_shard)
    progress.add(int(task.index.num_bytes.sum()))
  progress.finish()
  return np.concatenate(keys)
