"""The commands of docs/launching.md are those that the scripts take."""

import subprocess
import sys

import launching_docs
import pytest
from fake_commands import FakeCommand
from launching_docs import ROOT

SCRIPTS = {
  'launch_gke.py': [sys.executable],
  'launch_batch.py': [sys.executable],
  'launch_queued_resource.sh': ['bash'],
}


@pytest.mark.parametrize('script', SCRIPTS)
def test_commands_are_understood(tmp_path, script):
  fakes = [FakeCommand(tmp_path, name) for name in ('gcloud', 'kubectl')]
  commands = launching_docs.commands(script)
  assert commands
  for path, *arguments in commands:
    command = [*SCRIPTS[script], path, '--dry_run', *arguments]
    done = subprocess.run(
      command,
      cwd=ROOT,
      env=fakes[0].environment,
      capture_output=True,
      text=True,
    )
    assert done.returncode == 0, done.stderr
    assert not any(fake.calls() for fake in fakes)


def test_the_two_commands_of_an_experiment_differ_in_the_dry_run_alone():
  dry, real = launching_docs.commands('launch.py')
  assert dry[: len(real)] == real
  assert dry[len(real)] == '--dry_run'
