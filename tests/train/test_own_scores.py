"""An arm whose rules read the scores by the checkpoint that it starts from."""

import shutil

import numpy as np
import pytest
from small_corpus import small_config

from configs import base
from infoprune_jax import costs, dry_run, stages
from infoprune_jax.config import experiment as config_lib
from infoprune_jax.config.experiment import Config
from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime import artifacts, files, manifests
from infoprune_jax.runtime.workdir import (
  keep_set_dir,
  own_scores_dir,
  run_dir,
  scores_dir,
)
from infoprune_jax.score.references import PlannedModel
from infoprune_jax.selection.keep_set import KeepSet
from infoprune_jax.tokens.tables import read_table
from infoprune_jax.tokens.token_store import TokenStore
from infoprune_jax.verify import workdir as verify_workdir

TOP = base.arm('top', base.INFORMATION, fraction=0.5)
ITSELF = base.branch('full', at=0.5, then=TOP, score_with='itself')
# 2 layers: attention 32 x 8 x (2 x 4 + 2 x 2), MLP 3 x 32 x 64; a token sees 32
# of 64 positions on average, 2 x 4 x 8 each; the head has 32 x 400.
PER_TOKEN = 2 * (2 * (3072 + 6144 + 2 * 4 * 8 * 32) + 12_800)


class Killed(Exception):
  """Stands for a kill."""


def edits(corpus_path: str, **arms):
  made = small_config(corpus_path)
  made.select.arms = {'full': base.arm('all'), 'late': ITSELF, **arms}
  made.train.seeds = (0, 1)
  made.report.update(baseline='full', bootstrap_samples=50)
  made.train.training.update(num_steps=4, warmup_steps=1, log_every=1)
  made.reference.training.update(num_steps=2, warmup_steps=1)
  return made


@pytest.fixture(scope='module')
def config(corpus_path) -> Config:
  return config_lib.from_mapping(edits(corpus_path))


@pytest.fixture(scope='module')
def finished(config, tmp_path_factory) -> str:
  """A workdir in which the whole experiment has run."""
  workdir = str(tmp_path_factory.mktemp('own') / 'work')
  stages.run(config, workdir, None)
  return workdir


def fingerprint(path: str) -> str:
  return files.read_json(f'{path}/{manifests.MANIFEST}')['fingerprint']


def test_the_checkpoint_of_each_seed_scores(
  config, finished, corpus_path, tmp_path
):
  """As it does where it is given as the reference model."""
  given = edits(corpus_path)
  given.reference.checkpoint.update(path=run_dir(finished, 'full', 1), step=2)
  (tmp_path / 'token_store').symlink_to(f'{finished}/token_store')
  (tmp_path / 'vocabulary').symlink_to(f'{finished}/vocabulary')
  stages.run(config_lib.from_mapping(given), str(tmp_path), 'score')
  scores = [read_table(own_scores_dir(finished, 'late', s)) for s in (0, 1)]
  assert scores[1].equals(read_table(scores_dir(str(tmp_path))))
  assert not scores[1]['nll_sum'].equals(scores[0]['nll_sum'])


@pytest.mark.parametrize('seed', [0, 1])
def test_the_keep_set_is_that_of_its_own_scores(finished, seed):
  store = TokenStore.open(finished)
  kept = KeepSet.open(finished, f'late-seed-{seed}', store)
  own = read_table(own_scores_dir(finished, 'late', seed))
  columns = ('shard', 'doc_index', 'num_tokens', 'nll_sum')
  shard, doc_index, tokens, nll = (own[name].to_numpy() for name in columns)
  is_kept = np.array(
    [kept.of_shard(s)[n] for s, n in zip(shard, doc_index, strict=True)], bool
  )
  mean = nll / tokens
  assert mean[is_kept].min() >= mean[~is_kept].max()
  assert 0.4 < tokens[is_kept].sum() / tokens.sum() <= 0.5
  run = files.read_json(f'{run_dir(finished, "late", seed)}/manifest.json')
  assert run['inputs']['keep_set'] == kept.manifest['fingerprint']
  assert run['shared_steps'] == 2
  assert 'scores' not in kept.manifest['inputs']


def test_it_pays_for_its_own_scoring_alone(finished):
  report = files.read_json(f'{finished}/report/report.json')
  late = next(arm for arm in report['arms'] if arm['name'] == 'late')
  tables = [
    files.read_json(f'{own_scores_dir(finished, "late", seed)}/manifest.json')
    for seed in (0, 1)
  ]
  # Sequences of 64 tokens, with padding, and windows that overlap.
  sequences = tables[0]['flops'] / (64 * PER_TOKEN)
  assert sequences == int(sequences)
  assert 1.0 <= 64 * sequences / tables[0]['num_tokens'] < 1.5
  scoring = (tables[0]['flops'] + tables[1]['flops']) / 2
  training = 4 * 8 * 64 * 3.0 * PER_TOKEN
  flops = {name: late['flops'][name] for name in ('training', 'reference')}
  assert flops == {'training': training, 'reference': 0.0}
  assert late['flops']['total'] == training + scoring
  assert report['spent']['scoring'] == sum(
    table['flops']
    for table in (
      *tables,
      files.read_json(f'{scores_dir(finished)}/manifest.json'),
    )
  )
  [line] = [one for one in report['cautions'] if 'own checkpoint' in one]
  assert line.startswith('late is scored with its own checkpoint of step 2,')
  assert line.endswith('includes it, and no reference model.')
  assert 'scored by the checkpoint there' in late['rules']


def test_the_dry_run_counts_the_scoring_of_each_seed(config, finished, capsys):
  model = PlannedModel(config.model, 400)
  splits = {'scored': {'documents': 10, 'tokens': 1000}}
  plan = costs.Plan(config, '', 400, {}, model, (), (), (), splits)
  cost = costs.own_scores(plan)
  assert cost.flops == 2 * 1000 * PER_TOKEN == 141_312_000
  assert 'late scores with step 2 of full' in cost.text
  dry_run.run(config, finished)
  assert 'own_scores       finished  ' in capsys.readouterr().out


def test_verify_compares_it_with_its_run(config, finished, tmp_path, capsys):
  stages.run(config, finished, 'verify')
  printed = capsys.readouterr().out
  assert 'ok     own_scores/late/seed-1: score table' in printed
  workdir = str(tmp_path / 'work')
  shutil.copytree(finished, workdir)
  shutil.rmtree(own_scores_dir(workdir, 'late', 0))
  shutil.copytree(
    own_scores_dir(workdir, 'late', 1), own_scores_dir(workdir, 'late', 0)
  )
  problems = {
    status.path: found for status, found in verify_workdir.check(workdir)
  }
  for path, of in (
    (own_scores_dir(workdir, 'late', 0), 'run'),
    (keep_set_dir(workdir, 'late-seed-0'), 'own_scores'),
  ):
    [problem] = problems.pop(path)
    assert problem.startswith(f'{path} was made from {of} ')
    assert '--job=own_scores again' in problem
  assert not any(problems.values())


def test_killed_and_resumed_it_is_the_same(
  config, finished, tmp_path, monkeypatch
):
  workdir = str(tmp_path / 'work')
  shutil.copytree(finished, workdir)
  made = [
    path
    for seed in (0, 1)
    for path in (
      own_scores_dir(workdir, 'late', seed),
      keep_set_dir(workdir, f'late-seed-{seed}'),
      run_dir(workdir, 'late', seed),
    )
  ]
  for path in made:
    shutil.rmtree(path)
  finish_shard = artifacts.Artifact.finish_shard

  def and_die(self, shard, *arguments, **facts):
    if shard:
      raise Killed
    return finish_shard(self, shard, *arguments, **facts)

  monkeypatch.setattr(artifacts.Artifact, 'finish_shard', and_die)
  with pytest.raises(Killed):
    stages.run(config, workdir, None)
  monkeypatch.undo()
  state = str(stages.state('own_scores', config, workdir))
  assert state == 'resumes after 2 of 6, after 1 shards'
  with pytest.raises(UserError, match='late-seed-0 .* --job=own_scores first'):
    stages.run(config, workdir, 'train')
  for job in ('own_scores', 'train'):
    stages.run(config, workdir, job)
  for path in made:
    there = path.replace(workdir, finished)
    assert fingerprint(path) == fingerprint(there)


def test_another_step_makes_its_scores_stale(corpus_path, finished):
  late = base.branch('full', at=0.25, then=TOP, score_with='itself')
  other = config_lib.from_mapping(edits(corpus_path, late=late))
  cause = (
    r'select.arms.late.nll_sum, fold 0: step 2 -> 1 \(own_scores/late/seed'
  )
  for job in (None, 'own_scores'):
    with pytest.raises(UserError, match=cause):
      stages.run(other, finished, job)


def test_changed_rules_make_its_keep_sets_stale_alone(corpus_path, finished):
  half = base.arm('bottom', base.INFORMATION, fraction=0.5)
  late = base.branch('full', at=0.5, then=half, score_with='itself')
  other = config_lib.from_mapping(edits(corpus_path, late=late))
  with pytest.raises(UserError, match='select.arms.late: keep') as error:
    stages.run(other, finished, None)
  assert 'keep_sets/late-seed-0' in str(error.value)
  assert 'own_scores/' not in str(error.value)


@pytest.mark.parametrize(
  'rule, message',
  [
    (base.arm('random', fraction=0.5), 'no rule of it reads a column that a'),
    (base.arm('top', 'num_tokens', fraction=0.5), 'remove score_with'),
    (
      base.arm('top', 'nll_sum_early - nll_sum', fraction=0.5),
      r'arms.late reads nll_sum_early, .* alone \(nll_sum\): use these',
    ),
  ],
)
def test_rules_that_need_another_model_are_refused(
  corpus_path, tmp_path, rule, message
):
  late = base.branch('full', at=0.5, then=rule, score_with='itself')
  made = edits(corpus_path, late=late)
  made.reference.extra_models.early = base.checkpoint(step=1)
  for job in (None, 'own_scores'):
    with pytest.raises(UserError, match=message):
      stages.run(config_lib.from_mapping(made), str(tmp_path / 'run'), job)
  assert not (tmp_path / 'run').exists()
