"""Duplicated text in rules: its table is needed, and is named in the lineage."""

import shutil

import pytest

from configs import base
from infoprune_jax import stages
from infoprune_jax.config import experiment as config_lib
from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime import files, manifests
from infoprune_jax.selection import select
from infoprune_jax.selection.examples import scored_examples
from infoprune_jax.statistics import duplicated_text
from infoprune_jax.tokens.token_store import TokenStore


def test_a_rule_drops_texts_that_repeat_others(experiment, scored, tmp_path):
  workdir = shutil.copytree(scored, str(tmp_path / 'work'))
  edits = experiment.copy_and_resolve_references()
  edits.train.seeds = (0,)
  edits.select.duplicated_text.window = 6
  edits.select.arms.own_text = base.arm('threshold', 'repeated_tokens', high=0)
  config = config_lib.from_mapping(edits)
  with pytest.raises(UserError, match='--job=duplicated_text'):
    select.run(config, workdir)
  duplicated_text.run(config, workdir)
  stages.STAGES['sweep'].run(config, workdir)
  rows = scored_examples(workdir, TokenStore.open(workdir)).table.to_pylist()
  kept = [row for row in rows if row['repeated_tokens'] == 0]
  assert 0 < len(kept) < len(rows)
  report = files.read_json(f'{workdir}/selection_report/selections.json')
  arm = next(arm for arm in report['arms'] if arm['name'] == 'own_text')
  assert arm['kept']['examples'] == len(kept)
  made_from = manifests.read_manifest(f'{workdir}/keep_sets/own_text', 'x')
  table = manifests.read_manifest(f'{workdir}/duplicated_text', 'x')
  assert made_from and table
  assert made_from['inputs']['duplicated_text'] == table['fingerprint']
  # With another window, what was made from the table is stale, too.
  edits.select.duplicated_text.window = 7
  config = config_lib.from_mapping(edits)
  for job in (duplicated_text.JOB, 'select'):
    state = stages.state(job, config, workdir)
    assert state.kind == 'stale'
    assert 'select.duplicated_text: window 6 -> 7' in state.reason
