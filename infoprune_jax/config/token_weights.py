"""The checks of `train.token_weights`. Standard library only."""

from collections.abc import Mapping, Sequence

from infoprune_jax.config.arms import SelectConfig
from infoprune_jax.config.scoring import ScoringConfig
from infoprune_jax.config.validation import UserError, check_choice


def check(
  token_weights: Mapping[str, float],
  select: SelectConfig,
  score: ScoringConfig,
  extra_models: Sequence[str],
  reader: str,
) -> None:
  """Raises `UserError` unless these sections of a config fit each other."""
  if score.token_excess and not extra_models:
    raise UserError(
      f'score.token_excess is {score.token_excess!r}, but '
      'reference.extra_models is empty: name the model there.'
    )
  if score.token_excess:
    check_choice('score.token_excess', score.token_excess, (*extra_models,))
  for arm, fraction in token_weights.items():
    where = f'train.token_weights.{arm}'
    check_choice('An arm of train.token_weights', arm, (*select.arms,))
    if not 0.0 < fraction <= 1.0:
      raise UserError(
        f'{where} must be in (0, 1], got {fraction}: it is the fraction of '
        'scored tokens that count in the loss.'
      )
    if not score.token_excess:
      raise UserError(
        f'{where} is {fraction}, but no second model scores the tokens: add '
        'one, such as reference.extra_models.early = base.checkpoint(step=500), '
        "and set score.token_excess = 'early'."
      )
    if any(rule.keep == 'all_plus_reference' for rule in select.arms[arm]):
      raise UserError(
        f"{where} is {fraction}, but keep='all_plus_reference' adds documents "
        "that are not scored: use keep='all', or leave out the weights."
      )
    parents = {branch.arm for branch in select.branches.values()}
    if arm in select.branches or arm in parents:
      raise UserError(
        f'{where} is {fraction}, but {arm} has several phases, or another arm '
        'starts from its run: give the weights to an arm of one phase, or leave '
        'them out.'
      )
    if reader == 'seqio':
      raise UserError(
        f"{where} is {fraction}, but training.reader='seqio' knows no weights "
        "of tokens: use reader='grain', or leave out the weights."
      )
