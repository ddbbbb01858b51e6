"""Text that a corpus has several times. Standard library only."""

import dataclasses

from infoprune_jax.config.validation import check_range


@dataclasses.dataclass(frozen=True, kw_only=True)
class DuplicatedTextConfig:
  """Windows of tokens that examples have in common.

  If a rule names them, an example gets the columns `duplicated_tokens`: how many
  of its tokens lie in a window that occurs elsewhere, too; and
  `repeated_tokens`: in a window that has occurred before.
  """

  window: int = 50  # tokens, as in arXiv 2107.06499

  def __post_init__(self):
    check_range('select.duplicated_text.window', self.window, 1, 100_000)
