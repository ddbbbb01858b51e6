"""The table of stages: their order, inputs, outputs, costs and checks."""

import time

from infoprune_jax import checks, costs, planned, planned_runs
from infoprune_jax.config import validation
from infoprune_jax.config.experiment import Config
from infoprune_jax.config.validation import UserError
from infoprune_jax.evaluate import labels, perplexity, tasks
from infoprune_jax.export import job as export_job
from infoprune_jax.report.results import page as results_page
from infoprune_jax.report.selection import page as selection_page
from infoprune_jax.runtime import files, filesystems, lineage
from infoprune_jax.runtime.lineage import ArtifactState, StageState
from infoprune_jax.runtime.progress import alive, duration, logger
from infoprune_jax.score import loss_job, stage as score_stage
from infoprune_jax.selection import join, select
from infoprune_jax.stage import Stage, compare, settle
from infoprune_jax.statistics import (
  classify,
  decontaminate,
  duplicated_text,
  near_duplicates,
  statistics,
)
from infoprune_jax.tokens import tokenize
from infoprune_jax.train import own_scores, runs
from infoprune_jax.verify import workdir as verify_workdir


def _evaluate(config: Config, workdir: str) -> None:
  perplexity.run(config, workdir)
  tasks.run(config, workdir)


def _sweep(config: Config, workdir: str) -> None:
  select.run(config, workdir)
  selection_page.run(config, workdir)


STAGES = {
  'tokenize': Stage(
    run=tokenize.run,
    reads='the corpus',
    writes='`vocabulary/`, `token_store/`',
    about='whole documents as token ids; the split into reference, scored and '
    'held-out, by content, so that copies are in one split',
    cost=costs.tokenize,
    artifacts=planned.tokenize_artifacts,
    can_extend=True,
  ),
  'statistics': Stage(
    run=statistics.run,
    reads='token store',
    writes='`statistics/`',
    about='word frequencies and compressed sizes: no model, no JAX',
    cost=costs.statistics,
    after=('tokenize',),
    artifacts=planned.statistics_artifacts,
  ),
  'near_duplicates': Stage(
    run=near_duplicates.run,
    reads='token store',
    writes='`near_duplicates/`, `heldout_copies/`',
    about='which documents are near-duplicates, by MinHash, and which held-out '
    'ones have near-copies in other text; only if an arm uses them',
    cost=costs.statistics,
    after=('tokenize',),
    artifacts=planned.near_duplicates_artifacts,
  ),
  'duplicated_text': Stage(
    run=duplicated_text.run,
    reads='token store',
    writes='`duplicated_text/`',
    about='how many tokens of each scored example lie in windows of tokens that '
    'occur elsewhere, too; only if an arm uses them',
    cost=costs.statistics,
    after=('tokenize',),
    artifacts=planned.duplicated_text_artifacts,
  ),
  'decontaminate': Stage(
    run=decontaminate.run,
    reads='the corpus, token store; benchmarks, `select.decontaminate`',
    writes='`contamination/`',
    about='how many n-grams of each scored example are in a benchmark, and in '
    'which; only if there are benchmarks',
    cost=costs.decontaminate,
    after=('tokenize',),
    artifacts=planned.decontaminate_artifacts,
  ),
  'join': Stage(
    run=join.run,
    reads='token store; tables of yours, `select.tables`',
    writes='`tables/NAME/`',
    about='the columns of these tables for each scored example; only if there '
    'are such tables',
    cost=costs.join,
    after=('tokenize',),
    artifacts=planned.join_artifacts,
  ),
  'classify': Stage(
    run=classify.run,
    reads='token store, vocabulary; good and bad texts',
    writes='`classifiers/NAME/`',
    about='the log odds that each example is good, by the classifiers of '
    '`config.classifiers`',
    cost=costs.statistics,
    after=('tokenize',),
    artifacts=planned.classify_artifacts,
  ),
  'reference': Stage(
    run=runs.run_reference,
    reads='token store',
    writes='`reference/`',
    about='the model that scores, trained on the reference split; with '
    '`reference.folds=2` two models: each trains on one half of the documents '
    'that are not held out, and scores the other half',
    uses_models=True,
    many_hosts=True,
    cost=costs.reference,
    after=('tokenize',),
    artifacts=planned.reference_artifacts,
    can_extend=True,
  ),
  'score': Stage(
    run=score_stage.run,
    reads='token store, reference',
    writes='`scores/`',
    about='one record for each example: sums and counts',
    uses_models=True,
    many_hosts=True,
    cost=costs.score,
    after=('reference',),
    artifacts=planned.score_artifacts,
  ),
  'select': Stage(
    run=select.run,
    reads='scores, statistics',
    writes='`keep_sets/`',
    about='a bit or a count for each example and arm, and `summary.json`: what '
    'the arm keeps',
    cost=costs.select,
    after=(
      *('score', 'statistics', 'near_duplicates', 'duplicated_text'),
      *('decontaminate', 'join', 'classify'),
    ),
    artifacts=planned.select_artifacts,
  ),
  'own_scores': Stage(
    run=own_scores.run,
    reads='token store, keep sets, scores, statistics',
    writes='`own_scores/ARM/seed-N/`, `keep_sets/`, `train/ARM/seed-N/`',
    about='of arms that score with their own checkpoints: the run that they start '
    'from, the scores by its checkpoint, the keep set by these scores; only if '
    'there are such arms, see [Rules](rules.md#scores-by-the-checkpoint-itself)',
    uses_models=True,
    many_hosts=True,
    cost=costs.own_scores,
    after=('select',),
    artifacts=planned_runs.own_scores_artifacts,
    can_extend=True,
  ),
  'selection_report': Stage(
    run=selection_page.run,
    reads='keep sets, scores, statistics',
    writes='`selection_report/`',
    about='`index.html`, in one file, and `selections.json`: what each arm keeps '
    'and throws away, to read before training; `figures/`, `tables/`',
    cost=lambda plan: costs.Cost('selection_report/index.html'),
    after=('own_scores',),
    artifacts=planned.selection_report_artifacts,
    always_anew=True,
  ),
  'train': Stage(
    run=runs.run_arms,
    reads='token store, keep sets',
    writes='`train/ARM/seed-N/`',
    about='each arm for each seed at one budget; `metrics.jsonl`, TensorBoard, '
    'checkpoints',
    uses_models=True,
    many_hosts=True,
    cost=costs.train,
    after=('own_scores',),
    artifacts=planned_runs.train_artifacts,
    can_extend=True,
  ),
  'evaluate': Stage(
    run=_evaluate,
    reads='runs',
    writes='`evaluate/ARM/seed-N/`, `tasks/ARM/seed-N/`',
    about='the loss of every held-out document; the results of tasks, if '
    '`evaluate.downstream` or `evaluate.tasks` names some',
    uses_models=True,
    many_hosts=True,
    cost=costs.evaluate,
    after=('train',),
    artifacts=planned_runs.evaluate_artifacts,
  ),
  'report': Stage(
    run=results_page.run,
    reads='all of the above',
    writes='`report/`',
    about='`index.html`, in one file, `report.json`, `figures/` and `tables/`',
    cost=lambda plan: costs.Cost('report/index.html'),
    after=('selection_report', 'evaluate'),
    artifacts=planned.report_artifacts,
    always_anew=True,
  ),
  'sweep': Stage(
    run=_sweep,
    reads='scores, statistics',
    writes='`keep_sets/`, `selection_report/`',
    about='`select` and `selection_report` of arms that differ in their fraction '
    'alone, see [Rules](rules.md#choosing-a-fraction); on request alone',
    on_request=True,
    stands_for=('select', 'selection_report'),
  ),
  'export': Stage(
    run=export_job.run,
    reads='corpus, token store, scores, keep sets',
    writes='`export/ARM/FORMAT/`',
    about='what arms keep, for other programs; on request alone',
    on_request=True,
    after=('own_scores',),
    artifacts=planned.export_artifacts,
  ),
  'labels': Stage(
    run=labels.run,
    reads='token store, vocabulary, reference; pages that people judged',
    writes='`labels/`',
    about='how well scores tell the pages apart: AUC with intervals; on request '
    'alone',
    uses_models=True,
    on_request=True,
    after=('reference',),
    artifacts=planned.labels_artifacts,
  ),
  'loss': Stage(
    run=loss_job.run,
    reads='the corpus, `reference.checkpoint`',
    writes='`loss.json`',
    about='nats per token, perplexity and bits per byte of each source, and by '
    'position; nothing else is kept; on request alone',
    uses_models=True,
    on_request=True,
  ),
  'verify': Stage(
    run=lambda config, workdir: _verify(config, workdir),
    reads='all artifacts',
    writes='nothing',
    about='one line for each artifact; on request alone',
    many_hosts=True,
    on_request=True,
  ),
}
_WITH_BRANCHES = {'own_scores', 'train'}  # Their runs can start from others.
# The stages that can run without --job, see `needed`.
IN_ORDER = tuple(name for name in STAGES if not STAGES[name].on_request)


def run(
  config: Config,
  workdir: str,
  job: str | None,
  *,
  stale: str = 'refuse',
  extend: bool = False,
) -> None:
  """Runs one stage, or all in order; finished ones are skipped.

  Args:
    config: The experiment.
    workdir: The workdir of the experiment.
    job: A key of `STAGES`; None for all `IN_ORDER`.
    stale: What to do about artifacts of another config, one of
      `lineage.STALE`.
    extend: Whether finished training runs go on if the config now asks for more
      steps, and files that were added to the corpus become further shards.

  Raises:
    UserError: a stage raises it, or artifacts are stale.
  """
  check_job(job)
  checks.check_hosts(job, [n for n in STAGES if STAGES[n].many_hosts])
  workdir = prepare(config, workdir, job)
  names = jobs(config, job)
  is_open = settle(STAGES, config, workdir, names, stale, extend)
  if _WITH_BRANCHES & {*names}:
    planned_runs.check_branches(config, workdir)
  if job and STAGES[job].on_request:
    with alive(job):
      STAGES[job].run(config, workdir)
    return
  files.check_writable(workdir)
  for number, name in enumerate(names):
    start = time.monotonic()
    # What was made again may differ from what was there.
    if number and is_open:
      settle(STAGES, config, workdir, [name], stale, extend)
    options = {'extend': extend} if STAGES[name].can_extend else {}
    with alive(name):
      STAGES[name].run(config, workdir, **options)
    logger.info('%s: took %s', name, duration(time.monotonic() - start))


def state(
  name: str, config: Config, workdir: str, *, extend: bool = False
) -> StageState:
  """The state of a stage in a workdir: finished, to do, stale because ...

  Args:
    name: A key of `STAGES`.
    config: The experiment.
    workdir: Its workdir, as `prepare` gives it.
    extend: As for `run`.
  """
  _, own, by_path = compare(STAGES, config, workdir, [name], extend=extend)
  for one in own:
    if STAGES[name].always_anew and not by_path[one.path].causes:
      by_path[one.path] = ArtifactState(one.path, one.artifact.kind)
  how_far = lineage.stage_state(own, by_path)
  if name in _WITH_BRANCHES and how_far.kind not in ('stale', 'refused'):
    try:
      planned_runs.check_branches(config, workdir)
    except UserError as error:
      return StageState('refused', str(error))
  return how_far


def _verify(config: Config, workdir: str) -> None:
  _, _, by_path = compare(STAGES, config, workdir, STAGES)
  stale = {path: one.causes for path, one in by_path.items() if one.causes}
  verify_workdir.run(workdir, stale)


def prepare(config: Config, workdir: str, job: str | None) -> str:
  """Checks a job before any stage starts; returns the workdir's canonical name.

  Raises:
    UserError: the first problem.
  """
  check_job(job)
  workdir = filesystems.canonical(workdir)
  filesystems.check_utf8(workdir, '--workdir')
  checks.check_stores(config, workdir, job, {*jobs(config, job)})
  check(config, job, workdir)
  return workdir


def check_job(job: str | None) -> None:
  """Raises `UserError` unless there is such a stage; None means all stages."""
  if job is not None:
    validation.check_choice('--job', job, tuple(STAGES))


def needed(config: Config) -> list[str]:
  """The stages that run without --job."""
  without = checks.not_needed(config)
  return [name for name in IN_ORDER if name not in without]


def jobs(config: Config, job: str | None) -> list[str]:
  """The stages that a job runs, in order."""
  if job is None:
    return needed(config)
  return list(STAGES[job].stands_for) or [job]


def check(config: Config, job: str | None, workdir: str = '') -> None:
  """Checks a config before any stage starts.

  Raises:
    UserError: the first problem.
  """
  names = jobs(config, job)
  checks.check_splits(config, {*names})
  if any(STAGES[name].uses_models for name in names):
    checks.check_models(config, {*names})
  checks.check_rules(config, workdir, {*names})
  checks.check_stages(config, {*names, job})
