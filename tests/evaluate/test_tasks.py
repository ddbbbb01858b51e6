"""The stage that tries trained arms on tasks, up to the report."""

import dataclasses
import importlib.util
import json
import pathlib
import tarfile

import pytest
from host_job import Job

from infoprune_jax import stages
from infoprune_jax.config import experiment as config_lib
from infoprune_jax.config.experiment import Config
from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime.workdir import (
  TASK_RESULTS,
  run_dir,
  task_results_dir,
)
from infoprune_jax.score.language_model import load_model
from infoprune_jax.verify import workdir as verify

ARCHIVE = pathlib.Path(__file__).parents[1] / 'golden_workdir.tar.xz'
QUESTIONS = [
  {'context': 'Copyright', 'continuation': 'notice'},
  {'context': 'All rights', 'continuation': 'reserved'},
]


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> pathlib.Path:
  """A finished workdir, and questions."""
  path = tmp_path_factory.mktemp('golden')
  with tarfile.open(ARCHIVE) as archive:
    archive.extractall(path, filter='data')
  (path / 'words.jsonl').write_text(
    ''.join(json.dumps(one) + '\n' for one in QUESTIONS)
  )
  return path


def config_of(folder: pathlib.Path, **evaluate) -> Config:
  spec = importlib.util.spec_from_file_location('golden', folder / 'config.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  made = config_lib.from_mapping(module.get_config())
  section = dataclasses.replace(made.evaluate, **evaluate)
  return dataclasses.replace(made, evaluate=section)


def results_of(folder: pathlib.Path, arm: str) -> list[dict]:
  path = pathlib.Path(task_results_dir(str(folder / 'workdir'), arm, 0))
  return json.loads((path / TASK_RESULTS).read_text())['results']


def test_each_arm_has_results_and_the_report_shows_them(folder, monkeypatch):
  monkeypatch.chdir(folder)
  config = config_of(folder, downstream={'words': ('words.jsonl',)})
  workdir = str(folder / 'workdir')
  for job in ('select', 'evaluate', 'selection_report', 'report'):
    stages.run(config, workdir, job)
  before = {arm: results_of(folder, arm) for arm in config.arms}
  for arm, found in before.items():
    names = [(one['group'], one['task']) for one in found]
    assert names == [('words', 'words'), ('words', 'all'), ('all', 'all')]
    model = load_model(run_dir(workdir, arm, 0), max_length=64)
    pairs = [(q['context'], f' {q["continuation"]}') for q in QUESTIONS]
    greedy = [one.is_greedy for one in model.continuations(pairs)]
    assert found[0]['value'] == sum(greedy) / 2
  report = json.loads((folder / 'workdir/report/report.json').read_text())
  rows = {(row['group'], row['task']): row for row in report['tasks']}
  for number, arm in enumerate(report['arms']):
    shown = rows['all', 'all']['arms'][number]
    assert shown['values'] == [before[arm['name']][-1]['value']]
  assert 'tasks/random/seed-0' in report['fingerprints']
  html = (folder / 'workdir/report/index.html').read_text()
  assert '<h2 id="tasks">Tasks</h2>' in html
  wrong = [p for _, problems in verify.check(workdir) for p in problems]
  assert not wrong


def test_finished_results_stay_and_others_are_refused(
  folder, monkeypatch, caplog
):
  monkeypatch.chdir(folder)
  workdir = str(folder / 'workdir')
  config = config_of(folder, downstream={'words': ('words.jsonl',)})
  stages.run(config, workdir, 'evaluate')
  (folder / 'more.jsonl').write_text(json.dumps(QUESTIONS[0]) + '\n')
  config = config_of(folder, downstream={'words': ('more.jsonl',)})
  with pytest.raises(UserError, match='another version of words/more'):
    stages.run(config, workdir, 'evaluate')


def test_what_is_missing_is_found_before_the_stage(folder, monkeypatch):
  monkeypatch.chdir(folder)
  config = config_of(folder, downstream={'words': ('missing.jsonl',)})
  with pytest.raises(UserError, match=r'missing\.jsonl'):
    stages.check(config, 'evaluate')
  config = config_of(folder, tasks=('made_up',), task_path='nowhere')
  with pytest.raises(UserError, match="'nowhere' is no folder"):
    stages.check(config, 'evaluate')


def test_a_task_of_the_harness(folder, monkeypatch):
  pytest.importorskip('lm_eval')
  monkeypatch.chdir(folder)
  (folder / 'made').mkdir()
  (folder / 'made/words.yaml').write_text(
    f"""
task: made_words
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/words.jsonl}}}}
test_split: test
output_type: loglikelihood
doc_to_text: "{{{{context}}}}"
doc_to_target: " {{{{continuation}}}}"
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""
  )
  config = config_of(folder, tasks=('made_word',), task_path='made')
  with pytest.raises(UserError, match="Did you mean 'made_words'"):
    stages.check(config, 'evaluate')
  for arm in config.arms:
    for path in pathlib.Path(
      task_results_dir(str(folder / 'workdir'), arm, 0)
    ).glob('*'):
      path.unlink()
  config = config_of(
    folder,
    tasks=('made_words',),
    task_path='made',
    downstream={'words': ('words.jsonl',)},
  )
  stages.run(config, str(folder / 'workdir'), 'evaluate')
  for arm in config.arms:
    own, *_, theirs = results_of(folder, arm)
    assert (theirs['group'], theirs['metric']) == ('lm_eval', 'acc')
    assert theirs['value'] == own['value']
    assert theirs['num_items'] == 2


GENERATION = """
task: made_texts
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/words.jsonl}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{context}}}}"
doc_to_target: "{{{{continuation}}}}"
generation_kwargs: {{until: ["."], max_gen_toks: 20}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
"""


def test_hosts_write_what_one_writes(tmp_path):
  """Two processes get the same questions, and one writes the results."""
  has_harness = importlib.util.find_spec('lm_eval') is not None
  results = []
  for processes in (1, 2):
    folder = tmp_path / f'on-{processes}'
    folder.mkdir()
    with tarfile.open(ARCHIVE) as archive:
      archive.extractall(folder, filter='data')
    (folder / 'words.jsonl').write_text(
      ''.join(json.dumps(one) + '\n' for one in QUESTIONS * 5)
    )
    edits = f"config.evaluate.downstream = {{'a': ('{folder}/words.jsonl',)}}"
    if has_harness:
      (folder / 'made').mkdir()
      (folder / 'made/texts.yaml').write_text(GENERATION.format(folder=folder))
      edits += f"""
  config.evaluate.tasks = ('made_texts',)
  config.evaluate.task_path = '{folder}/made'"""
    config = folder / 'hosts.py'
    config.write_text(
      (folder / 'config.py')
      .read_text()
      .replace('  return config', f'  {edits}\n  return config')
    )
    Job(folder / 'workdir', config, processes, job='evaluate').finish()
    results.append(
      {arm: results_of(folder, arm) for arm in ('random', 'top_sum')}
    )
  assert results[0] == results[1]
  assert len(results[0]['random']) == 3 + has_harness
