"""Downstream tasks out of JSONL: how often a model prefers the right answer.

The fields of its first record say what kind of task a file is:

- `query`, `choices`, `gold`: the choice with the fewest nats per byte, given
  the query, must be number `gold`.
- `context`, `continuation`: each token of the continuation must be the most
  likely one.
- `context_options`, `continuation`, `gold`: the context that gives the
  continuation the fewest nats must be number `gold`.

A space stands between the two texts, unless the first ends with white space.
"""

import dataclasses
import hashlib
import math
import posixpath
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict, cast

import numpy as np

from infoprune_jax.config.validation import UserError
from infoprune_jax.corpus import records, sources
from infoprune_jax.score.language_model import Continuation, LanguageModel

ALL = 'all'  # the group, and the task, of means over others
METRIC = 'chance-normalised accuracy'


class TaskResult(TypedDict):
  """One number of one task, or of a mean over tasks."""

  group: str  # the category, or 'lm_eval'
  task: str
  metric: str
  value: float | None  # None if it is not finite
  stderr: float | None  # over the items of the task
  num_items: int


@dataclasses.dataclass(frozen=True)
class Item:
  """A question."""

  pairs: tuple[tuple[str, str], ...]  # context and continuation of each option
  gold: int  # the right one


@dataclasses.dataclass(frozen=True)
class Task:
  """The questions of one file."""

  category: str
  name: str
  kind: str  # a key of KINDS
  items: tuple[Item, ...]
  digest: str  # of the records

  @property
  def chance(self) -> float:
    """The accuracy of a guess."""
    if self.kind == 'language_modelling':
      return 0.0
    return float(np.mean([1.0 / len(item.pairs) for item in self.items]))


@dataclasses.dataclass(frozen=True)
class _Kind:
  fields: tuple[str, ...]
  item: Callable[[dict[str, Any]], Item]
  # Whether a model is right, by what it makes of each pair.
  is_right: Callable[[Item, Sequence[Continuation]], bool]


def _joined(context: str, continuation: str) -> tuple[str, str]:
  """Both texts, the second after a space where none is before it."""
  has_space = not context or context[-1].isspace()
  return context, continuation if has_space else f' {continuation}'


def _multiple_choice(record: dict[str, Any]) -> Item:
  query = '' if record['query'] == '' else _text(record, 'query')
  choices = _texts(record, 'choices')
  return Item(tuple(_joined(query, x) for x in choices), _gold(record, choices))


def _language_modelling(record: dict[str, Any]) -> Item:
  pair = _joined(_text(record, 'context'), _text(record, 'continuation'))
  return Item((pair,), 0)


def _schema(record: dict[str, Any]) -> Item:
  contexts = _texts(record, 'context_options')
  continuation = _text(record, 'continuation')
  pairs = tuple(_joined(context, continuation) for context in contexts)
  return Item(pairs, _gold(record, contexts))


def _per_byte(item: Item, scored: Sequence[Continuation]) -> bool:
  nll = [
    one.nll / max(len(text.strip().encode()), 1)
    for one, (_, text) in zip(scored, item.pairs, strict=True)
  ]
  return int(np.argmin(nll)) == item.gold


KINDS = {
  'multiple_choice': _Kind(
    ('query', 'choices', 'gold'), _multiple_choice, _per_byte
  ),
  'language_modelling': _Kind(
    ('context', 'continuation'),
    _language_modelling,
    lambda item, scored: scored[0].is_greedy,
  ),
  'schema': _Kind(
    ('context_options', 'continuation', 'gold'),
    _schema,
    lambda item, scored: int(np.argmin([x.nll for x in scored])) == item.gold,
  ),
}


def read(downstream: Mapping[str, Sequence[str]]) -> list[Task]:
  """Reads the tasks of each category.

  Args:
    downstream: As `evaluate.downstream`.

  Raises:
    UserError: a file is missing or empty, a record is no question, or two
      tasks of a category have one name.
  """
  tasks = []
  for category, paths in downstream.items():
    names = set()
    for path in paths:
      option = f'evaluate.downstream.{category}'
      _, files = sources.FORMATS['jsonl'].matches(option, path)
      for file, _ in files:
        task = _read_file(category, file)
        if task.name in names:
          raise UserError(
            f'{option} has two files named {task.name}, the second is {file}: '
            'rename one, as the report names tasks by their files.'
          )
        names.add(task.name)
        tasks.append(task)
  return tasks


def _read_file(category: str, path: str) -> Task:
  name = posixpath.basename(path).partition('.jsonl')[0]
  digest = hashlib.sha256()
  kind, items = '', []
  number = 0  # where no line can be read
  try:
    for number, line in sources.read_lines(path):  # noqa: B007  A place.
      digest.update(line)
      record = sources.json_object(line)
      kind = kind or _kind_of(record)
      items.append(KINDS[kind].item(record))
  except records.Bad as bad:
    raise UserError(
      f'{path}:{number}: {bad.args[0]} ({bad.args[1]}).'
    ) from None
  if not items:
    raise UserError(f'{path} of evaluate.downstream holds no question.')
  return Task(category, name, kind, tuple(items), digest.hexdigest()[:16])


def _kind_of(record: dict[str, Any]) -> str:
  """The kind that has the fields of a record, or `Bad`."""
  for name, kind in KINDS.items():
    if all(field in record for field in kind.fields):
      return name
  expected = '; '.join(', '.join(kind.fields) for kind in KINDS.values())
  raise records.Bad(
    'no question', f'has {", ".join(record):.200}, expected {expected}'
  )


def _text(record: dict[str, Any], name: str) -> str:
  value = records.column(record, name)
  if not isinstance(value, str) or not value:
    raise records.Bad('not a text', f'{name}={value!r:.50}')
  records.encodable(value)
  return value


def _texts(record: dict[str, Any], name: str) -> list[str]:
  values = records.column(record, name)
  if not isinstance(values, list) or len(values) < 2:
    raise records.Bad('no options', f'{name}={values!r:.50}: two or more texts')
  return [_text({name: value}, name) for value in values]


def _gold(record: dict[str, Any], options: list[str]) -> int:
  gold = records.column(record, 'gold')
  if type(gold) is not int or not 0 <= gold < len(options):
    raise records.Bad('bad gold', f'{gold!r:.50} of {len(options)} options')
  return gold


def evaluate(model: LanguageModel, tasks: Sequence[Task]) -> list[TaskResult]:
  """The accuracy of a model: of each task, each category, and overall.

  Accuracy a of a task is (a - chance) / (1 - chance): 0 is a guess, 1 is
  perfect. A category is the mean of its tasks, 'all' the mean of categories.

  Raises:
    UserError: a continuation has no token, or is too long for the model.
  """
  results = [_evaluate_task(model, task) for task in tasks]
  categories = [
    _mean(category, [x for x in results if x['group'] == category])
    for category in dict.fromkeys(task.category for task in tasks)
  ]
  overall = [_mean(ALL, categories)] if categories else []
  return [*results, *categories, *overall]


def _evaluate_task(model: LanguageModel, task: Task) -> TaskResult:
  pairs = [pair for item in task.items for pair in item.pairs]
  scored = iter(model.continuations(pairs))
  is_right = KINDS[task.kind].is_right
  right = [
    is_right(item, [next(scored) for _ in item.pairs]) for item in task.items
  ]
  accuracy, above = float(np.mean(right)), 1.0 - task.chance
  stderr = None
  if len(right) > 1:
    variance = accuracy * (1.0 - accuracy) / (len(right) - 1)
    stderr = math.sqrt(variance) / above
  return {
    'group': task.category,
    'task': task.name,
    'metric': METRIC,
    'value': (accuracy - task.chance) / above,
    'stderr': stderr,
    'num_items': len(right),
  }


def _mean(group: str, results: Sequence[TaskResult]) -> TaskResult:
  """The mean of results, whose items are drawn apart."""
  errors = [result['stderr'] for result in results]
  known = [error for error in errors if error is not None]
  return {
    'group': group,
    'task': ALL,
    'metric': METRIC,
    'value': float(np.mean([cast(float, x['value']) for x in results])),
    'stderr': math.hypot(*known) / len(errors)
    if len(known) == len(errors)
    else None,
    'num_items': sum(result['num_items'] for result in results),
  }
