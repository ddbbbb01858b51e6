"""Work as pipelines of Apache Beam."""

import operator
import os
import pathlib
import sys

import pytest

from configs import base
from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime import beam_work, workers

IN_MEMORY = ('--runner=DirectRunner',)
PROCESSES = (
  *IN_MEMORY,
  '--direct_num_workers=2',
  '--direct_running_mode=multi_processing',
)


def test_results_come_in_the_order_of_tasks_and_nothing_stays(tmp_path):
  folder = tmp_path / 'work'
  tasks = list(range(5))
  found = beam_work.run_all(operator.neg, tasks, PROCESSES, str(folder))
  assert list(found) == [-task for task in tasks]
  assert not folder.exists()


def test_workers_are_processes_of_their_own(tmp_path):
  paths = [str(tmp_path / 'never'), '/proc/self']
  [never, pid] = beam_work.run_all(
    os.path.realpath, paths, PROCESSES, str(tmp_path / 'work')
  )
  assert never == paths[0]
  assert pid != os.path.realpath('/proc/self')


def refuse(path: str) -> str:
  """Notes that it was called, and refuses what is called bad."""
  pathlib.Path(path).touch()
  if path.endswith('bad'):
    raise UserError(f'{path} is bad.')
  return path


def test_an_error_of_the_user_ends_the_work(tmp_path):
  paths = [str(tmp_path / name) for name in ('good', 'bad', 'late')]
  found = beam_work.run_all(refuse, paths, IN_MEMORY, str(tmp_path / 'work'))
  with pytest.raises(UserError, match=f'^{tmp_path}/bad is bad.$'):
    list(found)
  assert not (tmp_path / 'work').exists()


def test_after_the_word_to_stop_no_task_is_begun(tmp_path):
  """Nor again, where a runner repeats one that is done."""
  calls = [tmp_path / name for name in ('first', 'second')]
  for number, call in enumerate(calls):
    beam_work._dump(
      beam_work._name(str(tmp_path), 'task', number), (refuse, str(call))
    )
  beam_work._work(str(tmp_path), 0)
  calls[0].unlink()
  beam_work._work(str(tmp_path), 0)
  (tmp_path / 'stop').touch()
  beam_work._work(str(tmp_path), 1)
  assert not any(call.exists() for call in calls)


def test_another_error_says_what_it_is(tmp_path):
  with pytest.raises(Exception, match='bad operand type') as caught:
    list(beam_work.run_all(operator.neg, ['x'], IN_MEMORY, str(tmp_path)))
  assert not isinstance(caught.value, UserError)


@pytest.mark.parametrize(
  ('options', 'said'),
  [
    (('--direct_num_workers=2',), 'which names no runner: add one'),
    (('--runner=Direkt',), "asks for the runner 'Direkt': Unexpected pipeline"),
    (('--runner=DataflowRunner',), 'Missing required option: project'),
    (
      (*IN_MEMORY, '--num_worker=2'),
      'has --num_worker, which is not an option of',
    ),
    ((*IN_MEMORY, '--direct_num_workers=two'), 'Beam rejects'),
  ],
)
def test_options_are_checked(options, said):
  with pytest.raises(UserError, match=said):
    beam_work.check(options, 'gs://bucket/work')


def test_options_of_a_runner_in_another_language_pass():
  beam_work.check(('--runner=FlinkRunner', '--parallelism=8'), '/shared/work')


def test_workers_in_a_cloud_need_a_folder_there(monkeypatch):
  # Where Google's client is installed, Beam asks the cloud about each bucket.
  monkeypatch.setattr(
    'apache_beam.options.pipeline_options.GoogleCloudOptions'
    '._warn_if_soft_delete_policy_enabled',
    lambda *arguments: None,
  )
  options = (
    *('--runner=DataflowRunner', '--project=mine', '--region=us-central1'),
    *('--temp_location=gs://bucket/t', '--staging_location=gs://bucket/s'),
  )
  beam_work.check(options, 'gs://bucket/work')
  with pytest.raises(UserError, match='do not see runs/x/beam/tokenize'):
    beam_work.check(options, 'runs/x/beam/tokenize')


def test_without_beam_it_is_asked_for(monkeypatch):
  monkeypatch.setitem(sys.modules, 'apache_beam.options.pipeline_options', None)
  with pytest.raises(UserError, match=r"pip install 'infoprune_jax\[beam\]'"):
    beam_work.check(IN_MEMORY, 'runs/x')


def test_a_pipeline_that_cannot_start_is_one_message(tmp_path, monkeypatch):
  def refuse_connection(**options):
    raise OSError('no way to localhost:8099')

  monkeypatch.setattr('apache_beam.Pipeline', refuse_connection)
  work = beam_work.run_all(
    operator.neg, [1], ('--runner=FlinkRunner',), str(tmp_path / 'work')
  )
  with pytest.raises(UserError, match='ended without a result: no way to'):
    list(work)


def test_no_task_no_pipeline(tmp_path):
  assert not list(beam_work.run_all(operator.neg, [], IN_MEMORY, '/nowhere'))


def test_a_block_has_its_workers(make_corpus, tmp_path):
  """One pipeline after another, and one job at a time."""
  config = make_corpus({'x': base.text('*')}, beam_options=IN_MEMORY)
  with workers.shared_pool(config, str(tmp_path), 'tokenize'):
    assert list(workers.run_all(operator.neg, [1, 2], 1)) == [-1, -2]
    assert list(
      workers.run_all(operator.neg, [3], 1, force_subprocess=True)
    ) == [-3]
    with (
      pytest.raises(UserError, match='is being written by another process'),
      workers.shared_pool(config, str(tmp_path), 'tokenize'),
    ):
      pass
