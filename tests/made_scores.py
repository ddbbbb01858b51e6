"""A score table that no model made."""

import numpy as np

from infoprune_jax.runtime import artifacts
from infoprune_jax.runtime.workdir import scores_dir
from infoprune_jax.tokens import tables
from infoprune_jax.tokens.token_store import TokenStore


def write_scores(workdir: str, seed: int = 0) -> None:
  """A score table of a store, as the scorer writes it."""
  store = TokenStore.open(workdir)
  rng = np.random.default_rng(seed)
  scores = artifacts.Artifact(
    scores_dir(workdir),
    'score table',
    'score',
    {'seed': seed, 'folds': 1},
    {'token_store': store.fingerprint, 'reference': 'f' * 16},
  )
  scores.begin()
  written, totals = {}, dict.fromkeys(('examples', 'tokens', 'bytes'), 0)
  for shard_index in range(store.num_shards):
    shard = store.shard(shard_index)
    rows = shard.documents_of('scored')
    made = tables.shard_table(
      tables.score_schema(['nll_sum']),
      shard_index,
      rows,
      shard.table(),
      nll_sum=shard.column('num_tokens')[rows] * rng.gamma(4.0, 1.0, len(rows)),
      fold=np.zeros(len(rows), np.int8),
    )
    marker = scores.finish_shard(
      shard_index,
      store.num_shards,
      tables.shard_file(made, shard_index, store.num_shards),
      num_examples=len(rows),
    )
    written.update(marker['files'])
    totals['examples'] += len(rows)
    for unit in ('tokens', 'bytes'):
      totals[unit] += int(made[f'num_{unit}'].to_numpy().sum())
  scores.finish(
    written,
    num_shards=store.num_shards,
    columns=['nll_sum'],
    flops=1e12,
    reference={'num_params': 1, 'step': 1, 'tokens': 1, 'flops': 1e12},
    **{f'num_{unit}': total for unit, total in totals.items()},
  )
