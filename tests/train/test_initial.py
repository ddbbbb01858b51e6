"""Arms that start from a model of Hugging Face."""

import json
import pathlib

import numpy as np
import pytest
from hugging_face_folders import random_params, their_tensors, write_folder
from made_vocabularies import byte_level, in_folder, unigram
from small_corpus import small_config

from configs import base
from infoprune_jax import stages
from infoprune_jax.config import experiment as config_lib
from infoprune_jax.config.experiment import MeshConfig
from infoprune_jax.config.validation import UserError
from infoprune_jax.model import checkpoints, mesh as mesh_lib
from infoprune_jax.model.hugging_face import configs
from infoprune_jax.model.parameter_file import names_of
from infoprune_jax.runtime import files, manifests
from infoprune_jax.runtime.workdir import evaluation_dir, run_dir
from infoprune_jax.score import scorer

GOLDEN = pathlib.Path('tests/golden/hugging_face.jsonl')
VOCAB_SIZE = 336  # The tokenizer has 320: it is padded.


@pytest.fixture(scope='module')
def values():
  line = json.loads(GOLDEN.read_text().splitlines()[0])
  return {**line['config'], 'vocab_size': VOCAB_SIZE}


@pytest.fixture(scope='module')
def folder(values, tmp_path_factory) -> pathlib.Path:
  path = tmp_path_factory.mktemp('model')
  write_folder(path, values, their_tensors(values, random_params(values)))
  special = {'bos_token': '<s>', 'eos_token': '</s>'}
  return in_folder(path, byte_level(), tokenizer_config=special)


def experiment(corpus_path, folder, **vocabulary) -> config_lib.Config:
  """One arm, whose learning rate is too small to change a number."""
  edits = small_config(corpus_path)
  edits.vocabulary.path = ''
  edits.vocabulary.update(vocabulary)
  edits.select.arms = {'full': base.arm('all')}
  edits.report.baseline = 'full'
  edits.train.seeds = (0, 1)
  edits.train.init_from = str(folder)
  edits.train.training.update(
    num_steps=2, warmup_steps=1, learning_rate=1e-30, weight_decay=0.0
  )
  return config_lib.from_mapping(edits)


@pytest.fixture(scope='module')
def trained(corpus_path, folder, tmp_path_factory) -> str:
  workdir = str(tmp_path_factory.mktemp('initial'))
  config = experiment(corpus_path, folder)
  for job in stages.needed(config)[:-1]:  # All but the report.
    stages.run(config, workdir, job)
  return workdir


@pytest.mark.parametrize('seed', [0, 1])
def test_every_run_starts_from_the_model(trained, values, seed):
  path = run_dir(trained, 'full', seed)
  manifest = files.read_json(f'{path}/{manifests.MANIFEST}')
  assert manifest['vocab_size'] == VOCAB_SIZE
  assert 'initial' in manifest['inputs']
  model, size = configs.model_config(configs.text_config(values, ''), '')
  mesh = mesh_lib.make_mesh(MeshConfig())
  target = scorer.abstract_params(model, size, mesh)
  params = names_of(checkpoints.load_params(path, manifest['step'], target))
  for name, expected in random_params(values).items():
    # Only a zero can move so little.
    np.testing.assert_allclose(params[name], expected, rtol=0, atol=1e-29)
  evaluated = evaluation_dir(trained, 'full', seed)
  assert manifests.read_manifest(evaluated, 'evaluate') is not None


def test_seeds_differ_in_order_alone(trained):
  """At the same parameters, other documents have another loss."""
  first = []
  for seed in (0, 1):
    path = pathlib.Path(run_dir(trained, 'full', seed)) / 'metrics.jsonl'
    lines = map(json.loads, path.read_text().splitlines())
    first.append(next(line['loss'] for line in lines if 'loss' in line))
  assert first[0] != first[1] and abs(first[0] - first[1]) < 1.0


def test_another_vocabulary_is_refused_before_work(
  corpus_path, folder, tmp_path
):
  special = {'bos_token': '<s>', 'eos_token': '</s>'}
  other = in_folder(tmp_path / 'o', unigram(), tokenizer_config=special)
  config = experiment(corpus_path, folder, path=str(other))
  with pytest.raises(UserError, match=r'init_from, .* the vocabulary here is'):
    stages.run(config, str(tmp_path / 'w'), 'train')
  assert not (tmp_path / 'w').exists()
