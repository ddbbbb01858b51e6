"""A model and a corpus of the Hub, as a user names them."""

import json
import os
import pathlib
import subprocess
import sys

import hub_server
import pytest
from hugging_face_folders import random_params, their_tensors, write_folder
from made_vocabularies import byte_level, in_folder
from small_corpus import write_corpus

from configs import score
from infoprune_jax import stages
from infoprune_jax.config import experiment as config_lib
from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime import distributed, hub as hub_lib, manifests
from infoprune_jax.runtime.workdir import scores_dir, token_store_dir
from infoprune_jax.score import references
from infoprune_jax.tokens import tables

pytest.importorskip('huggingface_hub')
ROOT = pathlib.Path(__file__).parents[2]
DOCUMENTS = 30
VOCAB_SIZE = 336  # The tokenizer has 320: it is padded.
SMALL = {
  'corpus.num_shards': 2,
  'corpus.num_workers': 1,
  'score.sequence_length': 64,
  'score.window_overlap': 16,
  'score.per_device_batch_size': 1,
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> pathlib.Path:
  """A model and a corpus in two files."""
  folder = tmp_path_factory.mktemp('local')
  golden = ROOT / 'tests/golden/hugging_face.jsonl'
  values = json.loads(golden.read_text().splitlines()[0])['config']
  values = {**values, 'vocab_size': VOCAB_SIZE}
  tensors = their_tensors(values, random_params(values))
  write_folder(folder / 'model', values, tensors, num_files=2)
  special = {'bos_token': '<s>', 'eos_token': '</s>'}
  in_folder(folder / 'model', byte_level(), tokenizer_config=special)
  write_corpus(folder / 'all.jsonl', DOCUMENTS)
  lines = (folder / 'all.jsonl').read_bytes().splitlines(keepends=True)
  (folder / 'corpus').mkdir()
  (folder / 'corpus/0.jsonl').write_bytes(b''.join(lines[:9]))
  (folder / 'corpus/1.jsonl').write_bytes(b''.join(lines[9:]))
  return folder


@pytest.fixture(scope='module')
def hub(folder):
  with hub_server.serving() as hub:
    for name, kind in (('model', 'model'), ('corpus', 'dataset')):
      files = {f.name: f.read_bytes() for f in (folder / name).iterdir()}
      hub.add(f'org/{name}', kind).commit(files)
    yield hub


def command(hub, tmp_path, *flags: str, **environment: str):
  """The command line, with names of the Hub."""
  kept = {k: v for k, v in os.environ.items() if not k.startswith('HF_')}
  kept |= {
    'PYTHONPATH': str(ROOT),
    'HF_ENDPOINT': hub.url,
    'HF_HOME': str(tmp_path / 'home'),
    **environment,
  }
  return subprocess.run(
    [
      *(sys.executable, '-m', 'infoprune_jax.main'),
      *('--config=configs/score.py', f'--workdir={tmp_path}/w'),
      '--config.corpus.sources.mine.paths=hf://datasets/org/corpus/*.jsonl',
      '--config.reference.checkpoint.path=org/model',
      *(f'--config.{name}={value}' for name, value in SMALL.items()),
      *flags,
    ],
    cwd=ROOT,
    env=kept,
    capture_output=True,
    text=True,
  )


def test_scores_are_those_of_local_copies(hub, folder, tmp_path):
  result = command(hub, tmp_path)
  assert result.returncode == 0, result.stderr
  edits = score.get_config()
  for name, value in SMALL.items():
    edits.update_from_flattened_dict({name: value})
  edits.corpus.sources.mine.paths = (str(folder / 'corpus/*.jsonl'),)
  edits.reference.checkpoint.path = str(folder / 'model')
  config = config_lib.from_mapping(edits)
  for job in ('tokenize', 'score'):
    stages.run(config, str(tmp_path / 'local'), job)
  table, expected = (
    tables.read_table(scores_dir(str(tmp_path / name)))
    for name in ('w', 'local')
  )
  assert table.equals(expected) and len(table) == DOCUMENTS

  own = manifests.read_manifest(scores_dir(str(tmp_path / 'w')), 'score')
  other = manifests.read_manifest(scores_dir(str(tmp_path / 'local')), 'score')
  # A copy is the same model, wherever it is.
  assert own['inputs']['given_nll_sum'] == other['inputs']['given_nll_sum']
  commits = {
    f'hf://{"datasets/" * (kind == "dataset")}{name}': there.references['main']
    for (kind, name), there in hub.repositories.items()
  }
  store = token_store_dir(str(tmp_path / 'w'))
  tokenized = manifests.read_manifest(store, 'tokenize')
  for manifest in (own, tokenized):
    assert manifest['hub_commits'] == commits
  assert 'hub_commits' not in other
  assert manifests.content_fingerprint(own) == own['fingerprint']


def test_hosts_with_other_commits_are_refused(monkeypatch):
  there = {'hub_commits': {'hf://org/model': 'a' * 40}}
  monkeypatch.setattr(distributed, 'broadcast', lambda name, here: there)
  monkeypatch.setattr(hub_lib, '_commits', there['hub_commits'])
  references.check_same_commits()
  monkeypatch.setattr(hub_lib, '_commits', {'hf://org/model': 'b' * 40})
  with pytest.raises(UserError, match='other commits of the Hub .*@COMMIT'):
    references.check_same_commits()


def test_the_dry_run_names_what_is_missing_and_writes_nothing(hub, tmp_path):
  hub.repositories.pop(('dataset', 'org/corpus'))
  result = command(hub, tmp_path, '--dry_run')
  assert result.returncode == 2
  message = result.stderr.splitlines()[-1]
  assert message.startswith(
    'infoprune_jax: corpus.sources.mine.paths: '
    'hf://datasets/org/corpus/*.jsonl: the Hub has no such dataset'
  )
  assert not (tmp_path / 'w').exists()
