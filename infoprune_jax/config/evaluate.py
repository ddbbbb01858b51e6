"""What trained models are evaluated on. Standard library only."""

import dataclasses
from collections.abc import Mapping

from infoprune_jax.config.scoring import ScoringConfig
from infoprune_jax.config.validation import UserError, check_positive


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
  """Held-out losses, and tasks."""

  scoring: ScoringConfig
  # Tokens of the held-out split that are scored during training.
  online_eval_tokens: int = 50_000
  # Questions by category, as JSONL files, folders, globs or URLs:
  # {'commonsense': ('piqa.jsonl', 'copa.jsonl'), 'reading': ('boolq.jsonl',)}.
  downstream: Mapping[str, tuple[str, ...]] = dataclasses.field(
    default_factory=dict
  )
  # Names of tasks of lm-evaluation-harness, such as ('hellaswag',).
  tasks: tuple[str, ...] = ()
  # A folder with the YAML files of such tasks, used in place of the harness's
  # own and without a network; '' for its own.
  task_path: str = ''

  def __post_init__(self):
    check_positive('evaluate', self)
    if self.scoring.max_document_tokens:
      raise UserError(
        'evaluate.scoring.max_document_tokens is '
        f'{self.scoring.max_document_tokens}, but held-out losses are those of '
        'whole documents: leave it at 0.'
      )
    for name in ('statistics', 'token_excess'):
      if value := getattr(self.scoring, name):
        raise UserError(
          f'evaluate.scoring.{name} is {value!r}, but held-out losses hold NLL '
          f'only: leave it empty, or ask for it with score.{name}.'
        )
    for category, paths in self.downstream.items():
      if not category.strip() or category in ('all', 'lm_eval') or not paths:
        raise UserError(
          f'evaluate.downstream: {category!r} is {paths!r}: give a category '
          "other than 'all' and 'lm_eval', and files such as ('piqa.jsonl',)."
        )
    if self.task_path and not self.tasks:
      raise UserError(
        f'evaluate.task_path is {self.task_path!r}, but evaluate.tasks names '
        'no task: name some, or leave the path out.'
      )

  @property
  def has_tasks(self) -> bool:
    """Whether arms are tried on any task."""
    return bool(self.downstream or self.tasks)
