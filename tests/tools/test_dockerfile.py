"""The Dockerfile: its rules, and its steps with a `pip` that installs nothing."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import dockerfile_steps
import pytest
from dockerfile_steps import ROOT
from fake_commands import FakeCommand


def test_the_linter_has_no_complaint():
  beside = pathlib.Path(sys.executable).with_name('hadolint')
  hadolint = shutil.which('hadolint') or str(beside)
  if not os.path.exists(hadolint):
    pytest.skip('hadolint is not installed')
  done = subprocess.run(
    [hadolint, 'Dockerfile'], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stdout


def test_the_image_has_the_files_that_a_job_needs(tmp_path):
  pip = FakeCommand(tmp_path, 'pip')
  path = pip.environment['PATH']
  folder, entry = dockerfile_steps.run(
    dockerfile_steps.stages()['main'], tmp_path, path
  )
  [installed] = pip.calls()
  assert {'constraints.txt', '.[gcs,hf]', 'jax[tpu]'} <= {*installed}
  assert entry == ['python', '-m', 'infoprune_jax.main']
  for name in ('infoprune_jax', 'configs', 'pyproject.toml', 'README.md'):
    for source in [ROOT / name, *(ROOT / name).glob('**/*')]:
      if '__pycache__' not in source.parts and source.is_file():
        copied = folder / source.relative_to(ROOT)
        assert copied.read_bytes() == source.read_bytes()


def test_beam_has_one_version():
  constraints = (ROOT / 'constraints.txt').read_text()
  [version] = re.findall(r'^apache-beam==(\S+)$', constraints, re.M)
  steps = dockerfile_steps.stages()
  [base] = [rest for word, rest in steps['main'] if word == 'FROM']
  python = re.fullmatch(r'python:(3\.\d+)-\S+ AS main', base)[1]
  copied = f'--from=apache/beam_python{python}_sdk:{version} '
  assert any(
    word == 'COPY' and rest.startswith(copied) for word, rest in steps['beam']
  )
