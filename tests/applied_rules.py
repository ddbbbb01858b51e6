"""Rules from their fields, and which examples they keep."""

import numpy as np

from configs import base
from infoprune_jax.config.selection import RuleConfig
from infoprune_jax.selection import rules
from infoprune_jax.selection.examples import ExampleTable


def rule(keep: str, score: str = '', **fields) -> RuleConfig:
  return RuleConfig(**base.arm(keep, score, **fields))


def kept_by(chosen, examples: ExampleTable, draw: int = 0) -> set[int]:
  chosen = (chosen,) if isinstance(chosen, RuleConfig) else chosen
  return set(np.flatnonzero(rules.apply(chosen, examples, draw)).tolist())
