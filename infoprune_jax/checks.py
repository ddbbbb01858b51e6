"""The checks of stores, splits and models before any stage starts."""

import re
from collections.abc import Container, Sequence

from infoprune_jax.config.experiment import Config
from infoprune_jax.config.validation import UserError
from infoprune_jax.corpus import paths, quiet_tensorflow
from infoprune_jax.evaluate import labels, tasks
from infoprune_jax.model import flops, mesh as mesh_lib, partitioning
from infoprune_jax.report.selection import sweeps
from infoprune_jax.runtime import distributed, drivers, filesystems, hub
from infoprune_jax.score import references, scorer
from infoprune_jax.selection import columns, expressions, rule_inputs, rules
from infoprune_jax.statistics import classify, decontaminate
from infoprune_jax.tokens import vocabulary_files
from infoprune_jax.train import metrics, state as state_lib

SCORING = {'score', 'labels', 'loss'}
NEED_HELDOUT = {'train', 'evaluate', 'report'}


def check_hosts(job: str | None, able: Sequence[str]) -> None:
  """Raises `UserError` if there are more processes than the job can use.

  Args:
    job: The stage; None for all.
    able: The stages that several processes can run.
  """
  if distributed.count() > 1 and job not in able:
    raise UserError(
      f'--job={job or "(all)"} does not run on {distributed.count()} processes: '
      f'only {" and ".join(f"--job={name}" for name in able)} do. Run the other '
      'stages on one host, in a --workdir that all hosts see.'
    )


def not_needed(config: Config) -> set[str]:
  """The stages that have nothing to do unless --job names them."""
  without, arms = set(), config.select.arms.values()
  if not any(map(rule_inputs.reads_near_duplicates, arms)):
    without.add('near_duplicates')
  if not any(map(rule_inputs.reads_duplicated_text, arms)):
    without.add('duplicated_text')
  if not config.select.decontaminate.paths:
    without.add('decontaminate')
  if not config.classifiers:
    without.add('classify')
  if not config.select.tables:
    without.add('join')
  if not config.reference.is_trained:
    without.add('reference')
  if not config.own_scored:
    without.add('own_scores')
  if not config.corpus.holds_out:
    without.update(NEED_HELDOUT)
  return without


def check_stages(config: Config, names: Container[str | None]) -> None:
  """Raises `UserError` if one of these stages cannot do what is asked of it."""
  if 'classify' in names:
    classify.check(config)
  if 'decontaminate' in names:
    decontaminate.check(config)
  if 'sweep' in names:
    _check_sweep(config)
  if 'evaluate' in names:
    tasks.check(config)
  if 'labels' in names:
    labels.check(config)


def _check_sweep(config: Config) -> None:
  """Raises `UserError` unless some arms differ in their fraction alone."""
  if not sweeps.of_arms(config.select):
    raise UserError(
      '--job=sweep compares arms that differ in their fraction alone, but '
      f'select.arms ({", ".join(config.select.arms)}) has no two such arms. Add '
      "some to the config, such as config.select.arms.update(base.sweep('top', "
      "'top', base.INFORMATION, fractions=(0.3, 0.5, 0.7)))."
    )


def check_stores(
  config: Config, workdir: str, job: str | None, names: set[str]
) -> None:
  """Raises `UserError` if a stage cannot work in an object store."""
  drivers.check_keeps(workdir, '--workdir')
  scores = names & SCORING
  folders = {}
  if names & {'own_scores', 'train', 'evaluate'} or (
    config.reference.is_trained and (scores or 'reference' in names)
  ):
    folders['--workdir'] = workdir
  for column, given in config.reference.checkpoints.items() if scores else ():
    if given.path and not given.is_file and not hub.model_name(given.path):
      folders[f'the checkpoint path for {column}'] = given.path
  for option, path in folders.items():
    if not filesystems.is_local(path):
      what = f'--job={job}' if job else 'The whole job'
      drivers.check_holds_checkpoints(path, option, what)
  paths.open_filesystem('--workdir', workdir)  # There is a driver for it.


def check_splits(config: Config, names: set[str]) -> None:
  """Raises `UserError` if stages need a split that the corpus has not."""
  section = config.reference
  lacks = ''
  if 'loss' in names and section.is_trained:
    raise UserError(
      '--job=loss takes a model that is trained: name it in '
      'reference.checkpoint.path, and leave no path in reference.extra_models '
      'empty.'
    )
  if section.is_trained and section.folds == 1 and names & SCORING:
    lacks = 'a reference model'
  elif not config.vocabulary.path and not section.checkpoint.path:
    lacks = 'a vocabulary' if 'tokenize' in names else ''
  if lacks and config.corpus.reference_fraction == 0:
    raise UserError(
      f'corpus.reference_fraction is 0, which leaves no text to train {lacks} '
      'on: name a model in reference.checkpoint.path, or raise the fraction, '
      'for instance to 0.25.'
    )
  need_heldout = names & {*NEED_HELDOUT, 'own_scores'}
  if need_heldout and not config.corpus.holds_out:
    raise UserError(
      f'--job={min(need_heldout)} needs held-out text to evaluate on, '
      'but corpus.heldout_fraction is 0: raise it, for instance to 0.1, or add a '
      'source with heldout=True, and use another --workdir.'
    )


def check_rules(config: Config, workdir: str, names: set[str]) -> None:
  """Raises `UserError` for a column that cannot be kept or joined, or a rule.

  Args:
    config: The experiment.
    workdir: Where tables were joined, if their files are elsewhere.
    names: The stages that run.
  """
  if not names & {'tokenize', 'join', 'select', 'own_scores'}:
    return
  schema = columns.rule_schema(config, workdir)
  benchmarks = config.select.decontaminate.paths
  if names & {'select', 'own_scores'}:
    for arm, of_arm in config.select.arms.items():
      if config.select.scores_itself(arm):
        _check_own_rules(config, arm)
      rules.check(of_arm, f'select.arms.{arm}', schema)
      if rule_inputs.reads_contamination(of_arm) and not benchmarks:
        raise UserError(
          f'select.arms.{arm} reads what of a text is in benchmarks, but '
          'select.decontaminate names none: set it, for instance to '
          "base.benchmarks('eval/*.jsonl')."
        )


def _check_own_rules(config: Config, arm: str) -> None:
  """Checks the rules of an arm that scores with its own checkpoint.

  Raises:
    UserError: they read the column of another model, or of none.
  """
  texts = [e for rule in config.select.arms[arm] for e in rule.expressions]
  if not any(map(expressions.reads_reference, texts)):
    raise UserError(
      f"select.arms.{arm} has score_with='itself', but no rule of it reads a "
      'column that a model gives, such as nll_sum: rank by one, or remove '
      'score_with.'
    )
  own = config.score.columns(['nll_sum'])
  others = [name for name in config.score_columns if name not in own]
  for name in others:
    if any(re.search(rf'\b{name}\b', text, re.IGNORECASE) for text in texts):
      raise UserError(
        f'select.arms.{arm} reads {name}, which a model of '
        "reference.extra_models gives, but with score_with='itself' the arm has "
        f'scores by its own checkpoint alone ({", ".join(own)}): use these '
        'columns, or remove score_with.'
      )


def check_models(config: Config, names: set[str]) -> None:
  """Raises `UserError` unless the models of stages run on these devices."""
  distributed.check_devices()
  mesh = mesh_lib.make_mesh(config.mesh)
  partitioning.process_groups(mesh)
  size = references.vocab_size(config)
  if names & SCORING:
    for one in references.planned(config).values():
      scorer.abstract_params(one.model, one.vocab_size, mesh)
      scorer.with_kernels(one.model, config.score, mesh)
  if 'own_scores' in names:
    names = {*names, 'train'}  # It trains, too.
  own = references.PlannedModel(config.reference.model, size)
  words = vocabulary_files.of_config(config)
  arm = references.arm_model(config, size, words.hash if words else '')
  references.check_same_commits()
  for name, one, section in (
    ('reference', own, config.reference.training),
    ('train', arm, config.train.training),
    ('evaluate', arm, None),
  ):
    if name not in names:
      continue
    model = one.model
    scorer.abstract_params(model, one.vocab_size, mesh)
    # Training follows its losses by those of evaluation.
    scorer.with_kernels(model, config.evaluate.scoring, mesh)
    if section is None:
      continue
    if name == 'train' and config.own_scored:
      scorer.with_kernels(model, config.score, mesh)
    in_steps = section.in_steps(
      flops.training_flops_per_token(
        model, one.vocab_size, section.sequence_length
      ),
      f'{name}.training',
    )
    if name == 'reference':
      _check_kept_steps(config, in_steps.num_steps)
    metrics.check_sinks(section.metric_sinks, f'{name}.training')
    state_lib.check_batch(mesh, section, f'{name}.training')
    if section.reader == 'seqio':
      quiet_tensorflow.import_seqio()


def _check_kept_steps(config: Config, num_steps: int) -> None:
  """Raises `UserError` if a model is to be a step that its run does not take."""
  for column, checkpoint in config.reference.checkpoints.items():
    if not checkpoint.path and not (
      checkpoint.step == -1 or 0 < checkpoint.step <= num_steps
    ):
      raise UserError(
        f'The model for {column} is step {checkpoint.step} of the reference '
        f'run, which takes {num_steps} steps (reference.training): name a step '
        f'from 1 to {num_steps}, or -1 for the last.'
      )
