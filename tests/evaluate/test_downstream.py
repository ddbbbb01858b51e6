"""Downstream tasks: what is read, what counts as right, and what it comes to."""

import json
import math
import pathlib

import numpy as np
import pytest

from infoprune_jax.config.validation import UserError
from infoprune_jax.evaluate import downstream
from infoprune_jax.score.language_model import Continuation

CHOICES = {'query': 'One and one is', 'choices': ['two.', 'five'], 'gold': 0}
LAST_WORD = {'context': 'One and one is', 'continuation': 'two'}
SCHEMA = {
  'context_options': ['The cup is full, as the cup', 'The cup is full, as Al'],
  'continuation': 'leaks',
  'gold': 1,
}


class Model:
  """Gives each continuation the NLL and greediness that a function says."""

  def __init__(self, judge):
    self.judge, self.asked = judge, []

  def continuations(self, pairs):
    self.asked += pairs
    return [
      Continuation(*self.judge(context, text), num_tokens=1)
      for context, text in pairs
    ]


def write(path: pathlib.Path, *records: dict) -> str:
  path.write_text(''.join(json.dumps(record) + '\n' for record in records))
  return str(path)


def evaluated(judge, **paths) -> dict[tuple[str, str], dict]:
  tasks = downstream.read({name: (path,) for name, path in paths.items()})
  found = downstream.evaluate(Model(judge), tasks)
  return {(one['group'], one['task']): one for one in found}


def test_the_texts_that_a_model_is_given(tmp_path):
  path = write(tmp_path / 'a.jsonl', CHOICES, {**CHOICES, 'query': 'Say:\n'})
  schema = write(tmp_path / 'b.jsonl', SCHEMA)
  last = write(tmp_path / 'c.jsonl', LAST_WORD)
  model = Model(lambda context, text: (1.0, True))
  downstream.evaluate(
    model, downstream.read({'all of it': (path, schema, last)})
  )
  assert model.asked == [
    ('One and one is', ' two.'),
    ('One and one is', ' five'),
    ('Say:\n', 'two.'),
    ('Say:\n', 'five'),
    ('The cup is full, as the cup', ' leaks'),
    ('The cup is full, as Al', ' leaks'),
    ('One and one is', ' two'),
  ]


def test_choices_may_have_no_query(tmp_path):
  path = write(tmp_path / 'a.jsonl', {**CHOICES, 'query': ''})
  model = Model(lambda context, text: (1.0, True))
  downstream.evaluate(model, downstream.read({'grammar': (path,)}))
  assert model.asked == [('', 'two.'), ('', 'five')]


def test_choices_go_by_nats_per_byte(tmp_path):
  """A longer right answer may cost more."""
  record = {'query': 'q', 'choices': ['no', 'certainly, \u00e9'], 'gold': 1}
  path = write(tmp_path / 'a.jsonl', record)
  # 2 bytes and 13: the second costs less per byte up to 6.5 times as much.
  for nll, right in ((6.4, True), (6.6, False)):
    found = evaluated(
      lambda c, t, n=nll: (1.0 if 'no' in t else n, False), a=path
    )
    assert found['a', 'a']['value'] == (1.0 if right else -1.0)


def test_a_schema_goes_by_nats_and_a_last_word_by_the_likeliest(tmp_path):
  schema = write(tmp_path / 'schema.jsonl', SCHEMA)
  last = write(tmp_path / 'last.jsonl', LAST_WORD)

  def judge(context, text):
    return (1.0 if context.endswith('Al') else 2.0), True

  found = evaluated(judge, a=schema, b=last)
  assert found['a', 'schema']['value'] == found['b', 'last']['value'] == 1.0
  found = evaluated(lambda c, t: (-judge(c, t)[0], False), a=schema, b=last)
  assert found['a', 'schema']['value'] == -1.0  # Always wrong of two.
  assert found['b', 'last']['value'] == 0.0


def test_a_guess_is_zero_and_errors_are_those_of_repeated_draws(tmp_path):
  """The spread of many small tasks is what their standard errors say."""
  rng = np.random.default_rng(0)
  values, errors = [], []
  for number in range(200):
    records = [
      {
        'query': f'{row}',
        'choices': ['aa', 'bb', 'cc', 'dd'],
        'gold': int(rng.integers(4)),
      }
      for row in range(50)
    ]
    path = write(tmp_path / f'{number}.jsonl', *records)
    found = evaluated(lambda c, t: (rng.random(), False), a=path)
    values.append(found['a', f'{number}']['value'])
    errors.append(found['a', f'{number}']['stderr'])
  assert np.mean(values) == pytest.approx(0.0, abs=0.02)
  assert np.mean(errors) == pytest.approx(np.std(values), rel=0.15)


def test_chance_is_that_of_each_number_of_choices(tmp_path):
  three = {**CHOICES, 'choices': ['two', 'six', 'ten', 'one', 'odd']}
  path = write(tmp_path / 'a.jsonl', CHOICES, three)
  (task,) = downstream.read({'a': (path,)})
  assert task.chance == pytest.approx((1 / 2 + 1 / 5) / 2)


def test_means_are_of_tasks_and_then_of_categories(tmp_path):
  """A category of one file weighs as much as one of two."""
  right = write(tmp_path / 'right.jsonl', *[LAST_WORD] * 4)
  wrong = {**LAST_WORD, 'continuation': 'three'}
  half = write(tmp_path / 'half.jsonl', LAST_WORD, wrong)
  alone = write(tmp_path / 'alone.jsonl', wrong, wrong, wrong)
  tasks = downstream.read({'x': (right, half), 'y': (alone,)})
  found = {
    (one['group'], one['task']): one
    for one in downstream.evaluate(
      Model(lambda c, t: (1.0, t == ' two')), tasks
    )
  }
  assert found['x', 'all']['value'] == pytest.approx((1.0 + 0.5) / 2)
  assert found['all', 'all']['value'] == pytest.approx((0.75 + 0.0) / 2)
  assert found['x', 'half']['stderr'] == pytest.approx(0.5)
  assert found['x', 'all']['stderr'] == pytest.approx(0.25)
  assert found['all', 'all']['stderr'] == pytest.approx(0.125)
  assert found['all', 'all']['num_items'] == 9
  single = write(tmp_path / 'single.jsonl', LAST_WORD)
  found = evaluated(lambda c, t: (1.0, True), z=single)
  assert found['z', 'single']['stderr'] is found['all', 'all']['stderr'] is None
  assert not math.isnan(found['all', 'all']['value'])


@pytest.mark.parametrize(
  'record, message',
  [
    ({'text': 'a', 'label': 1}, 'no question .has text, label, expected query'),
    ({**CHOICES, 'gold': 2}, 'bad gold .2 of 2 options'),
    ({**CHOICES, 'gold': True}, 'bad gold .True'),
    ({**CHOICES, 'choices': ['two']}, 'no options .choices='),
    ({**CHOICES, 'choices': ['two', 5]}, 'not a text .choices=5'),
    ({**LAST_WORD, 'continuation': ''}, "not a text .continuation=''"),
    ({**CHOICES, 'query': None}, 'not a text .query=None'),
  ],
)
def test_what_is_no_question_is_named(record, message, tmp_path):
  path = write(tmp_path / 'a.jsonl', record)
  with pytest.raises(UserError, match=rf'a\.jsonl:1: {message}'):
    downstream.read({'a': (path,)})


def test_no_question_and_two_of_a_name_are_refused(tmp_path):
  empty = write(tmp_path / 'a.jsonl')
  with pytest.raises(UserError, match='holds no question'):
    downstream.read({'a': (empty,)})
  with pytest.raises(UserError, match=r'evaluate\.downstream\.a'):
    downstream.read({'a': (str(tmp_path / 'missing.jsonl'),)})
  (tmp_path / 'other').mkdir()
  paths = [
    write(folder / 'b.jsonl', LAST_WORD)
    for folder in (tmp_path, tmp_path / 'other')
  ]
  with pytest.raises(UserError, match='two files named b'):
    downstream.read({'a': tuple(paths)})
  assert len(downstream.read({'a': paths[:1], 'c': paths[1:]})) == 2
