"""Training batches: a pure function of (rows, seed, step).

Rows are shuffled anew in each epoch. Step s takes global rows s * B to
(s + 1) * B of the endless sequence, whatever the number of hosts, so that the
state of the reader is the step, and seeking costs nothing.
"""

from collections.abc import Iterator

import grain
import jax
import numpy as np

from infoprune_jax.data import packing
from infoprune_jax.data.token_store import TokenStore


def packed_rows(
  store: TokenStore,
  keep: list[np.ndarray],
  row_length: int,
  seed: int,
) -> packing.PackedRows:
  """The documents kept, with EOS, packed into training rows.

  Args:
    store: Where the documents are.
    keep: For each part, the rows of the documents to train on, int.
    row_length: Tokens a row.
    seed: Of the packing.
  """
  shard = np.repeat(np.arange(len(keep)), [len(rows) for rows in keep])
  row = np.concatenate(keep)
  num_tokens = np.concatenate(
    [store.part(p).column('num_tokens')[rows] for p, rows in enumerate(keep)]
  )
  plan = packing.pack(num_tokens + 1, row_length, overlap=0, seed=seed)
  return packing.PackedRows(store, shard, row, plan)


def batches(
  rows: packing.PackedRows,
  *,
  seed: int,
  batch_size: int,
  first_step: int,
  num_steps: int,
) -> Iterator[dict[str, np.ndarray]]:
  """This host's share of the global batches of steps first_step to num_steps.

  Yields:
    [B / hosts, T] arrays, see `packing.empty_rows`.
  """
  endless = grain.MapDataset.range(len(rows)).seed(seed).shuffle().repeat(None)
  share = batch_size // jax.process_count()
  offset = jax.process_index() * share

  def batch_of(step: int) -> dict[str, np.ndarray]:
    first = int(step) * batch_size + offset
    chosen = np.array([endless[first + i] for i in range(share)])
    return rows.batch(chosen, share)

  steps = grain.MapDataset.range(first_step, num_steps).map(batch_of)
  # One thread fills far more rows than a small machine can train on, and more
  # would take its cores from the training itself.
  options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=8)
  yield from steps.to_iter_dataset(options)
