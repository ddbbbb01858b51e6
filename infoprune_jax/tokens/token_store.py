"""The token store: every document of the corpus as token ids, written once.

A shard is a flat array of token ids (`tokens/part-*.npy`, uint16 or uint32), a
table with one row per document (`data/part-*.parquet`), and the token counts of
its reference documents (`unigrams/part-*.npy`, int64). Documents are whole,
without BOS or EOS; one store holds all splits. An example is `(shard,
doc_index)`: the shard and the index in it. A file is compared with its checksum
when a process first opens it.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NotRequired, TypedDict, cast

import numpy as np
import pyarrow as pa

from infoprune_jax.config.corpus import SPLITS
from infoprune_jax.corpus import parquet
from infoprune_jax.runtime import manifests
from infoprune_jax.runtime.manifests import Manifest, Marker
from infoprune_jax.runtime.workdir import data_file, token_store_dir

TOKENS, UNIGRAMS = 'tokens', 'unigrams'  # folders of arrays
MAX_STRING_BYTES = 2**31 - 1  # of all strings of an array
PIECE_TOKENS = 1 << 20  # counted in one call

SCHEMA = pa.schema(
  [
    ('example_id', pa.string()),
    ('source', pa.dictionary(pa.int32(), pa.string())),
    ('split', pa.int8()),  # into config.SPLITS
    ('num_tokens', pa.int32()),
    ('num_bytes', pa.int32()),  # of the text in UTF-8
    ('compressed_bytes', pa.int32()),  # of the text under zstd, alone
    ('content_hash', pa.int64()),  # hashing.content_hash
  ]
)


def kept_fields(names: Iterable[str]) -> list[pa.Field]:
  """The columns that sources keep, after those of SCHEMA."""
  return [pa.field(name, pa.string()) for name in names]


class Totals(TypedDict):
  """The size of a split."""

  documents: int
  tokens: int
  bytes: int


class StoreMarker(Marker):
  """A finished shard of a token store."""

  num_documents: int
  splits: dict[str, Totals]


class StoreManifest(Manifest):
  """A finished token store."""

  num_shards: int
  documents_per_shard: list[int]
  num_documents: int
  num_tokens: int
  num_bytes: int
  splits: dict[str, Totals]
  bad_records: dict[str, int]  # left out, by reason
  vocab_size: int
  bos_id: int
  eos_id: int
  kept_columns: NotRequired[list[str]]  # of sources; without it, none


class TokenStore:
  """Reads a finished token store; arrays are memory-mapped when asked for."""

  def __init__(self, path: str, manifest: StoreManifest):
    """Opens the store in `path`, whose manifest this is."""
    self.path = path
    self.manifest = manifest
    self.num_shards = manifest['num_shards']
    self.documents_per_shard = manifest['documents_per_shard']
    # For each shard, the number of shards in the names of its files.
    self.totals = [
      manifests.shard_total(manifest, n) for n in range(self.num_shards)
    ]

  @classmethod
  def open(cls, workdir: str) -> 'TokenStore':
    """The store of a workdir.

    Raises:
      UserError: it is not finished, or a file has changed in size.
    """
    path = token_store_dir(workdir)
    manifest = manifests.open_finished(path, 'token store', 'tokenize')
    manifests.check_sizes(path, manifest, 'token store', manifest['job'])
    return cls(path, cast(StoreManifest, manifest))

  @property
  def fingerprint(self) -> str:
    """The fingerprint that artifacts made from this store name."""
    return self.manifest['fingerprint']

  @property
  def earlier(self) -> list[str]:
    """The fingerprints that it had before it has grown, the first one first."""
    return [one['fingerprint'] for one in self.manifest.get('generations', [])]

  @functools.cached_property
  def first(self) -> 'TokenStore':
    """The store as it was before it has grown; all its reference text.

    `splits` and other sums in its manifest are those of the whole store.
    """
    generations = self.manifest.get('generations', [])
    if not generations:
      return self
    count = generations[0]['num_shards']
    manifest = {
      **self.manifest,
      **generations[0],
      'generations': [],
      'documents_per_shard': self.documents_per_shard[:count],
    }
    return TokenStore(self.path, cast(StoreManifest, manifest))

  @property
  def kept_columns(self) -> list[pa.Field]:
    """The columns that sources keep."""
    return kept_fields(self.manifest.get('kept_columns', []))

  @property
  def vocab_size(self) -> int:
    """Number of token ids."""
    return self.manifest['vocab_size']

  @property
  def bos_id(self) -> int:
    """The token before the first token of a document."""
    return self.manifest['bos_id']

  @property
  def eos_id(self) -> int:
    """The token that ends a document in training."""
    return self.manifest['eos_id']

  @functools.lru_cache(maxsize=64)  # noqa: B019  A store lives for a stage.
  def shard(self, number: int) -> 'Shard':
    """One shard, opened."""
    return Shard(self.path, self.manifest, number)

  def document(self, shard_index: int, doc_index: int) -> np.ndarray:
    """The token ids of one example, [num_tokens]."""
    shard = self.shard(shard_index)
    return shard.tokens[shard.offsets[doc_index] : shard.offsets[doc_index + 1]]


@dataclasses.dataclass(frozen=True, eq=False)
class Shard:
  """One shard of a store."""

  path: str  # of the store
  manifest: StoreManifest  # of the store
  number: int

  @functools.cached_property
  def _total(self) -> int:
    return manifests.shard_total(self.manifest, self.number)

  def array(self, folder: str, mmap: bool = False) -> np.ndarray:
    """An array of the shard: TOKENS, [tokens], or UNIGRAMS, [V] int64.

    Raises:
      UserError: its file is missing or damaged.
    """
    name = array_file(folder, self.number, self._total)
    file = manifests.verified(self.path, self.manifest, name)
    return np.load(file, mmap_mode='r' if mmap else None)

  @functools.cached_property
  def tokens(self) -> np.ndarray:
    """All token ids, [tokens], memory-mapped."""
    return self.array(TOKENS, mmap=True)

  @functools.cached_property
  def offsets(self) -> np.ndarray:
    """Where each document starts in `tokens`, [documents + 1] int64."""
    return np.concatenate(
      [[0], np.cumsum(self.column('num_tokens'), dtype=int)]
    )

  def table(self, *columns: str) -> pa.Table:
    """Columns of the documents, in order; all of them if none is named."""
    name = data_file(self.number, self._total)
    file = manifests.verified(self.path, self.manifest, name)
    return parquet.read_table(file, columns or None)

  @functools.lru_cache(maxsize=8)  # noqa: B019
  def column(self, name: str) -> np.ndarray:
    """A numeric column of the documents, [documents]."""
    return self.table(name)[name].to_numpy()

  def documents_of(self, split: str) -> np.ndarray:
    """The indices of the documents of a split, ascending, int64."""
    return np.flatnonzero(self.column('split') == SPLITS.index(split))


def array_file(folder: str, shard: int, num_shards: int) -> str:
  """The path of an array of a shard in the store."""
  return data_file(shard, num_shards, '.npy', folder)


def shard_files(
  shard: int,
  num_shards: int,
  documents: list[dict[str, Any]],
  tokens: list[np.ndarray],
  vocab_size: int,
  dtype: type[np.unsignedinteger],
  kept: Sequence[str] = (),
) -> dict[str, Callable[[Any], None]]:
  """The functions that write a shard's files, for `Artifact.finish_shard`."""
  flat = np.concatenate(tokens).astype(dtype) if tokens else np.zeros(0, dtype)
  reference = [
    ids
    for document, ids in zip(documents, tokens, strict=True)
    if document['split'] == SPLITS.index('reference')
  ]
  schema = pa.schema([*SCHEMA, *kept_fields(kept)])
  columns = [
    _column(field.type, [document[field.name] for document in documents])
    for field in schema
  ]
  table = pa.Table.from_arrays(columns, schema=schema)
  return {
    array_file(TOKENS, shard, num_shards): lambda file: np.save(file, flat),
    data_file(shard, num_shards): lambda file: parquet.write_table(
      table, file, compression='zstd'
    ),
    array_file(UNIGRAMS, shard, num_shards): (
      lambda file: np.save(file, _unigrams(reference, vocab_size))
    ),
  }


def _unigrams(tokens: list[np.ndarray], vocab_size: int) -> np.ndarray:
  """How often each token occurs, [V] int64."""
  counts = np.zeros(vocab_size, np.int64)
  flat = np.concatenate([np.zeros(0, np.uint16), *tokens])
  # Slices are large, as each makes V counts. All at once would copy to int64.
  for start in range(0, len(flat), PIECE_TOKENS):
    piece = flat[start : start + PIECE_TOKENS]
    counts += np.bincount(piece, minlength=vocab_size)
  return counts


def _column(type_: pa.DataType, values: list[Any]) -> pa.Array:
  """The same as `pa.array` for a column of SCHEMA, without pandas.

  `pa.array` imports pandas if it is installed: half a second in each worker.
  """
  if pa.types.is_dictionary(type_):
    codes = {value: code for code, value in enumerate(dict.fromkeys(values))}
    return pa.DictionaryArray.from_arrays(
      _column(type_.index_type, [codes[value] for value in values]),
      _column(type_.value_type, list(codes)),
    )
  if not pa.types.is_string(type_):
    data = np.array(values, str(type_))
    return pa.Array.from_buffers(type_, len(values), [None, pa.py_buffer(data)])
  if None in values:
    return pa.array(values, type_)
  data = [value.encode() for value in values]
  ends = np.cumsum([0, *map(len, data)])
  if ends[-1] > MAX_STRING_BYTES:
    return pa.array(values, type_)  # An array of several chunks.
  buffers = [
    None,
    pa.py_buffer(ends.astype(np.int32)),
    pa.py_buffer(b''.join(data)),
  ]
  return pa.Array.from_buffers(type_, len(values), buffers)
