"""The description of a stage, of which `stages.py` has a table."""

import dataclasses
from collections.abc import Callable

from infoprune_jax import costs
from infoprune_jax.config.experiment import Config
from infoprune_jax.runtime.lineage import Planned


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
