"""The stage that scores a corpus, on one host or many.

Parts of the token store go round the groups of hosts that feed the same rows of
a batch (one host alone is a group of one). A batch holds rows of one part, so
that a part's table does not depend on who else scores; groups out of work feed
padding, so that all run equally many steps. Nothing is gathered: the first host
of a group writes its parts, and process 0 reads the markers of all of them.
"""

import contextlib
from typing import Any

import numpy as np

from infoprune_jax import artifacts, config as config_lib, files, hosts
from infoprune_jax.config import Config, UserError
from infoprune_jax.data import folds as folds_lib
from infoprune_jax.data.token_store import TokenStore
from infoprune_jax.model import partitioning
from infoprune_jax.progress import logger
from infoprune_jax.score import ceiling, parts, scorer as scorer_lib, statistics


def open_references(
  config: Config, workdir: str, store: TokenStore
) -> list[dict[str, Any]]:
  """The manifest of each fold's reference model.

  Raises:
    UserError: one is missing, or trained on another token store.
  """
  manifests = []
  for fold in range(config.reference.folds):
    path = artifacts.reference_dir(workdir, fold, config.reference.folds)
    manifest = artifacts.open_finished(path, 'reference model', 'reference')
    artifacts.check_made_from(
      manifest, 'reference model', 'token_store', store.manifest, 'token store'
    )
    manifests.append(manifest)
  return manifests


def score_options(config: Config) -> dict[str, Any]:
  """What of the config decides the scores; the mesh and the batch do not."""
  options = config_lib.to_plain(config.score)
  del options['per_device_batch_size']
  return {
    **options,
    'folds': config.reference.folds,
    'param_dtype': 'float32',
    'first_token': 'conditioned on BOS',
    'eos_counted': False,
  }


def run(config: Config, workdir: str) -> None:
  """Writes the score table: of the scored split, or of both halves.

  Raises:
    UserError: an input is missing, or what is there belongs to another.
  """
  hosts.check_devices()
  path = artifacts.scores_dir(workdir)
  store = TokenStore.open(workdir)
  references = open_references(config, workdir, store)
  scores = artifacts.Artifact(
    path,
    'score table',
    'score',
    score_options(config),
    {
      'token_store': store.fingerprint,
      **{
        artifacts.reference_input(fold, len(references)): manifest[
          'fingerprint'
        ]
        for fold, manifest in enumerate(references)
      },
    },
  )
  first = hosts.index() == 0
  with files.lock(path) if first else contextlib.nullcontext():
    begun = hosts.broadcast(
      'the start of scoring', _begin(config, store, scores) if first else None
    )
    if begun['to_do'] is None:
      logger.info('score: finished before, skipped')
      return
    _check_same(begun['made_from'], _made_from(config, scores), workdir)
    if begun['to_do']:
      _score(config, workdir, store, references, scores, begun['to_do'])
    if first:
      _finish(store, scores)
    hosts.barrier('the manifest of the scores')


def _begin(
  config: Config, store: TokenStore, scores: artifacts.Artifact
) -> dict[str, Any]:
  """Which parts are to do (None for a finished table), and made from what."""
  made_from = _made_from(config, scores)
  if scores.finished():
    return {'to_do': None, 'made_from': made_from}
  scores.begin()
  to_do = [
    part
    for part in range(store.num_parts)
    if scores.finished_part(part, store.num_parts) is None
  ]
  if len(to_do) < store.num_parts:
    logger.info(
      'score: %d of %d parts were done before',
      store.num_parts - len(to_do),
      store.num_parts,
    )
  return {'to_do': to_do, 'made_from': made_from}


def _made_from(config: Config, scores: artifacts.Artifact) -> dict[str, Any]:
  """What all hosts must agree on."""
  return {
    'mesh': config_lib.to_plain(config.mesh),
    'score': config_lib.to_plain(config.score),
    'model': config_lib.to_plain(config.reference.model),
    'inputs': dict(scores.inputs),
  }


def _check_same(there: Any, here: Any, workdir: str) -> None:
  difference = artifacts.first_difference(here, there, 'scores')
  if difference:
    raise UserError(
      f'Process {hosts.index()} does not score what process 0 scores: '
      f'{difference} there. Give all hosts one config, and a --workdir that '
      f'all of them see ({workdir}).'
    )


def _score(
  config: Config,
  workdir: str,
  store: TokenStore,
  manifests: list[dict[str, Any]],
  scores: artifacts.Artifact,
  to_do: list[int],
) -> None:
  """Scores the parts that are not done, until all hosts have done theirs."""
  mesh = partitioning.make_mesh(config.mesh)
  scorer = scorer_lib.compile_scorer(
    config.reference.model, config.score, store.vocab_size, mesh
  )
  references = [
    parts.Reference(
      fold,
      scorer.prepare(
        scorer_lib.load_params(
          config.reference.model,
          artifacts.reference_dir(workdir, fold, len(manifests)),
          manifest['step'],
          store.vocab_size,
          mesh,
        )
      ),
      statistics.unigram_nll(_unigram_counts(store, fold, len(manifests))),
    )
    for fold, manifest in enumerate(manifests)
  ]
  peak = ceiling.matmul_flops_per_second(config.score.dtype)
  done = parts.PartScorer(scorer, store, references, scores, to_do).run()
  # Where nothing else holds hosts together, a slow one may be far behind.
  found = hosts.all_gather(
    'the end of scoring', done, max(hosts.BARRIER_TIMEOUT, done['seconds'])
  )
  logger.info('score: %s', parts.summary(found, peak))


def _unigram_counts(store: TokenStore, fold: int, folds: int) -> np.ndarray:
  """How often each token occurs where a model trains, [V] int64.

  Each host reads its share of the corpus.
  """
  own = range(hosts.index(), store.num_parts, hosts.count())
  counts = folds_lib.unigram_counts(store, fold, folds, own)
  found = hosts.all_gather('the token counts', counts.tolist())
  return np.sum(found, axis=0, dtype=np.int64)


def _finish(store: TokenStore, scores: artifacts.Artifact) -> None:
  """Reads back the marker of every part, and writes the manifest.

  Raises:
    UserError: a part is not where its host has written it, or damaged.
  """
  markers = []
  for part in range(store.num_parts):
    marker = scores.finished_part(part, store.num_parts)
    if marker is None:
      raise UserError(
        f'Part {part} is done, but process 0 does not find it in '
        f'{scores.path}: give a --workdir that all hosts see.'
      )
    markers.append(marker)
  scores.finish(
    {name: file for m in markers for name, file in m['files'].items()},
    num_parts=store.num_parts,
    **{
      total: sum(marker[total] for marker in markers)
      for total in ('num_examples', 'num_tokens', 'num_bytes', 'flops')
    },
  )
