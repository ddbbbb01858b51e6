"""The dry run: prints what a job would do and cost, and does nothing."""

import json
import math
import posixpath
from collections.abc import Iterator, Mapping
from typing import Any, cast

import jax

from infoprune_jax import costs, stages
from infoprune_jax.config import validation
from infoprune_jax.config.experiment import Config
from infoprune_jax.config.model import ModelConfig
from infoprune_jax.corpus import sources
from infoprune_jax.export import job as export_job
from infoprune_jax.model import flops, mesh as mesh_lib, network, partitioning
from infoprune_jax.report.selection import rules_as_text
from infoprune_jax.runtime import distributed, manifests
from infoprune_jax.runtime.progress import counted, duration, quantity
from infoprune_jax.runtime.workdir import token_store_dir
from infoprune_jax.score import references
from infoprune_jax.score.references import PlannedModel
from infoprune_jax.tokens.token_store import StoreManifest
from infoprune_jax.train import timing

_RULE_WIDTH = 72  # characters of an arm's rules; all of them are in the config
_EXPORT = (None, 'export')  # The whole job, as an export often follows it.


def run(
  config: Config,
  workdir: str,
  job: str | None = None,
  *,
  full: bool = False,
  extend: bool = False,
) -> None:
  """Prints stages with state and cost, and arms: a line each.

  Args:
    config: The experiment.
    workdir: The workdir of the experiment.
    job: The stage whose cost is printed; None for all in order.
    full: Also prints all options, the mesh, and the parameters of the models
      with their shardings.
    extend: As for `stages.run`.

  Raises:
    UserError: `stages.run` would raise it.
  """
  workdir = stages.prepare(config, workdir, job)
  plan = make_plan(config, workdir)
  lines = [
    *(_details(plan) if full else ()),
    *_summary(plan, job, full, extend),
  ]
  if distributed.index() == 0:
    print('\n'.join(lines))


def make_plan(config: Config, workdir: str) -> costs.Plan:
  """The inputs of the costs of stages, read from the corpus and the workdir."""
  vocab_size = references.vocab_size(config)
  inputs = sources.list_files(config.corpus.sources)
  store = manifests.read_manifest(token_store_dir(workdir), 'tokenize')
  return costs.Plan(
    config,
    workdir,
    vocab_size,
    references.planned(config),
    references.arm_model(config, vocab_size),
    inputs,
    sources.without_checksums(inputs),
    export_job.refusals(config, inputs),
    cast(StoreManifest, store)['splits'] if store else None,
  )


def _summary(
  plan: costs.Plan, job: str | None, full: bool, extend: bool
) -> Iterator[str]:
  """At most 20 lines for 8 arms: the job, its stages, the rate and the arms."""
  config = plan.config
  devices = counted(jax.device_count(), f'{jax.devices()[0].platform} device')
  more = '' if full else ' For options, shapes and shardings: --dry_run=full'
  yield f'Dry run of {plan.workdir} on {devices}.{more}'
  rate = timing.last_rate(
    run.path
    for name in ('reference', 'train')
    for run in stages.STAGES[name].artifacts(config, plan.workdir)
  )
  has_times = False
  for name in stages.jobs(config, job):
    stage = stages.STAGES[name]
    state = stages.state(name, config, plan.workdir, extend=extend)
    cost = stage.cost(plan) if stage.cost else costs.Cost('no cost is known')
    has_times |= cost.flops > 0 and state.kind != 'finished'
    because = 'because ' if state.kind in ('stale', 'refused') else ''
    reason = f'{because}{state.reason}; ' if state.reason else ''
    figures = cost.text + _time(cost.flops, state.kind, rate)
    yield f'  {name:16} {state.kind:9} {reason}{figures}'
    if name == 'select':
      yield from _arm_lines(config)
  if has_times and rate:
    run = posixpath.relpath(rate.run, plan.workdir)
    reached = quantity(rate.flops_per_second, 'FLOP/s')
    yield f'Times are for {reached}, the rate of the last training here, {run}.'
  elif has_times:
    yield 'Times are unknown until this workdir has a run that shows the rate.'
  for problem in plan.unwritten if job in _EXPORT else ():
    yield f'--job=export: {problem}'


def _time(flops: float, state: str, rate: timing.SeenRate | None) -> str:
  """FLOPs, and their time for a stage that is not finished."""
  if not flops:
    return ''
  text = f', {quantity(flops, "FLOP")}'
  if state == 'finished' or not rate:
    return text
  return f'{text}, {duration(flops / rate.flops_per_second)}'


def _arm_lines(config: Config) -> Iterator[str]:
  width = max(map(len, config.select.arms))
  for arm in config.select.arms:
    rules = rules_as_text.describe_arm(config.select, arm)
    rules = ' '.join(rules.split())
    if len(rules) > _RULE_WIDTH:
      rules = f'{rules[: _RULE_WIDTH - 4]} ...'
    only = '' if arm in config.arms else ' (not trained)'
    only = only if arm in config.select.trained else ' (a phase)'
    yield f'    {arm:{width}} {rules}{only}'


def _details(plan: costs.Plan) -> Iterator[str]:
  """All options, the mesh, and the parameters of the models."""
  config, vocab_size = plan.config, plan.vocab_size
  yield f'{json.dumps(validation.to_plain(config), indent=1)}\n'
  mesh = mesh_lib.make_mesh(config.mesh)
  yield f'Mesh {dict(mesh.shape)} of {jax.devices()[0].platform} devices\n'
  for name, one in _models(config, vocab_size, plan.models).items():
    num_params = flops.num_params(one.model, one.vocab_size)
    yield f'{name}: {num_params:,} parameters'
    for line in _parameter_table(one.model, one.vocab_size, mesh):
      yield f'  {line}'
    yield ''
  for name in plan.unverified:
    yield (
      f'The first Parquet file of corpus.sources.{name} has no page '
      'checksums: a damaged byte may read as other text. To write checksums '
      'with pyarrow, set write_page_checksum=True.\n'
    )


def _models(
  config: Config, vocab_size: int, scoring: Mapping[str, PlannedModel]
) -> dict[str, PlannedModel]:
  """The models that the stages use, by what they are called."""
  models = {
    f'reference model of {column}': scoring[column]
    for column, checkpoint in config.reference.checkpoints.items()
    if checkpoint.path
  }
  if config.reference.is_trained:
    reference = PlannedModel(config.reference.model, vocab_size)
    models['reference.model'] = reference
  if 'train' in stages.needed(config):
    models['model'] = references.arm_model(config, vocab_size)
  return models


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
    spread = mesh.divided_axes(names, leaf.shape)
    name = '.'.join(str(key.key) for key in path)
    yield (
      f'{name:28} {leaf.shape!s:20} {math.prod(leaf.shape):>12,}  '
      f'{" ".join(names)} -> {partitioning.spec(mesh, spread)}'
    )
