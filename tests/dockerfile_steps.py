"""The steps of the Dockerfile, run in a folder instead of in a container."""

import json
import os
import pathlib
import re
import shutil
import subprocess

ROOT = pathlib.Path(__file__).parents[1]


def stages() -> dict[str, list[tuple[str, str]]]:
  """The instructions of each stage: a word and the rest of the line."""
  text = (ROOT / 'Dockerfile').read_text()
  lines = [line for line in text.splitlines() if not line.startswith('#')]
  joined = '\n'.join(lines).replace('\\\n', ' ')
  parsed: dict[str, list[tuple[str, str]]] = {}
  for line in filter(None, joined.splitlines()):
    word, _, rest = line.partition(' ')
    if word == 'FROM':
      steps = parsed[rest.split(' AS ')[1]] = []
    steps.append((word, rest))
  return parsed


def ignored(path: str) -> bool:
  """Whether .dockerignore keeps a file or folder of the root from Docker."""
  lines = (ROOT / '.dockerignore').read_text().splitlines()
  assert lines[0] == '*'
  return f'!{path}' not in lines


def run(
  steps: list[tuple[str, str]], folder: pathlib.Path, path: str
) -> tuple[pathlib.Path, list[str]]:
  """Runs the steps of a stage in a folder, with another PATH.

  Returns:
    The working folder, and the entry point.
  """
  where, entry = folder, []
  for word, rest in steps:
    if word == 'WORKDIR':
      where = folder / rest.lstrip('/')
      where.mkdir()
    elif word == 'COPY':
      *sources, target = rest.split()
      for source in sources:
        assert not ignored(source), source
        copy(ROOT / source, where / target)
    elif word == 'RUN':
      command = re.sub(' +', ' ', rest)
      environment = {**os.environ, 'PATH': path}
      environment.pop('PYTHONPATH', None)
      subprocess.run(
        ['sh', '-euc', command], cwd=where, env=environment, check=True
      )
    elif word == 'ENTRYPOINT':
      entry = json.loads(rest)
    else:
      assert word == 'FROM', word
  return where, entry


def copy(source: pathlib.Path, target: pathlib.Path) -> None:
  """As COPY does: the content of a folder, or a file."""
  if source.is_dir():
    ignore = shutil.ignore_patterns('__pycache__')
    shutil.copytree(source, target, dirs_exist_ok=True, ignore=ignore)
  else:
    shutil.copy(source, target)
