"""What arms keep as tables."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from infoprune_jax.report.selection import tables


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
  mix = tables.mix(
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
  books, web, other = mix['sources']
  assert [s['source'] for s in (books, web, other)] == ['books', 'web', 'other']
  assert web['fraction'] == 0.6 and other['fraction'] == 0.0
  assert web['arms'] == {
    'full': 0.6,
    'top': 0.2,
    'random': 0.6,
    'everything': 0.64,
  }
  assert web['shift'] == pytest.approx(0.4)
  assert mix['total_variation'] == pytest.approx(
    {'full': 0.0, 'top': 0.4, 'random': 0.2, 'everything': 0.24}
  )


NAMES = ('a', 'b', 'c', 'd')


@st.composite
def summaries(draw: st.DrawFn) -> dict[str, list[dict]]:
  """Of three arms, of which one draws twice: deciles 0, 4 and 9 of sources."""
  deciles = (0, 4, 9)
  there = draw(
    st.lists(
      st.lists(st.integers(0, 50), min_size=3, max_size=3),
      min_size=len(NAMES),
      max_size=len(NAMES),
    )
  )

  def one() -> dict:
    rows = []
    for name, tokens in zip(NAMES, there, strict=True):
      kept = [draw(st.integers(0, most)) for most in tokens]
      by_decile = np.zeros((2, 10), int)
      by_decile[:, deciles] = tokens, kept
      rows.append(
        {
          'source': name,
          'tokens_by_decile': by_decile[0].tolist(),
          'kept_tokens_by_decile': by_decile[1].tolist(),
          **dict.fromkeys(('examples', 'tokens', 'bytes'), sum(tokens)),
          'kept_tokens': sum(kept),
        }
      )
    return {'sources': rows, 'deciles': [{'decile': d} for d in deciles]}

  return {'full': [one()], 'top': [one()], 'random': [one(), one()]}


KIND_OF = {'a': 'even', 'b': 'other', 'c': 'even', 'd': 'odd'}


@given(made=summaries())
@settings(max_examples=30, deadline=None)
def test_kinds_add_up_to_sources(made):
  mixed = tables.mix(made)
  rows = tables.by_kind(made, mixed, KIND_OF)
  assert {row['kind'] for row in rows} == set(KIND_OF.values())
  assert [row['tokens'] for row in rows] == sorted(
    (row['tokens'] for row in rows), reverse=True
  )
  assert sum(row['sources'] for row in rows) == len(NAMES)
  first = made['full'][0]['sources']
  total = sum(row['tokens'] for row in first)
  assert sum(row['tokens'] for row in rows) == total
  assert sum(row['fraction'] for row in rows) == pytest.approx(float(total > 0))
  for arm, items in made.items():
    kept = [
      np.mean([item['sources'][n]['kept_tokens'] for item in items])
      for n in range(len(NAMES))
    ]
    of_kinds = sum(row['arms'][arm] * row['tokens'] for row in rows)
    assert of_kinds == pytest.approx(sum(kept))
    assert sum(row['mix'][arm] for row in rows) == pytest.approx(
      float(sum(kept) > 0)
    )
    [odd] = [row for row in rows if row['kind'] == 'odd']
    assert odd['arms'][arm] * odd['tokens'] == pytest.approx(kept[3])


@given(made=summaries())
@settings(max_examples=30, deadline=None)
def test_heat_adds_up_to_what_is_thrown_away(made):
  heat = tables.heat(made, KIND_OF)
  deciles = [row['decile'] for row in made['full'][0]['deciles']]
  for arm, items in made.items():
    for level, names in (('sources', NAMES), ('kinds', KIND_OF.values())):
      rows = heat[arm][level]
      assert {row['name'] for row in rows} == set(names)
      assert [row['thrown'] for row in rows] == sorted(
        (row['thrown'] for row in rows), reverse=True
      )
    for row in heat[arm]['sources']:
      n = NAMES.index(row['name'])
      there, *kept = (
        np.array(item['sources'][n][key])[deciles]
        for item, key in [
          (items[0], 'tokens_by_decile'),
          *((item, 'kept_tokens_by_decile') for item in items),
        ]
      )
      assert [value is None for value in row['deciles']] == (
        there == 0
      ).tolist()
      thrown = sum(
        (fraction or 0.0) * tokens
        for fraction, tokens in zip(row['deciles'], there, strict=True)
      )
      assert thrown == pytest.approx(there.sum() - np.mean(kept, 0).sum())


def test_heat_is_of_the_largest_sources(monkeypatch):
  monkeypatch.setattr(tables, 'MAX_HEAT', 2)
  rows = [
    {
      'source': name,
      'tokens_by_decile': [tokens] + [0] * 9,
      'kept_tokens_by_decile': [0] * 10,
    }
    for name, tokens in (('a', 5), ('b', 1), ('c', 7))
  ]
  made = {'top': [{'sources': rows, 'deciles': [{'decile': 0}]}]}
  heat = tables.heat(made, {})
  assert {row['name'] for row in heat['top']['sources']} == {'a', 'c'}
  assert heat['top']['kinds'] == []
