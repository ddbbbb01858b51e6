"""The stages in order, and what they would do."""

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from infoprune_jax.config import validation
from infoprune_jax.config.experiment import Config
from infoprune_jax.config.model import ModelConfig
from infoprune_jax.config.training import TrainingConfig
from infoprune_jax.config.validation import UserError
from infoprune_jax.corpus import paths, quiet_tensorflow, sources
from infoprune_jax.evaluate import labels, perplexity
from infoprune_jax.export import job as export_job
from infoprune_jax.model import flops, mesh as mesh_lib, network, partitioning
from infoprune_jax.report import page, selection_page
from infoprune_jax.runtime import (
  artifacts,
  distributed,
  drivers,
  files,
  filesystems,
)
from infoprune_jax.runtime.progress import duration, logger, quantity
from infoprune_jax.score import references, scorer, stage
from infoprune_jax.selection import rules, select
from infoprune_jax.statistics import near_duplicates, statistics
from infoprune_jax.tokens import tokenize, vocabulary_files
from infoprune_jax.train import budget, optimizer, runs, state as state_lib
from infoprune_jax.verify import workdir as verify_workdir

JOBS: dict[str, Callable[[Config, str], None]] = {
  'tokenize': tokenize.run,
  'statistics': statistics.run,
  'near_duplicates': near_duplicates.run,
  'reference': runs.run_reference,
  'score': stage.run,
  'select': select.run,
  'selection_report': selection_page.run,
  'train': runs.run_arms,
  'evaluate': perplexity.run,
  'report': page.run,
}
# On request alone.
ON_REQUEST: dict[str, Callable[[Config, str], None]] = {
  'export': export_job.run,
  'labels': labels.run,
  'verify': verify_workdir.run,
}
# What several processes can do together.
MANY_HOSTS = ('reference', 'score', 'train', 'evaluate', 'verify')


def run(config: Config, workdir: str, job: str | None) -> None:
  """Runs one stage, or all in order; finished ones are skipped.

  Args:
    config: The experiment.
    workdir: Where its artifacts are.
    job: A key of `JOBS` or of what is done on request; None for all `JOBS`.

  Raises:
    UserError: as the stages do.
  """
  workdir = _named(workdir)
  _check_job(job)
  if distributed.count() > 1 and job not in MANY_HOSTS:
    raise UserError(
      f'--job={job or "(all)"} does not run on {distributed.count()} processes yet: '
      f'{" and ".join(f"--job={name}" for name in MANY_HOSTS)} do. Run the '
      'others on one host, in a --workdir that all hosts see.'
    )
  _check_stores(config, workdir, job)
  check(config, job)
  if job in ON_REQUEST:
    ON_REQUEST[job](config, workdir)
    return
  files.check_writable(workdir)
  for name in (job,) if job else _jobs(config):
    start = time.monotonic()
    JOBS[name](config, workdir)
    logger.info('%s: took %s', name, duration(time.monotonic() - start))


def _named(workdir: str) -> str:
  """The workdir by its one name, however it was spelled.

  Raises:
    UserError: the name is not UTF-8.
  """
  workdir = filesystems.canonical(workdir)
  filesystems.check_utf8(workdir, '--workdir')
  return workdir


def _check_stores(config: Config, workdir: str, job: str | None) -> None:
  """Raises `UserError` where a stage cannot work in an object store."""
  drivers.check_keeps(workdir, '--workdir')
  scores = job in (None, 'score', 'labels')
  folders = {}
  if job in (None, 'train', 'evaluate') or (
    config.reference.is_trained and (scores or job == 'reference')
  ):
    folders['--workdir'] = workdir
  for column, given in config.reference.checkpoints.items() if scores else ():
    if given.path and not given.is_file:
      folders[f'the checkpoint path for {column}'] = given.path
  for option, path in folders.items():
    if not filesystems.is_local(path):
      what = f'--job={job}' if job else 'The whole job'
      drivers.check_holds_checkpoints(path, option, what)
  paths.open_filesystem('--workdir', workdir)  # There is a driver for it.


def _check_job(job: str | None) -> None:
  if job is not None:
    validation.check_choice('--job', job, (*JOBS, *ON_REQUEST))


def _jobs(config: Config) -> list[str]:
  """The stages that a config needs."""
  needed = list(JOBS)
  if not any(
    rules.reads_near_duplicates(config.select.arms[arm]) for arm in config.arms
  ):
    needed.remove('near_duplicates')
  return needed


def check(config: Config, job: str | None) -> None:
  """Finds what can be wrong with a config before any stage starts.

  Raises:
    UserError: the first thing found.
  """
  if job in (None, 'reference', 'score', 'train', 'evaluate', 'labels'):
    distributed.check_devices()
    mesh = mesh_lib.make_mesh(config.mesh)
    partitioning.row_groups(mesh)
    vocab_size = _vocab_size(config)
    scores = job in (None, 'score', 'labels')
    scoring = references.models(config) if scores else {}
    for model in (config.reference.model, config.model, *scoring.values()):
      scorer.abstract_params(model, vocab_size, mesh)
    for model in scoring.values():
      scorer.with_kernels(model, config.score, mesh)
    # Training follows its losses by those of evaluation.
    for model in (config.reference.model, config.model):
      scorer.with_kernels(model, config.evaluate.scoring, mesh)
    for name, model, section in (
      ('reference', config.reference.model, config.reference.training),
      ('train', config.model, config.train.training),
    ):
      if job not in (None, name):
        continue
      budget.in_steps(
        section,
        flops.training_flops_per_token(model, vocab_size, section.row_length),
        f'{name}.training',
      )
      state_lib.check_batch(mesh, section, f'{name}.training')
      if section.reader == 'seqio':
        quiet_tensorflow.import_seqio()
  if job in (None, 'select'):
    for arm in config.arms:
      rules.check(
        config.select.arms[arm],
        f'select.arms.{arm}',
        tuple(config.reference.checkpoints),
      )
  if job == 'labels':
    labels.check(config)


def _vocab_size(config: Config) -> int:
  if config.vocabulary.path:
    return vocabulary_files.open_given(config.vocabulary).size
  return config.vocabulary.size


def dry_run(config: Config, workdir: str, job: str | None = None) -> None:
  """Prints the config, the mesh, the parameters and the cost of stages.

  Args:
    config: The experiment.
    workdir: Where its artifacts are.
    job: The stage whose cost is printed; None for all in order.

  Raises:
    UserError: as `run` would.
  """
  _check_job(job)
  workdir = _named(workdir)
  _check_stores(config, workdir, job)
  check(config, None)
  vocab_size = _vocab_size(config)
  inputs = sources.list_files(config.corpus.sources)
  unverified = sources.without_checksums(inputs)
  stages = [
    (name, *facts)
    for name, *facts in _stages(config, workdir, vocab_size, inputs)
    if job in (None, name)
  ] or [(job, '', 'no cost is known')]
  if distributed.index():
    return  # One of them prints it.
  print(json.dumps(validation.to_plain(config), indent=1))
  mesh = mesh_lib.make_mesh(config.mesh)
  print(f'\nMesh {dict(mesh.shape)} of {jax.devices()[0].platform} devices')
  for name, model in (
    ('reference.model', config.reference.model),
    ('model', config.model),
  ):
    print(f'\n{name}: {flops.num_params(model, vocab_size):,} parameters')
    for line in _parameter_table(model, vocab_size, mesh):
      print(f'  {line}')
  print(f'\nStages in {workdir}')
  for name, state, cost in stages:
    print(f'  {name:16} {state:9} {cost}')
  for name in unverified:
    print(
      f'\nThe Parquet files of corpus.sources.{name} have no page checksums (as '
      'far as the first one shows): a damaged byte may read as other text. '
      'pyarrow writes them if asked: write_page_checksum=True.'
    )


def _parameter_table(
  model: ModelConfig, vocab_size: int, mesh: Any
) -> Iterator[str]:
  shapes = jax.tree_util.tree_leaves_with_path(
    network.param_shapes(model, vocab_size)
  )
  axes = jax.tree.leaves(
    network.param_axes(model, vocab_size),
    is_leaf=lambda node: isinstance(node, tuple),
  )
  for (path, leaf), names in zip(shapes, axes, strict=True):
    name = '.'.join(str(key.key) for key in path)
    yield (
      f'{name:28} {leaf.shape!s:20} {math.prod(leaf.shape):>12,}  '
      f'{" ".join(names)} -> {partitioning.spec(mesh, names)}'
    )


def _stages(
  config: Config,
  workdir: str,
  vocab_size: int,
  inputs: list[sources.InputFile],
) -> Iterator[tuple[str, str, str]]:
  """Name, state and cost of each stage."""
  store = artifacts.read_manifest(
    artifacts.token_store_dir(workdir), 'tokenize'
  )
  splits = store['splits'] if store else None
  size = quantity(sum(file.size for file in inputs))
  yield (
    'tokenize',
    _state('tokenize', [artifacts.token_store_dir(workdir)]),
    f'{len(inputs)} files, {size}B as stored',
  )
  yield from _score_stages(config, workdir, vocab_size, splits)
  yield 'select', '', f'{len(config.arms)} arms: {", ".join(config.arms)}'
  yield (
    'selection_report',
    '',
    os.path.join(artifacts.selection_report_dir(workdir), 'index.html'),
  )
  yield from _arm_stages(config, workdir, vocab_size, splits)
  yield 'report', '', os.path.join(artifacts.report_dir(workdir), 'index.html')


def _score_stages(
  config: Config,
  workdir: str,
  vocab_size: int,
  splits: Mapping[str, Any] | None,
) -> Iterator[tuple[str, str, str]]:
  """The stages that make scores; `splits` of the token store, if it is there."""
  folds = config.reference.folds
  scored = ('scored',) if folds == 1 else ('scored', 'reference')
  tokens = splits and sum(splits[name]['tokens'] for name in scored)
  yield (
    'statistics',
    _state('statistics', [artifacts.statistics_dir(workdir)]),
    _scoring_cost([], 1, vocab_size, tokens),
  )
  if 'near_duplicates' in _jobs(config):
    yield (
      'near_duplicates',
      _state('near_duplicates', [artifacts.near_duplicates_dir(workdir)]),
      _scoring_cost([], 1, vocab_size, tokens),
    )
  if config.reference.is_trained:
    paths = [artifacts.reference_dir(workdir, f, folds) for f in range(folds)]
    yield (
      'reference',
      _state('reference', paths),
      _training_cost(
        config.reference.model, config.reference.training, vocab_size, folds
      ),
    )
  yield (
    'score',
    _state('score', [artifacts.scores_dir(workdir)]),
    _scoring_cost(
      list(references.models(config).values()),
      config.score.row_length,
      vocab_size,
      tokens,
    ),
  )


def _arm_stages(
  config: Config,
  workdir: str,
  vocab_size: int,
  splits: Mapping[str, Any] | None,
) -> Iterator[tuple[str, str, str]]:
  """The stages that train the arms and evaluate them."""
  runs_of = [(a, s) for a in config.arms for s in config.train.seeds]
  yield (
    'train',
    _state('train', [artifacts.run_dir(workdir, a, s) for a, s in runs_of]),
    _training_cost(
      config.model, config.train.training, vocab_size, len(runs_of)
    ),
  )
  yield (
    'evaluate',
    _state(
      'evaluate', [artifacts.evaluation_dir(workdir, a, s) for a, s in runs_of]
    ),
    _scoring_cost(
      [config.model],
      config.evaluate.scoring.row_length,
      vocab_size,
      splits and splits['heldout']['tokens'] * len(runs_of),
    ),
  )


def _state(job: str, paths: list[str]) -> str:
  done = sum(artifacts.read_manifest(path, job) is not None for path in paths)
  if done == len(paths):
    return 'finished'
  return f'{done} of {len(paths)}' if done else 'to do'


def _training_cost(
  model: ModelConfig, training: TrainingConfig, vocab_size: int, runs_: int
) -> str:
  each = flops.training_flops_per_token(model, vocab_size, training.row_length)
  training = budget.in_steps(training, each, 'training')
  tokens = training.num_steps * training.tokens_per_step
  shapes = network.param_shapes(model, vocab_size)
  axes = network.param_axes(model, vocab_size)
  # Float32: parameters, a gradient, and its sum where there are parts.
  copies = 2 + (training.gradient_accumulation_steps > 1)
  memory = 4 * copies * flops.num_params(model, vocab_size)
  memory += optimizer.state_bytes(training, shapes, axes)
  return (
    f'{runs_} x {training.num_steps} steps, {quantity(tokens)} tokens, '
    f'{quantity(runs_ * tokens * each)} FLOPs, {quantity(memory)}B of state and '
    'gradients'
  )


def _scoring_cost(
  models: list[ModelConfig],
  row_length: int,
  vocab_size: int,
  tokens: int | None,
) -> str:
  if tokens is None:
    return 'tokens are known once the corpus is tokenized'
  each = sum(
    flops.forward_flops_per_token(model, vocab_size, row_length)
    for model in models
  )
  return f'{quantity(tokens)} tokens, {quantity(tokens * each)} FLOPs'
