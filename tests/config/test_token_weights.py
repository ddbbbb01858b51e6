"""Token weights that do not fit the rest of a config are refused."""

import pytest
from plain_configs import plain

from infoprune_jax.config import experiment as config_lib
from infoprune_jax.config.validation import UserError


def config(**changes):
  """A config with an arm of weighted tokens, and changes to it."""
  made = plain()
  models = changes.get('extra_models', ('early',))
  made['reference']['extra_models'] = {name: {'step': 250} for name in models}
  made['score']['token_excess'] = changes.get('token_excess', 'early')
  made['train']['token_weights'] = {
    changes.get('arm', 'full'): changes.get('fraction', 0.6)
  }
  made['select']['arms']['full'][0]['keep'] = changes.get('keep', 'all')
  made['train']['training']['reader'] = changes.get('reader', 'grain')
  return made


@pytest.mark.parametrize('fraction', [0.6, 1.0, 1])
def test_a_fraction_of_tokens(fraction):
  loaded = config_lib.from_mapping(config(fraction=fraction))
  assert loaded.train.token_weights == {'full': fraction}


@pytest.mark.parametrize(
  'changes, message',
  [
    (dict(fraction=0.0), r'weights\.full must be in \(0, 1\], got 0\.0'),
    (dict(fraction=1.5), r'must be in \(0, 1\], got 1\.5'),
    (dict(fraction=float('nan')), 'got nan'),
    (dict(token_excess=''), "no second model .*token_excess = 'early'"),
    (dict(token_excess='erly'), "score.token_excess .* mean 'early'"),
    (dict(extra_models=()), "is 'early', but reference.extra_models is empty"),
    (dict(arm='ful'), "arm of train.token_weights .* mean 'full'"),
    (dict(keep='all_plus_reference'), 'documents that are not scored'),
    (dict(reader='seqio'), "reader='seqio' knows no weights"),
  ],
)
def test_what_does_not_fit_is_refused(changes, message):
  with pytest.raises(UserError, match=message):
    config_lib.from_mapping(config(**changes))


def test_every_heldout_token_counts():
  made = config()
  made['evaluate']['scoring']['token_excess'] = 'early'
  with pytest.raises(UserError, match=r'evaluate\.scoring\.token_excess is'):
    config_lib.from_mapping(made)


def test_every_token_of_a_document_has_a_score():
  made = config()
  made['score']['max_document_tokens'] = 64
  with pytest.raises(UserError, match='token_excess needs every token'):
    config_lib.from_mapping(made)


@pytest.mark.parametrize('weighted', ['full', 'late'])
def test_runs_that_share_steps_have_no_weights(weighted):
  """Neither the run that another starts from, nor the one that starts there."""
  made = config(arm=weighted)
  rules = made['select']['arms']['full']
  made['select']['arms']['late'] = rules
  made['select']['branches'] = {'late': {'arm': 'full', 'at': 0.5}}
  with pytest.raises(UserError, match=f'{weighted} has several phases, or'):
    config_lib.from_mapping(made)


def test_the_baseline_at_other_budgets_has_no_weights():
  made = config()
  made['report']['baseline'] = 'full'
  made['train']['training']['schedule'] = 'wsd'
  made['train']['budgets'] = (0.7, 1.0, 1.4)
  with pytest.raises(UserError, match='no token weights'):
    config_lib.from_mapping(made)
