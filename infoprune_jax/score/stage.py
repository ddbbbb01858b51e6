"""The stage that scores a corpus, on one host or many.

Shards of the token store go round the groups of hosts that feed the same
sequences of a batch (one host alone is a group of one). A batch holds sequences
of one shard, so that a shard's table does not depend on who else scores; groups
out of work feed padding, so that all run equally many steps. Nothing is
gathered: the first host of a group writes its shards, and process 0 reads the
markers of all of them.
"""

import contextlib
import dataclasses
from typing import Any

from infoprune_jax.config import validation
from infoprune_jax.config.experiment import Config
from infoprune_jax.config.validation import UserError
from infoprune_jax.model import memory, mesh as mesh_lib
from infoprune_jax.model.mesh import Mesh
from infoprune_jax.runtime import artifacts, distributed, files, resumable
from infoprune_jax.runtime.options import first_difference, options_of, recorded
from infoprune_jax.runtime.progress import logger
from infoprune_jax.runtime.workdir import scores_dir
from infoprune_jax.score import (
  ceiling,
  references as references_lib,
  scorer as scorer_lib,
  shards,
)
from infoprune_jax.score.references import Reference
from infoprune_jax.tokens.token_store import TokenStore


def score_options(config: Config) -> dict[str, Any]:
  """What of the config decides the scores; the mesh and the batch do not."""
  options = options_of(config.score)
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
  store = TokenStore.open(workdir)
  write(config, workdir, store, references_lib.open_all(config, workdir, store))


def write(
  config: Config,
  workdir: str,
  store: TokenStore,
  references: list[Reference],
  job: str = 'score',
) -> None:
  """Writes the score table of a store, unless it is done.

  Args:
    config: How to score, over which mesh and in how many folds.
    workdir: Where the table goes.
    store: What is scored.
    references: The models.
    job: The stage that this is part of.

  Raises:
    UserError: as `run`.
  """
  distributed.check_devices()
  path = scores_dir(workdir)
  scores = artifacts.Artifact(
    path,
    'score table',
    job,
    {**score_options(config), 'steps': references_lib.steps(references)},
    {
      'token_store': store.fingerprint,
      **references_lib.made_from(references),
    },
  )
  first = distributed.index() == 0
  with files.lock(path) if first else contextlib.nullcontext():
    begun = distributed.broadcast(
      'the start of scoring', _begin(config, store, scores) if first else None
    )
    if begun['to_do'] is None:
      logger.info('score: finished before, skipped')
      return
    _check_same(begun['made_from'], _made_from(config, scores), workdir)
    scores = dataclasses.replace(scores, attempt=begun['attempt'])
    if begun['to_do']:
      _score(config, store, references, scores, begun['to_do'])
    if first:
      _finish(store, references, scores)
    distributed.barrier('the manifest of the scores')


def _begin(
  config: Config, store: TokenStore, scores: artifacts.Artifact
) -> dict[str, Any]:
  """What all hosts need to know.

  Returns:
    'to_do': which shards, None for a finished table; 'made_from': see
    `_made_from`; 'attempt': that of the table, if it is not finished.
  """
  made_from = _made_from(config, scores)
  if scores.finished():
    return {'to_do': None, 'made_from': made_from}
  attempt = scores.begin().attempt
  finished = resumable.finished_shards(scores, store.num_shards, 'score')
  to_do = [n for n in range(store.num_shards) if n not in finished]
  return {'to_do': to_do, 'made_from': made_from, 'attempt': attempt}


def _made_from(config: Config, scores: artifacts.Artifact) -> dict[str, Any]:
  """What all hosts must agree on."""
  return {
    'mesh': validation.to_plain(config.mesh),
    'score': validation.to_plain(config.score),
    'model': validation.to_plain(config.reference.model),
    'options': recorded(scores.options),
    'inputs': dict(scores.inputs),
  }


def _check_same(there: Any, here: Any, workdir: str) -> None:
  difference = first_difference(here, there, 'scores')
  if difference:
    raise UserError(
      f'Process {distributed.index()} does not score what process 0 scores: '
      f'{difference} there. Give all hosts one config, and a --workdir that '
      f'all of them see ({workdir}).'
    )


def _score(
  config: Config,
  store: TokenStore,
  references: list[Reference],
  scores: artifacts.Artifact,
  to_do: list[int],
) -> None:
  """Scores the shards that are not done, until all hosts have done theirs."""
  mesh = mesh_lib.make_mesh(config.mesh)
  folds = [
    shards.Fold(
      number,
      tuple(
        _model(config, store, mesh, reference)
        for reference in references
        if reference.fold == number
      ),
    )
    for number in range(config.reference.folds)
  ]
  peak = ceiling.matmul_flops_per_second(config.score.dtype)
  done = shards.ShardScorer(store, folds, scores, to_do).run()
  # Where nothing else holds hosts together, a slow one may be far behind.
  by_process = distributed.all_gather(
    'the end of scoring',
    done,
    max(distributed.BARRIER_TIMEOUT, done['seconds']),
  )
  logger.info('score: %s', shards.summary(by_process, peak))


def _model(
  config: Config, store: TokenStore, mesh: Mesh, reference: Reference
) -> shards.Model:
  """Compiles a model's program, and loads its parameters."""
  scorer = scorer_lib.compile_scorer(
    reference.model, config.score, store.vocab_size, mesh
  )
  with memory.oom_as_user_error(
    lambda: (
      f'The parameters of the model for {reference.column}, beside those of the '
      'columns before it, need more memory than a device has: spread them over '
      'more devices, with mesh.fsdp or mesh.tensor.'
    )
  ):
    params = references_lib.load(reference, store.vocab_size, mesh)
    return shards.Model(reference.column, scorer, scorer.prepare(params))


def _finish(
  store: TokenStore, references: list[Reference], scores: artifacts.Artifact
) -> None:
  """Reads back the marker of every shard, and writes the manifest.

  Raises:
    UserError: a shard is not where its host has written it, or damaged.
  """
  markers = resumable.finished_shards(scores, store.num_shards)
  for shard in range(store.num_shards):
    if shard not in markers:
      raise UserError(
        f'Shard {shard} is done, but process 0 does not find it in '
        f'{scores.path}: give a --workdir that all hosts see.'
      )
  resumable.finish_from_markers(
    scores,
    [markers[shard] for shard in range(store.num_shards)],
    sums=('num_examples', 'num_tokens', 'num_bytes', 'flops'),
    columns=list(dict.fromkeys(one.column for one in references)),
    reference=references_lib.training_facts(references),
  )
