r"""Speed and recall of near-duplicates beside datatrove's MinHash.

python tools/bench_minhash.py --files='data/*.jsonl.zst' \
    --tokenizer=tokenizer.json --bos_id=0 --eos_id=0 \
    --peer_python=venv/bin/python [--limit_mb=32]

Both sides read the same plain JSONL, with shingles of 5, 14 bands of 8 rows and
as many processes. datatrove takes words for shingles, and reads text; ours takes
tokens from a token store, so its time to tokenize is given beside its own. A
twentieth of the documents are there twice, the second time with some words
replaced: recall is the fraction of these pairs that are in one group.
`pip install absl-py datatrove orjson regex spacy tokenizers 'xxhash<4'` installs
the peer.
"""

import json
import os
import pathlib
import random
import struct
import subprocess
import sys
import tempfile
import time
from typing import Any

from absl import app, flags

ROOT = pathlib.Path(__file__).resolve().parent.parent
COPIED = 20  # One document of so many has a copy.
# The fraction of words that are replaced, in turn. Of the shingles of 5 words
# that both have, this leaves a Jaccard similarity of 0.9 to 0.6.
REPLACED = (0.01, 0.02, 0.04, 0.05)
NUM_FILES = 8
NGRAM, BANDS, ROWS = 5, 14, 8

_FILES = flags.DEFINE_string('files', None, 'A glob: .jsonl, .jsonl.gz, .zst.')
_TOKENIZER = flags.DEFINE_string('tokenizer', None, 'As vocabulary.path.')
_BOS = flags.DEFINE_integer('bos_id', -1, 'As config.vocabulary.bos_id.')
_EOS = flags.DEFINE_integer('eos_id', -1, 'As config.vocabulary.eos_id.')
_LIMIT = flags.DEFINE_integer('limit_mb', 32, 'MB of text, evenly by file.')
_WORKERS = flags.DEFINE_integer('workers', 2, 'Processes of each side.')
_PEER = flags.DEFINE_string('peer_python', '', 'A Python with datatrove.')
# The peer alone, by its own Python: the tool starts itself.
_ONE = flags.DEFINE_string('one', '', 'Used by the tool itself.')


def write_input(folder: str) -> tuple[int, int]:
  """Writes documents and copies; returns the bytes of text and the copies.

  The copy of document n has the id '~n'.
  """
  from configs import base
  from infoprune_jax.config import experiment as config_lib
  from infoprune_jax.corpus import sources

  edits = base.get_config()
  edits.corpus.sources.bench = base.jsonl(_FILES.value)
  config = config_lib.from_mapping(edits)
  units = sources.list_files(config.corpus.sources)
  rng, texts = random.Random(0), []
  for file in units:
    left = _LIMIT.value * 1e6 / len(units)
    for _, row in sources.read_records(file):
      if left < 0:
        break
      if not isinstance(row, sources.BadRecord):
        left -= len(row.text.encode())
        texts.append(row.text)
  documents = [(str(number), text) for number, text in enumerate(texts)]
  copies = 0
  for number in range(0, len(texts), COPIED):
    words = texts[number].split(' ')
    share = REPLACED[copies % len(REPLACED)]
    replaced = [
      rng.choice(words) if rng.random() < share else word for word in words
    ]
    documents.append((f'~{number}', ' '.join(replaced)))
    copies += 1
  rng.shuffle(documents)
  os.makedirs(f'{folder}/input')
  for number in range(NUM_FILES):
    with open(f'{folder}/input/{number:05d}.jsonl', 'w') as output:
      for id_, text in documents[number::NUM_FILES]:
        output.write(json.dumps({'id': id_, 'text': text}) + '\n')
  return sum(len(text.encode()) for _, text in documents), copies


def recall(groups: dict[str, Any], copies: int) -> float:
  """The fraction of copies that are in a group with their original."""
  together = sum(
    group == groups.get(id_[1:], id_)
    for id_, group in groups.items()
    if id_.startswith('~')
  )
  return together / copies


def ours(folder: str) -> dict[str, Any]:
  """Our stage: its seconds, those to tokenize before it, groups by id."""
  from configs import base
  from infoprune_jax.config import experiment as config_lib
  from infoprune_jax.statistics import near_duplicates
  from infoprune_jax.tokens import tables, tokenize
  from infoprune_jax.tokens.token_store import TokenStore

  edits = base.get_config()
  edits.corpus.sources.bench = base.jsonl(
    f'{folder}/input/*.jsonl', id_column='id'
  )
  edits.corpus.update(
    num_workers=_WORKERS.value, reference_fraction=0.0, heldout_fraction=0.0
  )
  edits.vocabulary.update(
    path=_TOKENIZER.value, bos_id=_BOS.value, eos_id=_EOS.value
  )
  edits.near_duplicates.update(ngram=NGRAM, bands=BANDS, rows_per_band=ROWS)
  config, workdir = config_lib.from_mapping(edits), f'{folder}/ours'
  times = [time.monotonic()]
  for stage in (tokenize, near_duplicates):
    stage.run(config, workdir)
    times.append(time.monotonic())
  store = TokenStore.open(workdir)
  artifact = near_duplicates.describe(
    config, workdir, {'token_store': store.fingerprint}
  )
  table = tables.read_table(artifact.path)
  ids = [
    store.shard(shard).table('example_id')['example_id'].to_pylist()
    for shard in range(store.num_shards)
  ]
  groups = {
    ids[row['shard']][row['doc_index']]: row['near_duplicate_group']
    for row in table.to_pylist()
  }
  return {
    'seconds': times[2] - times[1],
    'tokenize': times[1] - times[0],
    'groups': groups,
  }


def datatrove(folder: str) -> dict[str, Any]:
  """The peer's first three stages: seconds, and groups by id."""
  from datatrove.executor import LocalPipelineExecutor
  from datatrove.pipeline import dedup
  from datatrove.pipeline.dedup import minhash
  from datatrove.pipeline.readers import JsonlReader

  config = minhash.MinhashConfig(
    n_grams=NGRAM, num_buckets=BANDS, hashes_per_bucket=ROWS
  )
  path = f'{folder}/datatrove'
  reader = JsonlReader(f'{folder}/input')
  stages = [
    (
      [reader, dedup.MinhashDedupSignature(f'{path}/sigs', config)],
      NUM_FILES,
    ),
    (
      [
        dedup.MinhashDedupBuckets(
          f'{path}/sigs', f'{path}/pairs', config=config
        )
      ],
      BANDS,
    ),
    (
      [
        dedup.MinhashDedupCluster(
          f'{path}/pairs', f'{path}/ids', config, save_cluster_id=True
        )
      ],
      1,
    ),
  ]
  begun = time.monotonic()
  for number, (pipeline, tasks) in enumerate(stages):
    LocalPipelineExecutor(
      pipeline,
      tasks=tasks,
      workers=_WORKERS.value,
      logging_dir=f'{path}/logs{number}',
    ).run()
  seconds = time.monotonic() - begun
  groups: dict[str, int] = {}
  for number in range(NUM_FILES):
    with open(f'{folder}/input/{number:05d}.jsonl') as lines:
      ids = [json.loads(line)['id'] for line in lines]
    clusters = pathlib.Path(f'{path}/ids/{number:06d}.clusters')
    if clusters.exists():
      for document, group in struct.iter_unpack('<II', clusters.read_bytes()):
        groups[ids[document]] = group
  return {'seconds': seconds, 'groups': groups}


def _line(size: int, side: dict[str, Any], copies: int) -> str:
  rate = size / 1e6 / side['seconds']
  return f'{rate:8.2f} MB/s  recall {recall(side["groups"], copies):.3f}'


def main(argv: list[str]) -> None:
  """Runs both sides, and prints a table."""
  del argv
  if _ONE.value:
    print('RESULT' + json.dumps(datatrove(_ONE.value)))
    return
  sys.path.insert(0, str(ROOT))
  with tempfile.TemporaryDirectory() as folder:
    size, copies = write_input(folder)
    print(f'{size / 1e6:.1f} MB of text, {copies} documents with a near-copy')
    own = ours(folder)
    line = _line(size, own, copies)
    print(f'ours       {line} (and {own["tokenize"]:.1f} s to tokenize)')
    if not _PEER.value:
      return
    arguments = [flag for flag in sys.argv[1:] if flag.startswith('--')]
    done = subprocess.run(
      [_PEER.value, __file__, *arguments, f'--one={folder}'],
      stdout=subprocess.PIPE,
      text=True,
      check=True,
    )
    peer = json.loads(done.stdout.split('RESULT')[-1])
    print(f'datatrove  {_line(size, peer, copies)}')
    ratio = peer['seconds'] / own['seconds']
    whole = peer['seconds'] / (own['seconds'] + own['tokenize'])
    print(f'ours is {ratio:.2f}x as fast, {whole:.2f}x with tokenizing')


if __name__ == '__main__':
  flags.mark_flags_as_required(['files', 'tokenizer'])
  app.run(main)
