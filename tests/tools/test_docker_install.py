"""The image is installed and starts, in a folder instead of in a container."""

import os
import subprocess
import sys

import dockerfile_steps
import pytest


@pytest.mark.skipif(
  sys.version_info[:2] != (3, 11), reason='constraints.txt is of Python 3.11'
)
def test_the_steps_install_what_a_job_needs(tmp_path):
  """Takes minutes: all dependencies are installed."""
  environment = tmp_path / 'environment'
  subprocess.run([sys.executable, '-m', 'venv', str(environment)], check=True)
  path = f'{environment}/bin{os.pathsep}{os.environ["PATH"]}'
  folder, entry = dockerfile_steps.run(
    dockerfile_steps.stages()['main'], tmp_path, path
  )
  variables = {**os.environ, 'PATH': path, 'JAX_PLATFORMS': 'cpu'}
  variables.pop('PYTHONPATH', None)
  done = subprocess.run(
    [*entry, '--config=configs/tiny.py', '--workdir=tiny'],
    cwd=folder,
    env=variables,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  assert (folder / 'tiny/report/index.html').exists()
