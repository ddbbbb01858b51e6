"""The n-grams of benchmarks, as a plain implementation finds them."""

import json
import logging
import pathlib
import random
import re

import pytest

from configs import base
from infoprune_jax.config.decontamination import BenchmarksConfig
from infoprune_jax.config.validation import UserError
from infoprune_jax.corpus import words
from infoprune_jax.statistics import benchmark_ngrams


def made_config(*paths: pathlib.Path, **fields) -> BenchmarksConfig:
  made = dict(base.benchmarks(*map(str, paths), **fields))
  return BenchmarksConfig(**made)


def write(path: pathlib.Path, *records) -> pathlib.Path:
  path.write_text(''.join(json.dumps(record) + '\n' for record in records))
  return path


def ngrams_of(text: str, ngram: int) -> list[tuple[str, ...]]:
  own = words.plain(text).split()
  return [tuple(own[n : n + ngram]) for n in range(len(own) - ngram + 1)]


def test_counts_are_those_of_a_plain_implementation(tmp_path):
  rng = random.Random(0)

  def text(most: int) -> str:
    some = [
      rng.choice(['The', 'a', 'cat,', 'SAT', 'on', 'é', 'mat!'])
      for _ in range(most)
    ]
    return rng.choice((' ', '\n', '  ')).join(some)

  benchmarks = {
    f'set_{n}': [text(rng.randrange(1, 12)) for _ in range(30)]
    for n in range(3)
  }
  for name, texts in benchmarks.items():
    write(tmp_path / f'{name}.jsonl', *({'query': one} for one in texts))
  known = benchmark_ngrams.read(made_config(tmp_path / '*.jsonl', ngram=4))
  assert known.names == ('set_0', 'set_1', 'set_2')
  wanted = {
    name: {one for text in texts for one in ngrams_of(text, 4)}
    for name, texts in benchmarks.items()
  }
  every = set().union(*wanted.values())
  counts = []
  for _ in range(500):
    document = text(rng.randrange(30))
    own = ngrams_of(document, 4)
    names = [name for name, some in wanted.items() if some & {*own}]
    count = sum(one in every for one in own)
    assert known.count(document) == (count, ', '.join(names))
    counts.append(count)
  assert min(counts) == 0 < max(counts)


def test_texts_are_all_strings_or_those_of_columns(tmp_path):
  record = {'a': 'x y z', 'b': {'c': ['p q r', 'p q r']}, 'n': 3}
  path = write(tmp_path / 'one.jsonl', record)
  every = benchmark_ngrams.read(made_config(path, ngram=2))
  assert len(every.hashes) == 4
  # No n-gram is of two strings.
  assert every.count('z p q') == (1, 'one')
  columns = made_config(path, ngram=2, text_columns=('b.c',))
  some = benchmark_ngrams.read(columns)
  assert some.count('x y z') == (0, '')
  assert some.count('P, q. r') == (2, 'one')


def test_a_benchmark_of_short_texts_is_named(tmp_path, caplog):
  write(tmp_path / 'long.jsonl', {'text': 'a b c d'})
  write(tmp_path / 'short.jsonl', {'text': 'a b c'})
  with caplog.at_level(logging.WARNING, logger='infoprune_jax'):
    benchmark_ngrams.read(made_config(tmp_path, ngram=4))
  assert 'no text of short has 4 words' in caplog.text


@pytest.mark.parametrize(
  ('lines', 'fields', 'message'),
  [
    (['{"text": "a b c"}'], {}, 'ngram is 13, but no text of a benchmark has'),
    ([], {}, 'x.jsonl has no text in any field'),
    (['{"n": 3, "empty": " "}'], {}, 'x.jsonl has no text in any field'),
    (['{"a": 1}'], {'text_columns': ('a',)}, 'x.jsonl has no text in a: name'),
    (['{"a": "b"}'], {'text_columns': ('c',)}, 'x.jsonl:1: no such column'),
    (['{"a": "b"}', '{"a":'], {}, 'x.jsonl:2: broken JSON'),
    (['["a"]'], {}, 'x.jsonl:1: not a JSON object'),
    (['{"a": "\\ud800"}'], {}, 'x.jsonl:1: not UTF-8'),
  ],
)
def test_bad_benchmarks_are_refused(tmp_path, lines, fields, message):
  path = tmp_path / 'x.jsonl'
  path.write_text('\n'.join(lines))
  with pytest.raises(UserError, match=re.escape(message)):
    benchmark_ngrams.read(made_config(path, **fields))


def test_names_of_files_are_those_of_benchmarks(tmp_path):
  for name in ('a/x.jsonl', 'b/x.jsonl', 'b/y.jsonl.gz'):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
  files = benchmark_ngrams.list_files(made_config(tmp_path))
  assert list(files) == ['a/x', 'b/x', 'b/y']
  with pytest.raises(UserError, match='no file matches'):
    benchmark_ngrams.list_files(made_config(tmp_path / 'c*.jsonl'))
  for name in ('x.json', 'p,q.json'):
    (tmp_path / 'a' / name).touch()
    with pytest.raises(UserError, match='needs a name of its own'):
      benchmark_ngrams.list_files(made_config(tmp_path / 'a'))
    (tmp_path / 'a' / name).unlink()
