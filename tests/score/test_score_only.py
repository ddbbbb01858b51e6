"""`configs/score.py` as a user runs it: a model from elsewhere scores all."""

import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.compute as pc
import pytest
import zstandard
from made_vocabularies import byte_level, in_folder, opened
from ml_collections import ConfigDict
from small_corpus import write_corpus

from configs import base, score
from infoprune_jax import stages
from infoprune_jax.batches import packing
from infoprune_jax.config import experiment as config_lib, validation
from infoprune_jax.config.experiment import MeshConfig
from infoprune_jax.config.model import ModelConfig
from infoprune_jax.config.validation import UserError
from infoprune_jax.model import (
  flops,
  mesh as mesh_lib,
  network,
  parameter_file,
  partitioning,
)
from infoprune_jax.runtime import artifacts, manifests
from infoprune_jax.runtime.workdir import scores_dir, vocabulary_dir
from infoprune_jax.score import stage
from infoprune_jax.tokens import tables
from infoprune_jax.tokens.token_store import TokenStore

ROOT = pathlib.Path(__file__).parents[2]
DOCUMENTS = 45
PADDING = 59  # ids of the model that its tokenizer has not


def tiny_model() -> ModelConfig:
  fields = base.model().to_dict()
  fields |= dict(num_layers=1, embed_dim=16, mlp_dim=32, loss_chunk_tokens=64)
  fields |= dict(num_heads=2, num_kv_heads=1, head_dim=8)
  return validation.build(ModelConfig, fields, 'model')


def write_model(path: pathlib.Path, vocab_size: int, hash_: str) -> str:
  """Random parameters in a file, as tools/export_params.py writes them."""
  model = tiny_model()
  params = network.init_params(model, vocab_size, jax.random.key(0))
  fields = validation.to_plain(model)
  for name in ('attention', 'loss_kernel', 'remat', 'scan_unroll'):
    del fields[name]
  del fields['loss_chunk_tokens']
  facts = dict(
    model=fields,
    vocabulary=hash_,
    vocab_size=vocab_size,
    num_params=flops.num_params(model, vocab_size),
    step=1,
    tokens=10,
    flops=1e6,
  )
  parameter_file.write(str(path), params, facts)
  return str(path)


@pytest.fixture(scope='module')
def corpus(tmp_path_factory) -> str:
  """Compressed JSONL."""
  path = tmp_path_factory.mktemp('texts') / 'c.jsonl'
  write_corpus(path, DOCUMENTS)
  packed = path.with_suffix('.jsonl.zst')
  packed.write_bytes(zstandard.compress(path.read_bytes()))
  return str(packed)


@pytest.fixture(scope='module')
def home(tmp_path_factory) -> pathlib.Path:
  """A workdir with a vocabulary, and a model of more ids than it has."""
  home = tmp_path_factory.mktemp('elsewhere')
  settings = {'bos_token': '<s>', 'eos_token': '</s>'}
  tokenizer = in_folder(home / 'hf', byte_level(), tokenizer_config=settings)
  words = opened(tokenizer)
  words.save(
    artifacts.Artifact(
      vocabulary_dir(str(home)), 'vocabulary', 'tokenize', {}, {}
    )
  )
  write_model(home / 'padded.safetensors', words.size + PADDING, words.hash)
  write_model(home / 'exact.safetensors', words.size, words.hash)
  write_model(home / 'short.safetensors', words.size - 1, words.hash)
  return home


def edits(corpus: str, model: str = '') -> ConfigDict:
  made = score.get_config()
  made.corpus.sources.mine.paths = (corpus,)
  made.corpus.update(num_shards=2, num_workers=1)
  made.reference.checkpoint.path = model
  made.score.update(
    sequence_length=64, window_overlap=16, per_device_batch_size=1
  )
  return made


def run(made: ConfigDict, workdir, job: str | None = None) -> None:
  stages.run(config_lib.from_mapping(made), str(workdir), job)


def command(corpus: str, model: pathlib.Path, workdir, *more: str):
  return subprocess.run(
    [
      *(sys.executable, '-m', 'infoprune_jax.main'),
      *('--config=configs/score.py', f'--workdir={workdir}'),
      f'--config.corpus.sources.mine.paths={corpus}',
      f'--config.reference.checkpoint.path={model}',
      *('--config.corpus.num_workers=1', '--config.corpus.num_shards=2'),
      *(
        '--config.score.sequence_length=64',
        '--config.score.window_overlap=16',
      ),
      '--config.score.per_device_batch_size=1',
      *more,
    ],
    cwd=ROOT,
    env={**os.environ, 'PYTHONPATH': str(ROOT)},
    capture_output=True,
    text=True,
  )


@pytest.fixture(scope='module')
def scored(corpus, home, tmp_path_factory):
  """The workdir and the output of the whole job."""
  workdir = tmp_path_factory.mktemp('scored') / 'w'
  result = command(corpus, home / 'padded.safetensors', workdir)
  assert result.returncode == 0, result.stderr
  return workdir, result


def test_all_documents_are_scored_and_selected(scored, corpus, home):
  workdir, result = scored
  table = tables.read_table(scores_dir(str(workdir)))
  assert len(table) == DOCUMENTS
  nll = table['nll_sum'].to_numpy()
  assert np.isfinite(nll).all() and (nll > 0).all()
  manifest = manifests.read_manifest(scores_dir(str(workdir)), 'score')
  found = manifest['losses']['all']
  loss = found['losses']['nll_sum']
  tokens = table['num_tokens'].to_numpy().sum()
  assert found['tokens'] == tokens
  assert loss['nats_per_token'] == pytest.approx(nll.sum() / tokens)
  # Of each source, and of all.
  for line in ('prose', 'template', 'copies', 'all sources'):
    assert f'\n{line} ' in f'\n{result.stdout}'
  assert f'{loss["perplexity"]:.5g}' in result.stdout
  made = sorted(path.name for path in workdir.iterdir())
  assert made == [
    'keep_sets',
    'scores',
    'selection_report',
    'statistics',
    'token_store',
    'vocabulary',
  ]
  for job in ('verify', 'export'):
    run(edits(corpus, str(home / 'padded.safetensors')), workdir, job)


def test_the_dry_run_names_these_stages_alone(corpus, home, tmp_path):
  result = command(
    corpus, home / 'padded.safetensors', tmp_path / 'w', '--dry_run'
  )
  assert result.returncode == 0, result.stderr
  listed = re.findall('^  (\\w+)', result.stdout, re.MULTILINE)
  assert listed == [
    'tokenize',
    'statistics',
    'score',
    'select',
    'selection_report',
  ]
  assert not (tmp_path / 'w').exists()


def plain_nll(vocab_size: int, store: TokenStore, ids: np.ndarray) -> float:
  """The NLL of one document alone, in a sequence of its own."""
  model = tiny_model()
  params = network.init_params(model, vocab_size, jax.random.key(0))
  batch = packing.empty_sequences(jax.device_count(), 64)
  size = len(ids)
  batch['decoder_input_tokens'][0, :size] = [store.bos_id, *ids[:-1]]
  batch['decoder_target_tokens'][0, :size] = ids
  batch['decoder_positions'][0, :size] = np.arange(size)
  batch['decoder_segment_ids'][0, :size] = 1
  with partitioning.use_mesh(mesh_lib.make_mesh(MeshConfig())):
    batch = jax.tree.map(jnp.asarray, batch)
    nll = network.batch_statistics(model, params, batch)['nll']
  return float(np.asarray(nll, np.float64)[0, :size].sum())


def test_models_of_other_vocabulary_sizes_score_in_one_pass(
  corpus, home, scored, tmp_path
):
  """Each over all ids that it has, padding too."""
  for name in ('token_store', 'vocabulary'):
    (tmp_path / name).symlink_to(scored[0] / name)
  made = edits(corpus, str(home / 'padded.safetensors'))
  exact = base.checkpoint(str(home / 'exact.safetensors'))
  made.reference.extra_models = dict(exact=exact)
  run(made, tmp_path, 'score')
  store = TokenStore.open(str(tmp_path))
  table = tables.read_table(scores_dir(str(tmp_path)))
  short = table.filter(pc.less_equal(table['num_tokens'], 64)).to_pylist()[:6]
  assert len(short) == 6
  for row in short:
    ids = store.document(row['shard'], row['doc_index'])
    for column, more in (('nll_sum', PADDING), ('nll_sum_exact', 0)):
      expected = plain_nll(store.vocab_size + more, store, ids)
      assert row[column] == pytest.approx(expected, rel=1e-5), column


def test_loss_leaves_the_losses_alone(scored, corpus, home, tmp_path, capsys):
  workdir, _ = scored
  made = edits(corpus, str(home / 'padded.safetensors'))
  # In whichever split a document would be.
  made.corpus.update(reference_fraction=0.3, heldout_fraction=0.3)
  run(made, tmp_path, 'loss')
  assert [path.name for path in tmp_path.iterdir()] == ['loss.json']
  found = json.loads((tmp_path / 'loss.json').read_text())
  manifest = manifests.read_manifest(scores_dir(str(workdir)), 'score')
  for section in ('all', 'sources'):
    assert found[section] == manifest['losses'][section]
  assert '1-2 ' in capsys.readouterr().out


def test_losses_of_the_first_tokens_alone(scored, corpus, home, tmp_path):
  made = edits(corpus, str(home / 'padded.safetensors'))
  made.score.max_document_tokens = 20
  run(made, tmp_path, 'loss')
  figures = json.loads((tmp_path / 'loss.json').read_text())['all']
  workdir, _ = scored
  table = tables.read_table(scores_dir(str(workdir)))
  tokens = table['num_tokens'].to_numpy()
  assert figures['tokens'] == np.minimum(tokens, 20).sum() < tokens.sum()
  parts = np.minimum(tokens, 20) / tokens * table['num_bytes'].to_numpy()
  assert figures['bytes'] == np.rint(parts).sum()


def test_loss_goes_on_where_it_was_killed(
  corpus, home, tmp_path, monkeypatch, caplog
):
  made = edits(corpus, str(home / 'padded.safetensors'))

  def fail(*_):
    raise KeyboardInterrupt

  with monkeypatch.context() as patched:
    patched.setattr(stage, 'write', fail)
    with pytest.raises(KeyboardInterrupt):
      run(made, tmp_path, 'loss')
  assert not (tmp_path / 'loss.json').exists()
  with caplog.at_level('INFO', logger='infoprune_jax'):
    run(made, tmp_path, 'loss')
    assert 'tokenize: finished before' in caplog.text
    run(made, tmp_path, 'loss')
  assert 'loss: finished before' in caplog.text
  caplog.clear()
  made.score.window_overlap = 8
  run(made, tmp_path, 'loss')
  assert 'finished before' not in caplog.text
  done = json.loads((tmp_path / 'loss.json').read_text())
  assert done['made_from']['score']['window_overlap'] == 8


@pytest.mark.parametrize(
  'job, said',
  [
    (None, 'leaves no text to train a reference model on: name a model in'),
    ('score', 'leaves no text to train a reference model on'),
    ('tokenize', 'leaves no text to train a vocabulary on'),
    ('loss', '--job=loss takes a model that is trained'),
    ('train', '--job=train needs held-out text'),
    ('report', '--job=report needs held-out text'),
  ],
)
def test_a_job_without_a_model_or_text_is_refused(corpus, tmp_path, job, said):
  with pytest.raises(UserError, match=said):
    run(edits(corpus), tmp_path / 'w', job)
  assert not (tmp_path / 'w').exists()


@pytest.mark.parametrize('job', ['score', 'loss', None])
def test_a_tokenizer_of_more_ids_than_the_model_is_refused(
  corpus, home, tmp_path, job
):
  made = edits(corpus, str(home / 'short.safetensors'))
  with pytest.raises(
    UserError, match=r'vocabulary here has 321 ids.* only 320'
  ):
    run(made, tmp_path / 'w', job)
  assert not (tmp_path / 'w').exists()


def test_a_tokenizer_of_another_model_is_refused(corpus, home, tmp_path):
  made = edits(corpus, str(home / 'padded.safetensors'))
  made.vocabulary.update(path=str(home / 'hf'), bos_id=0)
  with pytest.raises(UserError, match='was trained with the vocabulary'):
    run(made, tmp_path / 'w', 'score')


def test_a_model_that_is_not_there_is_refused(corpus, tmp_path):
  made = edits(corpus, str(tmp_path / 'nowhere'))
  with pytest.raises(UserError, match=r'there is no .*nowhere'):
    run(made, tmp_path / 'w')
  assert not (tmp_path / 'w').exists()
