"""Tasks that trained arms are tried on: our own, and the harness's."""

# pyright: reportMissingImports=false
# `make install` leaves lm_eval out.

import contextlib
import math
import os
import posixpath
from collections.abc import Mapping
from typing import Any, cast

from infoprune_jax.config.experiment import Config
from infoprune_jax.config.validation import UserError, did_you_mean
from infoprune_jax.evaluate import downstream
from infoprune_jax.evaluate.downstream import Task, TaskResult
from infoprune_jax.model import checkpoints, mesh as mesh_lib
from infoprune_jax.model.mesh import Mesh
from infoprune_jax.runtime import (
  artifacts,
  distributed,
  files,
  filesystems,
  manifests,
)
from infoprune_jax.runtime.options import options_of
from infoprune_jax.runtime.progress import logger
from infoprune_jax.runtime.workdir import (
  TASK_RESULTS,
  run_dir,
  task_results_dir,
  vocabulary_dir,
)
from infoprune_jax.score import language_model, references, scorer as scorer_lib
from infoprune_jax.score.language_model import LanguageModel
from infoprune_jax.tokens.vocabulary import Vocabulary

HARNESS = 'lm_eval'  # the group of the harness's tasks


def check(config: Config) -> None:
  """Reads the questions, and finds the harness and its tasks.

  Raises:
    UserError: a file is no task, the harness is not installed, or it has no
      task of a name.
  """
  downstream.read(config.evaluate.downstream)
  if config.evaluate.tasks:
    names = _task_manager(config).all_tasks
    for name in config.evaluate.tasks:
      if name not in names:
        where = config.evaluate.task_path or 'lm_eval'
        raise UserError(
          f'evaluate.tasks: {where} has no task named {name!r}.'
          + did_you_mean(name, names)
        )


def _task_manager(config: Config) -> Any:
  """The harness's tasks: those of a folder alone, or its own."""
  path = config.evaluate.task_path
  if path:
    # Local tasks name local files, but the harness looks on the Hub, too.
    os.environ.setdefault('HF_HUB_OFFLINE', '1')
    filesystem, name = filesystems.filesystem_of(path)
    if not filesystems.is_local(path) or not filesystem.isdir(name):
      raise UserError(
        f'evaluate.task_path: {path!r} is no folder of this machine.'
      )
  try:
    from lm_eval.tasks import TaskManager
  except ImportError as error:
    raise UserError(
      f'evaluate.tasks needs lm-evaluation-harness ({error}): '
      'pip install "infoprune_jax[lm-eval]".'
    ) from None
  return TaskManager(include_path=path or None, include_defaults=not path)


def run(config: Config, workdir: str) -> None:
  """Writes what each trained arm gets in each task.

  Raises:
    UserError: a run is missing, or a task cannot be evaluated.
  """
  if not config.evaluate.has_tasks:
    return
  tasks = downstream.read(config.evaluate.downstream)
  words = Vocabulary.load(vocabulary_dir(workdir))
  mesh = mesh_lib.make_mesh(config.mesh)
  for arm, seed in config.runs:
    if arm in config.budget_arms:
      continue
    path = run_dir(workdir, arm, seed)
    trained = cast(
      checkpoints.RunManifest,
      manifests.open_finished(path, f'run {arm} seed {seed}', 'train'),
    )
    if trained['vocabulary'] != words.hash:
      raise UserError(
        f'The run {path} was trained with the vocabulary '
        f'{trained["vocabulary"]}, that of {workdir} is {words.hash}: train it '
        'again.'
      )
    inputs = {'run': trained['fingerprint'], **questions(config, tasks)}
    artifact = describe(config, workdir, arm, seed, inputs)
    _evaluate_run(config, path, artifact, tasks, words, mesh, trained)


def questions(config: Config, tasks: list[Task]) -> dict[str, str]:
  """The digests of the questions of each task, by category and name."""
  digests = {f'{task.category}/{task.name}': task.digest for task in tasks}
  if config.evaluate.task_path:
    digests['task_path'] = _digest_of_folder(config.evaluate.task_path)
  return digests


def describe(
  config: Config, workdir: str, arm: str, seed: int, inputs: Mapping[str, str]
) -> artifacts.Artifact:
  """The results of a run, made from these inputs."""
  section = config.evaluate
  options = options_of(section.scoring)
  del options['per_device_batch_size']
  return artifacts.Artifact(
    task_results_dir(workdir, arm, seed),
    'results of tasks',
    'evaluate',
    {'scoring': options, 'tasks': list(section.tasks)},
    inputs,
    sections={'': 'evaluate'},
  )


def _digest_of_folder(folder: str) -> str:
  """Of all files in it, by name."""
  filesystem, name = filesystems.filesystem_of(folder)
  return manifests.fingerprint(
    {
      posixpath.relpath(path, name): files.facts_of(path)['sha256']
      for path in filesystem.find(name)
    }
  )


def _evaluate_run(
  config: Config,
  path: str,
  artifact: artifacts.Artifact,
  tasks: list[Task],
  words: Vocabulary,
  mesh: Mesh,
  trained: checkpoints.RunManifest,
) -> None:
  """Evaluates one run, unless that is done."""
  first = distributed.index() == 0
  with files.lock(artifact.path) if first else contextlib.nullcontext():
    name = f'the tasks of {path}'
    if distributed.on_first(name, lambda: artifact.finished() is not None):
      logger.info('evaluate: %s finished before, skipped', name)
      return
    if first:  # It alone writes.
      artifact = artifact.begin()
    vocab_size = trained['vocab_size']
    arm = references.arm_model(config, vocab_size).model
    target = scorer_lib.abstract_params(arm, vocab_size, mesh)
    params = checkpoints.load_params(path, trained['step'], target)
    scoring = config.evaluate.scoring
    model = LanguageModel(
      arm,
      language_model.prepared(params, scoring.dtype),
      vocab_size,
      words,
      mesh,
      scoring,
    )
    results = downstream.evaluate(model, tasks)
    if config.evaluate.tasks:
      results += _harness_results(config, model)
    if first:
      file = posixpath.join(artifact.path, TASK_RESULTS)
      written = files.write_json(
        file, {'results': results}, artifact.write_file
      )
      artifact.finish({TASK_RESULTS: written})
    distributed.barrier(f'the end of {name}')
    logger.info('evaluate: %s done', name)


def _harness_results(config: Config, model: LanguageModel) -> list[TaskResult]:
  """What the harness makes of a model."""
  manager = _task_manager(config)
  import lm_eval

  from infoprune_jax.evaluate.harness import InfopruneLM

  evaluated = lm_eval.simple_evaluate(
    InfopruneLM(model),
    tasks=list(config.evaluate.tasks),
    task_manager=manager,
    log_samples=False,
  )
  assert evaluated is not None  # There is one rank.
  sizes = evaluated['n-samples']
  return [
    TaskResult(
      group=HARNESS,
      task=task,
      metric=metric.removesuffix(',none'),
      value=_number(value),
      stderr=_number(numbers.get(metric.replace(',', '_stderr,', 1))),
      num_items=sizes[task]['effective'] if task in sizes else 0,
    )
    for task, numbers in evaluated['results'].items()
    for metric, value in numbers.items()
    if ',' in metric
    and '_stderr,' not in metric
    and isinstance(value, int | float)
  ]


def _number(value: Any) -> float | None:
  """A finite number, or None; the harness writes 'N/A' where there is none."""
  is_number = isinstance(value, int | float) and math.isfinite(value)
  return float(value) if is_number else None
