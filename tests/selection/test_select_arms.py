"""Arms without a number for some examples, and arms that are refused."""

import json
import pathlib

import numpy as np
import pytest
from ml_collections import ConfigDict
from selected_arms import mask, opened, run, shown, times

from configs import base
from infoprune_jax.config import experiment as config_lib
from infoprune_jax.config.validation import UserError
from infoprune_jax.export import job as export_job
from infoprune_jax.report.selection import findings, inputs
from infoprune_jax.selection import select
from infoprune_jax.tokens.token_store import TokenStore

BY_SOURCE = "CASE WHEN source = 'web' THEN nll_sum END"


def arms_alone(experiment, **arms) -> ConfigDict:
  """A config of these arms and no other, of one seed."""
  edits = experiment.copy_and_resolve_references()
  edits.select.arms = ConfigDict(
    {'random': base.arm('random', fraction=0.5), **arms}, sort_keys=False
  )
  edits.report.baseline = 'random'
  edits.train.seeds = (0,)
  return edits


def test_arms_without_a_number_for_some_examples(experiment, workdir):
  """The stages after, too: reports, and exports of what is kept."""
  lowest = {'missing': 'lowest'}
  edits = arms_alone(
    experiment,
    top=base.arm('top', BY_SOURCE, fraction=0.2, **lowest),
    most=base.arm('top', BY_SOURCE, fraction=0.9, per='source', **lowest),
    bottom=base.arm('bottom', f'rank({BY_SOURCE})', fraction=0.2, **lowest),
    band=base.arm('band', BY_SOURCE, low=0.2, high=0.9, **lowest),
    bound=base.arm('threshold', BY_SOURCE, high=1e9, **lowest),
    first=base.arm('distinct', BY_SOURCE, **lowest),
    drawn=base.arm('sample', BY_SOURCE, fraction=0.2, **lowest),
  )
  made = config_lib.from_mapping(edits)
  select.run(made, workdir)
  store = TokenStore.open(workdir)
  sources = np.concatenate(
    [
      store.shard(shard).table('source')['source'].to_pylist()
      for shard in range(store.num_shards)
    ]
  )
  for name, held in (('top', {'web'}), ('drawn-seed-0', {'web'})):
    assert set(sources[mask(opened(workdir, name))]) == held
  assert 'web' not in sources[mask(opened(workdir, 'bottom'))]
  assert shown(workdir, 'bound')['kept'] == shown(workdir, 'bound')['total']
  for name in ('top', 'bottom'):
    found = shown(workdir, name)
    assert {row['score'] for row in found['least']} == {None}
    assert all(row['score'] is not None for row in found['most'])
  selected = inputs.open_selected(made, workdir)
  found = findings.gather(made, workdir, selected)
  json.dumps(found, allow_nan=False)
  assert np.isfinite(found['correlations']['spearman'][-1][-1])
  export_job.run(made, workdir)
  assert len(list(pathlib.Path(workdir).glob('export/*/*/manifest.json'))) > 7


@pytest.mark.parametrize(
  'keep, score, reason',
  [
    ('top', "COLUMNS('.*nll_sum') / num_tokens", 'it gives 2 values'),
    ('top', 'nll_sum / 0', 'no finite number'),
    ('top', 'CAST(example_id AS INT) / CAST(source AS INT)', 'Conversion'),
    ('threshold', 'nll_sum', 'keep no example'),
  ],
)
def test_a_refused_arm_leaves_nothing_behind(
  experiment, workdir, keep, score, reason
):
  """Nor do sound arms before it; with a sound score the same arm runs."""
  before = times(workdir, '.')
  fields = {'low': 1e9} if keep == 'threshold' else {'fraction': 0.5}
  edits = arms_alone(experiment, mine=base.arm(keep, score, **fields))
  with pytest.raises(UserError, match=rf'In select\.arms\.mine: .*{reason}'):
    select.run(config_lib.from_mapping(edits), workdir)
  assert times(workdir, '.') == before
  assert not (pathlib.Path(workdir) / 'keep_sets').exists()
  edits = arms_alone(
    experiment, mine=base.arm('top', 'nll_sum / num_tokens', fraction=0.5)
  )
  select.run(config_lib.from_mapping(edits), workdir)
  assert mask(opened(workdir, 'mine')).any()


def test_a_refused_arm_leaves_what_was_finished(experiment, workdir):
  run(experiment, workdir)
  before = times(workdir)
  with pytest.raises(UserError, match=r'In select\.arms\.mine: '):
    run(experiment, workdir, mine=base.arm('top', 'NULL', fraction=0.5))
  assert times(workdir) == before
