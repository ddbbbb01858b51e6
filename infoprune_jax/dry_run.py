"""What a job would do and cost, printed before anything is done."""

import json
import math
from collections.abc import Iterator
from typing import Any

import jax

from infoprune_jax import costs, stages
from infoprune_jax.config import validation
from infoprune_jax.config.experiment import Config
from infoprune_jax.config.model import ModelConfig
from infoprune_jax.corpus import sources
from infoprune_jax.model import flops, mesh as mesh_lib, network, partitioning
from infoprune_jax.runtime import distributed, manifests
from infoprune_jax.runtime.progress import quantity
from infoprune_jax.runtime.workdir import (
  evaluation_dir,
  near_duplicates_dir,
  reference_dir,
  report_dir,
  run_dir,
  scores_dir,
  selection_report_dir,
  statistics_dir,
  token_store_dir,
)
from infoprune_jax.score import references
from infoprune_jax.train import optimizer


def run(config: Config, workdir: str, job: str | None = None) -> None:
  """Prints the config, the mesh, the parameters and the cost of stages.

  Args:
    config: The experiment.
    workdir: Where its artifacts are.
    job: The stage whose cost is printed; None for all in order.

  Raises:
    UserError: as `stages.run` would.
  """
  stages.check_job(job)
  workdir = stages.named(workdir)
  stages.check_stores(config, workdir, job)
  stages.check(config, None)
  vocab_size = stages.vocab_size(config)
  inputs = sources.list_files(config.corpus.sources)
  unverified = sources.without_checksums(inputs)
  lines = list(_stage_lines(config, workdir, job, vocab_size, inputs))
  if distributed.index():
    return  # The first process prints.
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
  for line in lines:
    print(f'  {line}')
  for name in unverified:
    print(
      f'\nThe Parquet files of corpus.sources.{name} have no page checksums (as '
      'far as the first file shows): a damaged byte may read as other text. '
      'pyarrow writes checksums if asked: write_page_checksum=True.'
    )


def _stage_lines(
  config: Config,
  workdir: str,
  job: str | None,
  vocab_size: int,
  inputs: list[sources.InputFile],
) -> Iterator[str]:
  """Name, state and cost of each stage, as the table of stages has them."""
  store = manifests.read_manifest(token_store_dir(workdir), 'tokenize')
  plan = costs.Plan(
    config, workdir, vocab_size, inputs, store['splits'] if store else None
  )
  for name in (job,) if job else stages.needed(config):
    stage = stages.STAGES[name]
    state = stage.state(name, config, workdir)
    cost = stage.cost(plan) if stage.cost else 'no cost is known'
    yield f'{name:16} {state:9} {cost}'


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


def _costs(
  config: Config,
  workdir: str,
  vocab_size: int,
  inputs: list[sources.InputFile],
) -> Iterator[tuple[str, str, str]]:
  """Name, state and cost of each stage."""
  store = manifests.read_manifest(token_store_dir(workdir), 'tokenize')
  splits = store['splits'] if store else None
  size = quantity(sum(file.size for file in inputs))
  yield (
    'tokenize',
    _state('tokenize', [token_store_dir(workdir)]),
    f'{len(inputs)} files, {size}B as stored',
  )
  yield from _score_costs(config, workdir, vocab_size, splits)
  yield 'select', '', f'{len(config.arms)} arms: {", ".join(config.arms)}'
  yield (
    'selection_report',
    '',
    os.path.join(selection_report_dir(workdir), 'index.html'),
  )
  yield from _arm_costs(config, workdir, vocab_size, splits)
  yield 'report', '', os.path.join(report_dir(workdir), 'index.html')


def _score_costs(
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
    _state('statistics', [statistics_dir(workdir)]),
    _scoring_cost([], 1, vocab_size, tokens),
  )
  if 'near_duplicates' in stages.needed(config):
    yield (
      'near_duplicates',
      _state('near_duplicates', [near_duplicates_dir(workdir)]),
      _scoring_cost([], 1, vocab_size, tokens),
    )
  if config.reference.is_trained:
    paths = [reference_dir(workdir, f, folds) for f in range(folds)]
    yield (
      'reference',
      _state('reference', paths),
      _training_cost(
        config.reference.model, config.reference.training, vocab_size, folds
      ),
    )
  yield (
    'score',
    _state('score', [scores_dir(workdir)]),
    _scoring_cost(
      list(references.models(config).values()),
      config.score.sequence_length,
      vocab_size,
      tokens,
    ),
  )


def _arm_costs(
  config: Config,
  workdir: str,
  vocab_size: int,
  splits: Mapping[str, Any] | None,
) -> Iterator[tuple[str, str, str]]:
  """The stages that train the arms and evaluate them."""
  runs_of = [(a, s) for a in config.arms for s in config.train.seeds]
  yield (
    'train',
    _state('train', [run_dir(workdir, a, s) for a, s in runs_of]),
    _training_cost(
      config.model, config.train.training, vocab_size, len(runs_of)
    ),
  )
  yield (
    'evaluate',
    _state('evaluate', [evaluation_dir(workdir, a, s) for a, s in runs_of]),
    _scoring_cost(
      [config.model],
      config.evaluate.scoring.sequence_length,
      vocab_size,
      splits and splits['heldout']['tokens'] * len(runs_of),
    ),
  )


def _state(job: str, paths: list[str]) -> str:
  done = sum(manifests.read_manifest(path, job) is not None for path in paths)
  if done == len(paths):
    return 'finished'
  return f'{done} of {len(paths)}' if done else 'to do'


def _training_cost(
  model: ModelConfig, training: TrainingConfig, vocab_size: int, runs_: int
) -> str:
  each = flops.training_flops_per_token(
    model, vocab_size, training.sequence_length
  )
  training = training.in_steps(each, 'training')
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
  sequence_length: int,
  vocab_size: int,
  tokens: int | None,
) -> str:
  if tokens is None:
    return 'tokens are known once the corpus is tokenized'
  each = sum(
    flops.forward_flops_per_token(model, vocab_size, sequence_length)
    for model in models
  )
  return f'{quantity(tokens)} tokens, {quantity(tokens * each)} FLOPs'
