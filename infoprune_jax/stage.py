"""The description of a stage, of which `stages.py` has a table."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

from infoprune_jax import costs
from infoprune_jax.config.experiment import Config
from infoprune_jax.runtime import distributed, lineage
from infoprune_jax.runtime.lineage import ArtifactState, Planned


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
  """What `--job` runs. The texts are the table in docs/artifacts.md."""

  run: Callable[..., None]  # with the config and the workdir
  reads: str
  writes: str
  about: str
  # Runs on devices: config.mesh and the models are checked.
  uses_models: bool = False
  many_hosts: bool = False  # Several processes can run it together.
  on_request: bool = False  # Runs only if --job names it.
  stands_for: tuple[str, ...] = ()  # the stages that it runs; () for itself
  # The stages that make what it reads.
  after: tuple[str, ...] = ()
  artifacts: Callable[[Config, str], list[Planned]] = lambda config, workdir: []
  always_anew: bool = False  # It is quick, and never skipped.
  can_extend: bool = False  # `run` takes `extend`.
  # What it costs, for the dry run; None if that is not known.
  cost: Callable[[costs.Plan], costs.Cost] | None = None


def compare(
  table: Mapping[str, Stage],
  config: Config,
  workdir: str,
  names: Iterable[str],
  *,
  extend: bool = False,
) -> tuple[list[Planned], list[Planned], dict[str, ArtifactState]]:
  """Compares artifacts of stages with a config.

  Args:
    table: All stages, in order.
    config: The experiment.
    workdir: Its workdir.
    names: The stages.
    extend: As for `stages.run`.

  Returns:
    What the stages write, after all that it is made from; of that, what they
    write themselves; and the state of each artifact, by path.
  """
  wanted, names = {*names}, {*names}
  for name in reversed([*table]):
    if name in wanted:
      wanted.update(table[name].after)
  listed = {
    name: table[name].artifacts(config, workdir)
    for name in table
    if name in wanted
  }
  paths = {one.path for name in names for one in listed[name]}
  # A run that two stages list is where the first has it.
  every = {one.path: one for name in listed for one in listed[name]}
  artifacts = [*every.values()]
  own = [one for one in artifacts if one.path in paths]
  artifacts = lineage.upstream(artifacts, own)
  return artifacts, own, lineage.states(artifacts, extend=extend, made=paths)


def settle(
  table: Mapping[str, Stage],
  config: Config,
  workdir: str,
  names: Sequence[str],
  stale: str,
  extend: bool,
) -> bool:
  """Refuses or deletes, on process 0, what stages find stale.

  Args:
    table: All stages, in order.
    config: The experiment.
    workdir: Its workdir.
    names: The stages.
    stale: One of `lineage.STALE`.
    extend: As for `stages.run`.

  Returns:
    Whether anything that they read or write is not finished.

  Raises:
    UserError: as `lineage.settle`.
  """

  def on_first() -> bool:
    artifacts, own, by_path = compare(
      table, config, workdir, names, extend=extend
    )
    for one in own:
      if table[one.artifact.job].always_anew:
        del by_path[one.path]
    lineage.settle(artifacts, by_path, own, stale, workdir)
    return any(
      one.causes or one.last_step or one.growth or not one.is_finished
      for one in by_path.values()
    )

  return distributed.on_first(f'what is stale of {" ".join(names)}', on_first)
