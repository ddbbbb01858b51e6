"""The stage that scores a corpus, on one host or many.

Hosts that feed the same sequences of a batch are a group. A single host is a
group of its own. The groups take the shards of the token store in turn. A batch
holds sequences of one shard, so that the table of a shard does not depend on the
number of groups. A group that is out of work feeds padding, so that all groups
run equally many steps. No scores are gathered: the first host of a group writes
its shards, and process 0 reads the markers of all shards.
"""

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from infoprune_jax.config import validation
from infoprune_jax.config.experiment import Config
from infoprune_jax.config.validation import UserError
from infoprune_jax.model import memory, mesh as mesh_lib
from infoprune_jax.model.mesh import Mesh
from infoprune_jax.runtime import (
  artifacts,
  distributed,
  files,
  filesystems,
  resumable,
)
from infoprune_jax.runtime.options import first_difference, options_of, recorded
from infoprune_jax.runtime.progress import logger
from infoprune_jax.runtime.workdir import scores_dir
from infoprune_jax.score import (
  ceiling,
  losses,
  references as references_lib,
  scorer as scorer_lib,
  shard_scores,
  shards,
)
from infoprune_jax.score.references import Reference
from infoprune_jax.tokens.tables import ScoreManifest
from infoprune_jax.tokens.token_store import TokenStore


def score_options(config: Config) -> dict[str, Any]:
  """The options that decide the scores. The mesh and the batch are not among them."""
  options = options_of(config.score)
  del options['per_device_batch_size']
  return {
    **options,
    'folds': config.reference.folds,
    'param_dtype': 'float32',
    'first_token': 'conditioned on BOS',
    'eos_counted': False,
  }


def given_paths(config: Config) -> dict[str, Any]:
  """Where the models lie that were trained elsewhere, by column."""
  return {
    column: [filesystems.canonical(checkpoint.path), checkpoint.step]
    for column, checkpoint in config.reference.checkpoints.items()
    if checkpoint.path
  }


def describe(
  config: Config,
  workdir: str,
  steps: Any,
  inputs: Mapping[str, str],
  job: str = 'score',
) -> artifacts.Artifact:
  """The score table, made by these steps of models and from these inputs."""
  return artifacts.Artifact(
    scores_dir(workdir),
    'score table',
    job,
    {**score_options(config), 'steps': steps},
    inputs,
    sections={
      '': 'score',
      'folds': 'reference.folds',
      'steps': 'reference.checkpoint',
      'inputs.given_nll_sum': 'reference.checkpoint.path',
      **{
        f'inputs.given_nll_sum_{name}': f'reference.extra_models.{name}.path'
        for name in config.reference.extra_models
      },
    },
  )


def run(config: Config, workdir: str) -> None:
  """Writes the score table of the scored split, or with two folds of both halves.

  Raises:
    UserError: an input is missing, or the table there has other inputs or
      options.
  """
  store = TokenStore.open(workdir)
  references = references_lib.open_all(config, workdir, store)
  inputs = made_from(store, references)
  steps = references_lib.steps(references)
  scores = dataclasses.replace(
    describe(config, workdir, steps, inputs), earlier_stores=store.earlier
  )
  written = write(config, store, references, scores)
  if written and 'losses' in written:
    print(losses.text(cast(losses.Summary, written['losses'])), flush=True)


def made_from(store: TokenStore, references: list[Reference]) -> dict[str, str]:
  """The fingerprints of what a score table is made from, by input name."""
  return {
    'token_store': store.fingerprint,
    **references_lib.made_from(references),
  }


def write(
  config: Config,
  store: TokenStore,
  references: list[Reference],
  scores: artifacts.Artifact,
) -> ScoreManifest | None:
  """Writes the score table of a store, unless it is done.

  Args:
    config: The experiment.
    store: The token store to score.
    references: The models.
    scores: The table, made from `made_from`.

  Returns:
    The manifest on process 0; None on other processes, or if the table was
    finished before.

  Raises:
    UserError: as `run`.
  """
  distributed.check_devices()
  path = scores.path
  first = distributed.index() == 0
  with files.lock(path) if first else contextlib.nullcontext():
    begun = distributed.broadcast(
      'the start of scoring', _begin(config, store, scores) if first else None
    )
    if begun['to_do'] is None:
      logger.info('score: finished before, skipped')
      return None
    _check_same(begun['made_from'], _made_from(config, scores), path)
    scores = dataclasses.replace(scores, attempt=begun['attempt'])
    if begun['to_do']:
      _score(config, store, references, scores, begun['to_do'])
    written = None
    if first:
      written = _finish(config, store, references, scores)
    distributed.barrier('the manifest of the scores')
    return written


def _begin(
  config: Config, store: TokenStore, scores: artifacts.Artifact
) -> dict[str, Any]:
  """The state of the table, for all hosts.

  Returns:
    'to_do': the numbers of the shards to score, None for a finished table;
    'made_from': the result of `_made_from`; 'attempt': the attempt that writes
    the table, if it is not finished.
  """
  made_from = _made_from(config, scores)
  if scores.finished():
    return {'to_do': None, 'made_from': made_from}
  attempt = scores.begin().attempt
  finished = resumable.finished_shards(
    scores, store.num_shards, 'score', store.totals
  )
  to_do = [n for n in range(store.num_shards) if n not in finished]
  return {'to_do': to_do, 'made_from': made_from, 'attempt': attempt}


def _made_from(config: Config, scores: artifacts.Artifact) -> dict[str, Any]:
  """The options and inputs that must be equal on all hosts."""
  return {
    'mesh': validation.to_plain(config.mesh),
    'score': validation.to_plain(config.score),
    'model': validation.to_plain(config.reference.model),
    'options': recorded(scores.options),
    'inputs': dict(scores.inputs),
  }


def _check_same(there: Any, here: Any, path: str) -> None:
  difference = first_difference(here, there, 'scores')
  if difference:
    raise UserError(
      f'Process {distributed.index()} does not score what process 0 scores: '
      f'{difference} there. Give all hosts one config, and a --workdir that '
      f'all of them see ({path}).'
    )


def _score(
  config: Config,
  store: TokenStore,
  references: list[Reference],
  scores: artifacts.Artifact,
  to_do: list[int],
) -> None:
  """Scores the shards that are not finished, and waits for all hosts."""
  mesh = mesh_lib.make_mesh(config.mesh)
  folds = [
    shard_scores.Fold(
      number,
      tuple(
        _model(config, mesh, reference)
        for reference in references
        if reference.fold == number
      ),
    )
    for number in range(config.reference.folds)
  ]
  peak = ceiling.matmul_flops_per_second(config.score.dtype)
  done = shards.ShardScorer(store, folds, scores, to_do).run()
  # Hosts that share no parameters do not wait for each other before, so a slow
  # one may be far behind.
  by_process = distributed.all_gather(
    'the end of scoring',
    done,
    max(distributed.BARRIER_TIMEOUT, done['seconds']),
  )
  logger.info('score: %s', shards.summary(by_process, peak))


def _model(
  config: Config, mesh: Mesh, reference: Reference
) -> shard_scores.Model:
  """Compiles a model's program, and loads its parameters."""
  scorer = scorer_lib.compile_scorer(
    reference.model, config.score, reference.vocab_size, mesh
  )
  with memory.oom_as_user_error(
    lambda: (
      f'The parameters of the model for {reference.column}, with those of the '
      'columns before it, need more memory than a device has: shard them over '
      'more devices, with mesh.fsdp or mesh.tensor.'
    )
  ):
    params = references_lib.load(reference, mesh)
    return shard_scores.Model(reference.column, scorer, scorer.prepare(params))


def _finish(
  config: Config,
  store: TokenStore,
  references: list[Reference],
  scores: artifacts.Artifact,
) -> ScoreManifest:
  """Reads back the marker of every shard, writes the manifest and returns it.

  Raises:
    UserError: the files of a shard are missing or damaged.
  """
  markers = resumable.finished_shards(
    scores, store.num_shards, totals=store.totals
  )
  for shard in range(store.num_shards):
    if shard not in markers:
      raise UserError(
        f'Shard {shard} is done, but process 0 does not find it in '
        f'{scores.path}: give a --workdir that all hosts see.'
      )
  of_shards = [markers[shard] for shard in range(store.num_shards)]
  facts: dict[str, Any] = {}
  # Markers of older versions have no losses.
  if all('losses' in marker for marker in of_shards):
    sums = losses.total(marker['losses'] for marker in of_shards)
    facts['losses'] = losses.summary(sums)
  if config.score.token_excess:
    counts = np.sum([marker['excess_counts'] for marker in of_shards], axis=0)
    facts['excess_counts'] = counts.tolist()
  given = given_paths(config)
  if given:
    facts['given_paths'] = given
  return resumable.finish_from_markers(
    scores,
    of_shards,
    sums=('num_examples', 'num_tokens', 'num_bytes', 'flops'),
    columns=config.score.columns(
      dict.fromkeys(one.column for one in references)
    ),
    reference=references_lib.training_facts(references),
    **facts,
  )
