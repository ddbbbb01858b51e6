"""An experiment as a graph of jobs, and what each costs.

A stage is a job. Training is a job for each arm and seed. Jobs that do not need
each other can run at the same time.
"""

import dataclasses
import hashlib
import re
from collections.abc import Iterable, Mapping

from infoprune_jax import costs, stages
from infoprune_jax.config.experiment import Config

_MAX_LABEL = 16  # characters


@dataclasses.dataclass(frozen=True)
class Job:
  """One run of `infoprune_jax.main`."""

  name: str  # lower-case letters, digits and -
  stage: str  # --job
  config: Config  # of its arms and seeds
  flags: tuple[str, ...] = ()  # that make the config of the experiment this one
  after: tuple[str, ...] = ()  # the names of the jobs that come before it
  # The config of what earlier jobs do for it, as when arms share steps.
  earlier: Config | None = None

  @property
  def needs_tpu(self) -> bool:
    """Whether its stage runs a model."""
    return stages.STAGES[self.stage].uses_models


def graph(config: Config) -> list[Job]:
  """The jobs of an experiment, each after those that it needs."""
  needed = stages.needed(config)
  jobs: list[Job] = []
  for stage in needed:
    before = _before(stage, needed)
    after = tuple(job.name for job in jobs if job.stage in before)
    if stage == 'train':
      jobs += _training(config, after)
    else:
      jobs.append(Job(_label(stage), stage, config, after=after))
  return jobs


def _before(stage: str, needed: Iterable[str]) -> set[str]:
  """The stages that a stage needs; in place of one that is left out, its own."""
  result = set()
  for other in stages.STAGES[stage].after:
    result |= {other} if other in needed else _before(other, needed)
  return result


def _training(config: Config, after: tuple[str, ...]) -> list[Job]:
  """A job for each arm and seed, and for the other budgets of each seed."""
  jobs = []
  for arm in config.arms:
    *origins, _ = chain = _chain(config, arm)
    for seed in config.train.seeds:
      jobs.append(
        _train_job(
          config,
          _train_name(arm, seed),
          dict(arms=chain, seeds=(seed,), budgets=()),
          dict(arms=tuple(origins)) if origins else {},
          after=(_train_name(origins[-1], seed),) if origins else after,
        )
      )
  baseline = config.report.baseline
  for seed in config.train.seeds if config.budget_arms else ():
    chain, budgets = _chain(config, baseline), config.train.budgets
    jobs.append(
      _train_job(
        config,
        _train_name(f'{baseline}-budgets', seed),
        dict(arms=chain, seeds=(seed,), budgets=budgets),
        dict(budgets=()),
        after=(_train_name(baseline, seed),),
      )
    )
  return jobs


def _train_job(
  config: Config,
  name: str,
  values: Mapping[str, tuple],
  of_earlier: Mapping[str, tuple],
  after: tuple[str, ...],
) -> Job:
  """A job of the stage `train` with other values of `config.train`.

  Args:
    config: The experiment.
    name: Of the job.
    values: Of its arms, seeds and budgets.
    of_earlier: Those that differ for what earlier jobs do; {} for nothing.
    after: The jobs before it.
  """
  own = _with(config, values)
  return Job(
    name,
    'train',
    own,
    tuple(f'--config.train.{key}={value!r}' for key, value in values.items()),
    after,
    _with(own, of_earlier) if of_earlier else None,
  )


def _with(config: Config, values: Mapping[str, tuple]) -> Config:
  train = dataclasses.replace(config.train, **values)
  return dataclasses.replace(config, train=train)


def _chain(config: Config, arm: str) -> tuple[str, ...]:
  """An arm, after the arms whose runs it starts from."""
  shared = config.select.shared(arm)
  return (*(_chain(config, shared.arm) if shared else ()), arm)


def _train_name(arm: str, seed: int) -> str:
  return f'train-{_label(arm)}-{seed}'


def _label(name: str) -> str:
  """A name as Kubernetes allows it; two names never give the same."""
  label = re.sub('[^a-z0-9]', '-', name)
  if re.fullmatch('[a-z0-9_]*', name) and len(name) <= _MAX_LABEL:
    return label
  digest = hashlib.sha256(name.encode()).hexdigest()[:6]
  return f'{label.lower()[: _MAX_LABEL - 7]}-{digest}'


def flops(job: Job, plan: costs.Plan) -> float:
  """The FLOPs of a job; 0.0 if it needs no TPU, or if they are not known.

  Args:
    job: The job.
    plan: Of the experiment.
  """
  cost = stages.STAGES[job.stage].cost
  if not job.needs_tpu or cost is None:
    return 0.0
  total = cost(dataclasses.replace(plan, config=job.config)).flops
  if job.earlier:
    total -= cost(dataclasses.replace(plan, config=job.earlier)).flops
  return total


def with_corpus_size(
  plan: costs.Plan, tokens: int, documents: int
) -> costs.Plan:
  """A plan for a corpus that is not tokenized yet, from its size.

  Args:
    plan: The plan; unchanged if the corpus is tokenized.
    tokens: Of the corpus.
    documents: Of the corpus.
  """
  if plan.splits is not None or not tokens:
    return plan
  corpus = plan.config.corpus
  fractions = {
    'reference': corpus.reference_fraction,
    'heldout': corpus.heldout_fraction,
  }
  fractions['scored'] = 1 - sum(fractions.values())
  splits = {
    name: {
      'tokens': round(fraction * tokens),
      'documents': round(fraction * documents),
    }
    for name, fraction in fractions.items()
  }
  return dataclasses.replace(plan, splits=splits)
