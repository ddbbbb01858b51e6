"""The runs of arms, and what is made with them, that a config asks for.

As `planned.py`, of which this is the part about training.
"""

from collections.abc import Iterable

from infoprune_jax import planned
from infoprune_jax.config.experiment import Config
from infoprune_jax.evaluate import downstream, perplexity, tasks
from infoprune_jax.runtime.lineage import Planned
from infoprune_jax.runtime.workdir import (
  keep_set_dir,
  run_dir,
  scores_dir,
  token_store_dir,
)
from infoprune_jax.score import references
from infoprune_jax.score.references import PlannedModel
from infoprune_jax.train import branches, own_scores, runs, token_weights


def own_scores_artifacts(config: Config, workdir: str) -> list[Planned]:
  """Of arms that score themselves: the runs that score, tables and keep sets."""
  size = planned.vocab_size(workdir)
  model = planned.if_reachable(lambda: references.arm_model(config, size))
  steps = planned.steps(config.train.training, model) if model else None
  made = []
  for arm in config.own_scored:
    made += _runs(config, workdir, branches.origins(config, arm))
    for seed in config.train.seeds:
      other = run_dir(workdir, config.select.branches[arm].arm, seed)
      table = own_scores.describe(config, workdir, arm, seed, steps, {})
      store = token_store_dir(workdir)
      made_from = {'token_store': store, own_scores.RUN: other}
      made.append(Planned(table, made_from))
      made.append(planned.keep_set(config, workdir, arm, seed))
  return list({one.path: one for one in made}.values())


def train_artifacts(config: Config, workdir: str) -> list[Planned]:
  """The run of each arm and seed."""
  return _runs(config, workdir, dict.fromkeys(arm for arm, _ in config.runs))


def _runs(config: Config, workdir: str, arms: Iterable[str]) -> list[Planned]:
  """The runs of some arms, for each seed."""
  wanted = [run for run in config.runs if run[0] in {*arms}]
  size = planned.vocab_size(workdir)
  initial = planned.if_reachable(lambda: references.initial_model(config))
  digests = {'initial': initial.fingerprint} if initial else {}
  model = planned.if_reachable(lambda: references.arm_model(config, size))
  steps = {arm: _steps_of_arm(config, workdir, model, arm) for arm, _ in wanted}
  of_all = planned.steps(config.train.training, model) if model else None
  return [
    Planned(
      runs.describe_arm(
        config, workdir, model and model.model, arm, seed, of_all, digests
      ),
      {
        'token_store': token_store_dir(workdir),
        **{
          name: keep_set_dir(workdir, selection)
          for name, selection in branches.keep_sets(config, arm, seed).items()
        },
        **token_weights.made_from(config, workdir, arm),
      },
      num_steps=steps[arm],
      budget_section='train.training',
      inputs_are_known=bool(initial or not config.train.init_from),
    )
    for arm, seed in wanted
  ]


def _steps_of_arm(
  config: Config, workdir: str, model: PlannedModel | None, arm: str
) -> int | None:
  """The steps of an arm; None if they are not known yet."""
  training = config.train.training
  steps = planned.steps(training, model) if model else None
  if model is None or steps is None:
    return steps
  steps = round(config.budget_arms.get(arm, 1.0) * steps)
  if not runs.is_longer(config, arm):
    return steps
  scores = planned.manifest(scores_dir(workdir), 'score')
  if scores is None or not model.vocab_size:
    return None
  return steps + runs.extra_steps(training, model, scores)


def check_branches(config: Config, workdir: str) -> None:
  """Checks runs that start from others, once nothing is stale.

  Raises:
    UserError: as `branches.check`.
  """
  size = planned.vocab_size(workdir)
  model = planned.if_reachable(lambda: references.arm_model(config, size))
  steps = planned.steps(config.train.training, model) if model else None
  if steps:  # They are known once there is a run.
    branches.check(config, workdir, steps)


def evaluate_artifacts(config: Config, workdir: str) -> list[Planned]:
  """The held-out losses of each run, and its results in tasks."""
  asked = planned.if_reachable(
    lambda: tasks.questions(config, downstream.read(config.evaluate.downstream))
  )
  made = []
  for arm, seed in config.runs:
    run = {'run': run_dir(workdir, arm, seed)}
    losses = perplexity.describe(config, workdir, arm, seed, {})
    store = {'token_store': token_store_dir(workdir)}
    made.append(Planned(losses, {**store, **run}))
    if config.evaluate.has_tasks and arm in config.arms:
      results = tasks.describe(config, workdir, arm, seed, asked or {})
      made.append(Planned(results, run, inputs_are_known=asked is not None))
  return made
