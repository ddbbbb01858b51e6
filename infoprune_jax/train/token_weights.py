"""The arms whose loss counts some tokens only, see `train.token_weights`."""

from typing import Any

from infoprune_jax.config.experiment import Config
from infoprune_jax.runtime.options import Defaulted
from infoprune_jax.runtime.workdir import scores_dir
from infoprune_jax.tokens.token_excess import CountedTokens
from infoprune_jax.tokens.token_store import TokenStore

_ALL = 1.0  # the fraction of arms that are not named


def options(config: Config, arm: str) -> dict[str, Any]:
  """The options of an arm's run that decide which tokens count."""
  fraction = config.train.token_weights.get(arm, _ALL)
  return {'token_weights': Defaulted(fraction, _ALL, fraction == _ALL)}


def made_from(config: Config, workdir: str, arm: str) -> dict[str, str]:
  """The paths of what the weights of an arm are made from, by input name."""
  fraction = config.train.token_weights.get(arm, _ALL)
  return {} if fraction == _ALL else {'scores': scores_dir(workdir)}


def open_counted(
  config: Config, workdir: str, store: TokenStore, arm: str
) -> CountedTokens | None:
  """The tokens that count in the loss of an arm; None for all.

  Raises:
    UserError: as `CountedTokens.open`.
  """
  if not made_from(config, workdir, arm):
    return None
  fraction = config.train.token_weights[arm]
  return CountedTokens.open(workdir, store, fraction)
