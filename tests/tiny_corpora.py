"""Tiny corpora, and what is made of them."""

import gzip
import json
import pathlib
import random
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import base
from infoprune_jax.config import (
  corpus as corpus_config,
  experiment as config_lib,
)
from infoprune_jax.runtime import artifacts
from infoprune_jax.runtime.workdir import token_store_dir
from infoprune_jax.tokens import token_store, vocabulary
from infoprune_jax.tokens.token_store import TokenStore

SYLLABLES = [a + b for a in 'bdfgklmn' for b in 'aeiou']
# Enough of them for a unigram vocabulary to have pieces to choose from.
WORDS = [a + b + c for a in SYLLABLES for b in SYLLABLES for c in 'nst']
COMMON = (
  'the',
  'of',
  'naïve',
  '北京',
  'поезд',
  'x+=1\t',
  '\u2581',
  '"q"',
  '🙂',
)
BOS, EOS = 2, 1


def random_text(rng: random.Random) -> str:
  """A few lines, of 20 to 600 bytes."""
  words = rng.choices(WORDS, k=rng.randint(5, 40))
  words += rng.choices(COMMON, k=len(words) // 2)
  rng.shuffle(words)
  return ''.join(word + rng.choice(' \n  ') for word in words)


def documents_of(count: int, seed: int = 0) -> list[dict[str, Any]]:
  """JSONL rows of two sources."""
  rng = random.Random(seed)
  return [
    {
      'id': f'{seed}-{number}',
      'text': f'{number} {random_text(rng)}',
      'source': 'web' if number % 3 else 'books',
    }
    for number in range(count)
  ]


def write_jsonl(path: pathlib.Path, rows: Iterable[dict[str, Any]]) -> str:
  """Rows as JSONL, gzipped where the name says so."""
  data = ''.join(json.dumps(row) + '\n' for row in rows).encode()
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(gzip.compress(data) if path.suffix == '.gz' else data)
  return str(path)


def corpus(
  sources: dict[str, Any], **fields: Any
) -> corpus_config.CorpusConfig:
  """A corpus of `base.text` and `base.jsonl` sources."""
  edits = base.get_config()
  edits.corpus.sources.update(sources)
  edits.corpus.update({'num_shards': 3, 'num_workers': 1, **fields})
  return config_lib.from_mapping(edits).corpus


def experiment(folder: pathlib.Path, count: int = 120, **fields) -> ConfigDict:
  """A config whose corpus is two JSONL files below `folder`."""
  rows = documents_of(count)
  write_jsonl(folder / 'a.jsonl', rows[: count // 4])
  write_jsonl(folder / 'b.jsonl.gz', rows[count // 4 :])
  edits = base.get_config()
  edits.corpus.sources.mine = base.jsonl(
    f'{folder}/*.jsonl*', id_column='id', source_column='source'
  )
  edits.corpus.update({'num_shards': 3, 'num_workers': 1, **fields})
  edits.vocabulary.update(size=400, type='bpe')
  return edits


def write_store(
  workdir: pathlib.Path,
  shards: list[list[list[int]]],
  splits: list[list[str]] | None = None,
  vocab_size: int = 1000,
  dtype: type[np.unsignedinteger] = np.uint16,
  sources: list[list[str]] | None = None,
) -> TokenStore:
  """A token store of given token ids: shards of documents of ids."""
  artifact = artifacts.Artifact(
    token_store_dir(str(workdir)), 'token store', 'tokenize', {}, {}
  )
  written = {}
  totals = {
    name: {'documents': 0, 'tokens': 0, 'bytes': 0}
    for name in corpus_config.SPLITS
  }
  for shard, documents in enumerate(shards):
    rows = [
      {
        'example_id': f'{shard}-{row}',
        'source': sources[shard][row] if sources else 'mine',
        'split': corpus_config.SPLITS.index(
          splits[shard][row] if splits else 'scored'
        ),
        'num_tokens': len(ids),
        'num_bytes': 3 * len(ids),
        'compressed_bytes': 2 * len(ids),
        'content_hash': 1000 * shard + row,
      }
      for row, ids in enumerate(documents)
    ]
    for row in rows:
      of_split = totals[corpus_config.SPLITS[row['split']]]
      of_split['documents'] += 1
      of_split['tokens'] += row['num_tokens']
      of_split['bytes'] += row['num_bytes']
    tokens = [np.array(ids, np.int64) for ids in documents]
    marker = artifact.finish_shard(
      shard,
      len(shards),
      token_store.shard_files(
        shard, len(shards), rows, tokens, vocab_size, dtype
      ),
    )
    written.update(marker['files'])
  artifact.finish(
    written,
    num_shards=len(shards),
    documents_per_shard=[len(shard) for shard in shards],
    num_documents=sum(len(shard) for shard in shards),
    splits=totals,
    vocab_size=vocab_size,
    bos_id=BOS,
    eos_id=EOS,
  )
  return TokenStore.open(str(workdir))


@pytest.fixture(scope='session')
def make_records() -> Callable[..., list[dict[str, Any]]]:
  return documents_of


@pytest.fixture(scope='session')
def make_jsonl() -> Callable[..., str]:
  return write_jsonl


@pytest.fixture(scope='session')
def make_corpus() -> Callable[..., corpus_config.CorpusConfig]:
  return corpus


@pytest.fixture(scope='session')
def make_experiment() -> Callable[..., ConfigDict]:
  return experiment


@pytest.fixture
def make_store(tmp_path) -> Callable[..., TokenStore]:
  return lambda *args, **fields: write_store(tmp_path, *args, **fields)


@pytest.fixture(scope='session', params=corpus_config.VOCABULARY_TYPES)
def words(request) -> vocabulary.Vocabulary:
  """A vocabulary of each type."""
  rng = random.Random(1)
  lines = [random_text(rng) for _ in range(200)]
  return vocabulary.train(
    corpus_config.VocabularyConfig(
      path='',
      bos_id=-1,
      eos_id=-1,
      size=400,
      type=request.param,
      train_bytes=1,
    ),
    lines,
  )
