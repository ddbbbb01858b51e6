"""The contenders of `bench_input.py`: each returns its work, ready to run.

The work returns facts: the number of `tokens` it wrote, of `zeros` among ours,
and the seconds of `counting` them, which do not count as work.
"""

import dataclasses
import glob
import json
import os
import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any

from absl import flags

Work = Callable[[], dict[str, Any]]
# Packages that make a contender's own.
NEEDS = {
  'ours': ('infoprune_jax',),
  'reader': ('infoprune_jax', 'grain'),
  'datasets': ('datasets', 'tokenizers'),
  'datasets_threads': ('datasets', 'tokenizers'),
  'seqio': ('seqio', 'apache_beam', 'google_crc32c', 'tensorflow_text'),
}


@dataclasses.dataclass(frozen=True)
class Settings:
  """The settings that all contenders share."""

  folder: str  # `input/*.jsonl` hold `text`; the rest is for output
  tokenizer: str  # a SentencePiece .model or a tokenizer.json
  bos_id: int
  eos_id: int
  workers: int  # processes, or threads of one process

  @property
  def files(self) -> list[str]:
    """The input, in order."""
    return sorted(glob.glob(f'{self.folder}/input/*.jsonl'))


def ours(settings: Settings) -> Work:
  """`--job=tokenize`, with the index, the statistics and the token store."""
  from configs import base
  from infoprune_jax.config import experiment as config_lib
  from infoprune_jax.runtime import progress
  from infoprune_jax.tokens import token_store, tokenize

  progress.log_to_stderr()
  edits = base.get_config()
  edits.corpus.sources.bench = base.jsonl(f'{settings.folder}/input/*.jsonl')
  edits.corpus.num_workers = settings.workers
  edits.vocabulary.update(
    path=settings.tokenizer, bos_id=settings.bos_id, eos_id=settings.eos_id
  )
  workdir = tempfile.mkdtemp(dir=settings.folder, prefix='ours-')

  def work() -> dict[str, Any]:
    tokenize.run(config_lib.from_mapping(edits), workdir)
    begun = time.monotonic()
    store = token_store.TokenStore.open(workdir)
    shards = [store.shard(number) for number in range(store.num_shards)]
    return {
      'tokens': store.manifest['num_tokens'],
      'zeros': sum(int((shard.tokens == 0).sum()) for shard in shards),
      'counting': time.monotonic() - begun,
    }

  return work


def _datasets(settings: Settings, processes: int) -> Work:
  os.environ['TOKENIZERS_PARALLELISM'] = 'false' if processes > 1 else 'true'
  os.environ['RAYON_NUM_THREADS'] = str(settings.workers)
  os.environ['HF_DATASETS_OFFLINE'] = '1'
  import datasets

  path = settings.tokenizer
  if path.endswith('.json'):
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(path)

    def encode(texts: list[str]) -> list[list[int]]:
      tokenizer.encode_special_tokens = True  # A pickle would lose it.
      encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
      return [encoding.ids for encoding in encodings]
  else:
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=path)
    threads = 1 if processes > 1 else settings.workers

    def encode(texts: list[str]) -> list[list[int]]:
      return processor.encode(texts, num_threads=threads)

  def work() -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=settings.folder) as cache:
      rows = datasets.load_dataset(
        'json',
        data_files=settings.files,
        split='train',
        cache_dir=cache,
        num_proc=processes if processes > 1 else None,
      )
      done = rows.map(
        lambda batch: {'ids': encode(batch['text'])},
        batched=True,
        num_proc=processes if processes > 1 else None,
        remove_columns=rows.column_names,
      )
      begun = time.monotonic()
      tokens = sum(
        len(chunk.values) for chunk in done.data.column('ids').chunks
      )
      return {'tokens': tokens, 'counting': time.monotonic() - begun}

  return work


def seqio(settings: Settings) -> Work:
  """`seqio_cache_tasks` on Beam's DirectRunner, in several processes."""
  os.environ['BENCH_INPUT'] = json.dumps(
    {
      'files': settings.files,
      'tokenizer': settings.tokenizer,
    }
  )
  import bench_seqio_task  # noqa: F401
  from seqio.scripts import cache_tasks_main

  output = tempfile.mkdtemp(dir=settings.folder, prefix='seqio-')
  flags.FLAGS(
    [
      'seqio_cache_tasks',
      '--tasks=bench_input',
      f'--output_cache_dir={output}',
      '--module_import=bench_seqio_task',
      '--pipeline_options=--runner=DirectRunner,'
      '--direct_running_mode=multi_processing,'
      f'--direct_num_workers={settings.workers}',
    ]
  )

  def work() -> dict[str, Any]:
    cache_tasks_main.main([])
    stats = json.loads(
      pathlib.Path(f'{output}/bench_input/stats.train.json').read_text()
    )
    return {'tokens': stats['targets_tokens']}

  return work


def reader(settings: Settings) -> Work:
  """The grain reader alone, over the store that we wrote."""
  import numpy as np

  from infoprune_jax.batches import loader
  from infoprune_jax.config.training import TrainingConfig
  from infoprune_jax.tokens.token_store import TokenStore

  store = TokenStore.open(sorted(glob.glob(f'{settings.folder}/ours-*'))[-1])
  keep = [
    store.shard(p).documents_of('scored') for p in range(store.num_shards)
  ]
  batch_tokens = 1 << 16

  def rate(sequence_length: int) -> float:
    """Tokens per second of one core."""
    size = batch_tokens // sequence_length
    training = TrainingConfig(
      num_steps=1,
      batch_size=size,
      sequence_length=sequence_length,
      learning_rate=1e-3,
    )
    rows = loader.grain_reader(store, keep, training, seed=0)
    steps = max(2, 2 * len(rows.sequences) // size)
    for _ in rows.batches(0, 2, np.arange(size)):
      pass
    start = time.process_time()
    for _ in rows.batches(0, steps, np.arange(size)):
      pass
    return steps * batch_tokens / (time.process_time() - start)

  return lambda: {f'sequences of {n}': rate(n) for n in (256, 1024)}


CONTENDERS: dict[str, Callable[[Settings], Work]] = {
  'ours': ours,
  'datasets': lambda settings: _datasets(settings, settings.workers),
  'datasets_threads': lambda settings: _datasets(settings, 1),
  'seqio': seqio,
  'reader': reader,
}
