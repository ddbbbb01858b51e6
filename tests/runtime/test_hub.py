"""Models and datasets of the Hub, from a server on this machine.

Each group of calls has a process of its own: the library reads its environment
variables when it is imported.
"""

import json
import os
import pathlib
import re
import socket
import subprocess
import sys

import hub_server
import pytest

pytest.importorskip('huggingface_hub')
ROOT = pathlib.Path(__file__).parents[2]
CALLS = """
import json, sys, time
from infoprune_jax.config.validation import UserError
from infoprune_jax.corpus import paths
from infoprune_jax.runtime import filesystems, hub

def matches(path):
  return [file for file, _ in paths.matches('option', path)[1]]

def content(path):
  with filesystems.open_file(path) as file:
    return file.read().decode()

def wait(seconds):
  hub.TIMEOUT = seconds

functions = dict(
  local=hub.local,
  matches=matches,
  content=content,
  facts=hub.facts,
  wait=wait,
  clock=time.monotonic,
)
answers = []
for name, *arguments in json.loads(sys.argv[1]):
  try:
    answers.append(functions[name](*arguments))
  except UserError as error:
    answers.append(f'UserError: {error}')
print(json.dumps(answers))
"""
MODEL = {
  'config.json': b'{"a": 1}',
  'tokenizer.json': b'{}',
  'README.md': b'a card',
  'pytorch_model.bin': b'a pickle',
  'model.safetensors': b'weights',
  'consolidated.safetensors': b'the same weights',
  'small/q8.gguf': b'GGUF',
}
SHARDS = [f'model-0000{n}-of-00002.safetensors' for n in (1, 2)]
INDEX = {'weight_map': {'a': SHARDS[0], 'b': SHARDS[1], 'c': SHARDS[0]}}


@pytest.fixture
def hub():
  with hub_server.serving() as hub:
    yield hub


@pytest.fixture
def ask(hub, tmp_path):
  """Makes calls, each a function with arguments; returns their answers."""

  def ask(*calls, **environment):
    environment = {
      **{k: v for k, v in os.environ.items() if not k.startswith('HF_')},
      'PYTHONPATH': str(ROOT),
      'HF_ENDPOINT': hub.url,
      'HF_HOME': str(tmp_path / 'home'),
      **environment,
    }
    process = subprocess.run(
      [sys.executable, '-c', CALLS, json.dumps(calls)],
      cwd=tmp_path,
      env=environment,
      capture_output=True,
      text=True,
      timeout=200,
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)

  return ask


def files_in(folder: str) -> dict[str, bytes]:
  path = pathlib.Path(folder)
  return {f.name: f.read_bytes() for f in path.iterdir() if f.is_file()}


def test_only_the_files_that_are_read_are_downloaded(hub, ask):
  commit = hub.add('org/model').commit(MODEL)
  [tokenizer] = ask(['local', 'org/model', False])
  assert hub.files_sent == ['config.json', 'tokenizer.json']
  folder, facts = ask(['local', 'hf://org/model'], ['facts'])
  assert tokenizer == folder and folder.endswith(f'/snapshots/{commit}')
  wanted = ('config.json', 'tokenizer.json', 'model.safetensors')
  assert files_in(folder) == {name: MODEL[name] for name in wanted}
  assert hub.files_sent == sorted(wanted)
  assert facts == {'hub_commits': {'hf://org/model': commit}}


def test_the_index_names_the_shards(hub, ask):
  files = {
    'config.json': b'{}',
    'model.safetensors.index.json': json.dumps(INDEX).encode(),
    **dict.fromkeys(SHARDS, b'weights'),
    'model-of-another-format.safetensors': b'x',
  }
  hub.add('org/model').commit(files)
  [folder] = ask(['local', 'org/model'])
  assert files_in(folder).keys() == files.keys() - {
    'model-of-another-format.safetensors'
  }
  hub.add('org/model').commit(
    {k: v for k, v in files.items() if k != SHARDS[0]}
  )
  [answer] = ask(['local', 'org/model'])
  assert answer == f'UserError: org/model has no {SHARDS[0]}.'


def test_revisions_and_paths(hub, ask):
  repository = hub.add('org/model')
  old = repository.commit({**MODEL, 'config.json': b'{"a": 0}'}, 'v1')
  new = repository.commit(MODEL)
  by_tag, by_commit, newest, file, facts = ask(
    ['local', 'org/model@v1'],
    ['local', f'hf://org/model@{old}'],
    ['local', 'hf://org/model'],
    ['local', 'hf://org/model@main/small/q8.gguf'],
    ['facts'],
  )
  assert by_tag == by_commit and by_tag.endswith(f'/{old}')
  assert files_in(by_tag)['config.json'] == b'{"a": 0}'
  assert newest.endswith(f'/{new}')
  assert file == f'{newest}/small/q8.gguf'
  assert pathlib.Path(file).read_bytes() == b'GGUF'
  assert facts['hub_commits'] == {
    'hf://org/model': new,
    f'hf://org/model@{old}': old,
    'hf://org/model@main': new,
    'hf://org/model@v1': old,
  }


def test_a_local_path_comes_first(hub, ask, tmp_path):
  hub.add('org/model').commit(MODEL)
  (tmp_path / 'org/model').mkdir(parents=True)
  own = str(tmp_path / 'org/model')
  other = ['./org/none', 'org/none.gguf', 'gpt2', 'a/b/c', '/org/none']
  answers = ask(['local', 'org/model'], *(['local', name] for name in other))
  assert answers[0] == own
  assert answers[1:] == [str((tmp_path / name).absolute()) for name in other]
  assert not hub.requests


REFUSED = {
  'hf://org/none': 'no such model, or it is private.* HF_TOKEN',
  'org/none': 'there is no such local path, and .* no such model',
  'hf://org/model@v9': "no revision 'v9': name a branch, tag or commit",
  'hf://org/gated': 'access to it is gated.*`hf auth login`',
  'hf://org/pickles': r'no model.safetensors.* pickles \(.bin\) are not',
  'hf://org/files': 'no config.json.*hf://org/files/FILE.gguf',
  'hf://org/files/b.gguf': 'has no b.gguf',
  'hf://datasets/org/data': 'does not name a model .* hf://ORG/NAME@REV',
  'hf://gpt2': 'does not name a model',
  'hf://spaces/org/page': 'does not name a model',
}


def test_what_cannot_be_had_is_one_message(hub, ask):
  hub.add('org/model').commit(MODEL)
  hub.add('org/gated').commit(MODEL)
  hub.add('org/gated').is_gated = True
  hub.add('org/pickles').commit({'config.json': b'{}', 'a.bin': b'x'})
  hub.add('org/files').commit({'a.gguf': b'x'})
  answers = ask(*(['local', name] for name in REFUSED))
  for answer, (name, message) in zip(answers, REFUSED.items(), strict=True):
    assert answer.startswith(f'UserError: {name}')
    assert re.search(message, answer), answer


def test_without_a_network(hub, ask):
  """What is in the cache is used if HF_HUB_OFFLINE says so, and only then."""
  commit = hub.add('org/model').commit(MODEL)
  hub.add('org/half').commit(MODEL)
  ask(['local', 'org/model'], ['local', 'org/half', False])
  seen = len(hub.requests)
  folder, half, none, data, facts = ask(
    ['local', 'org/model'],
    ['local', 'org/half'],
    ['local', 'hf://org/none'],
    ['matches', 'hf://datasets/org/data/*.jsonl'],
    ['facts'],
    HF_HUB_OFFLINE='1',
  )
  assert files_in(folder).keys() == {
    *('config.json', 'tokenizer.json', 'model.safetensors')
  }
  assert facts['hub_commits']['hf://org/model'] == commit
  for answer in (half, none):
    assert re.search('HF_HUB_OFFLINE is set.*`hf download org/', answer)
  assert 'is read over the network, but HF_HUB_OFFLINE is set' in data
  assert '--repo-type=dataset --local-dir DIR' in data
  assert len(hub.requests) == seen
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    closed = f'http://127.0.0.1:{free.getsockname()[1]}'
  start, *answers, end = ask(
    ['clock'],
    ['local', 'org/model'],
    ['matches', 'hf://datasets/org/data/*.jsonl'],
    ['clock'],
    HF_ENDPOINT=closed,
  )
  assert end - start < 9
  for answer in answers:
    assert f'cannot be read from {closed} (' in answer
    assert 'hf download org/' in answer
  assert 'set HF_HUB_OFFLINE=1 to use the cache' in answers[0]


def test_a_server_that_does_not_answer_is_given_up(ask):
  with socket.socket() as silent:
    silent.bind(('127.0.0.1', 0))
    silent.listen()
    endpoint = f'http://127.0.0.1:{silent.getsockname()[1]}'
    _, start, answer, end = ask(
      ['wait', 1],
      ['clock'],
      ['local', 'hf://org/model'],
      ['clock'],
      HF_ENDPOINT=endpoint,
    )
  assert end - start < 9
  assert 'cannot be read from' in answer


def test_files_of_a_dataset_are_pinned_and_read_in_ranges(hub, ask):
  data = hub.add('org/data', 'dataset')
  old = data.commit({'a/0.jsonl': b'old\n', 'README.md': b'a card'})
  data.references['refs/convert/parquet'] = old
  root = f'hf://datasets/org/data@{old}'
  paths = (
    'hf://datasets/org/data/a/*.jsonl',
    'hf://datasets/org/data/a/0.jsonl',
    'hf://datasets/org/data@main/a',
    'hf://datasets/org/data@refs/convert/parquet/a/*',
    'hf://datasets/org/data@refs%2Fconvert%2Fparquet/a/*',
  )
  *answers, facts = ask(*(['matches', path] for path in paths), ['facts'])
  assert answers == [[f'{root}/a/0.jsonl']] * len(paths)
  assert facts['hub_commits']['hf://datasets/org/data'] == old
  data.commit({'a/0.jsonl': b'new\n'})
  assert ask(['content', f'{root}/a/0.jsonl']) == ['old\n']
  [answer] = ask(['matches', 'hf://datasets/org/data/z/*.jsonl'])
  assert 'option: no file matches' in answer
