"""The table of stages: what each reads, writes and costs, their order, the checks."""

import dataclasses
import time
from collections.abc import Callable, Sequence

from infoprune_jax import costs
from infoprune_jax.config import validation
from infoprune_jax.config.experiment import Config
from infoprune_jax.config.validation import UserError
from infoprune_jax.corpus import paths, quiet_tensorflow
from infoprune_jax.evaluate import labels, perplexity
from infoprune_jax.export import job as export_job
from infoprune_jax.model import flops, mesh as mesh_lib, partitioning
from infoprune_jax.report.results import page as results_page
from infoprune_jax.report.selection import page as selection_page
from infoprune_jax.runtime import (
  distributed,
  drivers,
  files,
  filesystems,
  manifests,
)
from infoprune_jax.runtime.progress import duration, logger
from infoprune_jax.runtime.workdir import (
  evaluation_dir,
  near_duplicates_dir,
  report_dir,
  run_dir,
  scores_dir,
  selection_report_dir,
  statistics_dir,
  token_store_dir,
)
from infoprune_jax.score import references, scorer, stage
from infoprune_jax.selection import rules, select
from infoprune_jax.statistics import near_duplicates, statistics
from infoprune_jax.tokens import tokenize, vocabulary_files
from infoprune_jax.train import metrics, runs, state as state_lib
from infoprune_jax.verify import workdir as verify_workdir


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
  """One stage: what `--job` runs.

  The texts are the table in docs/artifacts.md.
  """

  run: Callable[[Config, str], None]  # with the config and the workdir
  reads: str
  writes: str
  about: str
  # On devices: config.mesh and the models are checked.
  uses_models: bool = False
  many_hosts: bool = False  # Several processes can do it together.
  on_request: bool = False  # Only where --job names it.
  # For the dry run: what the stage costs, None if that is not known, and the
  # folders of its artifacts, () if it is quick.
  cost: Callable[[costs.Plan], str] | None = None
  folders: Callable[[Config, str], Sequence[str]] = lambda config, workdir: ()

  def state(self, name: str, config: Config, workdir: str) -> str:
    """'finished', 'to do' or '1 of 2'; '' for a stage without `folders`."""
    folders = self.folders(config, workdir)
    done = sum(
      manifests.read_manifest(folder, name) is not None for folder in folders
    )
    if done == len(folders):
      return 'finished' if folders else ''
    return f'{done} of {len(folders)}' if done else 'to do'


STAGES = {
  'tokenize': Stage(
    run=tokenize.run,
    reads='the corpus',
    writes='`vocabulary/`, `token_store/`',
    about='whole documents as token ids; the split into reference, scored and '
    'held-out, by content, so that copies fall on one side',
    cost=costs.tokenize,
    folders=lambda config, workdir: [token_store_dir(workdir)],
  ),
  'statistics': Stage(
    run=statistics.run,
    reads='token store',
    writes='`statistics/`',
    about='what takes no model, by processes without JAX: word frequencies, '
    'compressed sizes',
    cost=costs.statistics,
    folders=lambda config, workdir: [statistics_dir(workdir)],
  ),
  'near_duplicates': Stage(
    run=near_duplicates.run,
    reads='token store',
    writes='`near_duplicates/`',
    about='which documents are near-duplicates, by MinHash; only where an arm '
    'asks',
    cost=costs.statistics,
    folders=lambda config, workdir: [near_duplicates_dir(workdir)],
  ),
  'reference': Stage(
    run=runs.run_reference,
    reads='token store',
    writes='`reference/`',
    about='the model that scores, trained on the reference split; with '
    '`reference.folds=2` two models, each trained on one half of all that is '
    'not held out, to score the other half',
    uses_models=True,
    many_hosts=True,
    cost=costs.reference,
    folders=costs.reference_folders,
  ),
  'score': Stage(
    run=stage.run,
    reads='token store, reference',
    writes='`scores/`',
    about='one record for each example: sums and counts',
    uses_models=True,
    many_hosts=True,
    cost=costs.score,
    folders=lambda config, workdir: [scores_dir(workdir)],
  ),
  'select': Stage(
    run=select.run,
    reads='scores, statistics',
    writes='`keep_sets/`',
    about='one bit for each example and arm, and `summary.json`: what the arm '
    'keeps',
    cost=costs.select,
  ),
  'selection_report': Stage(
    run=selection_page.run,
    reads='keep sets, scores, statistics',
    writes='`selection_report/`',
    about='`index.html`, in one file, and `selections.json`: what each arm keeps '
    'and throws away, to decide by before anything is trained',
    cost=lambda plan: f'{selection_report_dir(plan.workdir)}/index.html',
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
    folders=lambda config, workdir: [
      run_dir(workdir, arm, seed) for arm, seed in config.runs
    ],
  ),
  'evaluate': Stage(
    run=perplexity.run,
    reads='runs',
    writes='`evaluate/ARM/seed-N/`',
    about='the loss of every held-out document',
    uses_models=True,
    many_hosts=True,
    cost=costs.evaluate,
    folders=lambda config, workdir: [
      evaluation_dir(workdir, arm, seed) for arm, seed in config.runs
    ],
  ),
  'report': Stage(
    run=results_page.run,
    reads='all of it',
    writes='`report/`',
    about='`index.html`, in one file, and `report.json`',
    cost=lambda plan: f'{report_dir(plan.workdir)}/index.html',
  ),
  'export': Stage(
    run=export_job.run,
    reads='corpus, token store, scores, keep sets',
    writes='`export/ARM/FORMAT/`',
    about='what arms keep, for other programs; on request alone',
    on_request=True,
  ),
  'labels': Stage(
    run=labels.run,
    reads='token store, vocabulary, reference; pages that people judged',
    writes='`labels/`',
    about='how well scores tell the pages apart: AUC with intervals; on request '
    'alone',
    uses_models=True,
    on_request=True,
  ),
  'verify': Stage(
    run=verify_workdir.run,
    reads='whatever is there',
    writes='nothing',
    about='one line for each artifact; on request alone',
    many_hosts=True,
    on_request=True,
  ),
}
# What runs without --job.
IN_ORDER = tuple(name for name in STAGES if not STAGES[name].on_request)


def run(config: Config, workdir: str, job: str | None) -> None:
  """Runs one stage, or all in order; finished ones are skipped.

  Args:
    config: The experiment.
    workdir: Where its artifacts are.
    job: A key of `STAGES`; None for all `IN_ORDER`.

  Raises:
    UserError: as the stages do.
  """
  workdir = named(workdir)
  check_job(job)
  if distributed.count() > 1 and not (job and STAGES[job].many_hosts):
    able = [name for name in STAGES if STAGES[name].many_hosts]
    raise UserError(
      f'--job={job or "(all)"} does not run on {distributed.count()} processes yet: '
      f'{" and ".join(f"--job={name}" for name in able)} do. Run the '
      'others on one host, in a --workdir that all hosts see.'
    )
  check_stores(config, workdir, job)
  check(config, job)
  if job and STAGES[job].on_request:
    STAGES[job].run(config, workdir)
    return
  files.check_writable(workdir)
  for name in (job,) if job else needed(config):
    start = time.monotonic()
    STAGES[name].run(config, workdir)
    logger.info('%s: took %s', name, duration(time.monotonic() - start))


def named(workdir: str) -> str:
  """The workdir by its one name, however it was spelled.

  Raises:
    UserError: the name is not UTF-8.
  """
  workdir = filesystems.canonical(workdir)
  filesystems.check_utf8(workdir, '--workdir')
  return workdir


def check_stores(config: Config, workdir: str, job: str | None) -> None:
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


def check_job(job: str | None) -> None:
  """Raises `UserError` unless there is such a stage; None is all of them."""
  if job is not None:
    validation.check_choice('--job', job, tuple(STAGES))


def needed(config: Config) -> list[str]:
  """The stages that a config needs."""
  names = list(IN_ORDER)
  if not any(
    rules.reads_near_duplicates(config.select.arms[arm]) for arm in config.arms
  ):
    names.remove('near_duplicates')
  return names


def check(config: Config, job: str | None) -> None:
  """Finds what can be wrong with a config before any stage starts.

  Raises:
    UserError: the first thing found.
  """
  if job is None or STAGES[job].uses_models:
    distributed.check_devices()
    mesh = mesh_lib.make_mesh(config.mesh)
    partitioning.process_groups(mesh)
    size = vocab_size(config)
    scores = job in (None, 'score', 'labels')
    scoring = references.models(config) if scores else {}
    for model in (config.reference.model, config.model, *scoring.values()):
      scorer.abstract_params(model, size, mesh)
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
      section.in_steps(
        flops.training_flops_per_token(model, size, section.sequence_length),
        f'{name}.training',
      )
      metrics.check_sinks(section.metric_sinks, f'{name}.training')
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


def vocab_size(config: Config) -> int:
  """Of the vocabulary that a config names, or trains."""
  if config.vocabulary.path:
    return vocabulary_files.open_given(config.vocabulary).size
  return config.vocabulary.size
