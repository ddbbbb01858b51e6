"""Values of examples that are computed where the examples are."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np


class Computed:
  """A value of some examples, computed when it is first asked for.

  It pickles as a function and its arguments: a worker computes the value of the
  examples that it has.
  """

  def __init__(self, function: Callable[..., Any], *arguments: Any):
    """A call that is still to be made.

    Args:
      function: A module-level function.
      *arguments: Its arguments; values of the same examples may be `Computed`.
    """
    self._call: Any = function, arguments
    self._value: Any = None

  def of(self, examples: Any) -> Any:
    """The value of these examples, which are the same in each call."""
    if self._call:
      function, arguments = self._call
      self._value = function(*evaluate(arguments, examples))
      self._call = None  # Arguments that nothing else reads are given back.
    return self._value


class _Here(Computed):
  """The examples themselves."""

  def __init__(self):
    """Calls nothing."""
    super().__init__(lambda: None)

  def of(self, examples: Any) -> Any:
    return examples

  def __reduce__(self) -> str:
    return 'HERE'


HERE = _Here()  # As an argument it stands for the examples.
Column = np.ndarray | Computed  # [examples]


def evaluate(arguments: Iterable[Any], examples: Any) -> list[Any]:
  """The arguments, each `Computed` replaced by its value."""
  return [a.of(examples) if isinstance(a, Computed) else a for a in arguments]
