"""What arms keep as tables."""

import numpy as np
import pytest

from infoprune_jax.report import selection_tables as tables


def summary_of(
  kept: dict[str, int], added: dict[str, int] | None = None
) -> dict:
  tokens = {'web': 60, 'books': 40}
  return {
    'sources': [
      {'source': name, 'tokens': tokens[name], 'kept_tokens': kept[name]}
      for name in tokens
    ],
    **({'added': {'sources': added}} if added else {}),
  }


def test_mix_by_hand():
  found = tables.mix(
    {
      'full': [summary_of({'web': 60, 'books': 40})],
      'top': [summary_of({'web': 10, 'books': 40})],
      'random': [
        summary_of({'web': 40, 'books': 10}),
        summary_of({'web': 20, 'books': 30}),
      ],
      'everything': [
        summary_of({'web': 60, 'books': 40}, {'web': 100, 'other': 50})
      ],
    }
  )
  # The largest moves first, then by name.
  books, web, other = found['sources']
  assert [s['source'] for s in (books, web, other)] == ['books', 'web', 'other']
  assert web['share'] == 0.6 and other['share'] == 0.0
  assert web['arms'] == {
    'full': 0.6,
    'top': 0.2,
    'random': 0.6,
    'everything': 0.64,
  }
  assert web['shift'] == pytest.approx(0.4)
  assert found['moved'] == pytest.approx(
    {'full': 0.0, 'top': 0.4, 'random': 0.0, 'everything': 0.24}
  )
