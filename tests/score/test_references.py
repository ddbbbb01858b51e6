"""Models that score: any step, of any run, out of a file, several at once."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import changed_artifacts
import numpy as np
import pytest
from ml_collections import ConfigDict
from small_corpus import small_config

from configs import base
from infoprune_jax import stages
from infoprune_jax.config import experiment as config_lib
from infoprune_jax.config.experiment import Config
from infoprune_jax.config.validation import UserError
from infoprune_jax.model import mesh as mesh_lib
from infoprune_jax.runtime import files, manifests
from infoprune_jax.runtime.workdir import scores_dir
from infoprune_jax.score import references
from infoprune_jax.selection import expressions
from infoprune_jax.selection.examples import scored_examples
from infoprune_jax.tokens import tables
from infoprune_jax.tokens.token_store import TokenStore
from infoprune_jax.verify import workdir as verify

STEPS = (6, 12)
EARLY = 'nll_sum_early'


def edits(corpus_path: str) -> ConfigDict:
  made = small_config(corpus_path)
  made.reference.training.update(
    num_steps=STEPS[1], checkpoint_every=STEPS[0], max_checkpoints=2
  )
  return made


def built(made: ConfigDict) -> Config:
  return config_lib.from_mapping(made)


def linked(there: str, path: str, *names: str) -> str:
  """A workdir with some of another's artifacts."""
  os.makedirs(path)
  for name in ('token_store', 'vocabulary', *names):
    os.symlink(f'{there}/{name}', f'{path}/{name}')
  return path


def scored(config: Config, workdir: str) -> dict[str, np.ndarray]:
  """The columns of NLL of a table made now."""
  stages.run(config, workdir, 'score')
  made = tables.read_table(scores_dir(workdir))
  return {
    name: made[name].to_numpy()
    for name in made.column_names
    if name.startswith('nll_sum')
  }


@pytest.fixture(scope='module')
def small_run(corpus_path, store_workdir, tmp_path_factory) -> str:
  """A run of a smaller model over the same store."""
  made = edits(corpus_path)
  made.reference.model.update(num_layers=1, embed_dim=16, mlp_dim=32)
  path = linked(store_workdir, str(tmp_path_factory.mktemp('small') / 'w'))
  stages.run(built(made), path, 'reference')
  return f'{path}/reference'


@pytest.fixture(scope='module')
def exported(small_run, tmp_path_factory) -> str:
  """Its parameters, in a file."""
  path = str(tmp_path_factory.mktemp('file') / 'small.safetensors')
  command = [sys.executable, 'tools/export_params.py']
  subprocess.run([*command, f'--run={small_run}', f'--out={path}'], check=True)
  return path


@pytest.fixture(scope='module')
def trained(corpus_path, store_workdir, tmp_path_factory) -> str:
  """A workdir with a reference model of which two steps are kept."""
  path = linked(store_workdir, str(tmp_path_factory.mktemp('trained') / 'w'))
  stages.run(built(edits(corpus_path)), path, 'reference')
  return path


@pytest.fixture(scope='module')
def together(corpus_path, trained, small_run, exported) -> str:
  """A workdir that four models scored in one pass."""
  made = edits(corpus_path)
  made.reference.extra_models = dict(
    early=base.checkpoint(step=STEPS[0]),
    small=base.checkpoint(small_run),
    filed=base.checkpoint(exported),
  )
  stages.run(built(made), trained, 'score')
  return trained


def test_each_column_is_what_its_model_gives_alone(
  corpus_path, trained, together, small_run, tmp_path
):
  found = tables.read_table(scores_dir(together))
  for column, checkpoint in (
    ('nll_sum', base.checkpoint()),
    (EARLY, base.checkpoint(step=STEPS[0])),
    ('nll_sum_small', base.checkpoint(small_run)),
  ):
    made = edits(corpus_path)
    made.reference.checkpoint = checkpoint
    path = linked(trained, str(tmp_path / column), 'reference')
    alone = scored(built(made), path)
    assert list(alone) == ['nll_sum']
    np.testing.assert_array_equal(alone['nll_sum'], found[column].to_numpy())
  assert found['nll_sum_small'].equals(found['nll_sum_filed'])
  assert not np.allclose(found['nll_sum'], found[EARLY])


@pytest.mark.parametrize('column', [EARLY, 'nll_sum_small', 'nll_sum_filed'])
def test_verify_knows_the_further_columns(together, column, tmp_path):
  checked = list(verify.check(together))
  assert f'{together}/scores' in [found.path for found, _ in checked]
  for found, problems in checked:
    assert not problems, (found.path, problems)
  path = linked(together, str(tmp_path / 'w'), 'reference')
  scores = pathlib.Path(path, 'scores')
  shutil.copytree(f'{together}/scores', scores)
  changed_artifacts.rewrite(
    scores, changed_artifacts.with_value(column, 2, float('nan'))
  )
  [problem] = [line for _, problems in verify.check(path) for line in problems]
  assert changed_artifacts.PART in problem
  assert re.search(rf'{column} of doc_index \d+ is nan, and 1 in all', problem)


def test_verify_misses_a_further_column(together, tmp_path):
  path = linked(together, str(tmp_path / 'w'), 'reference')
  scores = pathlib.Path(path, 'scores')
  shutil.copytree(f'{together}/scores', scores)
  changed_artifacts.rewrite(
    scores, lambda sequences: sequences.drop_columns([EARLY])
  )
  problems = [line for _, said in verify.check(path) for line in said]
  assert re.search(rf'has the columns .*, expected .*{EARLY}', problems[0])


def test_excess_loss_is_a_rule(corpus_path, together):
  made = edits(corpus_path)
  stages.run(built(made), together, 'statistics')
  examples = scored_examples(together, TokenStore.open(together))
  excess = expressions.score(examples, f'({EARLY} - nll_sum) / num_tokens')
  nats = examples.table[EARLY].to_numpy() - examples.table['nll_sum'].to_numpy()
  np.testing.assert_allclose(
    excess, nats / examples.table['num_tokens'].to_numpy()
  )
  # Without the model there is no such column, and it is known before any work.
  made.select.arms.excess = base.arm('top', EARLY, fraction=0.5)
  with pytest.raises(UserError, match=r'In select\.arms\.excess: .*nll_sum_ea'):
    stages.check(built(made), 'select')
  made.reference.extra_models.early = base.checkpoint(step=STEPS[0])
  stages.check(built(made), 'select')


def test_statistics_are_columns_of_each_model(corpus_path, together, tmp_path):
  made = edits(corpus_path)
  made.reference.extra_models = dict(early=base.checkpoint(step=STEPS[0]))
  made.score.statistics = ('entropy', 'nll_first_4', 'greedy')
  made.select.arms = dict(calm=base.arm('bottom', 'entropy_sum', fraction=0.5))
  made.report.baseline = 'calm'
  path = linked(together, str(tmp_path / 'w'), 'reference')
  stages.check(built(made), 'select')
  for stage in ('score', 'statistics', 'select'):
    stages.run(built(made), path, stage)
  assert not [line for _, problems in verify.check(path) for line in problems]
  found = tables.read_table(scores_dir(path))
  names = ('nll_sum', 'entropy_sum', 'nll_first_4_sum', 'greedy_sum')
  early = [f'{name}_early' for name in names]
  place = found.column_names.index('nll_sum_early')
  assert found.column_names[place - 3 : place + 4] == [*names[1:], *early]
  alone = tables.read_table(scores_dir(together))
  for name in alone.column_names:
    if name in found.column_names:
      assert found[name].equals(alone[name]), name
  columns = {name: found[name].to_numpy() for name in [*names, *early]}
  tokens = found['num_tokens'].to_numpy()
  assert (columns['nll_first_4_sum'] <= columns['nll_sum']).all()
  hits = columns['greedy_sum']
  assert (hits == hits.round()).all() and (hits <= tokens).all()
  vocab_size = TokenStore.open(path).vocab_size
  assert (columns['entropy_sum'] <= tokens * np.log(vocab_size) + 1e-3).all()
  assert not np.allclose(columns['entropy_sum'], columns['entropy_sum_early'])
  # What is there has no such column, and is not taken for one that has.
  made.score.statistics = ('entropy',)
  with pytest.raises(UserError, match=r'score.*statistics'):
    stages.run(built(made), path, 'score')
  made.score.statistics = ()
  with pytest.raises(UserError, match=r'In select\.arms\.calm: .*entropy_sum'):
    stages.check(built(made), 'select')


def test_training_is_charged_once_a_run(together, small_run):
  scores = manifests.read_manifest(scores_dir(together), 'score')
  own, small = (
    manifests.read_manifest(path, 'reference')
    for path in (f'{together}/reference', small_run)
  )
  # The file is of the same run, but all that is known is its own content.
  spent = own['flops'] + 2 * small['flops']
  assert scores['reference']['flops'] == pytest.approx(spent)
  assert scores['reference']['num_params'] == own['num_params']


def test_scores_of_another_step_are_not_taken_for_these(corpus_path, together):
  made = edits(corpus_path)
  with pytest.raises(UserError, match=r'reference\.checkpoint: .* -> absent'):
    stages.run(built(made), together, 'score')


def test_nothing_is_trained_where_all_models_are_given(
  corpus_path, store_workdir, exported, tmp_path
):
  made = edits(corpus_path)
  made.reference.checkpoint.path = exported
  path = linked(store_workdir, str(tmp_path / 'w'))
  stages.run(built(made), path, 'reference')
  assert not os.path.exists(f'{path}/reference')
  assert np.isfinite(scored(built(made), path)['nll_sum']).all()
  manifest = manifests.read_manifest(scores_dir(path), 'score')
  assert 'reference' not in manifest['inputs']


def test_a_model_from_elsewhere_is_warned_of(
  corpus_path, store_workdir, small_run, caplog
):
  made = edits(corpus_path)
  made.reference.checkpoint.path = small_run
  with caplog.at_level('WARNING', logger='infoprune_jax'):
    references.open_all(
      built(made), store_workdir, TokenStore.open(store_workdir)
    )
  assert 'If it was trained on the documents that it scores' in caplog.text


@pytest.mark.parametrize(
  'path, step, said',
  [
    ('', 7, r'no checkpoint of step 7; it has: \[6, 12\]'),
    (
      'nowhere',
      -1,
      r'nowhere, for nll_sum, is neither a finished run nor a model',
    ),
    (
      'nowhere.safetensors',
      -1,
      'nowhere.safetensors is not a file of parameters',
    ),
    ('text.safetensors', -1, 'text.safetensors is not a file of parameters'),
  ],
)
def test_what_is_not_there_is_refused(
  corpus_path, trained, tmp_path, monkeypatch, path, step, said
):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'text.safetensors').write_text('no header')
  made = edits(corpus_path)
  made.reference.checkpoint = base.checkpoint(path, step)
  workdir = linked(trained, str(tmp_path / 'w'), 'reference')
  with pytest.raises(UserError, match=said):
    stages.run(built(made), workdir, 'score')
  assert not os.path.exists(scores_dir(workdir))


def test_a_run_of_another_version_is_refused(
  corpus_path, trained, small_run, tmp_path
):
  other = str(tmp_path / 'other')
  os.makedirs(other)
  manifest = manifests.read_manifest(small_run, 'reference')
  made = {**manifest, 'format_version': 1}
  del made['vocabulary']
  files.write_record(f'{other}/{manifests.MANIFEST}', made)
  config = edits(corpus_path)
  config.reference.checkpoint.path = other
  with pytest.raises(
    UserError, match=f'{other} has format 1, but this version'
  ):
    stages.check(built(config), 'score')


def test_another_vocabulary_is_refused(corpus_path, trained, exported):
  made = edits(corpus_path)
  made.reference.checkpoint.path = exported
  store = TokenStore.open(trained)
  inputs = {**store.manifest['inputs'], 'vocabulary': 'another'}
  other = TokenStore(store.path, {**store.manifest, 'inputs': inputs})
  with pytest.raises(UserError, match=r'here is another: tokenize with'):
    references.open_all(built(made), trained, other)


def test_a_file_of_other_shapes_is_refused(
  corpus_path, store_workdir, exported, tmp_path
):
  from infoprune_jax.model import parameter_file
  from infoprune_jax.score import scorer

  facts = parameter_file.read_facts(exported)
  made = built(edits(corpus_path))
  mesh = mesh_lib.make_mesh(made.mesh)
  wanted = scorer.abstract_params(made.model, facts['vocab_size'], mesh)
  with pytest.raises(
    UserError, match=r'has embedding of shape \(400, 16\), .*'
  ):
    parameter_file.load(exported, wanted)


@pytest.mark.parametrize(
  'change, said',
  [
    (dict(folds=2), 'gives one model'),
    (dict(extra_models={'Early one': base.checkpoint()}), "'Early one' names"),
  ],
)
def test_contradictions_are_refused(corpus_path, change, said):
  made = edits(corpus_path)
  made.reference.checkpoint.path = 'a'
  made.reference.update(change)
  with pytest.raises(UserError, match=said):
    built(made)


@pytest.mark.parametrize('step', [0, 1000])
def test_a_step_beyond_the_run_is_refused_before_it_starts(corpus_path, step):
  made = edits(corpus_path)
  made.reference.extra_models.early = base.checkpoint(step=step)
  said = f'nll_sum_early is step {step} of the reference run, which takes'
  with pytest.raises(UserError, match=said):
    stages.check(built(made), 'reference')


def test_a_file_has_one_step():
  with pytest.raises(UserError, match='leave it at -1'):
    config_lib.CheckpointConfig(path='a.safetensors', step=3)


def test_export_needs_a_run(tmp_path):
  command = [sys.executable, 'tools/export_params.py', f'--run={tmp_path}']
  for out, said in (
    ('x.npz', 'must end in'),
    ('x.safetensors', 'neither a finished run'),
  ):
    done = subprocess.run(
      [*command, f'--out={tmp_path}/{out}'], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert said in done.stderr and 'Traceback' not in done.stderr
    assert not files.is_local(out) or not os.path.exists(f'{tmp_path}/{out}')
