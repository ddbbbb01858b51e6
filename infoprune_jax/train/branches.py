"""Arms with several phases, and runs that start from another run."""

import dataclasses
from collections.abc import Collection
from typing import Any

from infoprune_jax.config.experiment import Config
from infoprune_jax.config.training import TrainingConfig
from infoprune_jax.config.validation import UserError
from infoprune_jax.model import checkpoints
from infoprune_jax.runtime import manifests
from infoprune_jax.runtime.options import UNKNOWN
from infoprune_jax.runtime.workdir import run_dir
from infoprune_jax.selection.keep_set import (
  KeepSet,
  selection_job,
  selection_name,
)
from infoprune_jax.tokens.token_store import TokenStore


@dataclasses.dataclass(frozen=True)
class Start:
  """The checkpoint of another run, which a run starts from."""

  path: str  # of the other run
  step: int


def phase_steps(config: Config, arm: str, num_steps: int) -> tuple[int, ...]:
  """The step after which each phase of an arm starts, from 0 on.

  Raises:
    UserError: there are too few steps for the phases.
  """
  starts = [at for at, _ in config.select.phases(arm)]
  steps = tuple(round(at * num_steps) for at in starts)
  if len({*steps, num_steps}) <= len(steps):
    raise UserError(
      f'select.arms.{arm}: its phases start at {", ".join(map(str, starts))} of '
      f'{num_steps} steps, which leaves one without a step: train longer, or '
      'give other fractions.'
    )
  return steps


def options(config: Config, arm: str, num_steps: int | None) -> dict[str, Any]:
  """The options of a run that are about phases and what it starts from.

  Args:
    config: The experiment.
    arm: The arm.
    num_steps: At the budget of all arms; None if not known.
  """
  branches = config.select.branches
  if num_steps is None:
    names = ['phases'] if arm in branches else []
    return dict.fromkeys([*names, 'branch_of'], UNKNOWN)
  values = {}
  if arm in branches:
    values['phases'] = list(phase_steps(config, arm, num_steps))
  if begins := origin(config, arm, num_steps):
    values['branch_of'] = begins[0]
  return values


def keep_sets(config: Config, arm: str, seed: int) -> dict[str, str]:
  """The keep sets of a run in the order of its phases, by input name."""
  baseline = config.report.baseline
  last = baseline if arm in config.budget_arms else arm
  names = {}
  for _, one in config.select.phases(last):
    name = 'keep_set' if one == arm else f'keep_set/{one}'
    names[name] = selection_name(config.select, one, seed)
  return names


def open_keep_sets(
  config: Config, workdir: str, store: TokenStore, arm: str, seed: int
) -> dict[str, KeepSet]:
  """The keep sets that `keep_sets` names, by input name.

  Raises:
    UserError: one is missing, was made for another store, or is damaged.
  """
  jobs = {
    selection_name(config.select, one, seed): selection_job(config.select, one)
    for one in config.select.arms
  }
  return {
    name: KeepSet.open(workdir, selection, store, jobs[selection])
    for name, selection in keep_sets(config, arm, seed).items()
  }


def training(
  config: Config, arm: str, of_all: TrainingConfig
) -> TrainingConfig:
  """The training of an arm, at its budget.

  Args:
    config: The experiment.
    arm: The arm.
    of_all: That of all arms, with its budget in steps.

  Raises:
    UserError: the budget is too small.
  """
  budget = config.budget_arms.get(arm, 1.0)
  steps = round(budget * of_all.num_steps)
  try:
    return dataclasses.replace(of_all, num_steps=steps)
  except UserError as error:
    raise UserError(
      f'train.budgets: {budget:g} comes to {steps} steps: {error}'
    ) from None


def origin(config: Config, arm: str, num_steps: int) -> tuple[str, int] | None:
  """The arm whose run an arm's run starts from, and the step.

  The baseline at another budget starts where its learning rate, or that of the
  next smaller budget, begins to decay.

  Args:
    config: The experiment.
    arm: The arm.
    num_steps: At the budget of all arms.

  Returns:
    None if the run takes all steps itself.

  Raises:
    UserError: a budget leaves no step to share, or none to decay.
  """
  budget = config.budget_arms.get(arm)
  if budget is None:
    shared = config.select.shared(arm)
    return (shared.arm, round(shared.at * num_steps)) if shared else None
  smaller = max(
    (b for b in config.train.budgets if 1.0 <= b < budget), default=1
  )
  names = {b: name for name, b in config.budget_arms.items()}
  other = names.get(smaller, config.report.baseline)
  decays = arm if budget < 1.0 else other
  of_all = dataclasses.replace(
    config.train.training, num_steps=num_steps, num_tokens=0, num_flops=0.0
  )
  own = training(config, arm, of_all)
  ends = training(config, decays, of_all)
  step = ends.num_steps - ends.decay_steps
  if not 0 < step < own.num_steps:
    raise UserError(
      f'train.budgets: {budget:g} comes to {own.num_steps} steps, which leaves '
      'none to share, or none to decay: train longer, or raise decay_fraction.'
    )
  return other, step


def origins(config: Config, arm: str) -> list[str]:
  """The arms whose runs an arm's run needs: its origin, and what that needs."""
  names: list[str] = []
  while branch := config.select.shared(names[-1] if names else arm):
    names.append(branch.arm)
  return names


def start(
  config: Config, workdir: str, arm: str, seed: int, num_steps: int
) -> Start | None:
  """The checkpoint that a run starts from; None if it is no other run's."""
  begins = origin(config, arm, num_steps)
  return Start(run_dir(workdir, begins[0], seed), begins[1]) if begins else None


def kept_steps(config: Config, arm: str, num_steps: int) -> frozenset[int]:
  """The steps of an arm's run that runs of other arms start from."""
  origins = (origin(config, other, num_steps) for other, _ in config.runs)
  return frozenset(one[1] for one in origins if one and one[0] == arm)


def in_order(
  config: Config, arms: Collection[str] = ()
) -> list[tuple[str, int]]:
  """Arm and seed of each run; runs come after those that they start from.

  Args:
    config: The experiment.
    arms: Those to list; () for all.
  """
  return sorted(
    (run for run in config.runs if not arms or run[0] in arms),
    # Runs at smaller budgets come first, and after them those that need them.
    key=lambda run: (
      len(config.select.phases(run[0])),
      run[0] in config.budget_arms,
    ),
  )


def check(config: Config, workdir: str, num_steps: int) -> None:
  """Checks that each run finds the checkpoint that it starts from.

  Raises:
    UserError: the other run is beyond that step, and did not keep it.
  """
  for arm, seed in config.runs:
    begin = start(config, workdir, arm, seed, num_steps)
    own = run_dir(workdir, arm, seed)
    if begin and not _has_begun(own):
      _check_start(f'The run of {arm}, seed {seed},', begin)


def _has_begun(run: str) -> bool:
  """Whether a run has a checkpoint or a manifest of its own."""
  return bool(checkpoints.steps(run) or manifests.read_manifest(run, 'train'))


def _check_start(name: str, begin: Start) -> None:
  saved = checkpoints.steps(begin.path)
  if begin.step in saved or all(step < begin.step for step in saved):
    return
  raise UserError(
    f'{name} starts from step {begin.step} of {begin.path}, which has no '
    f'checkpoint of it (there are: {saved}), as it was trained before the '
    f'config asked for it. Delete {begin.path} to train it again. An arm of '
    'base.phases takes those steps itself, with the same result.'
  )
