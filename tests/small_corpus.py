"""A small corpus of made-up text, and a config that runs over it in seconds."""

import json
import pathlib
import random

from ml_collections import ConfigDict

from configs import base, tiny


def write_corpus(path: pathlib.Path, num_documents: int = 120) -> None:
  """JSONL of three sources: prose-like, templated, and with copies."""
  rng = random.Random(0)
  words = [
    ''.join(rng.choice('abcdefghijklmnopqrstuvwxyz') for _ in range(length))
    for length in (2, 3, 4, 5, 6, 7, 8)
    for _ in range(40)
  ]
  with open(path, 'w', encoding='utf-8') as file:
    for number in range(num_documents):
      source = ('prose', 'template', 'copies')[number % 3]
      if source == 'prose':
        size = rng.randrange(10, 250)
        text = ' '.join(rng.choice(words) for _ in range(size))
      elif source == 'template':
        text = f'Item {number}: the {rng.choice(words)} is in stock.\n' * (
          1 + number % 5
        )
      else:
        text = f'Copyright notice {number % 9}. All rights reserved.\n' * 3
      row = {'id': f'doc-{number}', 'text': text, 'source': source}
      file.write(json.dumps(row) + '\n')


def small_config(path: str) -> ConfigDict:
  """`configs/tiny.py` over a JSONL file, as a `ConfigDict`."""
  config = tiny.get_config()
  config.corpus.sources = {}
  config.corpus.sources.made_up = base.jsonl(
    path, id_column='id', source_column='source'
  )
  config.corpus.max_bytes_per_source = 0
  config.corpus.num_shards = 3
  config.vocabulary.size = 400
  config.vocabulary.train_bytes = 20_000
  for model in (config.model, config.reference.model):
    model.num_heads, model.num_kv_heads, model.head_dim = 4, 2, 8
  for scoring in (config.score, config.evaluate.scoring):
    scoring.per_device_batch_size = 1
  return config


def only_arms(config: ConfigDict, *names: str) -> None:
  """Deletes all arms of a config but these."""
  for name in [*config.select.arms]:
    if name not in names:
      del config.select.arms[name]
