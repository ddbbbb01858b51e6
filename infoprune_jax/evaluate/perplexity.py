"""Held-out losses: the scorer, run over documents that no model trained on."""

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from infoprune_jax.config.evaluate import EvaluateConfig
from infoprune_jax.config.experiment import Config
from infoprune_jax.config.model import ModelConfig
from infoprune_jax.model import checkpoints, mesh as mesh_lib
from infoprune_jax.model.mesh import Mesh
from infoprune_jax.runtime import (
  artifacts,
  distributed,
  files,
  hashing,
  manifests,
)
from infoprune_jax.runtime.options import options_of
from infoprune_jax.runtime.progress import Progress, logger
from infoprune_jax.runtime.workdir import evaluation_dir, run_dir
from infoprune_jax.score import references, scorer as scorer_lib
from infoprune_jax.tokens import tables
from infoprune_jax.tokens.token_store import TokenStore

CURVE_SEED = 1  # Of the draw of held-out documents for the curve.


@dataclasses.dataclass(frozen=True)
class Curve:
  """The loss on a fixed draw of held-out documents, during training."""

  scorer: scorer_lib.Scorer
  store: TokenStore
  shard_index: np.ndarray  # [documents] int64
  doc_index: np.ndarray  # [documents] int64
  source: np.ndarray  # [documents] str
  num_tokens: np.ndarray  # [documents] int64
  num_bytes: np.ndarray  # [documents] int64

  def losses(self, params: Any) -> dict[str, float]:
    """Nats per token and bits per byte, and nats per token of each source."""
    sums, _ = self.scorer.document_nll(
      params, self.store, self.shard_index, self.doc_index
    )
    metrics = losses(
      float(sums.sum()), int(self.num_tokens.sum()), int(self.num_bytes.sum())
    )
    for source in np.unique(self.source):
      here = self.source == source
      tokens = max(int(self.num_tokens[here].sum()), 1)
      metrics[f'heldout_nll/{source}'] = float(sums[here].sum()) / tokens
    return metrics


def losses(nll_sum: float, num_tokens: int, num_bytes: int) -> dict[str, float]:
  """Nats per token and bits per byte, out of a sum in nats and counts."""
  return {
    'heldout_nll': nll_sum / num_tokens,
    'heldout_bits_per_byte': nll_sum / np.log(2) / num_bytes,
  }


def make_curve(
  config: EvaluateConfig,
  model: ModelConfig,
  vocab_size: int,
  store: TokenStore,
  mesh: Mesh,
) -> Curve:
  """Draws held-out documents, as many as fit into `online_eval_tokens`.

  The first document of each source is always in, whatever its length.
  """
  shard_index, doc_index = heldout_documents(store)
  columns = {
    name: np.concatenate(
      [
        np.array(
          store.shard(p).table(name)[name].take(doc_index[shard_index == p])
        )
        for p in range(store.num_shards)
      ]
    )
    for name in ('source', 'num_tokens', 'num_bytes', 'content_hash')
  }
  order = np.argsort(
    hashing.mix(columns['content_hash'], CURVE_SEED), kind='stable'
  )
  total = np.cumsum(columns['num_tokens'][order], dtype=np.int64)
  _, first = np.unique(columns['source'][order], return_index=True)
  drawn = np.union1d(order[total <= config.online_eval_tokens], order[first])
  return Curve(
    scorer_lib.compile_scorer(model, config.scoring, vocab_size, mesh),
    store,
    shard_index[drawn],
    doc_index[drawn],
    *(columns[name][drawn] for name in ('source', 'num_tokens', 'num_bytes')),
  )


def heldout_documents(store: TokenStore) -> tuple[np.ndarray, np.ndarray]:
  """Shard and document of each held-out document, in store order, int64."""
  doc_indices = [
    store.shard(p).documents_of('heldout') for p in range(store.num_shards)
  ]
  shard_index = np.repeat(
    np.arange(len(doc_indices)), [len(r) for r in doc_indices]
  )
  return shard_index, np.concatenate(doc_indices)


def run(config: Config, workdir: str) -> None:
  """Writes the loss of every held-out document under every trained arm.

  Each host packs documents of its own. On another number of hosts a document
  has another place in its sequence, and its loss differs by float32 rounding,
  by less than 1e-6 relative. On the same number the result is the same, byte
  for byte.

  Raises:
    UserError: a run is missing, or was trained on another corpus.
  """
  store = TokenStore.open(workdir)
  mesh = mesh_lib.make_mesh(config.mesh)
  runs = config.runs
  tokens = store.manifest['splits']['heldout']['tokens']
  progress = Progress('evaluate', 'tokens', len(runs) * tokens)
  num_skipped = 0
  for arm, seed in runs:
    path = run_dir(workdir, arm, seed)
    trained = manifests.open_finished(path, f'run {arm} seed {seed}', 'train')
    manifests.check_made_from(
      trained, f'run {arm}', 'token_store', store.manifest, 'token store'
    )
    if not _evaluate_run(
      config, workdir, store, mesh, arm, seed, trained, progress
    ):
      progress.skip(tokens)
      num_skipped += 1
  if num_skipped:
    logger.info(
      'evaluate: %d of %d runs finished before, skipped', num_skipped, len(runs)
    )
  if num_skipped < len(runs):
    progress.finish(f'{len(runs)} runs')


def describe(
  config: Config, workdir: str, arm: str, seed: int, inputs: Mapping[str, str]
) -> artifacts.Artifact:
  """The held-out losses of a run, made from these inputs."""
  options = options_of(config.evaluate.scoring)
  del options['per_device_batch_size']
  return artifacts.Artifact(
    evaluation_dir(workdir, arm, seed),
    'evaluation',
    'evaluate',
    options,
    inputs,
    sections={'': 'evaluate.scoring'},
  )


def _evaluate_run(
  config: Config,
  workdir: str,
  store: TokenStore,
  mesh: Mesh,
  arm: str,
  seed: int,
  trained: Mapping[str, Any],
  progress: Progress,
) -> bool:
  """Evaluates one arm and seed; returns False if that was done before."""
  inputs = {'token_store': store.fingerprint, 'run': trained['fingerprint']}
  artifact = describe(config, workdir, arm, seed, inputs)
  first = distributed.index() == 0
  with files.lock(artifact.path) if first else contextlib.nullcontext():
    name = f'the evaluation of {arm}, seed {seed}'
    if distributed.on_first(name, lambda: artifact.finished() is not None):
      return False
    if first:  # Only process 0 writes.
      artifact = artifact.begin()
    model = references.arm_model(config, store.vocab_size)
    scorer = scorer_lib.compile_scorer(
      model.model, config.evaluate.scoring, model.vocab_size, mesh
    )
    params = checkpoints.load_params(
      run_dir(workdir, arm, seed),
      trained['step'],
      scorer_lib.abstract_params(model.model, model.vocab_size, mesh),
    )
    shard_index, doc_index = heldout_documents(store)
    sums, spent = scorer.document_nll(
      params,
      store,
      shard_index,
      doc_index,
      on_batch=lambda count: progress.add(count, f'{arm} seed {seed}'),
    )
    if first:
      _write(artifact, store, shard_index, doc_index, sums, spent)
    distributed.barrier(f'the end of {name}')
    return True


def _write(
  artifact: artifacts.Artifact,
  store: TokenStore,
  shard_index: np.ndarray,
  doc_index: np.ndarray,
  sums: np.ndarray,
  spent: float,
) -> None:
  """Writes the losses of all documents, and the manifest."""
  written = {}
  for shard in range(store.num_shards):
    here = shard_index == shard
    losses_table = tables.shard_table(
      tables.LOSS_SCHEMA,
      shard,
      doc_index[here],
      store.shard(shard).table(*scorer_lib.DOCUMENT_COLUMNS),
      nll_sum=sums[here],
    )
    written |= artifact.finish_shard(
      shard,
      store.num_shards,
      tables.shard_file(losses_table, shard, store.num_shards),
    )['files']
  artifact.finish(written, flops=spent)
