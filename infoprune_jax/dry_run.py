"""What a job would do and cost, printed before anything is done."""

import json
import math
from collections.abc import Iterator
from typing import Any, cast

import jax

from infoprune_jax import costs, stages
from infoprune_jax.config import validation
from infoprune_jax.config.experiment import Config
from infoprune_jax.config.model import ModelConfig
from infoprune_jax.corpus import sources
from infoprune_jax.model import flops, mesh as mesh_lib, network, partitioning
from infoprune_jax.runtime import distributed, manifests
from infoprune_jax.runtime.workdir import token_store_dir
from infoprune_jax.tokens.token_store import StoreManifest


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
  splits = cast(StoreManifest, store)['splits'] if store else None
  plan = costs.Plan(config, workdir, vocab_size, inputs, splits)
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
