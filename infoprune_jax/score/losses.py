"""The losses of a corpus by source and by position, summed shard by shard.

The position of a token is that in its document, in buckets of 1-2, 3-4, 5-8 and
so on. Losses per token compare models with one vocabulary, bits per byte compare
all models.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TypedDict

import numpy as np

from infoprune_jax.statistics import statistics

ALL = 'all sources'
MAX_LISTED = 50  # sources in the printed table


class Sums(TypedDict):
  """Sums over the documents of one source, in a shard or in a corpus."""

  documents: int
  bytes: int
  tokens: list[int]  # by bucket of positions
  nll: dict[str, list[float]]  # nats by bucket of positions, by column


class Losses(TypedDict):
  """The losses of one model on a source."""

  nats_per_token: float
  perplexity: float  # per token
  bits_per_byte: float
  nats_per_token_by_position: dict[str, float]


class Figures(TypedDict):
  """The sizes of one source, and the losses of each model on it."""

  documents: int
  tokens: int
  bytes: int
  tokens_by_position: dict[str, int]
  losses: dict[str, Losses]  # by column of the score table


class Summary(TypedDict):
  """The figures of all sources together, and of each source."""

  all: Figures
  sources: dict[str, Figures]


def position_counts(num_tokens: np.ndarray) -> np.ndarray:
  """The number of tokens of each document in each bucket of positions.

  Args:
    num_tokens: [documents] int.

  Returns:
    [documents, buckets] int64. The longest document ends in the last bucket.

  >>> position_counts(np.array([5, 0, 3])).tolist()
  [[2, 2, 1], [0, 0, 0], [2, 1, 0]]
  """
  longest = int(num_tokens.max(initial=1))
  ends = 2 ** np.arange(1, max((longest - 1).bit_length(), 1) + 1)
  starts = np.concatenate([[0], ends[:-1]])
  return np.clip(num_tokens[:, None] - starts, 0, ends - starts)


def by_position(
  num_tokens: np.ndarray, nll: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """The tokens of each document and their NLL, by bucket of positions.

  Args:
    num_tokens: [documents] int.
    nll: [models, tokens] float32, for the tokens of all documents in order.

  Returns:
    The result of `position_counts`, [documents, buckets] int64; and the sums of
    NLL, [models, documents, buckets] float64.
  """
  counts = position_counts(num_tokens)
  sums = [statistics.sums_by_document(x, counts.ravel()) for x in nll]
  return counts, np.stack(sums).reshape(len(sums), *counts.shape)


def by_source(
  source: np.ndarray,
  num_bytes: np.ndarray,
  tokens: np.ndarray,
  nll: Mapping[str, np.ndarray],
) -> dict[str, Sums]:
  """Sums over the documents of each source.

  Args:
    source: [documents] str.
    num_bytes: [documents] int.
    tokens: [documents, buckets] int, from `position_counts`.
    nll: [documents, buckets] float64 in nats, by column.
  """
  return {
    str(name): Sums(
      documents=int(here.sum()),
      bytes=int(num_bytes[here].sum()),
      tokens=tokens[here].sum(0).tolist(),
      nll={column: sums[here].sum(0).tolist() for column, sums in nll.items()},
    )
    for name in np.unique(source)
    for here in [source == name]
  }


def total(of_shards: Iterable[Mapping[str, Sums]]) -> dict[str, Sums]:
  """The sums of each source over shards."""
  merged: dict[str, Sums] = {}
  for of_shard in of_shards:
    for name, sums in of_shard.items():
      merged[name] = _added([merged[name], sums]) if name in merged else sums
  return merged


def _added(parts: Sequence[Sums]) -> Sums:
  def by_bucket(lists: Iterable[list]) -> list:
    return [sum(each) for each in itertools.zip_longest(*lists, fillvalue=0)]

  return Sums(
    documents=sum(part['documents'] for part in parts),
    bytes=sum(part['bytes'] for part in parts),
    tokens=by_bucket(part['tokens'] for part in parts),
    nll={
      column: by_bucket(part['nll'][column] for part in parts)
      for column in parts[0]['nll']
    },
  )


def summary(sums: Mapping[str, Sums]) -> Summary:
  """The losses of each source, ordered by tokens from the most to the fewest."""
  ordered = sorted(sums.items(), key=lambda item: -sum(item[1]['tokens']))
  return Summary(
    all=_figures(_added([one for _, one in ordered])),
    sources={name: _figures(one) for name, one in ordered},
  )


def _figures(sums: Sums) -> Figures:
  return Figures(
    documents=sums['documents'],
    tokens=sum(sums['tokens']),
    bytes=sums['bytes'],
    tokens_by_position={
      _bucket(number): count for number, count in enumerate(sums['tokens'])
    },
    losses={
      column: _losses(nll, sums['tokens'], sums['bytes'])
      for column, nll in sums['nll'].items()
    },
  )


def _losses(
  nll: Sequence[float], tokens: Sequence[int], num_bytes: int
) -> Losses:
  mean = sum(nll) / max(sum(tokens), 1)
  return Losses(
    nats_per_token=mean,
    perplexity=math.exp(min(mean, 700.0)),  # A float64 holds no more.
    bits_per_byte=sum(nll) / math.log(2) / max(num_bytes, 1),
    nats_per_token_by_position={
      _bucket(number): one / count
      for number, (one, count) in enumerate(zip(nll, tokens, strict=True))
      if count
    },
  )


def _bucket(number: int) -> str:
  """The positions in a bucket, from 1 on: '1-2', '3-4', '5-8'."""
  first = 2**number + 1 if number else 1
  return f'{first}-{2 ** (number + 1)}'


def text(figures: Summary) -> str:
  """A printed table of the losses of each source, for each column of NLL."""
  sources = list(figures['sources'].items())
  listed = [*sources[:MAX_LISTED], (ALL, figures['all'])]
  width = max(len(name) for name, _ in [*listed, ('source', None)])
  lines = []
  for column in figures['all']['losses']:
    lines.append(
      f'{"source":{width}}  {"documents":>10} {"tokens":>13} {"bytes":>14} '
      f'{"nats/token":>10} {"perplexity":>10} {"bits/byte":>9}'
      + (f'  ({column})' if len(figures['all']['losses']) > 1 else '')
    )
    for name, one in listed:
      loss = one['losses'][column]
      lines.append(
        f'{name:{width}}  {one["documents"]:>10,} {one["tokens"]:>13,} '
        f'{one["bytes"]:>14,} {loss["nats_per_token"]:>10.4f} '
        f'{loss["perplexity"]:>10.5g} {loss["bits_per_byte"]:>9.4f}'
      )
  if len(sources) > MAX_LISTED:
    lines.append(f'({len(sources) - MAX_LISTED} more sources are not listed.)')
  return '\n'.join(lines)


def text_by_position(figures: Summary) -> str:
  """A printed table of the nats per token of all sources, by position."""
  one = figures['all']
  columns = list(one['losses'])
  lines = [
    f'{"position":>17} {"tokens":>13}  nats/token of {", ".join(columns)}'
  ]
  for bucket, count in one['tokens_by_position'].items():
    losses = [
      one['losses'][column]['nats_per_token_by_position'][bucket]
      for column in columns
    ]
    cells = ' '.join(f'{loss:10.4f}' for loss in losses)
    lines.append(f'{bucket:>17} {count:>13,}  {cells}')
  return '\n'.join(lines)
